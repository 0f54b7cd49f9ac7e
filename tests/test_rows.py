"""A row survives its file unchanged, and a row that cannot be used is refused by field, file and line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.errors import DataError, InputError, InputTypeError
from r1_rerank.rows import OBJECTIVES, Candidate, Row, TaskName, read_rows, write_rows

PASSAGE: dict[str, Any] = {
    "id": "q1",
    "task": "passage",
    "query": "what is a kv cache?",
    "candidates": [{"id": "a", "text": "Keys and values."}, {"id": "b", "text": "A shed.", "price": 0.5}],
    "relevance": [1.0, 0.0],
    "split": "test",
    "source": "example",
}


def build(**changes: Any) -> Row:
    """Build the passage row with other values; None leaves a key out."""
    record = {name: value for name, value in (PASSAGE | changes).items() if value is not None}
    return Row.from_json(json.dumps(record))


@st.composite
def rows(draw: st.DrawFn) -> Row:
    floats = st.floats(allow_nan=False, allow_infinity=False)
    candidates = draw(
        st.lists(
            st.builds(Candidate, id=st.text(), text=st.text(), price=st.none() | floats),
            max_size=4,
            unique_by=lambda candidate: candidate.id,
        )
    )
    per_candidate = st.tuples(*[floats] * len(candidates))
    tasks: tuple[TaskName, ...] = get_args(TaskName)
    task = draw(st.sampled_from(tasks))
    history = st.lists(st.text(), max_size=3).map(tuple)
    return Row(
        id=draw(st.text()),
        task=task,
        query=None if task == "recommendation" else draw(st.text()),
        history=draw(history) if task == "recommendation" else None,
        objective=draw(st.none() | st.sampled_from(OBJECTIVES)) if task == "routing" else None,
        candidates=tuple(candidates),
        relevance=draw(per_candidate),
        effects=draw(st.none() | per_candidate),
        prices=draw(st.none() | per_candidate),
        split=draw(st.text()),
        source=draw(st.text()),
    )


# The way there and back


@given(rows())
def test_a_row_survives_json(row: Row) -> None:
    line = row.to_json()
    assert Row.from_json(line) == row
    assert "\n" not in line
    assert None not in json.loads(line).values()


@given(st.lists(rows(), max_size=3))
def test_rows_survive_a_file(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert write_rows(iter(written), path) == len(written)
    assert list(read_rows(path)) == written


def test_the_line_is_compact_and_readable() -> None:
    row = build(query="¿qué?", candidates=[{"id": "a", "text": "–"}], relevance=[1])
    assert row.to_json() == (
        '{"id":"q1","task":"passage","query":"¿qué?","candidates":[{"id":"a","text":"–"}],'
        '"relevance":[1],"split":"test","source":"example"}'
    )


def test_lists_become_tuples() -> None:
    row = build(task="recommendation", query=None, history=["Alien"], effects=[1, 2])
    assert (row.history, row.relevance, row.effects) == (("Alien",), (1.0, 0.0), (1.0, 2.0))
    assert row.candidates == (
        Candidate(id="a", text="Keys and values."),
        Candidate(id="b", text="A shed.", price=0.5),
    )
    assert hash(row) == hash(Row.from_json(row.to_json()))


def test_null_stands_for_an_absent_field() -> None:
    line = json.dumps(PASSAGE | {"history": None, "objective": None, "effects": None, "prices": None})
    assert Row.from_json(line) == build()


def test_nothing_to_rank_is_a_row() -> None:
    assert build(candidates=[], relevance=[]).candidates == ()


def test_an_empty_history_is_a_history() -> None:
    assert build(task="recommendation", query=None, history=[]).history == ()


# Rows that are refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "search"}, "task: 'search' is no task: use one of passage, recommendation, routing"),
        ({"query": None}, "query: missing: a passage row needs it"),
        ({"task": "routing", "query": None}, "query: missing: a routing row needs it"),
        ({"task": "recommendation", "query": None}, "history: missing: a recommendation row needs it"),
        ({"history": []}, "history: a passage row has no history: leave it out, query takes its place"),
        (
            {"task": "recommendation", "history": []},
            "query: a recommendation row has no query: leave it out, history takes its place",
        ),
        ({"objective": "cost"}, "objective: a passage row has none: leave it out"),
        (
            {"task": "routing", "objective": "speed"},
            "objective: 'speed' is unknown: use one of performance, balance, cost",
        ),
        ({"relevance": [1]}, "relevance: 1 numbers for 2 candidates: give one for each"),
        ({"effects": [1, 2, 3]}, "effects: 3 numbers for 2 candidates: give one for each"),
        ({"prices": []}, "prices: 0 numbers for 2 candidates: give one for each"),
        ({"relevance": [0, math.nan]}, "relevance[1]: needs a finite number that a float can hold"),
        ({"effects": [math.inf, 0]}, "effects[0]: needs a finite number that a float can hold"),
        ({"prices": [0, 10**400]}, "prices[1]: needs a finite number that a float can hold"),
        (
            {"candidates": [{"id": "a", "text": ""}, {"id": "a", "text": ""}]},
            "candidates[1].id: 'a' is also the id of candidates[0]: make them unique",
        ),
        (
            {"candidates": [{"id": "a", "text": "", "price": -math.inf}], "relevance": [1]},
            "candidates[0].price: needs a finite number that a float can hold",
        ),
        (
            {"candidates": [{"id": "a"}]},
            "candidates[0]: lacks 'text'",
        ),
        (
            {"candidates": [{"id": "a", "text": "", "title": ""}]},
            "candidates[0]: unknown 'title': the keys are id, text, price",
        ),
        ({"split": None, "source": None}, "line: lacks 'split', 'source'"),
        (
            {"label": 1, "score": 2},
            "line: unknown 'label', 'score': the keys are id, task, query, history, objective, candidates, "
            "relevance, effects, prices, split, source",
        ),
        ({"query": "half \ud83d"}, "query: half a surrogate pair at character 5: repair the text"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 7}, "id: needs a string, got int"),
        ({"split": ["a"]}, "split: needs a string, got list"),
        ({"query": ["a"]}, "query: needs a string, got list"),
        (
            {"task": "recommendation", "query": None, "history": "Alien"},
            "history: needs a list of strings, got str",
        ),
        (
            {"task": "recommendation", "query": None, "history": ["a", 1]},
            "history[1]: needs a string, got int",
        ),
        ({"candidates": "ab"}, "candidates: needs a list of candidates, got str"),
        ({"candidates": ["a", "b"]}, "candidates[0]: needs a JSON object, got str"),
        ({"candidates": [{"id": None, "text": ""}]}, "candidates[0].id: needs a string, got null"),
        (
            {"candidates": [{"id": "a", "text": "", "price": "1"}]},
            "candidates[0].price: needs a number, got str",
        ),
        ({"relevance": 1}, "relevance: needs a list of numbers, got int"),
        ({"relevance": [1, True]}, "relevance[1]: needs a number, got bool"),
        ({"relevance": [None, 1]}, "relevance[0]: needs a number, got null"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputTypeError) as caught:
        build(**changes)
    assert str(caught.value) == message


def test_an_unhashable_task_or_objective_is_refused() -> None:
    with pytest.raises(InputError, match=r"^task: "):
        build(task=["passage"])
    with pytest.raises(InputError, match=r"^objective: "):
        build(task="routing", objective={})


def test_a_required_field_is_no_null() -> None:
    with pytest.raises(InputTypeError, match=r"^relevance: needs a list of numbers, got null$"):
        Row.from_json(json.dumps(PASSAGE | {"relevance": None}))


def test_the_constructor_checks_as_the_file_does() -> None:
    not_candidates: Any = ({"id": "a", "text": ""},)
    with pytest.raises(InputTypeError, match=r"^candidates\[0\]: needs a Candidate, got dict$"):
        Row(id="", task="passage", query="", candidates=not_candidates, relevance=(1,), split="", source="")


@pytest.mark.parametrize(
    "line",
    ["", "{", '{"id": "a}', "[" * 100_000, '{"id": ' + "1" * 5000 + "}"],
    ids=["empty", "open object", "open string", "too deep", "too many digits"],
)
def test_a_line_that_is_no_json_is_refused(line: str) -> None:
    with pytest.raises(InputError, match=r"^line: not valid JSON: "):
        Row.from_json(line)


@pytest.mark.parametrize("line", ["[]", '"id"', "1", "null"])
def test_a_line_that_is_no_object_is_refused(line: str) -> None:
    with pytest.raises(InputTypeError, match=r"^line: needs a JSON object, got "):
        Row.from_json(line)


# Files


def test_blank_lines_are_skipped_and_line_ends_may_be_of_either_kind(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = build().to_json()
    path.write_bytes(f"\n{line}\r\n  \n{line}".encode())
    assert list(read_rows(path)) == [build(), build()]


def test_a_bad_line_is_known_by_its_number_counting_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good, bad = build().to_json(), json.dumps(PASSAGE | {"relevance": [1]})
    path.write_text(f"{good}\n\n{bad}\n{good}\n")
    reader = read_rows(str(path))
    assert next(reader) == build()
    with pytest.raises(DataError) as caught:
        next(reader)
    assert (caught.value.path, caught.value.line) == (str(path), 3)
    assert str(caught.value) == f"{path}, line 3: relevance: 1 numbers for 2 candidates: give one for each"


def test_a_torn_last_line_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    line = build().to_json()
    path.write_text(f"{line}\n{line[:40]}")
    reader = read_rows(path)
    next(reader)
    with pytest.raises(DataError, match=r"line 2: line: not valid JSON: .*no newline: it may have been cut off\)$"):
        next(reader)


def test_a_bad_line_with_its_newline_is_not_torn(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n")
    with pytest.raises(DataError) as caught:
        next(read_rows(path))
    assert "cut off" not in str(caught.value)


def test_a_line_that_is_not_utf8_is_known_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"line 2: not UTF-8: invalid start byte at byte 8$"):
        next(read_rows(path))


def test_a_file_that_cannot_be_read_is_an_error_without_a_line(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "absent.jsonl", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(DataError, match=f": cannot be read: {reason}$") as caught:
            next(read_rows(path))
        assert (caught.value.path, caught.value.line) == (str(path), None)
