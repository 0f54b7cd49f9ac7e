"""What a model is trained on: lists drawn from labelled rows, by weights and a curriculum, the same on every run."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import r1_rerank
from r1_rerank import R1Reranker, ScriptedEngine
from r1_rerank.checkpoint import RankerCard
from r1_rerank.engines.tokenization import ChatTokenizer
from r1_rerank.errors import DataError, EngineError, InputError, InputTypeError
from r1_rerank.evaluation.datasets.cards import FileCard, SourceCard, TaskCard
from r1_rerank.evaluation.systems import Outcome, RerankerSystem, documents_of, task_of
from r1_rerank.rows import Candidate, Row, write_rows
from r1_rerank.training.columns import columns_of
from r1_rerank.training.data import (
    Mixture,
    Phase,
    Source,
    check_apart,
    data_card,
    elimination_rows,
    hard_negatives,
    hold_out,
    pool_of,
    read_sources,
)
from r1_rerank.training.questions import Questions

CARD = RankerCard.find(Path(r1_rerank.__file__).parent / "embedded")
TOPICS = ("tides", "caches", "bread", "cats", "clocks", "rivers", "kites", "salt", "glass", "bees", "maps", "wool")


def passage(topic: str, size: int = 5, *, id: str | None = None, best: Sequence[int] = (0,), **other: Any) -> Row:
    """A question about a topic; each of its candidates is known by its topic and its place."""
    return Row(
        **{
            "id": id or f"q-{topic}",
            "task": "passage",
            "query": f"what about {topic}?",
            "candidates": tuple(
                Candidate(id=f"d{place}", text=f"{topic}{place}  is about\n{topic}, said page {place} of the book.")
                for place in range(size)
            ),
            "relevance": tuple(float(place in best) for place in range(size)),
            "split": "train",
            "source": "books",
        }
        | other
    )


def user(name: str, size: int = 6) -> Row:
    return Row(
        id=f"u-{name}",
        task="recommendation",
        history=tuple(f"{name} part {number}" for number in range(1, 9)),
        candidates=tuple(Candidate(id=f"i{place}", text=f"film {name} {place}") for place in range(size)),
        relevance=tuple(float(place == 2) for place in range(size)),
        split="train",
        source="films",
    )


def routing(name: str, effects: Sequence[float] = (0.2, 1.0, 0.9, 0.0), objective: str = "balance") -> Row:
    prices = (0.0, 1.0, 0.1, 0.5)[: len(effects)]
    return Row(
        id=f"r-{name}",
        task="routing",
        query=f"solve {name}",
        objective=objective,
        candidates=tuple(
            Candidate(id=f"m{place}", text=f"model {place}", price=price) for place, price in enumerate(prices)
        ),
        relevance=tuple(float(place == 2) for place in range(len(effects))),
        effects=tuple(effects),
        prices=prices,
        split="train",
        source="llms",
    )


PASSAGES = Source(name="passages", rows=tuple(passage(topic) for topic in TOPICS))
USERS = Source(name="users", rows=tuple(user(name) for name in ("ann", "bob", "cem", "dai")))
ROUTES = Source(name="routes", rows=tuple(routing(name) for name in ("a sum", "a riddle", "a proof")))
ROW = PASSAGES.rows[0]
ALL = (PASSAGES, USERS, ROUTES)
ORIGINALS = {row.id: row for source in ALL for row in source.rows}


def original(row: Row) -> Row:
    return ORIGINALS[row.id.rpartition("#")[0]]


# What an example is


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(0, 4))
def test_an_example_is_one_list_of_its_row(seed: int, shortest: int, more: int) -> None:
    mixture = Mixture(ALL, count=20, phases=[Phase(candidates=(shortest, shortest + more))], seed=seed)
    assert len(mixture) == len({row.id for row in mixture}) == 20
    for number, row in enumerate(mixture):
        whole = original(row)
        assert row.id == f"{whole.id}#{number}"
        assert (row.query, row.history, row.split) == (whole.query, whole.history, whole.split)
        grades = dict(zip(whole.candidates, whole.relevance, strict=True))
        assert [grades[candidate] for candidate in row.candidates] == list(row.relevance)
        assert sum(row.relevance) == 1
        most = min(shortest + more, len(whole.candidates))
        assert (most if row.task == "routing" else shortest) <= len(row.candidates) <= most


def test_lengths_and_places_are_drawn_evenly() -> None:
    rows = list(Mixture([PASSAGES], count=1200, phases=[Phase(candidates=(2, 5))]))
    sizes = Counter(len(row.candidates) for row in rows)
    assert sorted(sizes) == [2, 3, 4, 5]
    assert min(sizes.values()) > 230
    places = Counter(row.relevance.index(1.0) for row in rows if len(row.candidates) == 4)
    assert sorted(places) == [0, 1, 2, 3]
    assert min(places.values()) > 40


def test_of_several_relevant_candidates_one_is_shown() -> None:
    row = passage("tides", 6, best=(1, 4))
    rows = list(Mixture([Source(name="one", rows=(row,))], count=60))
    assert {sum(value > 0 for value in row.relevance) for row in rows} == {1}
    shown = {row.candidates[row.relevance.index(1.0)].id for row in rows}
    assert shown == {"d1", "d4"}
    assert max(len(row.candidates) for row in rows) == 5


def test_a_row_can_be_shown_whole() -> None:
    row = passage("tides", 6, best=(1, 4))
    for shown in Mixture([Source(name="one", rows=(row,))], count=5, phases=[Phase(candidates=None)]):
        assert sorted(shown.candidates, key=lambda one: one.id) == list(row.candidates)
        assert sum(shown.relevance) == 2


def test_routing_shows_its_whole_pool_unless_a_phase_says_fewer() -> None:
    assert {len(row.candidates) for row in Mixture([ROUTES], count=9)} == {4}
    few = list(Mixture([ROUTES], count=9, phases=[Phase(candidates=(2, 3))]))
    assert {len(row.candidates) for row in few} == {3}
    for row in few:
        assert row.effects is not None
        assert row.prices is not None
        shown = zip(row.candidates, row.effects, row.prices, strict=True)
        known = zip(original(row).candidates, original(row).effects or (), original(row).prices or (), strict=True)
        assert set(shown) <= set(known)


def test_graded_routing_tells_how_good_each_is_for_the_objective() -> None:
    # balance is half the effect less half the price: 0.1, 0, 0.4 and -0.25
    by_hand = {"m0": 0.35 / 0.65, "m1": 0.25 / 0.65, "m2": 1.0, "m3": 0.0}
    for row in Mixture(ALL, count=30, graded_routing=True):
        if row.task == "routing":
            found = {one.id: value for one, value in zip(row.candidates, row.relevance, strict=True)}
            assert found == pytest.approx(by_hand)
        else:
            assert sorted(row.relevance)[-2:] == [0, 1]


def test_where_all_models_earn_the_same_the_label_stays() -> None:
    row = replace(routing("a tie", (1.0, 1.0, 1.0, 1.0)), objective="performance")
    for shown in Mixture([Source(name="tie", rows=(row,))], count=3, graded_routing=True):
        assert sorted(shown.relevance) == [0, 0, 0, 1]


# The same on every run


def test_an_example_follows_from_seed_and_number_alone() -> None:
    phases = [Phase(candidates=(2, 3), easy=0.5, words=(2, 5), history=(1, 4)), Phase(share=2)]
    one, two = (Mixture(ALL, count=60, phases=phases, seed=3, graded_routing=True) for _ in range(2))
    order = random.Random(0).sample(range(60), 60)
    backwards = {number: two[number] for number in order}
    assert [one[number] for number in range(60)] == [backwards[number] for number in range(60)]
    assert one[-1] == one[59]
    assert one[10:20] == list(one)[10:20]
    with pytest.raises(IndexError):
        _ = one[60]
    assert list(Mixture(ALL, count=60, phases=phases, seed=4)) != list(one)


def test_a_longer_mixture_goes_on_where_a_shorter_one_ends() -> None:
    assert Mixture(ALL, count=90, seed=1)[:40] == list(Mixture(ALL, count=40, seed=1))


def test_each_row_comes_once_before_any_comes_again() -> None:
    mixture = Mixture([PASSAGES], count=3 * len(TOPICS), phases=[Phase(), Phase(candidates=(3, 3))])
    for turn in range(3):
        shown = [original(row).id for row in mixture[turn * len(TOPICS) : (turn + 1) * len(TOPICS)]]
        assert sorted(shown) == sorted(row.id for row in PASSAGES.rows)
    assert [original(row).id for row in mixture[: len(TOPICS)]] != [
        original(row).id for row in mixture[len(TOPICS) : 2 * len(TOPICS)]
    ]


def test_weights_are_shares_whatever_the_number_of_rows() -> None:
    sources = [replace(PASSAGES, weight=1), replace(USERS, weight=3)]
    mixture = Mixture(sources, count=1000)
    tasks = Counter(row.task for row in mixture)
    assert tasks["recommendation"] == pytest.approx(750, abs=50)
    assert Counter(mixture.source_of(place).name for place in range(1000))["users"] == tasks["recommendation"]


# The curriculum


def test_phases_follow_one_another_by_their_shares() -> None:
    phases = [
        Phase(candidates=(2, 2), words=(3, 3), tasks=("passage",)),
        Phase(share=2, candidates=(3, 4), history=(2, 4), tasks=("recommendation",)),
        Phase(share=1, tasks=("passage", "routing")),
    ]
    mixture = Mixture(ALL, count=40, phases=phases)
    assert [mixture.phase_of(place) for place in range(40)] == [0] * 10 + [1] * 20 + [2] * 10
    assert all(len(row.candidates) == 2 and row.task == "passage" for row in mixture[:10])
    middle = mixture[10:30]
    assert {row.task for row in middle} == {"recommendation"}
    assert {len(row.candidates) for row in middle} == {3, 4}
    assert {len(row.history or ()) for row in middle} == {2, 3, 4}
    for row in middle:
        assert row.history == (original(row).history or ())[-len(row.history or ()) :]
    assert {row.task for row in mixture[30:]} == {"passage", "routing"}


def test_candidates_are_cut_to_whole_words_and_otherwise_left_as_they_are() -> None:
    for row in Mixture([PASSAGES], count=20, phases=[Phase(words=(2, 4))]):
        whole = {candidate.id: candidate.text for candidate in original(row).candidates}
        lengths = {len(candidate.text.split()) for candidate in row.candidates}
        assert len(lengths) == 1
        assert lengths <= {2, 3, 4}
        assert all(whole[candidate.id].startswith(candidate.text) for candidate in row.candidates)
    long = Mixture([PASSAGES], count=3, phases=[Phase(words=(99, 99))])
    assert all(set(row.candidates) <= set(original(row).candidates) for row in long)


def test_long_and_short_candidates_side_by_side() -> None:
    uneven = Mixture([PASSAGES], count=20, phases=[Phase(words=(2, 4), uneven=True)])
    lengths = [[len(candidate.text.split()) for candidate in row.candidates] for row in uneven]
    assert {length for row in lengths for length in row} == {2, 3, 4}
    assert any(len(set(row)) > 1 for row in lengths)
    even = Mixture([PASSAGES], count=20, phases=[Phase(words=(2, 4))])
    assert [[one.id for one in row.candidates] for row in even] == [
        [one.id for one in row.candidates] for row in uneven
    ]
    with pytest.raises(InputError, match="uneven: there is nothing to cut"):
        Phase(uneven=True)


def test_rows_too_short_for_a_phase_wait_for_another() -> None:
    source = Source(name="mixed", rows=(*PASSAGES.rows, passage("short", 3)))
    mixture = Mixture([source], count=60, phases=[Phase(candidates=(4, 5)), Phase(candidates=(2, 5))])
    short = [place for place, row in enumerate(mixture) if row.id.startswith("q-short")]
    assert short
    assert min(short) >= 30


def test_a_row_that_a_phase_passes_over_comes_again_in_the_next_round() -> None:
    short = passage("short", 3)
    source = Source(name="mixed", rows=(*PASSAGES.rows, short))
    size = len(source.rows)
    phases = [Phase(candidates=(4, 5)), Phase(candidates=(2, 5), share=2)]
    rows = [row.id.rpartition("#")[0] for row in Mixture([source], count=3 * size, phases=phases)]
    others = sorted(row.id for row in PASSAGES.rows)
    assert sorted(rows[: size - 1]) == others  # its turn in this round is lost, and no other's
    assert short.id not in rows[:size]
    assert 1 <= Counter(rows[size:])[short.id] <= 3


# Easy negatives


def test_easy_negatives_are_of_other_questions_of_the_same_data_set() -> None:
    foreign = passage("gears", id="other", source="manuals")
    twin = passage("tides", id="q-tides-2", best=(1,))
    source = Source(name="mixed", rows=(*PASSAGES.rows, foreign, passage("cogs", source="manuals"), twin))
    exchanged = Counter[bool]()
    for row in Mixture([source], count=400, phases=[Phase(easy=0.5)]):
        assert row.query is not None
        topic = row.query.removeprefix("what about ").removesuffix("?")
        assert len({candidate.id for candidate in row.candidates}) == len(row.candidates)
        assert len({candidate.text for candidate in row.candidates}) == len(row.candidates)
        for candidate, value in zip(row.candidates, row.relevance, strict=True):
            own = candidate.text.startswith(topic)
            assert own or not value
            exchanged[own] += not value
            is_manual = candidate.text.startswith(("gears", "cogs"))
            assert is_manual == (row.source == "manuals")
    assert exchanged[False] / exchanged.total() == pytest.approx(0.5, abs=0.06)
    for row in Mixture([source], count=40, phases=[Phase(easy=1.0)]):
        strangers = [candidate for candidate in row.candidates if "/" in candidate.id]
        assert len(strangers) == len(row.candidates) - 1


def test_what_answers_a_question_anywhere_is_no_easy_negative_of_it() -> None:
    # A copy of the answer about tides stands, as a negative, under every other question.
    answer = passage("tides").candidates[0].text.upper()
    others = [passage(topic) for topic in TOPICS[1:3]]
    trap = Candidate(id="trap", text=answer)
    rows = [passage("tides", 3), *(replace(row, candidates=(*row.candidates[:-1], trap)) for row in others)]
    for row in Mixture([Source(name="trap", rows=tuple(rows))], count=200, phases=[Phase(easy=1.0)]):
        if row.query == "what about tides?":
            assert not any(candidate.text == answer for candidate in row.candidates)


@pytest.mark.parametrize("sources", [[USERS], [ROUTES], [USERS, ROUTES]])
def test_without_passages_easy_says_nothing(sources: list[Source]) -> None:
    easy, plain = (list(Mixture(sources, count=12, phases=[Phase(easy=share)])) for share in (1.0, 0.0))
    assert easy == plain


def test_other_tasks_have_no_easy_negatives() -> None:
    for row in Mixture(ALL, count=30, phases=[Phase(easy=1.0)]):
        if row.task != "passage":
            assert set(row.candidates) <= set(original(row).candidates)


# The paper's elimination data


def test_elimination_data_has_a_list_of_every_length_and_is_shown_as_it_is() -> None:
    cases = elimination_rows(PASSAGES.rows, seed=1)
    assert Counter(len(case.candidates) for case in cases) == dict.fromkeys([2, 3, 4, 5], len(TOPICS))
    mixture = Mixture([Source(name="cases", rows=cases)], count=len(cases), phases=[Phase(candidates=None)])
    shown = {row.id.rpartition("#")[0]: set(row.candidates) for row in mixture}
    assert shown == {case.id: set(case.candidates) for case in cases}
    with pytest.raises(InputError, match=r"q-tides.*2 relevant candidates"):
        elimination_rows([passage("tides", best=(0, 1))])


# Hard negatives


def corpus() -> tuple[Row, Row, tuple[Candidate, ...]]:
    texts = {
        "tide": "The moon causes the tide.",
        "same": "the MOON  causes the tide.",
        "pull": "The pull of the moon causes every tide.",
        "near": "A tide comes twice a day.",
        "far": "The moon has no air.",
        "bread": "Bread needs flour.",
        "rye": "Rye makes dark bread.",
    }
    pool = tuple(Candidate(id=name, text=text) for name, text in texts.items())
    query = "what causes the tide, the moon?"
    first = passage("tides", query=query, candidates=(pool[0], pool[5]), relevance=(1.0, 0.0))
    # Another row knows another answer to the same question.
    second = replace(first, id="q2", candidates=(pool[6], pool[2]), relevance=(0.0, 1.0))
    return first, second, pool


def test_bm25_finds_what_shares_words_but_never_an_answer() -> None:
    first, second, pool = corpus()
    mined, other = hard_negatives([first, second], pool, count=2)
    for row, answer in ((mined, "tide"), (other, "pull")):
        relevant = [one.id for one, value in zip(row.candidates, row.relevance, strict=True) if value > 0]
        assert relevant == [answer]
        assert {candidate.id for candidate in row.candidates} == {answer, "near", "far"}
    assert mined.id == "q-tides/hard"
    assert (mined.query, mined.split, mined.source) == (first.query, first.split, first.source)
    assert list(hard_negatives([first, second], pool, count=2)) == [mined, other]


def test_what_bm25_cannot_tell_apart_comes_in_random_order() -> None:
    row = passage("tides", 2, query="zebra")
    pool = pool_of(PASSAGES.rows)
    drawn = [{one.id for one in next(iter(hard_negatives([row], pool, count=3, seed=s))).candidates} for s in (0, 1)]
    assert drawn[0] != drawn[1]


def test_the_policy_picks_among_the_best_of_bm25() -> None:
    first, second, pool = corpus()
    seen: list[Row] = []

    def ranker(row: Row) -> list[float]:
        seen.append(row)
        return [float(len(candidate.text)) for candidate in row.candidates]

    (mined, _) = hard_negatives([first, second], pool, by=ranker, count=1, depth=3)
    assert len(seen[0].candidates) == 4
    hardest = max(
        (one for one, value in zip(seen[0].candidates, seen[0].relevance, strict=True) if not value),
        key=lambda one: len(one.text),
    )
    assert {candidate.id for candidate in mined.candidates} == {"tide", hardest.id}


def test_a_reranker_is_a_policy() -> None:
    first, second, pool = corpus()
    # It always drops the second of the two that are left, or of those that it is shown.
    policy = R1Reranker(ScriptedEngine(lambda asked: f"<answer>[{(asked.labels or 'AB')[-1]}]</answer>"), thinking=0)
    for by in (policy, RerankerSystem(policy)):
        for row in hard_negatives([first, second], pool, by=by, count=1, depth=3):
            assert len(row.candidates) == 2
            assert sum(row.relevance) == 1


def test_a_policy_that_fails_is_named_with_the_row() -> None:
    class Broken:
        name = "broken"

        def settings(self) -> dict[str, object]:
            return {}

        def rank_iter(self, rows: Sequence[Row]) -> Any:
            yield 0, Outcome(scores=None, status="failed", error="out of memory")

    first, _, pool = corpus()
    with pytest.raises(EngineError, match=r"broken failed on row 'q-tides/hard': out of memory"):
        list(hard_negatives([first], pool, by=Broken(), count=1))


def test_a_user_is_not_offered_what_is_in_the_history() -> None:
    row = user("ann")
    pool = [Candidate(id=f"p{place}", text=title) for place, title in enumerate([*(row.history or ()), "ann part 99"])]
    (mined,) = hard_negatives([row], pool, count=3)
    assert {candidate.text for candidate in mined.candidates} == {"film ann 2", "ann part 99"}


def test_mined_rows_are_rows_to_train_on() -> None:
    mined = tuple(hard_negatives(PASSAGES.rows, pool_of(PASSAGES.rows), count=6))
    assert {len(row.candidates) for row in Mixture([Source(name="hard", rows=mined)], count=50)} == set(range(2, 8))


# Files


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder as `r1-rerank data build` writes it."""
    for source in (PASSAGES, USERS):
        folder = tmp_path / source.name
        folder.mkdir()
        write_rows(source.rows, folder / "train.jsonl")
        write_rows((replace(row, split="test") for row in source.rows), folder / "test.jsonl")
    return tmp_path


def test_sources_are_read_from_files_tasks_and_folders_of_tasks(built: Path) -> None:
    whole = read_sources(built, weight=3)
    assert [(source.name, source.weight, len(source.rows)) for source in whole] == [
        ("passages", 1.5, 12),
        ("users", 1.5, 4),
    ]
    assert read_sources(built / "users")[0].rows == USERS.rows
    assert read_sources([built / "passages" / "train.jsonl", built / "users"])[1].rows == USERS.rows
    assert {row.split for source in read_sources(built, split="test") for row in source.rows} == {"test"}


def test_two_folders_may_have_a_task_of_the_same_name(built: Path, tmp_path: Path) -> None:
    more = tmp_path / "more" / "users"
    more.mkdir(parents=True)
    write_rows([user("eva")], more / "train.jsonl")
    first, second = read_sources([built / "users", more])
    assert (first.name, second.name) == ("users", str(more / "train.jsonl"))
    with pytest.raises(DataError, match="is named twice"):
        read_sources([built / "users", built / "users", built / "users"])


def test_bad_rows_are_refused_by_line_or_left_out(built: Path) -> None:
    path = built / "passages" / "train.jsonl"
    hopeless = [passage("x", best=()), passage("y", 2, best=(0, 1)), passage("z", 1)]
    write_rows([*PASSAGES.rows, *hopeless], path)
    with pytest.raises(DataError, match=r"train\.jsonl, line 13: row 'q-x' has no candidate"):
        read_sources(path)
    (source,) = read_sources(path, bad_rows="skip")
    assert source.rows == PASSAGES.rows


def test_some_questions_are_held_out_with_all_that_would_tell_them() -> None:
    cost = replace(ROUTES, name="cost", rows=tuple(replace(row, objective="cost") for row in ROUTES.rows))
    # Another question that the same passage answers.
    rows = [*PASSAGES.rows, *(replace(row, id=f"{row.id}-2", query=f"tell me of {row.id}") for row in PASSAGES.rows)]
    passages = replace(PASSAGES, rows=tuple(rows), weight=2.0)
    train, held = hold_out([passages, ROUTES, cost], 2, seed=5)
    assert [len(source.rows) for source in held] == [2, 2, 2]
    assert [(source.name, source.weight) for source in train] == [("passages", 2.0), ("routes", 1.0), ("cost", 1.0)]
    assert [row.query for row in held[1].rows] == [row.query for row in held[2].rows]
    assert len(train[1].rows) == len(train[2].rows) == 1
    assert len(train[0].rows) == 20
    check_apart(train, held)
    assert hold_out([passages, ROUTES, cost], 2, seed=5) == (train, held)
    for nothing in (0, -1, (0,) * len(ALL), (2,) * (len(ALL) - 1) + (-1,)):
        with pytest.raises(InputError, match=r"count: .* holds nothing out"):
            hold_out(ALL, nothing)
    with pytest.raises(InputError, match=r"count: has 1 numbers for 2 sources"):
        hold_out([passages, ROUTES], [2])
    _, some = hold_out([passages, ROUTES], [0, 2], seed=5)
    assert [(source.name, len(source.rows)) for source in some] == [("routes", 2)]
    with pytest.raises(InputError, match="'routes' has no row of 3 to train on: hold out fewer"):
        hold_out([ROUTES], 3)


def test_validation_must_not_ask_what_was_trained_on() -> None:
    check_apart(ALL, [Source(name="dev", rows=(passage("new"),))])
    same = passage("  TIDES", id="dev-1", query="What  about TIDES?", split="dev")
    with pytest.raises(InputError, match=r"validation: .*'passages'.*1 x its question stands in .*row 'q-tides'"):
        check_apart(ALL, [Source(name="dev", rows=(same,))])
    reworded = replace(PASSAGES.rows[2], query="how is it baked?")
    with pytest.raises(InputError, match=r"1 x its passage answers a question of validation; .*row 'q-bread'"):
        check_apart(ALL, [Source(name="dev", rows=(reworded,))])


# The card


def test_a_card_accounts_for_every_example(built: Path) -> None:
    sources = read_sources(built)
    mixture = Mixture(sources, count=50, phases=[Phase(candidates=(2, 2)), Phase(candidates=(3, 6))], seed=7)
    card = data_card(mixture)
    assert json.loads(json.dumps(card))["seed"] == 7
    for name in ("tasks", "datasets", "list_sizes"):
        assert sum(card[name].values()) == 50
    assert card["tasks"] == Counter(row.task for row in mixture)
    assert card["list_sizes"]["2"] == 25
    assert [phase["examples"] for phase in card["phases"]] == [25, 25]
    assert card["phases"][1]["candidates"] == (3, 6)
    passages, users = card["sources"]
    assert passages["examples"] + users["examples"] == 50
    assert (users["rows"], users["distinct_rows"], users["questions"]) == (4, 4, 4)
    assert users["file"] == "users/train.jsonl"
    assert str(built) not in json.dumps(card)
    assert "card" not in users
    assert data_card(Mixture(sources, count=50, phases=mixture.phases, seed=7)) == card
    assert data_card(Mixture(sources, count=50, phases=mixture.phases, seed=8))["digest"] != card["digest"]


def test_a_card_says_under_which_licence_and_whether_the_file_is_the_one_that_was_built(built: Path) -> None:
    path = built / "users" / "train.jsonl"
    card = TaskCard(
        name="users",
        paper="films",
        instead="",
        files={"train": file_card(path)},
        sources={"train": (SourceCard(name="films", licence="CC0-1.0", home="here", read=4, dropped={}),)},
        leaks={},
        notes=(),
        seed=0,
        negatives=None,
        limit=None,
    )
    (built / "users" / "card.json").write_text(card.to_json())

    def described() -> dict[str, Any]:
        source: dict[str, Any] = data_card(Mixture(read_sources(path), count=4))["sources"][0]
        return source

    assert described()["card"]["sources"]["train"][0]["licence"] == "CC0-1.0"
    assert described()["as_built"] is True
    write_rows(USERS.rows[:3], path)
    assert described()["as_built"] is False
    (built / "users" / "card.json").write_text("{")
    with pytest.raises(DataError, match=r"card\.json"):
        described()


def file_card(path: Path) -> FileCard:
    import hashlib

    content = path.read_bytes()
    return FileCard(
        rows=content.count(b"\n"),
        questions=4,
        candidates=(6, 6),
        duplicates=0,
        first_positive={},
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


# The words of the prompts


def card_of(strategy: str, form: str, thinking: int = 0) -> RankerCard:
    settings = {"mode": "free" if thinking else "none", "budget": thinking}
    return RankerCard.model_validate(CARD.model_dump() | {"strategy": strategy, "form": form, "thinking": settings})


@pytest.mark.parametrize("thinking", [0, 32])
@pytest.mark.parametrize(("strategy", "form"), [("iranker", "append"), ("iranker", "rewrite"), ("dranker", "rewrite")])
def test_training_asks_what_inference_asks(strategy: str, form: str, thinking: int) -> None:
    card = card_of(strategy, form, thinking)
    questions = Questions(card)
    capable = frozenset({"constrain", "logprobs", "thinking", "reuse"})
    for row in Mixture(ALL, count=9, phases=[Phase(candidates=(3, 4), words=(3, 5), easy=0.5, history=(1, 4))]):
        engine = ScriptedEngine(
            lambda asked: (
                f"<answer>{' > '.join(f'[{label}]' for label in (asked.labels or ())[-asked.pick :])}</answer>"
            ),
            capabilities=capable,
        )
        reranker = R1Reranker(engine, strategy=card.ranking_strategy(), thinking=thinking)
        reranker.rerank(task_of(row), documents_of(row))
        trained = [
            (list(asked.messages), asked.labels)
            for asked, _ in questions.walk(
                row, lambda asked: asked.labels[-1:] if asked.ask == "eliminate" else asked.labels
            )
        ]
        assert trained == [(list(request.messages), request.labels) for request in engine.requests]


@pytest.mark.model
@pytest.mark.parametrize("thinking", [0, 32])
def test_the_tokens_of_a_prompt_are_those_of_inference(weights: str, thinking: int) -> None:
    from transformers import AutoTokenizer

    chat = ChatTokenizer(AutoTokenizer.from_pretrained(weights))
    questions = Questions(card_of("iranker", "append", thinking))
    for row in Mixture(ALL, count=6, phases=[Phase(candidates=(2, 4))]):
        for question, _ in questions.walk(row, lambda asked: asked.labels[:1]):
            columns = columns_of(question, chat, thinking=questions.thinking)
            at_inference = chat.prompt(question.messages, thinking=thinking > 0, constrain=True)
            assert chat.encode(columns["prompt"]) == at_inference
            assert columns["prompt"].endswith(columns["prefill"])
            assert columns["prefill"] == ("<think>\n" if thinking else "<answer>[")
            assert (columns["labels"], columns["ask"]) == (list(question.labels), "eliminate")
            assert len(columns["relevance"]) == len(columns["labels"])


def test_thinking_that_a_chat_template_opens_belongs_to_the_answer(make_tokenizer: Callable[..., Any]) -> None:
    question = Questions(card_of("iranker", "append", 32)).first(ROW)
    chat = ChatTokenizer(make_tokenizer(turn="<think>\n"))
    columns = columns_of(question, chat, thinking=True)
    assert columns["prompt"].endswith("assistant\n<think>\n")
    assert columns["prefill"] == "<think>"
    # Where none is wanted it is closed again, and the label follows.
    assert columns_of(question, chat, thinking=False)["prefill"] == "\n</think>\n<answer>["


# What cannot be used is named before the first step


def one(*rows: Row, **other: Any) -> list[Source]:
    return [Source(name="mine", rows=rows, **other)]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "sources: is empty"),
        (one(), "source 'mine' holds no rows"),
        (one(ROW, passage("x", best=())), r"'mine', 1 of 2 rows cannot be trained on; .*'q-x' has no candidate with a"),
        (one(passage("x", 1)), r"1 of 1 rows .*'q-x' has 1 candidates"),
        (one(passage("x", 2, best=(0, 1))), r"1 of 1 rows have relevant candidates alone, the first is 'q-x'"),
        (one(ROW, ROW), r"row 'q-tides' has the id of an earlier row"),
        (one(ROW, passage("x", split="test")), r"1 of 2 rows are not of the split train, the first is 'q-x' of 'test'"),
        (
            one(passage("x", split="dev")),
            r"write `split: train` in them, or `split: dev` where data\.train of a recipe",
        ),
        ([*one(ROW), *one(ROW)], "'mine' is the name of two"),
        (one(passage("x", split="dev"), path=Path("a/dev.jsonl")), r"source 'mine' \(a/dev.jsonl\)"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(sources: list[Source], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mixture(sources, count=4)


def test_rows_of_another_split_can_be_meant() -> None:
    assert len(Mixture(one(passage("x", split="dev")), count=4, any_split=True)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count: 0"),
        ({"count": True}, "count: True"),
        ({"phases": []}, "phases: is empty"),
        ({"phases": [Phase(), Phase(candidates=(6, 9))]}, r"phases\[1\]: no row fits it: .* longest list has 5"),
        ({"phases": [Phase(tasks=("routing",))]}, r"phases\[0\]: no row fits it: the rows are of passage"),
        ({"phases": [Phase(easy=0.5)]}, r"phases\[0\].easy: no source has passage rows of two questions"),
    ],
)
def test_settings_that_do_not_fit_the_rows_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mixture(one(ROW), **{"count": 4, **settings})


def test_more_candidates_than_labels_are_named() -> None:
    long = passage("x", 60)
    with pytest.raises(InputError, match=r"phases\[0\].candidates: row 'q-x' has 60, a question shows up to 52"):
        Mixture(one(long), count=1, phases=[Phase(candidates=None)])
    assert max(len(row.candidates) for row in Mixture(one(long), count=200)) == 52


def test_grades_of_routing_need_effects_and_prices() -> None:
    row = replace(ROUTES.rows[0], prices=None)
    with pytest.raises(InputError, match=r"graded_routing: row 'r-a sum' of source 'mine' has no effects or no prices"):
        Mixture(one(row), count=1, graded_routing=True)
    mixed = Mixture(one(row, ROUTES.rows[1]), count=8, graded_routing=True, ungraded="keep")
    grades = {row.id.partition("#")[0]: sorted(row.relevance) for row in mixed}
    assert grades["r-a sum"] == [0, 0, 0, 1]
    assert len(set(grades["r-a riddle"])) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 0}, "share: 0"),
        ({"share": float("nan")}, "share: nan"),
        ({"easy": 1.5}, "easy: 1.5"),
        ({"candidates": (1, 4)}, "candidates: 1 to 4: the least is 2"),
        ({"candidates": (5, 4)}, "candidates: 5 to 4"),
        ({"candidates": (2, 53)}, "candidates: 53 at most"),
        ({"candidates": 4}, "candidates: 4: pass two whole numbers"),
        ({"words": (0, 4)}, "words: 0 to 4: the least is 1"),
        ({"words": (1, 4.5)}, "words: .*two whole numbers"),
        ({"history": (3,)}, "history: .*two whole numbers"),
        ({"tasks": ()}, "tasks: is empty"),
        ({"tasks": ("cooking",)}, "tasks: 'cooking' is no task"),
    ],
)
def test_a_phase_that_makes_no_sense_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Phase(**settings)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_are_above_zero(weight: float) -> None:
    with pytest.raises(InputError, match="weight: source 'mine' has"):
        Source(name="mine", rows=(ROW,), weight=weight)
    with pytest.raises(InputTypeError, match="weight"):
        Source(name="mine", rows=(ROW,), weight="much")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count: 0 leaves no negatives"),
        ({"by": "policy"}, "by: 'policy'"),
        ({"by": lambda row: [0.0] * len(row.candidates), "count": 9, "depth": 3}, "depth: 3 is less than count, 9"),
        ({"rows": ROUTES.rows}, "row 'r-a sum' is of routing"),
        ({"rows": [passage("x", best=())]}, "row 'q-x' has no relevant candidate"),
        ({"pool": [Candidate(id="a", text="x"), Candidate(id="a", text="y")]}, "pool: the id 'a' stands twice"),
        ({"pool": []}, "pool: holds nothing but relevant candidates for row 'q-tides'"),
    ],
)
def test_mining_names_what_it_cannot_use(settings: dict[str, Any], message: str) -> None:
    given = {"rows": [ROW], "pool": pool_of(PASSAGES.rows), **settings}
    with pytest.raises(InputError, match=message):
        list(hard_negatives(given.pop("rows"), given.pop("pool"), **given))
