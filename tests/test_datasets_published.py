"""Published formats: Ranking-bench and RouterBench, and elimination cases made from any row."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank import IRanker
from r1_rerank.errors import DataError, InputError
from r1_rerank.evaluation.datasets import (
    Dropped,
    LeakFilter,
    elimination_cases,
    first_window,
    read_msmarco,
    read_ranking_bench,
    read_routerbench,
)
from r1_rerank.rows import Candidate, Row

# Ranking-bench: finished prompts in the published wordings


def history(*titles: str) -> str:
    return "[" + ", ".join(f"'{place}. {title}'" for place, title in enumerate(titles)) + "]"


MOVIES = ["Heat", "It's a Wonderful Life", "Up"]
RECORDS = [
    {
        "task_name": "Rec-Movie",
        "problem": f"Movies that I saw, in order:\n{history('Alien', 'Ocean' + chr(39) + 's Eleven', '1. FC')}\n\n"
        f"Now there are 3 candidate movies:\n{history(*MOVIES)}\n\nName one.",
        "candidates": MOVIES,
        "gt": "It's a Wonderful Life",
    },
    {
        "task_name": "Passage-5",
        "problem": "## Here is a query: where is tea grown and candidate passages:\npassage 2: In Assam.\n"
        "passage 0: Ice floats.\nIt does.\n\nPlease think step by step about these.",
        "candidates": ["In Assam.", "Ice floats.\nIt does."],
        "gt": "passage 2",
    },
    {
        "task_name": "Router-Cost",
        "problem": "# The LLM names are:\n    # Small (8b): Price 0.2. Simple.\n    # Large: Price 0.9. Strong.\n"
        "    ## Here is a query: 2 + 2? and LLM condidates: ['Large', 'Small (8b)']. Name one.",
        "candidates": ["Large", "Small (8b)"],
        "gt": "Small (8b)",
    },
]


def bench(folder: Path, records: list[dict], config: str = "direct") -> Path:
    (folder / config).mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / config / "test.jsonl").write_text(lines, encoding="utf-8")
    return folder


def positive(row: Row) -> str:
    return row.candidates[row.relevance.index(1.0)].text


def test_queries_and_histories_are_cut_out_of_the_published_prompts(tmp_path):
    dropped = Dropped()
    movie, passage, llm = read_ranking_bench(bench(tmp_path, RECORDS), dropped=dropped)
    assert movie.history == ("Alien", "Ocean's Eleven", "1. FC")
    assert positive(movie) == "It's a Wonderful Life"
    assert passage.query == "where is tea grown"
    assert positive(passage) == "In Assam."
    assert [candidate.text for candidate in passage.candidates] == ["In Assam.", "Ice floats.\nIt does."]
    assert (llm.query, llm.objective) == ("2 + 2?", "cost")
    assert positive(llm) == "Price 0.2. Simple."
    assert not dropped.counts


def test_the_hub_parquet_and_single_files_have_the_same_columns(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    rows = list(read_ranking_bench(path, "iterative"))
    assert [row.task for row in rows] == ["recommendation", "passage", "routing"]
    assert rows[0].id == "ranking-bench-iterative-test-0"


def test_what_cannot_be_understood_is_counted(tmp_path):
    movie, passage, _ = RECORDS
    records = [
        movie | {"gt": "Jaws"},
        movie | {"candidates": ["Up", "Up"], "gt": "Up"},
        movie | {"problem": "Which one?"},
        passage | {"candidates": ["In Assam."]},
        movie | {"task_name": "Chess-1"},
        RECORDS[2] | {"task_name": "Router-Speed"},
        movie | {"candidates": None},
    ]
    dropped = Dropped()
    assert not list(read_ranking_bench(bench(tmp_path, records), dropped=dropped))
    assert dropped.counts == {
        "the answer is not exactly one of the candidates": 2,
        "a prompt of another wording": 2,
        "an unknown task_name": 2,
        "a prompt or candidates that are no text": 1,
    }
    with pytest.raises(DataError, match="row 0 lacks gt"):
        list(read_ranking_bench(bench(tmp_path, [{name: movie[name] for name in movie if name != "gt"}])))
    with pytest.raises(DataError, match="holds no iterative/test"):
        list(read_ranking_bench(tmp_path, "iterative"))


def test_without_the_hub_the_error_says_what_to_pass(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"ulab-ai/Ranking-bench: .*pass a folder or a \.parquet or \.jsonl file"):
        list(read_ranking_bench())
    with pytest.raises(DataError, match=r"microsoft/ms_marco: .*pass a folder with test\*\.parquet, or such a file"):
        list(read_msmarco("microsoft/ms_marco", 5))


def test_the_hub_gives_the_same_rows_as_its_files(monkeypatch):
    import datasets

    passages = {"is_selected": [0, 1, 0], "passage_text": ["Ice.", "Assam.", "Cats."]}
    stored = datasets.Dataset.from_list([{"query": "where is tea grown", "query_id": 7, "passages": passages}])
    asked = []

    def load(name: str, config: str, *, split: str, streaming: bool):
        asked.append((name, config, split))
        return stored.to_iterable_dataset() if streaming else stored

    monkeypatch.setattr(datasets, "load_dataset", load)
    (row,) = read_msmarco("microsoft/ms_marco", 3, "train")
    assert asked == [("microsoft/ms_marco", "v1.1", "train")]
    assert (row.id, positive(row), row.split) == ("msmarco-train-7", "Assam.", "train")


# RouterBench: what a response scored and cost


def table(path: Path, *rows: tuple[str, str, str, str, str], prompt: str = "['Old?\\nA\\n\\nNew?']") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "prompt", "big", "small", "big|total_cost", "small|total_cost"])
        writer.writerows([row[0], prompt, *row[1:]] for row in rows)
    return path


def test_costs_are_scaled_by_the_dearest_response(tmp_path):
    rows = [
        ("tied", "1.0", "1.0", "0.01", "0.001"),
        ("large", "1.0", "0.0", "0.01", "0.001"),
        ("both", "1.0", "0.9", "0.01", "0.001"),
        ("hidden", "", "1.0", "0.01", "0.001"),
    ]
    table(tmp_path / "x_train.csv", *rows)
    dropped = Dropped()
    large, both = read_routerbench(tmp_path, dropped=dropped)
    assert dropped.counts == {"all LLMs do equally well": 1, "an effect is not a number": 1}
    assert large.query == "New?"
    assert large.prices == pytest.approx((1.0, 0.1))
    # 0.5 * 1 - 0.5 * 1 = 0 for the big one, 0.5 * 0.9 - 0.5 * 0.1 = 0.4 for the small one.
    assert positive(both) == "big"
    assert [positive(row) for row in read_routerbench(tmp_path, objective="balance")] == ["big", "small"]
    assert [positive(row) for row in read_routerbench(tmp_path, objective="cost")] == ["small", "small"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "header lacks sample_id, prompt"),
        ("sample_id,prompt,a,a|total_cost\n", "holds no rows"),
        ("sample_id,prompt,a|total_cost\n1,p,1\n", "header lacks a"),
        ("sample_id,prompt,a,a|total_cost\n1,p,1\n", r"line 2: not 4 cells \(truncated"),
        ("sample_id,prompt,a,a|total_cost\n1,p,x,1\n", "line 2: a: 'x' is not a number"),
        ("sample_id,prompt,a,a|total_cost\n1,['p,1,1\n", "line 2: prompt"),
        ('sample_id,prompt,a,a|total_cost\n1,"p', "truncated"),
    ],
)
def test_tables_of_another_shape_are_named(tmp_path, text, named):
    (tmp_path / "x_train.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=named):
        list(read_routerbench(tmp_path))


@pytest.mark.skipif("R1_DATA" not in os.environ, reason="R1_DATA does not name the folder of the real data sets")
def test_the_real_routerbench_gives_the_known_counts():
    folder, best = Path(os.environ["R1_DATA"]) / "router_routerbench", {}
    for objective in ("balance", "cost"):
        rows = list(read_routerbench(folder, "train", objective))
        assert len(rows) == 1791
        best[objective] = [positive(row) for row in rows]
    assert best["balance"] != best["cost"]


# Elimination cases


def listed(count: int, place: int) -> Row:
    return Row(
        id="r",
        task="routing",
        query="?",
        objective="cost",
        candidates=tuple(Candidate(id=str(n), text=f"text {n}") for n in range(count)),
        relevance=tuple(float(n == place) for n in range(count)),
        effects=tuple(float(n) for n in range(count)),
        prices=tuple(n / 10 for n in range(count)),
        split="train",
        source="s",
    )


@given(count=st.integers(2, 12), data=st.data())
def test_a_case_for_every_number_of_negatives(count, data):
    row = listed(count, data.draw(st.integers(0, count - 1)))
    cases = list(elimination_cases(row, seed=3))
    assert [len(case.candidates) for case in cases] == list(range(2, count + 1))
    for case in cases:
        names = [candidate.id for candidate in case.candidates]
        assert len(set(names)) == len(names)
        assert names[case.relevance.index(1.0)] == row.candidates[row.relevance.index(1.0)].id
        assert sum(case.relevance) == 1.0
        assert case.effects == tuple(float(name) for name in names)
        assert case.prices == tuple(int(name) / 10 for name in names)
        assert first_window(case) == next(IRanker().run(len(names)))
    assert cases == list(elimination_cases(row, seed=3))


def test_rows_without_one_answer_have_no_cases():
    with pytest.raises(InputError, match="'r' has 0 relevant"):
        list(elimination_cases(listed(3, 9)))
    with pytest.raises(InputError, match="nothing to eliminate"):
        first_window(listed(1, 0))


# Leaks


def passage(id: str, query: str, answer: str) -> Row:
    candidates = (Candidate(id="1", text=answer), Candidate(id="2", text="no"))
    return Row(id=id, task="passage", query=query, candidates=candidates, relevance=(1.0, 0.0), split="x", source="s")


def test_rows_of_train_that_stand_in_test_are_dropped_or_refused():
    test = [passage("t", "Where is  TEA grown?", "In Assam.")]
    train = [passage("a", "where is tea grown?", "x"), passage("b", "Who?", "in ASSAM."), passage("c", "Who?", "y")]
    dropped = Dropped()
    assert [row.id for row in LeakFilter(test, dropped=dropped)(train)] == ["c"]
    assert dropped.counts == {"its question stands in test": 1, "its passage answers a question of test": 1}
    with pytest.raises(InputError, match=r"leaks: row 'a' of train: its question stands in test \('t'\)"):
        list(LeakFilter(test, leaks="refuse")(train))
    with pytest.raises(InputError, match="leaks: 'ignore'"):
        LeakFilter(test, leaks="ignore")
