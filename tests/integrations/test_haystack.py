"""The ranker inside Haystack itself; only the language model is scripted."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when Haystack is imported

import pytest
from haystack import Document, Pipeline, tracing
from haystack.components.joiners import DocumentJoiner
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.core.errors import DeserializationError, SerializationError
from haystack.core.serialization import component_to_dict
from haystack.document_stores.in_memory import InMemoryDocumentStore

from r1_rerank import R1Reranker, ScriptedEngine, Usage
from r1_rerank.engines import Completion, GenerationRequest
from r1_rerank.errors import EngineError, InputError, InputTypeError
from r1_rerank.integrations.haystack import R1Ranker

QUERY = "which number is largest?"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _no_store_is_left() -> Iterator[None]:
    """A document store joins its threads when it is collected, and waits for ever if that is in a thread's start."""
    yield
    gc.collect()


def largest_first(request: GenerationRequest) -> str:
    """A perfect model for documents that are numbers."""
    shown = dict(re.findall(r"^\[(\w)\] ?(.*?) ?\[\1\]$", request.messages[0]["content"], re.MULTILINE))
    best_first = sorted(shown, key=lambda label: -int(shown[label] or 0))
    return "<answer>" + " > ".join(f"[{label}]" for label in best_first) + "</answer>"


class AsyncEngine(ScriptedEngine):
    """Fails where a synchronous call would block the event loop."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        raise AssertionError("a synchronous call on the event loop")

    async def agenerate(self, request: GenerationRequest) -> Completion:
        await asyncio.sleep(0)
        return self._answer(request)


def ranker(
    script: Any = largest_first, *, on_error: Any = "partial", engine: Any = ScriptedEngine, **given: Any
) -> Any:
    reranker = R1Reranker(engine(script), strategy="dranker", thinking=0, on_error=on_error)
    return R1Ranker(reranker=reranker, **given)


def documents(*texts: str | None) -> list[Document]:
    return [Document(id=f"ид-{n}", content=text, meta={"n": n}, score=0.9) for n, text in enumerate(texts)]


def contents(result: dict[str, Any]) -> list[str | None]:
    return [document.content for document in result["documents"]]


# What is promised


def test_documents_come_back_as_they_were_with_new_scores() -> None:
    given = documents("3", "9", "5", "7")
    before = copy.deepcopy(given)
    result = ranker(top_k=3).run(query=QUERY, documents=given)
    assert contents(result) == ["9", "7", "5"]
    assert [document.score for document in result["documents"]] == [1.0, 0.75, 0.5]
    assert [(document.id, document.meta) for document in result["documents"]] == [
        ("ид-1", {"n": 1}),
        ("ид-3", {"n": 3}),
        ("ид-2", {"n": 2}),
    ]
    assert given == before
    assert (result["meta"]["status"], result["meta"]["usage"]["calls"]) == ("ok", 1)
    assert json.loads(json.dumps(result["meta"])) == result["meta"]


def pipeline_of(component: Any) -> Pipeline:
    store = InMemoryDocumentStore()
    store.write_documents([Document(content=f"number {n}") for n in (3, 9, 5)])
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store))
    pipeline.add_component("ranker", component)
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def largest_number_first(request: GenerationRequest) -> str:
    shown = dict(re.findall(r"^\[(\w)\] number (\d+)", request.messages[0]["content"], re.MULTILINE))
    best_first = sorted(shown, key=lambda label: -int(shown[label]))
    return "<answer>" + " > ".join(f"[{label}]" for label in best_first) + "</answer>"


async def test_it_serves_a_pipeline() -> None:
    inputs = {"retriever": {"query": "number"}, "ranker": {"query": QUERY, "top_k": 2}}
    result = pipeline_of(ranker(largest_number_first)).run(inputs)
    assert contents(result["ranker"]) == ["number 9", "number 5"]
    gc.collect()  # the first one's store: see above
    result = await pipeline_of(ranker(largest_number_first, engine=AsyncEngine)).run_async(inputs)
    assert contents(result["ranker"]) == ["number 9", "number 5"]


def test_what_follows_gets_the_documents() -> None:
    pipeline = pipeline_of(ranker(largest_number_first))
    pipeline.add_component("joiner", DocumentJoiner())
    pipeline.connect("ranker.documents", "joiner.documents")
    result = pipeline.run({"retriever": {"query": "number"}, "ranker": {"query": QUERY}})
    assert contents(result["joiner"]) == ["number 9", "number 5", "number 3"]


class Span(tracing.Span):
    def __init__(self, tags: dict[str, Any]) -> None:
        self.tags = tags

    def set_tag(self, key: str, value: Any) -> None:
        self.tags[key] = value


class Recorder(tracing.Tracer):
    """Keeps the tags of every component that ran."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._open: list[Span] = []

    @contextmanager
    def trace(
        self, operation_name: str, tags: dict[str, Any] | None = None, parent_span: tracing.Span | None = None
    ) -> Iterator[Span]:
        span = Span(dict(tags or {}))
        self.spans.append(span)
        self._open.append(span)
        try:
            yield span
        finally:
            self._open.pop()

    def current_span(self) -> Span | None:
        return self._open[-1] if self._open else None

    def tags_of(self, component: str) -> dict[str, Any]:
        return next(span.tags for span in self.spans if span.tags.get("haystack.component.name") == component)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    tracing.enable_tracing(recorder)
    yield recorder
    tracing.disable_tracing()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_engine_fault_shows_in_the_trace(recorder: Recorder, asynchronous: bool) -> None:
    pipeline = pipeline_of(ranker([EngineError("no more memory")], include_status=True))
    inputs = {"retriever": {"query": "number"}, "ranker": {"query": QUERY}}
    result = await pipeline.run_async(inputs) if asynchronous else pipeline.run(inputs)
    found = result["ranker"]
    assert len(found["documents"]) == 3
    assert found["meta"]["status"] == found["documents"][0].meta["rerank_status"] == "fallback"
    assert "no more memory" in found["meta"]["faults"][0]["detail"]
    tags = recorder.tags_of("ranker")
    assert tags["r1_rerank.status"] == "fallback"
    assert "no more memory" in tags["r1_rerank.faults"][0]


async def test_an_engine_fault_is_raised_on_request() -> None:
    failing = ranker([EngineError("no more memory")] * 2, on_error="raise")
    with pytest.raises(EngineError, match="no more memory"):
        failing.run(query=QUERY, documents=documents("1", "2"))
    with pytest.raises(EngineError, match="no more memory"):
        await failing.run_async(query=QUERY, documents=documents("1", "2"))


async def test_async_is_native_and_lists_are_ranked_together() -> None:
    both_under_way = asyncio.Barrier(2)

    class Meeting(AsyncEngine):
        async def agenerate(self, request: GenerationRequest) -> Completion:
            await both_under_way.wait()
            return await super().agenerate(request)

    meeting = ranker(engine=Meeting)
    results = await asyncio.gather(
        meeting.run_async(query=QUERY, documents=documents("1", "2")),
        meeting.run_async(query=QUERY, documents=documents("3", "4")),
    )
    assert [contents(result) for result in results] == [["2", "1"], ["4", "3"]]


async def test_sync_works_inside_a_running_loop() -> None:
    assert contents(ranker().run(query=QUERY, documents=documents("1", "2"))) == ["2", "1"]


def test_the_reasoning_comes_along_on_request() -> None:
    script = ["<think>one is small</think><answer>[A]</answer>"]
    thinker = R1Ranker(reranker=R1Reranker(ScriptedEngine(script), thinking=9), include_reasoning=True)
    result = thinker.run(query=QUERY, documents=documents("1", "2"))
    assert [document.meta["rerank_reasoning"] for document in result["documents"]] == ["one is small", "one is small"]


def test_a_threshold_leaves_out_what_scores_lower() -> None:
    def last_falls(request: GenerationRequest) -> Completion:
        labels = request.labels or ()
        logprobs = {label: -5.0 + 4.5 * (label == labels[-1]) for label in labels}
        return Completion(text=f"<answer>[{labels[-1]}]</answer>", label_logprobs=logprobs, usage=Usage(calls=1))

    engine = ScriptedEngine(last_falls, capabilities=frozenset({"constrain", "logprobs"}))
    exact = R1Ranker(reranker=R1Reranker(engine, thinking=0), score_threshold=0.5)
    given = documents("a", "b", "c", "d")
    assert contents(exact.run(query=QUERY, documents=given)) == ["a"]
    assert contents(exact.run(query=QUERY, documents=given, score_threshold=0.0)) == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="score_threshold"):
        ranker(score_threshold=0.5).run(query=QUERY, documents=given)


# How it could break


def test_lists_of_no_or_one_document_need_no_model() -> None:
    silent = ranker([])
    assert silent.run(query=QUERY, documents=[]) == {"documents": [], "meta": {}}
    (only,) = silent.run(query=QUERY, documents=documents("1"))["documents"]
    assert (only.id, only.score) == ("ид-0", 1.0)


@pytest.mark.parametrize("query", ["", "  ", None])
async def test_without_a_query_documents_are_handed_on_unranked(query: Any, caplog: pytest.LogCaptureFixture) -> None:
    given = documents("1", "2")
    assert ranker([]).run(query=query, documents=given)["documents"] == given
    assert (await ranker([]).run_async(query=query, documents=given))["documents"] == given
    assert "the query is empty" in caplog.text


def test_equal_texts_stay_apart_and_equal_ids_do_not() -> None:
    given = [*documents("1", "2", "1", None), Document(id="ид-1", content="2", meta={"n": 9}, score=0.95)]
    result = ranker().run(query=QUERY, documents=given)
    assert [(document.id, document.meta["n"]) for document in result["documents"]] == [
        ("ид-1", 9),
        ("ид-0", 0),
        ("ид-2", 2),
        ("ид-3", 3),
    ]


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (50, 4), (None, 4)])
def test_as_many_come_back_as_were_asked_for(top_k: int | None, expected: int) -> None:
    given = documents("1", "2", "3", "4")
    assert len(ranker(top_k=top_k).run(query=QUERY, documents=given)["documents"]) == expected


@pytest.mark.parametrize("wrong", ["text", None, [None], ["text"]])
def test_wrong_documents_are_named(wrong: Any) -> None:
    with pytest.raises(InputTypeError, match="documents"):
        ranker([]).run(query=QUERY, documents=wrong)


@pytest.mark.parametrize(("setting", "value"), [("strategy", "best"), ("thinking", -1), ("on_error", "ignore")])
def test_wrong_settings_are_told_when_they_are_made(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=setting):
        R1Ranker(**{setting: value})


def test_every_passage_reaches_the_model() -> None:
    component = ranker(top_k=1)
    component.run(query=QUERY, documents=documents("41", "42", "43"))
    (request,) = component._source.load().engine.requests
    assert all(f" {text} [" in request.messages[0]["content"] for text in ("41", "42", "43"))


@pytest.mark.parametrize(
    "answer", ["", "Doc: 0", "I like 3 of the 4 documents, 2 less.", "[Z] > [Y]", "[0] > [1]", "-1", "null"]
)
def test_an_answer_that_names_nothing_keeps_the_order_and_says_so(answer: str) -> None:
    result = ranker([answer]).run(query=QUERY, documents=documents("3", "9", "5"))
    assert contents(result) == ["3", "9", "5"]
    assert result["meta"]["status"] == "fallback"
    assert result["meta"]["faults"]


def test_a_bad_part_of_an_answer_does_not_shift_the_rest() -> None:
    result = ranker(["<answer>[C] > [?] > [A] > [A]</answer>"]).run(query=QUERY, documents=documents("3", "9", "5"))
    assert contents(result) == ["5", "3", "9"]


def test_documents_stay_json() -> None:
    thinking = ranker(include_reasoning=True, include_status=True)
    for document in thinking.run(query=QUERY, documents=documents("3", "9"))["documents"]:
        assert type(document.score) is float
        assert json.loads(json.dumps(document.to_dict())) == document.to_dict()


@pytest.mark.parametrize("top_k", [0, -1, "3", True])
def test_a_wrong_top_k_is_named(top_k: Any) -> None:
    with pytest.raises(ValueError, match="top_k"):
        ranker(top_k=top_k)
    with pytest.raises(ValueError, match="top_k"):
        ranker().run(query=QUERY, documents=documents("1", "2"), top_k=top_k)


def test_a_component_is_saved_and_loaded_with_its_pipeline() -> None:
    pipeline = pipeline_of(R1Ranker("a/b", strategy="dranker", thinking=0, on_error="raise", top_k=4))
    saved = pipeline.dumps()
    loaded = Pipeline.loads(saved, allowed_modules=["r1_rerank"])
    assert loaded.dumps() == saved
    component = loaded.get_component("ranker")
    assert isinstance(component, R1Ranker)
    assert component.to_dict()["init_parameters"] == {
        "model": "a/b",
        "strategy": "dranker",
        "thinking": 0,
        "on_error": "raise",
        "top_k": 4,
        "score_threshold": None,
        "include_reasoning": False,
        "include_status": False,
    }
    with pytest.raises(DeserializationError, match="r1_rerank"):
        Pipeline.loads(saved)


def test_a_built_reranker_is_not_saved_silently() -> None:
    with pytest.raises(SerializationError, match="pass a model name"):
        component_to_dict(ranker(), "ranker")
    with pytest.raises(InputError, match="settled in the reranker"):
        R1Ranker("a/b", reranker=R1Reranker(ScriptedEngine([])))


def test_a_built_reranker_stays_open() -> None:
    component = ranker()
    component.warm_up()
    component.close()
    twin = copy.deepcopy(component)
    assert contents(twin.run(query=QUERY, documents=documents("1", "2"))) == ["2", "1"]


@pytest.mark.model
async def test_the_embedded_model_is_loaded_once_until_it_is_closed() -> None:
    one, other = R1Ranker(thinking=0), R1Ranker.from_dict(R1Ranker(thinking=0, top_k=1).to_dict())
    await one.warm_up_async()
    other.warm_up()
    loaded = one._source.load()
    assert other._source.load() is loaded
    result = await other.run_async(query="what is the moon?", documents=documents("the tide", "the moon"))
    assert len(result["documents"]) == 1
    other.close()
    other.close()
    assert one._source.load() is loaded, "closing one pipeline does not cost another its model"
    one.close()
    one.warm_up()
    assert one._source.load() is not loaded
    one.close()


@pytest.mark.model
def test_the_example_runs() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "haystack_pipeline.py"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "status ok" in ran.stdout


def test_a_missing_framework_names_the_extra() -> None:
    code = "import sys; sys.modules['haystack'] = None; import r1_rerank.integrations.haystack"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'MissingExtraError: haystack is not installed: pip install "r1-rerank[haystack]"' in ran.stderr
