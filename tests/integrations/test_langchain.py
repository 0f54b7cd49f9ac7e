"""The compressor and the routing chat model inside LangChain itself; only the language models are scripted."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_text_splitters import CharacterTextSplitter
from pydantic import BaseModel, Field, ValidationError

from r1_rerank import R1Reranker, ScriptedEngine, Usage
from r1_rerank.engines import Completion, GenerationRequest
from r1_rerank.errors import EngineError, InputError, InputTypeError
from r1_rerank.integrations.langchain import R1RerankCompressor, R1RouterChatModel
from r1_rerank.integrations.router import LLMProfile, NoEligibleLLMError, R1Router

QUERY = "which number is largest?"
EXAMPLES = Path(__file__).parents[2] / "examples"


def largest_first(request: GenerationRequest) -> str:
    """A perfect model for documents that are numbers."""
    shown = dict(re.findall(r"^\[(\w)\] ?(.*?) ?\[\1\]$", request.messages[0]["content"], re.MULTILINE))
    best_first = sorted(shown, key=lambda label: -int(shown[label] or 0))
    return "<answer>" + " > ".join(f"[{label}]" for label in best_first) + "</answer>"


def least_likely_last(request: GenerationRequest) -> Completion:
    """An elimination with probabilities: the last label falls."""
    labels = request.labels or ()
    logprobs = {label: -5.0 + 4.5 * (label == labels[-1]) for label in labels}
    return Completion(text=f"<answer>[{labels[-1]}]</answer>", label_logprobs=logprobs, usage=Usage(calls=1))


class AsyncEngine(ScriptedEngine):
    """Fails where a synchronous call would block the event loop."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        raise AssertionError("a synchronous call on the event loop")

    async def agenerate(self, request: GenerationRequest) -> Completion:
        await asyncio.sleep(0)
        return self._answer(request)


def reranker(script: Any = largest_first, **options: Any) -> R1Reranker:
    return R1Reranker(ScriptedEngine(script), **({"strategy": "dranker", "thinking": 0} | options))


def compressor(script: Any = largest_first, *, on_error: Any = "partial", **fields: Any) -> R1RerankCompressor:
    return R1RerankCompressor(reranker=reranker(script, on_error=on_error), **fields)


def documents(*texts: str) -> list[Document]:
    return [Document(text, id=f"ид-{place}", metadata={"place": place}) for place, text in enumerate(texts)]


def contents(found: Sequence[Document]) -> list[str]:
    return [document.page_content for document in found]


def scores(found: Sequence[Document]) -> list[float]:
    return [document.metadata["relevance_score"] for document in found]


class Fixed(BaseRetriever):
    found: list[Document]

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return self.found


class Recorder(BaseCallbackHandler):
    """Writes down runs as they start and end, by name."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.outputs: dict[str, Any] = {}
        self.errors: dict[str, BaseException] = {}
        self.parents: dict[str, str | None] = {}
        self._names: dict[Any, str] = {}

    def _start(self, name: str, run_id: Any, parent_run_id: Any) -> None:
        self._names[run_id] = name
        self.parents[name] = self._names.get(parent_run_id)
        self.events.append(f"{name} starts")

    def on_retriever_start(self, serialized: Any, query: str, *, name: str = "", **run: Any) -> None:
        self._start(name, run["run_id"], run["parent_run_id"])

    def on_retriever_end(self, documents: Any, *, run_id: Any, **_: Any) -> None:
        self.events.append(f"{self._names[run_id]} ends")

    def on_chain_start(self, serialized: Any, inputs: Any, *, name: str = "", **run: Any) -> None:
        self._start(name, run["run_id"], run["parent_run_id"])

    def on_chain_end(self, outputs: Any, *, run_id: Any, **_: Any) -> None:
        self.events.append(f"{self._names[run_id]} ends")
        self.outputs[self._names[run_id]] = outputs

    def on_chain_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
        self.events.append(f"{self._names[run_id]} fails")
        self.errors[self._names[run_id]] = error

    def on_chat_model_start(self, serialized: Any, messages: Any, **run: Any) -> None:
        self._start(serialized["name"], run["run_id"], run["parent_run_id"])

    def on_llm_end(self, response: Any, *, run_id: Any, **_: Any) -> None:
        self.events.append(f"{self._names[run_id]} ends")

    def on_llm_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
        self.events.append(f"{self._names[run_id]} fails")


# Compressor: what is promised


def test_the_best_documents_come_back_as_they_were_with_a_score() -> None:
    given = documents("3", "9", "5", "7")
    before = copy.deepcopy(given)
    found = compressor().compress_documents(given, QUERY)
    assert contents(found) == ["9", "7", "5"]
    assert [document.id for document in found] == ["ид-1", "ид-3", "ид-2"]
    assert [document.metadata["place"] for document in found] == [1, 3, 2]
    assert scores(found) == [1.0, 0.75, 0.5]
    assert given == before


def test_a_class_of_documents_is_kept() -> None:
    class Page(Document):
        number: int

    given = [Page(page_content="1", number=7), Page(page_content="2", number=8)]
    found = compressor().compress_documents(given, QUERY)
    assert [(type(document), document.number) for document in found] == [(Page, 8), (Page, 7)]  # type: ignore[attr-defined]


async def test_it_serves_a_contextual_compression_retriever() -> None:
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor(top_n=2), base_retriever=Fixed(found=documents("3", "9", "5"))
    )
    assert contents(retriever.invoke(QUERY)) == contents(await retriever.ainvoke(QUERY)) == ["9", "5"]


async def test_it_serves_a_pipeline_which_hands_on_the_callbacks() -> None:
    pipeline = DocumentCompressorPipeline(
        transformers=[CharacterTextSplitter(separator=" ", chunk_size=1, chunk_overlap=0), compressor()]
    )
    retriever = ContextualCompressionRetriever(base_compressor=pipeline, base_retriever=Fixed(found=documents("3 9 5")))
    for invoke in (retriever.invoke, lambda *given: asyncio.run(retriever.ainvoke(*given))):
        recorder = Recorder()
        found = await asyncio.to_thread(invoke, QUERY, {"callbacks": [recorder]})
        assert contents(found) == ["9", "5", "3"]
        assert recorder.parents["R1RerankCompressor"] == "ContextualCompressionRetriever"


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_call_is_a_run_in_the_trace(asynchronous: bool) -> None:
    recorder = Recorder()
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor(), base_retriever=Fixed(found=documents("3", "9"))
    )
    if asynchronous:
        found = await retriever.ainvoke(QUERY, {"callbacks": [recorder]})
    else:
        found = retriever.invoke(QUERY, {"callbacks": [recorder]})
    assert recorder.events == [
        "ContextualCompressionRetriever starts",
        "Fixed starts",
        "Fixed ends",
        "R1RerankCompressor starts",
        "R1RerankCompressor ends",
        "ContextualCompressionRetriever ends",
    ]
    traced = recorder.outputs["R1RerankCompressor"]
    assert traced.pop("documents") == found
    assert (traced["status"], traced["faults"], traced["usage"]["calls"]) == ("ok", [], 1)
    assert json.loads(json.dumps(traced)) == traced


def test_an_engine_fault_shows_in_the_trace() -> None:
    recorder = Recorder()
    found = compressor([EngineError("no more memory")], include_status=True).compress_documents(
        documents("3", "9"), QUERY, callbacks=[recorder]
    )
    assert contents(found) == ["3", "9"]
    traced = recorder.outputs["R1RerankCompressor"]
    assert traced["status"] == "fallback"
    assert "no more memory" in traced["faults"][0]["detail"]
    assert {document.metadata["rerank_status"] for document in found} == {"fallback"}
    assert "no more memory" in found[0].metadata["rerank_faults"][0]["detail"]


async def test_an_engine_fault_is_raised_on_request_and_shows_in_the_trace() -> None:
    recorder = Recorder()
    failing = compressor([EngineError("no more memory")] * 2, on_error="raise")
    with pytest.raises(EngineError, match="no more memory"):
        failing.compress_documents(documents("3", "9"), QUERY, callbacks=[recorder])
    with pytest.raises(EngineError, match="no more memory"):
        await failing.acompress_documents(documents("3", "9"), QUERY, callbacks=[recorder])
    assert recorder.events == ["R1RerankCompressor starts", "R1RerankCompressor fails"] * 2


async def test_async_is_native_and_lists_are_ranked_together() -> None:
    both_under_way = asyncio.Barrier(2)

    class Meeting(AsyncEngine):
        async def agenerate(self, request: GenerationRequest) -> Completion:
            await both_under_way.wait()
            return await super().agenerate(request)

    ranker = R1RerankCompressor(reranker=R1Reranker(Meeting(largest_first), strategy="dranker", thinking=0))
    one, other = await asyncio.gather(
        ranker.acompress_documents(documents("1", "2"), QUERY), ranker.arerank(documents("3", "4"), QUERY)
    )
    assert contents(one) == ["2", "1"]
    assert [hit["index"] for hit in other] == [1, 0]


async def test_sync_works_inside_a_running_loop() -> None:
    assert contents(compressor().compress_documents(documents("1", "2"), QUERY)) == ["2", "1"]


def test_the_helper_gives_places() -> None:
    ranker = compressor(top_n=2)
    assert ranker.rerank(["3", "9", "5"], QUERY) == [
        {"index": 1, "relevance_score": 1.0},
        {"index": 2, "relevance_score": pytest.approx(2 / 3)},
    ]
    assert [hit["index"] for hit in ranker.rerank(documents("3", "9", "5"), QUERY, top_n=None)] == [1, 2, 0]
    assert [hit["index"] for hit in ranker.rerank(["3", "9", "5"], QUERY, top_n=1)] == [1]
    assert ranker.rerank([], QUERY) == []
    for wrong in (0, -2):
        with pytest.raises(InputError, match=f"top_n: {wrong} is too small"):
            ranker.rerank(["3", "9"], QUERY, top_n=wrong)


async def test_it_is_a_step_of_a_chain() -> None:
    recorder = Recorder()
    chain = {"query": RunnablePassthrough(), "documents": Fixed(found=documents("3", "9", "5"))} | compressor(
        top_n=1
    ).as_runnable()
    assert contents(chain.invoke(QUERY, {"callbacks": [recorder]})) == ["9"]
    assert contents(await chain.ainvoke(QUERY)) == ["9"]
    assert [contents(found) for found in chain.batch([QUERY, QUERY])] == [["9"], ["9"]]
    assert recorder.outputs["R1RerankCompressor"]["status"] == "ok"


def test_the_reasoning_comes_along_on_request() -> None:
    script = ["<think>one is small</think><answer>[A]</answer>", "<think>two too</think><answer>[A]</answer>"]
    ranker = R1RerankCompressor(reranker=R1Reranker(ScriptedEngine(script), thinking=9), include_reasoning=True)
    found = ranker.compress_documents(documents("1", "2", "3"), QUERY)
    assert [(document.page_content, document.metadata["rerank_reasoning"]) for document in found] == [
        ("3", "two too"),
        ("2", "two too"),
        ("1", "one is small"),
    ]


def test_a_threshold_needs_scores_that_mean_something() -> None:
    engine = ScriptedEngine(least_likely_last, capabilities=frozenset({"constrain", "logprobs"}))
    exact = R1RerankCompressor(reranker=R1Reranker(engine, thinking=0), top_n=None, score_threshold=0.5)
    kept = exact.compress_documents(documents("a", "b", "c", "d"), QUERY)
    assert contents(kept) == ["a"]
    assert all(score >= 0.5 for score in scores(kept))
    with pytest.raises(InputError, match="score_threshold"):
        compressor(score_threshold=0.5).compress_documents(documents("1", "2"), QUERY)


# Compressor: how it could break


def test_lists_of_no_or_one_document_need_no_model() -> None:
    ranker = compressor([])
    assert ranker.compress_documents([], QUERY) == []
    (only,) = ranker.compress_documents(documents("1"), QUERY)
    assert (only.id, only.metadata["relevance_score"]) == ("ид-0", 1.0)


@pytest.mark.parametrize(("top_n", "expected"), [(1, 1), (3, 3), (50, 4), (None, 4)])
def test_as_many_come_back_as_were_asked_for(top_n: int | None, expected: int) -> None:
    assert len(compressor(top_n=top_n).compress_documents(documents("1", "2", "3", "4"), QUERY)) == expected


def test_equal_texts_and_equal_ids_stay_apart() -> None:
    given = [Document(text, id="same", metadata={"place": place}) for place, text in enumerate(["1", "2", "1", ""])]
    found = compressor(top_n=None).compress_documents(given, QUERY)
    assert contents(found) == ["2", "1", "1", ""]
    assert sorted(document.metadata["place"] for document in found) == [0, 1, 2, 3]


def test_every_passage_reaches_the_model() -> None:
    ranker = compressor(top_n=1)
    ranker.compress_documents(documents("41", "42", "43"), QUERY)
    (request,) = ranker.reranker.engine.requests  # type: ignore[union-attr]
    assert all(f" {text} [" in request.messages[0]["content"] for text in ("41", "42", "43"))


def test_the_new_score_wins_over_an_old_one() -> None:
    given = [Document("1", metadata={"relevance_score": 0.999}), Document("2", metadata={"relevance_score": 0.1})]
    found = compressor().compress_documents(given, QUERY)
    assert (contents(found), scores(found)) == (["2", "1"], [1.0, 0.5])


def test_metadata_stays_json() -> None:
    engine = ScriptedEngine(least_likely_last, capabilities=frozenset({"constrain", "logprobs"}))
    ranker = R1RerankCompressor(
        reranker=R1Reranker(engine, thinking=0), include_reasoning=True, include_status=True, top_n=None
    )
    for document in ranker.compress_documents(documents("a", "b", "c"), QUERY):
        assert type(document.metadata["relevance_score"]) is float
        assert json.loads(json.dumps(document.metadata)) == document.metadata


@pytest.mark.parametrize(
    "answer", ["", "Doc: 0", "I like 3 of the 4 documents, 2 less.", "[Z] > [Y]", "[0] > [1]", "-1", "null"]
)
def test_an_answer_that_names_nothing_keeps_the_order_and_says_so(answer: str) -> None:
    recorder = Recorder()
    given = documents("3", "9", "5")
    found = compressor([answer]).compress_documents(given, QUERY, callbacks=[recorder])
    assert contents(found) == ["3", "9", "5"]
    assert recorder.outputs["R1RerankCompressor"]["status"] == "fallback"
    assert recorder.outputs["R1RerankCompressor"]["faults"]


def test_a_bad_part_of_an_answer_does_not_shift_the_rest() -> None:
    found = compressor(["<answer>[C] > [?] > [A] > [A]</answer>"]).compress_documents(documents("3", "9", "5"), QUERY)
    assert contents(found) == ["5", "3", "9"]


def test_settings_are_checked_before_anything_is_loaded() -> None:
    for wrong in ({"top_n": 0}, {"top_n": -1}, {"strategy": "best"}, {"thinking": -1}, {"score_threshold": 2}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            R1RerankCompressor(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="extra"):
        R1RerankCompressor(top_k=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="settled in the reranker"):
        R1RerankCompressor(reranker=reranker(), model="a/b")


@pytest.mark.parametrize("wrong", ["text", None, [None], [{"page_content": "1"}]])
def test_wrong_documents_are_named(wrong: Any) -> None:
    with pytest.raises(InputTypeError, match="documents"):
        compressor().compress_documents(wrong, QUERY)


@pytest.mark.parametrize("query", ["", None])
def test_a_missing_query_is_named(query: Any) -> None:
    assert compressor([]).compress_documents([], query) == []
    with pytest.raises(InputError, match="query"):
        compressor([]).compress_documents(documents("1", "2"), query)


def test_copies_share_the_reranker_and_the_original_keeps_its_fields() -> None:
    ranker = compressor(top_n=2)
    for twin in (copy.copy(ranker), copy.deepcopy(ranker), ranker.model_copy(deep=True), ranker.model_copy()):
        assert twin.reranker is ranker.reranker
        assert contents(twin.compress_documents(documents("1", "2", "3"), QUERY)) == ["3", "2"]
    assert ranker.model_copy(update={"top_n": 1}).top_n == 1
    assert ranker.top_n == 2


def test_settings_are_serialised_and_a_loaded_model_is_not() -> None:
    named = R1RerankCompressor(model="a/b", strategy="dranker", top_n=7)
    assert R1RerankCompressor.model_validate_json(named.model_dump_json()) == named
    assert pickle.loads(pickle.dumps(named)) == named
    assert "reranker" not in compressor().model_dump()
    with pytest.raises(InputTypeError, match="pass a model name"):
        pickle.dumps(compressor())


def test_its_fields_have_a_schema_for_forms_and_configuration() -> None:
    for mode in ("validation", "serialization"):
        properties = R1RerankCompressor.model_json_schema(mode=mode)["properties"]
        assert "top_n" in properties
        assert "reranker" not in properties


@pytest.mark.model
def test_the_embedded_model_is_loaded_once_for_all() -> None:
    ranker = R1RerankCompressor(thinking=0, top_n=2)
    twins = [ranker, copy.deepcopy(ranker), pickle.loads(pickle.dumps(ranker)), R1RerankCompressor(thinking=0)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda twin: twin.rerank(["the tide", "the moon"], "what is the moon?"), twins))
        loaded = set(threads.map(lambda twin: twin._source().load(), twins))
    assert len(loaded) == 1
    assert all(sorted(hit["index"] for hit in hits) == [0, 1] for hits in found)


@pytest.mark.model
def test_the_example_runs() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "langchain_compression.py"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("\n") >= 3


def test_a_missing_framework_names_the_extra() -> None:
    code = "import sys; sys.modules['langchain_core'] = None; import r1_rerank.integrations.langchain"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'MissingExtraError: langchain_core is not installed: pip install "r1-rerank[langchain]"' in ran.stderr


# Routing chat model


class Talker(BaseChatModel):
    """A chat model that says who it is; streams by words; takes tools where it may."""

    who: str
    fails: str = ""
    tools: bool = True
    calls: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "talker"

    def _answer(self, messages: list[BaseMessage], given: dict[str, Any]) -> AIMessage:
        self.calls.append(given)
        if self.fails == "at once":
            raise ConnectionError(f"{self.who} is down")
        usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
        tools = given.get("tools") or []
        called = [{"name": tool["function"]["name"], "args": {"who": self.who}, "id": "1"} for tool in tools]
        return AIMessage(
            f"I am {self.who}",
            tool_calls=called,
            usage_metadata=usage,
            response_metadata={"model_name": self.who, "finish_reason": "stop"},
        )

    def _generate(self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any) -> Any:
        message = self._answer(messages, {"stop": stop, **given})
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> Any:
        return self._generate(messages, stop, **given)

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> Iterator[ChatGenerationChunk]:
        message = self._answer(messages, {"stop": stop, **given})
        words = re.findall(r" ?\S+", str(message.content))
        for place, word in enumerate(words):
            last = place == len(words) - 1
            if last and self.fails == "midway":
                raise ConnectionError(f"{self.who} broke off")
            extra = {"usage_metadata": message.usage_metadata, "response_metadata": message.response_metadata}
            yield ChatGenerationChunk(message=AIMessageChunk(content=word, **(extra if last else {})))

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages, stop, **given):
            yield chunk

    def bind_tools(self, tools: Any, **given: Any) -> Any:
        if not self.tools:
            return super().bind_tools(tools, **given)
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **given)


def by_subject(request: GenerationRequest) -> str:
    """Sends mathematics to the second LLM, everything else to the first."""
    maths = "integral" in request.messages[-1]["content"]
    return "<answer>[B] > [A] > [C]</answer>" if maths else "<answer>[A] > [B] > [C]</answer>"


def chat(
    *, engine: Callable[..., ScriptedEngine] = ScriptedEngine, script: Any = by_subject, **talkers: dict[str, Any]
) -> R1RouterChatModel:
    pool = [
        LLMProfile(name=who, description="An LLM.", input_price=1, client=Talker(who=who, **fields))
        for who, fields in ({"anna": {}, "bert": {}, "cleo": {}} | talkers).items()
    ]
    return R1RouterChatModel(router=R1Router(pool, R1Reranker(engine(script), strategy="dranker", thinking=0)))


def talker(model: R1RouterChatModel, who: str) -> Talker:
    return next(profile.client for profile in model.router.pool if profile.name == who)


def decision(message: Any) -> dict[str, Any]:
    record: dict[str, Any] = message.response_metadata["r1_router"]
    return record


SUM = "What is an integral?"


def test_each_call_goes_to_the_best_llm_and_says_why() -> None:
    model = chat()
    assert model.invoke("Hello").content == "I am anna"
    message = model.invoke(SUM)
    assert (type(message), message.content) == (AIMessage, "I am bert")
    record = decision(message)
    assert (record["answered_by"], record["llm"], record["failed"]) == ("bert", "bert", {})
    assert [ranked["llm"] for ranked in record["ranking"]] == ["bert", "anna", "cleo"]
    assert (record["status"], record["expected_price"]) == ("ok", 1)
    assert "query" not in record, "a chat is kept, and would hold each question twice"
    assert record["decision_id"]
    assert message.response_metadata["model_name"] == "bert"
    assert json.loads(json.dumps(record)) == record


async def test_all_ways_of_calling_are_routed() -> None:
    model = chat(engine=AsyncEngine)
    assert (await model.ainvoke(SUM)).content == "I am bert"
    assert [message.content for message in await model.abatch([SUM, "Hello"])] == ["I am bert", "I am anna"]
    chunks = [chunk async for chunk in model.astream(SUM)]
    assert [chunk.content for chunk in chunks[:3]] == ["I", " am", " bert"]
    model = chat()
    assert [message.content for message in model.batch([SUM, "Hello"])] == ["I am bert", "I am anna"]
    assert "".join(str(chunk.content) for chunk in model.stream(SUM)) == "I am bert"
    assert model.generate([[HumanMessage(SUM)]]).generations[0][0].text == "I am bert"
    assert (await model.agenerate([[HumanMessage(SUM)]])).generations[0][0].text == "I am bert"


def test_parts_add_up_to_a_message_with_one_decision() -> None:
    chunks = list(chat().stream(SUM))
    assert len(chunks) > 2
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert whole.content == "I am bert"
    assert decision(whole)["answered_by"] == "bert"
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] == 7


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
async def test_the_next_in_rank_answers_where_one_fails(way: str) -> None:
    model = chat(bert={"fails": "at once"})
    if way == "invoke":
        message: Any = model.invoke(SUM)
    elif way == "ainvoke":
        message = await model.ainvoke(SUM)
    elif way == "stream":
        message = next(iter(model.stream(SUM)))
    else:
        message = await anext(aiter(model.astream(SUM)))
    record = decision(message)
    assert (record["llm"], record["answered_by"]) == ("bert", "anna")
    assert record["failed"] == {"bert": "ConnectionError: bert is down"}


async def test_where_all_fail_the_first_error_is_raised() -> None:
    down = {"fails": "at once"}
    model = chat(anna=down, bert=down, cleo=down)
    with pytest.raises(ConnectionError, match="bert is down") as caught:
        model.invoke(SUM)
    assert "then cleo failed too: ConnectionError: cleo is down" in caught.value.__notes__
    with pytest.raises(ConnectionError, match="bert is down"):
        await model.ainvoke(SUM)
    with pytest.raises(ConnectionError, match="bert is down"):
        list(model.stream(SUM))
    with pytest.raises(ConnectionError, match="bert is down"):
        [chunk async for chunk in model.astream(SUM)]


def test_an_answer_that_broke_off_is_not_begun_again() -> None:
    model = chat(bert={"fails": "midway"})
    parts = []
    with pytest.raises(ConnectionError, match="bert broke off"):
        parts.extend(chunk.content for chunk in model.stream(SUM))
    assert talker(model, "anna").calls == []


class Weather(BaseModel):
    """Tells the weather."""

    who: str


async def test_the_chosen_llm_gets_the_tools() -> None:
    model = chat()
    with_tools = model.bind_tools([Weather], tool_choice="Weather")
    message = with_tools.invoke(SUM)
    assert message.tool_calls[0]["args"] == {"who": "bert"}
    assert decision(message)["answered_by"] == "bert"
    assert talker(model, "bert").calls[0]["tool_choice"] == "Weather"
    assert (await with_tools.ainvoke("Hello")).tool_calls[0]["args"] == {"who": "anna"}
    assert decision(next(iter(with_tools.stream(SUM))))["answered_by"] == "bert"


async def test_an_llm_without_tools_is_passed_over() -> None:
    with_tools = chat(bert={"tools": False}).bind_tools([Weather])
    message = with_tools.invoke(SUM)
    assert decision(message)["answered_by"] == "anna"
    assert "NotImplementedError" in decision(message)["failed"]["bert"]


async def test_the_chosen_llm_gets_the_schema() -> None:
    model = chat()
    assert model.with_structured_output(Weather).invoke(SUM) == Weather(who="bert")
    assert await model.with_structured_output(Weather).ainvoke("Hello") == Weather(who="anna")
    raw = model.with_structured_output(Weather, include_raw=True).invoke(SUM)
    assert raw["parsed"] == Weather(who="bert")
    assert decision(raw["raw"])["answered_by"] == "bert"


def test_stop_words_and_other_arguments_reach_the_chosen_llm() -> None:
    model = chat()
    model.invoke(SUM, stop=["."], temperature=0.5)
    model.bind(stop=["!"]).invoke(SUM)
    list(model.stream(SUM, stop=["?"]))
    calls = talker(model, "bert").calls
    assert [call["stop"] for call in calls] == [["."], ["!"], ["?"]]
    assert calls[0]["temperature"] == 0.5


async def test_the_trace_shows_the_decision_and_counts_tokens_once() -> None:
    recorder, usage = Recorder(), UsageMetadataCallbackHandler()
    model = chat(bert={"fails": "at once"})
    chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | model | StrOutputParser()
    assert chain.invoke({"question": SUM}, {"callbacks": [recorder, usage]}) == "I am anna"
    assert recorder.events[3:-3] == [
        "R1RouterChatModel starts",
        "R1Router starts",
        "R1Router ends",
        "Talker starts",
        "Talker fails",
        "Talker starts",
        "Talker ends",
        "R1RouterChatModel ends",
    ]
    assert recorder.outputs["R1Router"]["llm"] == "bert"
    assert recorder.parents["Talker"] == recorder.parents["R1Router"] == "R1RouterChatModel"
    assert usage.usage_metadata["anna"]["total_tokens"] == 7
    usage = UsageMetadataCallbackHandler()
    assert [part async for part in chain.astream({"question": SUM}, {"callbacks": [usage]})]
    assert usage.usage_metadata["anna"]["total_tokens"] == 7


async def test_a_stream_that_is_left_early_is_closed() -> None:
    closed = []

    class Slow(Talker):
        async def _astream(self, *given: Any, **more: Any) -> AsyncIterator[ChatGenerationChunk]:
            try:
                async for chunk in super()._astream(*given, **more):
                    yield chunk
            finally:
                closed.append(self.who)

    pool = [LLMProfile(name="slow", description="An LLM.", client=Slow(who="slow"))]
    stream = R1RouterChatModel(router=R1Router(pool, reranker())).astream(SUM)
    assert (await anext(stream)).content == "I"
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.sleep(0.01)
    assert closed == ["slow"]


def test_a_synchronous_stream_that_is_left_early_is_closed_too() -> None:
    held, closed = [], []  # a reference such as an LLM may keep: only closing ends what stands behind it

    class Slow(Talker):
        def stream(self, *given: Any, **more: Any) -> Any:
            def parts() -> Iterator[AIMessageChunk]:
                try:
                    while True:
                        yield AIMessageChunk("on")
                finally:
                    closed.append(self.who)

            held.append(parts())
            return held[-1]

    pool = [LLMProfile(name="slow", description="An LLM.", client=Slow(who="slow"))]
    for parts_read in (1, 2):
        stream = R1RouterChatModel(router=R1Router(pool, reranker())).stream(SUM)
        for _ in range(parts_read):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert closed == ["slow"] * parts_read


async def test_streamed_events_show_each_token_once() -> None:
    events = [event async for event in chat().astream_events(SUM, version="v2")]
    tokens = [event["data"]["chunk"].content for event in events if event["event"] == "on_chat_model_stream"]
    assert "".join(tokens) == "I am bert"


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_the_typed_stream_of_events_works() -> None:
    model = chat()
    assert str(model.stream_events(SUM, version="v3").text) == "I am bert"
    stream = await model.astream_events(SUM, version="v3")
    assert str(await stream.text) == "I am bert"


def test_a_failed_ranking_shows_and_the_first_of_the_pool_answers() -> None:
    recorder = Recorder()
    message = chat(script=[EngineError("no more memory")]).invoke(SUM, {"callbacks": [recorder]})
    assert (message.content, decision(message)["status"]) == ("I am anna", "fallback")
    assert "no more memory" in recorder.outputs["R1Router"]["faults"][0]["detail"]


def test_callbacks_tags_and_metadata_of_the_model_count() -> None:
    recorder = Recorder()
    model = chat()
    model.callbacks = [recorder]
    model.invoke(SUM)
    assert recorder.events[0] == "R1RouterChatModel starts"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([SystemMessage("Be kind."), HumanMessage(SUM), AIMessage("Wait"), ToolMessage("3", tool_call_id="1")], SUM),
        ([HumanMessage("first"), AIMessage("yes?"), HumanMessage("last")], "last"),
        ([HumanMessage([{"type": "text", "text": "Whose face?"}, {"type": "image", "url": "x"}])], "Whose face?"),
        ([HumanMessage([{"type": "image", "url": "x"}])], "(no text)"),
        ([SystemMessage("Say hello.")], "Say hello."),
        ([], "(no text)"),
    ],
)
def test_a_chat_is_routed_by_what_the_user_said_last(messages: list[BaseMessage], expected: str) -> None:
    recorder = Recorder()
    model = chat()
    model.invoke(messages, {"callbacks": [recorder]})
    assert recorder.outputs["R1Router"]["query"] == expected
    assert expected in model.router.reranker.engine.requests[0].messages[-1]["content"]  # type: ignore[attr-defined]


def test_limits_are_kept() -> None:
    model = chat()
    model = R1RouterChatModel(router=R1Router(model.router.pool, model.router.reranker, max_price=0.5))
    with pytest.raises(NoEligibleLLMError, match="anna"):
        model.invoke(SUM)


def test_a_pool_must_be_callable_and_copies_share_it() -> None:
    with pytest.raises(ValidationError, match="client of 'x' must be a chat model"):
        R1RouterChatModel(router=R1Router([LLMProfile(name="x", description="An LLM.")], reranker()))
    model = chat()
    for twin in (copy.copy(model), copy.deepcopy(model), model.model_copy(deep=True)):
        assert twin.router is model.router
        assert twin.invoke(SUM).content == "I am bert"


def test_a_client_may_be_any_runnable_that_gives_a_message() -> None:
    pool = [LLMProfile(name="x", description="An LLM.", client=RunnableLambda(lambda _: AIMessage("hi")))]
    model = R1RouterChatModel(router=R1Router(pool, reranker()))
    assert decision(model.invoke("Hello"))["answered_by"] == "x"
    assert [chunk.content for chunk in model.stream("Hello")] == ["hi"]
