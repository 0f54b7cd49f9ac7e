"""Documents are checked once and never changed; a result can be iterated, indexed and written as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from r1_rerank import Document, RankedDocument, RerankResult, Step, Usage
from r1_rerank.documents import Fault, as_documents
from r1_rerank.errors import InputError, InputTypeError

# Documents


@pytest.mark.parametrize("documents", [["a", "b"], ("a", "b"), iter(["a", "b"]), {"a": 1, "b": 2}.keys()])
def test_any_list_of_texts_is_taken(documents: Iterable[str]) -> None:
    assert as_documents(documents) == (Document("a"), Document("b"))


def test_documents_are_taken_as_they_are() -> None:
    document = Document("a", id="1", metadata={"page": 3})
    assert as_documents([document, "b"])[0] is document
    changed: Any = document
    with pytest.raises(FrozenInstanceError):
        changed.text = "other"


def test_equal_and_empty_texts_are_documents_like_others() -> None:
    assert len(as_documents(["", "", "same", "same"])) == 4
    same = Document("same")
    assert len(as_documents([same, same])) == 2


@pytest.mark.parametrize("documents", [None, "one text", b"one text", {"text": "a"}, 3, Document("a")])
def test_anything_but_a_list_is_named(documents: Any) -> None:
    with pytest.raises(InputTypeError, match=r"^documents: expected a list of str or Document, got "):
        as_documents(documents)
    with pytest.raises(InputTypeError, match=r"^passages: .* wrap one text as \[text\]$"):
        as_documents(documents, "passages")


@pytest.mark.parametrize("element", [None, 3, b"a", {"text": "a"}, ["a"]])
def test_an_element_of_another_type_is_named_by_its_place(element: Any) -> None:
    with pytest.raises(InputTypeError, match=r"^documents\[1\]: expected a str or Document, got "):
        as_documents(["a", element])


def test_an_id_stands_for_one_document() -> None:
    with pytest.raises(InputError, match=r"^documents\[2\]: id 'x' is also that of documents\[0\]; make ids unique"):
        as_documents([Document("a", id="x"), Document("b"), Document("c", id="x")])


@pytest.mark.parametrize(
    ("values", "error", "at_fault"),
    [
        ({"text": None}, InputTypeError, "Document.text"),
        ({"text": 3}, InputTypeError, "Document.text"),
        ({"text": b"a"}, InputTypeError, "Document.text"),
        ({"id": 3}, InputTypeError, "Document.id"),
        ({"title": 3}, InputTypeError, "Document.title"),
        ({"price": "3"}, InputTypeError, "Document.price"),
        ({"price": True}, InputTypeError, "Document.price"),
        ({"price": -1}, InputError, "Document.price"),
        ({"price": math.nan}, InputError, "Document.price"),
    ],
)
def test_a_field_that_cannot_be_used_is_named(values: dict[str, Any], error: type[InputError], at_fault: str) -> None:
    with pytest.raises(error) as caught:
        Document(**{"text": "a", **values})
    assert caught.value.argument == at_fault


# Usage


def test_usage_adds_up() -> None:
    one = Usage(calls=1, prompt_computed=100, prompt_reused=20, generated=7, thinking=5, seconds=0.5)
    assert one + one + Usage() == Usage(
        calls=2, prompt_computed=200, prompt_reused=40, generated=14, thinking=10, seconds=1.0
    )
    assert one.tokens == 107


# The result

STEP = Step(
    number=1,
    ask="eliminate",
    shown=(0, 1),
    picked=(0,),
    thinking="Sheds are off topic.",
    answer="<answer>[A]</answer>",
    logprobs={0: -0.1, 1: -math.inf},
    usage=Usage(calls=1),
    standing=(1, 0),
)
RESULT = RerankResult(
    query="what is a kv cache?",
    ranking=(
        RankedDocument(1, 1, 1.0, Document("Keys \udce9 and values.", id="k", metadata={"any": object()})),
        RankedDocument(2, 0, 0.5, Document("A shed.")),
    ),
    steps=(STEP,),
    usage=Usage(calls=1, prompt_computed=80, generated=1),
    faults=(Fault(1, "answer_form", "the answer is not labels in brackets"),),
    malformed=1,
    status="repaired",
)


def test_a_result_is_a_list_of_hits() -> None:
    assert [hit.rank for hit in RESULT] == [1, 2]
    assert len(RESULT) == 2
    assert RESULT[0].text == "Keys \udce9 and values."
    assert RESULT[-1].index == 0
    assert RESULT[:1] == RESULT.ranking[:1]


def test_a_result_as_json() -> None:
    record = RESULT.to_dict(id="q7")
    assert record == {
        "id": "q7",
        "query": "what is a kv cache?",
        "status": "repaired",
        "score_kind": "rank",
        "card": "default",
        "results": [
            {"rank": 1, "index": 1, "id": "k", "score": 1.0, "text": "Keys \udce9 and values."},
            {"rank": 2, "index": 0, "id": None, "score": 0.5, "text": "A shed."},
        ],
        "faults": [{"step": 1, "kind": "answer_form", "detail": "the answer is not labels in brackets", "run": 1}],
        "malformed": 1,
        "usage": {
            "calls": 1,
            "prompt_computed": 80,
            "prompt_reused": 0,
            "generated": 1,
            "thinking": 0,
            "seconds": 0.0,
        },
    }


def test_the_steps_come_with_the_trace() -> None:
    assert "steps" not in RESULT.to_dict()
    (step,) = RESULT.to_dict(trace=True)["steps"]
    assert step["shown"] == [0, 1]
    assert step["logprobs"] == {"0": -0.1, "1": None}  # JSON has no infinity
    without = replace(RESULT, steps=(replace(STEP, logprobs=None),))
    assert without.to_dict(trace=True)["steps"][0]["logprobs"] is None


@pytest.mark.parametrize("trace", [False, True])
def test_json_gives_back_what_was_written(trace: bool) -> None:
    record = RESULT.to_dict(trace=trace)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_failed_row_tells_its_error() -> None:
    failed = replace(RESULT, ranking=(), status="failed", error=RuntimeError("out of memory"))
    assert failed.to_dict()["error"] == "out of memory"
    assert failed.to_dict()["results"] == []
    assert "error" not in RESULT.to_dict()
