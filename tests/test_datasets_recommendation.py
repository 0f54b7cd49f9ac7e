"""Recommendation data: atomic files become lists with the next item among items that the user never chose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.errors import DataError, InputError
from r1_rerank.evaluation.datasets import (
    Dropped,
    Interactions,
    read_lastfm,
    read_recbole,
    recommendation_lists,
)

real = pytest.mark.skipif("R1_DATA" not in os.environ, reason="R1_DATA does not name the folder of the real data sets")


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


ITEMS = ("item_id:token\tmovie_title:token_seq\tyear:token", "1\tFish &amp; Chips\t1990", "2\tTea\t1991", "3\t\t1992")


def test_interactions_are_put_in_the_order_of_time(tmp_path):
    inter = write(
        tmp_path / "x.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "u\t2\t5\t200",
        "u\t1\t3\t100",
        "u\t2\t1\t300",
        "u\t3\t1\t50",
    )
    dropped = Dropped()
    data = read_recbole(inter, write(tmp_path / "x.item", *ITEMS), dropped=dropped)
    assert data.sequences == {"u": ["1", "2"]}
    assert data.titles["1"] == "Fish & Chips"
    assert dropped.counts == {
        "an interaction that repeats an earlier one": 1,
        "an interaction with an item that has no title": 1,
    }


def test_a_line_may_hold_a_whole_history(tmp_path):
    inter = write(tmp_path / "x.inter", "user_id:token\titem_id_list:token_seq\titem_id:token", "u\t2\t1")
    assert read_recbole(inter, write(tmp_path / "x.item", *ITEMS)).sequences == {"u": ["2", "1"]}


@pytest.mark.parametrize(
    ("inter", "item", "named"),
    [
        (("user_id:token\tthing:token", "u\t1"), ITEMS, r"x\.inter, line 1: the header lacks item_id"),
        (
            ("user_id:token\titem_id:token\ttimestamp:float", "u\t1\t5", "u\t2\t"),
            ITEMS,
            r"x\.inter, line 3: timestamp: '' is not a finite number",
        ),
        (("user_id:token\titem_id:token", "u"), ITEMS, r"x\.inter, line 2: 1 cells for 2 columns"),
        (("user_id:token\titem_id:token", "u\t1"), ("item_id:token\tname:token", "1\tx"), "ends in title"),
        (("user_id:token\titem_id:token", "u\t1"), (*ITEMS, "1\tAgain\t1"), "line 5: the item '1' stands twice"),
        (("user_id:token\titem_id:token\ttimestamp:float", "u\t1\tsoon"), ITEMS, "line 2: timestamp: 'soon'"),
        ((), ITEMS, r"x\.inter: is empty"),
    ],
)
def test_files_of_another_shape_are_named(tmp_path, inter, item, named):
    with pytest.raises(DataError, match=named):
        read_recbole(write(tmp_path / "x.inter", *inter), write(tmp_path / "x.item", *item))


def test_last_fm_histories_go_by_plays(tmp_path):
    write(tmp_path / "artists.dat", "id\tname\turl\tpictureURL", "1\tA\tu\tp", "2\tB\tu\tp")
    write(tmp_path / "user_artists.dat", "userID\tartistID\tweight", "9\t1\t5", "9\t2\t700")
    assert read_lastfm(tmp_path).sequences == {"9": ["2", "1"]}


# Lists


@st.composite
def interactions(draw) -> Interactions:
    items = [str(item) for item in range(draw(st.integers(8, 30)))]
    # Some items share a title, some differ in letter case only.
    titles = {item: f"{'T' if int(item) % 3 else 't'}itle {int(item) % 20}" for item in items}
    users = draw(st.lists(st.lists(st.sampled_from(items), unique=True, max_size=8), min_size=1, max_size=12))
    return Interactions(sequences={f"u{number}": chosen for number, chosen in enumerate(users)}, titles=titles)


@given(data=interactions(), seed=st.integers(0, 9), negatives=st.sampled_from(["popularity", "uniform"]))
def test_lists_hold_the_next_item_and_nothing_else_of_the_user(data, seed, negatives):
    options = {"source": "s", "seed": seed, "negatives": negatives, "history": 3, "candidates": 4}
    rows = {split: list(recommendation_lists(data, split, **options)) for split in ("train", "test")}
    for row in rows["train"] + rows["test"]:
        own = data.sequences[row.id.removeprefix("s-")]
        assert row.history == tuple(data.titles[item] for item in own[:3])
        (place,) = [place for place, value in enumerate(row.relevance) if value == 1.0]
        assert row.candidates[place].id == own[3]
        assert len(row.candidates) == 4
        assert len({candidate.text.casefold() for candidate in row.candidates}) == 4
        others = [candidate for candidate in row.candidates if candidate.id != own[3]]
        assert not {other.text.casefold() for other in others} & {data.titles[item].casefold() for item in own}
    users = [{row.id for row in rows[split]} for split in ("train", "test")]
    assert not users[0] & users[1]
    assert rows["test"] == list(recommendation_lists(data, "test", **options))


def test_what_cannot_become_a_list_is_counted():
    data = Interactions(
        sequences={"short": ["0"], "greedy": [str(item) for item in range(6)]},
        titles={str(item): f"t{item}" for item in range(6)},
    )
    dropped = Dropped()
    options = {"source": "s", "history": 3, "candidates": 3, "test_share": 0.0}
    assert not list(recommendation_lists(data, "train", dropped=dropped, **options))
    assert dropped.counts == {
        "a history of fewer than 3 items before the next": 1,
        "too few items that the user never chose": 1,
    }
    for argument in ({"negatives": "hard"}, {"candidates": 1}, {"history": 0}):
        with pytest.raises(InputError, match=next(iter(argument))):
            list(recommendation_lists(data, "train", **{**options, **argument}))
    with pytest.raises(InputError, match="split: 'dev'"):
        list(recommendation_lists(data, "dev", **options))


def test_negatives_by_popularity_are_popular():
    crowd = {f"c{number}": ["hit", str(number)] for number in range(50)}
    titles = {"hit": "Hit"} | {str(item): f"t{item}" for item in range(60)}
    data = Interactions(sequences=crowd | {"u": ["51", "52"]}, titles=titles)
    hits = {}
    for negatives in ("popularity", "uniform"):
        drawn = 0
        for seed in range(60):
            options = {"history": 1, "candidates": 2, "test_share": 0.0, "seed": seed, "negatives": negatives}
            rows = {row.id: row for row in recommendation_lists(data, "train", source="s", **options)}
            drawn += any(candidate.id == "hit" for candidate in rows["s-u"].candidates)
        hits[negatives] = drawn
    assert hits["uniform"] < 10 < 20 < hits["popularity"]  # 60/51 and 60/2 expected


@real
@pytest.mark.parametrize(("folder", "count"), [("rec_amazon_games", 2426), ("rec_lastfm", 1860)])
def test_the_real_files_give_the_known_counts(folder, count):
    path = Path(os.environ["R1_DATA"]) / folder
    games = (path / "Games-6k.test.inter", path / "Games-6k.item")
    data = read_lastfm(path) if folder == "rec_lastfm" else read_recbole(*games)
    rows = [row for split in ("train", "test") for row in recommendation_lists(data, split, source="s")]
    assert len(rows) == len({row.id for row in rows}) == count
