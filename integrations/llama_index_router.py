"""Routing in LlamaIndex: to the tool that answers a query, or to an LLM. Import from `llama_index`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from functools import cached_property
from typing import Any, TypeVar

from ..documents import Document, RankedDocument, RerankResult
from ..errors import InputError, InputTypeError, MissingExtraError
from ..options import OnError
from ..reranker import R1Reranker
from ..tasks import Routing, Task
from .adapter import source_of
from .fallback import Attempts
from .router import LLMProfile, R1Router, RoutingDecision

try:
    from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
    from llama_index.core.base.llms.base import BaseLLM
    from llama_index.core.base.llms.types import (
        ChatMessage,
        ChatResponse,
        ChatResponseAsyncGen,
        ChatResponseGen,
        CompletionResponse,
        CompletionResponseAsyncGen,
        CompletionResponseGen,
        LLMMetadata,
        MessageRole,
    )
    from llama_index.core.bridge.pydantic import ConfigDict, PrivateAttr
    from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
    from llama_index.core.llms.custom import CustomLLM
    from llama_index.core.llms.llm import default_completion_to_prompt
    from llama_index.core.prompts.mixin import PromptDictType
    from llama_index.core.schema import QueryBundle
    from llama_index.core.tools.types import ToolMetadata
except ModuleNotFoundError as error:
    raise MissingExtraError("llama-index", error.name or "llama_index") from error

Response = TypeVar("Response", ChatResponse, CompletionResponse)


class R1RouterSelector(BaseSelector):
    """Chooses among tools by their descriptions, for `RouterQueryEngine`.

    The reason of a selection is what the model thought of it; where it did not think, its rank and score. Where the
    ranking is not the model's own, the reason says so.

    Args:
        reranker: A built one, in place of `model`, `strategy`, `thinking` and `on_error`.
        model: A hub name or a local folder; None: the embedded model.
        strategy: `iranker` or `dranker`; None: the model's own.
        thinking: Most tokens to think before each answer; None: the model's own number.
        on_error: What an engine fault does: `partial` (default) selects by the best order so far, `raise` raises it.
        top_n: How many tools are chosen; with more than one, `RouterQueryEngine` combines their answers.
        task: Makes the task of a query, and with it the words in which the model is asked.

    Raises:
        InputError: An argument that cannot be used.
    """

    def __init__(
        self,
        reranker: R1Reranker | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        strategy: str | None = None,
        thinking: int | None = None,
        on_error: OnError | None = None,
        top_n: int = 1,
        task: Callable[[str], Task] = Routing,
    ) -> None:
        if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1:
            raise InputError("top_n", f"expected 1 or more, got {top_n!r}")
        self._source = source_of(reranker, model=model, strategy=strategy, thinking=thinking, on_error=on_error)
        self._top_n = top_n
        self._task = task

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        """None of the framework's prompts are used."""

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        if len(choices) < 2:
            return _only(choices)
        reranker = self._source.load()
        return _selected(reranker.rerank(self._task(query.query_str), _documents(choices), top_k=self._top_n))

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        if len(choices) < 2:
            return _only(choices)
        reranker = await self._source.aload()
        return _selected(await reranker.arerank(self._task(query.query_str), _documents(choices), top_k=self._top_n))


class R1RouterLLM(CustomLLM):
    """An LLM that sends each prompt or chat to the best LLM of a pool.

    The `client` of each profile in the router's pool is an LLM of LlamaIndex. A chat is routed by its last user
    message. Where the chosen LLM fails before its first token, the next in rank answers; where all fail, the error of
    the first is raised.

    Every response, and every part of a streamed one, has the decision in `additional_kwargs["r1_router"]`: what
    `RoutingDecision.to_dict` gives, without the query, and `answered_by` and `failed`.

    Args:
        router: Chooses.
        fields: Fields of `LLM`, such as `system_prompt` or `callback_manager`.

    Raises:
        InputError: A client that is not an LLM of LlamaIndex.
    """

    model_config = ConfigDict(extra="forbid")
    _router: R1Router = PrivateAttr()

    def __init__(self, router: R1Router, **fields: Any) -> None:
        if not isinstance(router, R1Router):
            raise InputTypeError("router", f"expected an R1Router, got {type(router).__name__}")
        for profile in router.pool:
            _llm(profile)
        super().__init__(**fields)
        self._router = router

    def __getstate__(self) -> dict[str, Any]:
        raise InputTypeError("router", "live LLMs cannot be pickled; build the router again where it is needed")

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised form."""
        return "R1RouterLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What holds whichever LLM answers."""
        pool = [_llm(profile).metadata for profile in self._router.pool]
        return LLMMetadata(
            context_window=min(llm.context_window for llm in pool),
            num_output=max(llm.num_output for llm in pool),
            is_chat_model=any(llm.is_chat_model for llm in pool),
            model_name=f"router over {', '.join(profile.name for profile in self._router.pool)}",
        )

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Sends a chat to the best LLM."""
        return self._answer(_request(messages), lambda llm: llm.chat(messages, **kwargs))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Sends a chat to the best LLM and streams its answer."""
        return self._stream(_request(messages), lambda llm: llm.stream_chat(messages, **kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Sends a chat to the best LLM."""
        return await self._aanswer(_request(messages), lambda llm: llm.achat(messages, **kwargs))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Sends a chat to the best LLM and streams its answer."""
        return self._astream(_request(messages), lambda llm: llm.astream_chat(messages, **kwargs))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Sends a prompt to the best LLM."""
        formatted = self._formatted(formatted)
        return self._answer(prompt, lambda llm: llm.complete(prompt, formatted=formatted, **kwargs))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Sends a prompt to the best LLM and streams its answer."""
        formatted = self._formatted(formatted)
        return self._stream(prompt, lambda llm: llm.stream_complete(prompt, formatted=formatted, **kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Sends a prompt to the best LLM."""
        formatted = self._formatted(formatted)
        return await self._aanswer(prompt, lambda llm: llm.acomplete(prompt, formatted=formatted, **kwargs))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Sends a prompt to the best LLM and streams its answer."""
        formatted = self._formatted(formatted)
        return self._astream(prompt, lambda llm: llm.astream_complete(prompt, formatted=formatted, **kwargs))

    def _formatted(self, formatted: bool) -> bool:
        # Whatever the framework formatted with our own default, which does nothing, still needs the chosen LLM's.
        return formatted and self.completion_to_prompt is not default_completion_to_prompt

    def _answer(self, request: str, ask: Callable[[BaseLLM], Response]) -> Response:
        attempts = _Attempts(self._router.route(_readable(request)))
        for llm in attempts:
            with attempts.or_next():
                return attempts.mark(ask(llm))
        raise attempts.error()

    async def _aanswer(self, request: str, ask: Callable[[BaseLLM], Awaitable[Response]]) -> Response:
        attempts = _Attempts(await self._router.aroute(_readable(request)))
        for llm in attempts:
            with attempts.or_next():
                return attempts.mark(await ask(llm))
        raise attempts.error()

    def _stream(
        self, request: str, ask: Callable[[BaseLLM], Generator[Response, None, None]]
    ) -> Generator[Response, None, None]:
        attempts = _Attempts(self._router.route(_readable(request)))
        for llm in attempts:
            with attempts.or_next():
                stream = ask(llm)
                first = next(stream, None)
                break
        else:
            raise attempts.error()
        with closing(stream):
            if first is not None:
                yield attempts.mark(first)
            for part in stream:
                yield attempts.mark(part)

    async def _astream(
        self, request: str, ask: Callable[[BaseLLM], Awaitable[AsyncGenerator[Response, None]]]
    ) -> AsyncGenerator[Response, None]:
        attempts = _Attempts(await self._router.aroute(_readable(request)))
        for llm in attempts:
            with attempts.or_next():
                stream = await ask(llm)
                first = await anext(stream, None)
                break
        else:
            raise attempts.error()
        async with aclosing(stream):
            if first is not None:
                yield attempts.mark(first)
            async for part in stream:
                yield attempts.mark(part)


class _Attempts(Attempts):
    """Goes down a ranking until an LLM answers, and remembers which did not."""

    def __init__(self, decision: RoutingDecision) -> None:
        super().__init__()
        self._decision = decision

    def __iter__(self) -> Iterator[BaseLLM]:
        for ranked in self._decision.ranking:
            self.name = ranked.profile.name
            yield _llm(ranked.profile)

    def mark(self, response: Response) -> Response:
        """A copy of the response with the decision in it."""
        return response.model_copy(
            update={"additional_kwargs": {**response.additional_kwargs, "r1_router": self._record}}
        )

    @cached_property
    def _record(self) -> dict[str, Any]:
        record = self._decision.to_dict()
        del record["id"], record["query"]
        return {**record, "answered_by": self.name, "failed": self.failures}


def _llm(profile: LLMProfile) -> BaseLLM:
    if isinstance(profile.client, BaseLLM):
        return profile.client
    kind = type(profile.client).__name__
    raise InputTypeError("router", f"the client of {profile.name!r} has to be an LLM of LlamaIndex, got {kind}")


def _request(messages: Sequence[ChatMessage]) -> str:
    """What a chat asks for: its last user message with text, or else all the text there is."""
    asked = [message.content for message in messages if message.role == MessageRole.USER and message.content]
    return asked[-1] if asked else "\n".join(message.content or "" for message in messages)


def _readable(request: str) -> str:
    return request if request.strip() else "(no text)"  # an image alone has to be answered too


def _documents(choices: Sequence[ToolMetadata]) -> list[Document]:
    return [Document(choice.description or "", title=choice.name) for choice in choices]


def _only(choices: Sequence[ToolMetadata]) -> SelectorResult:
    if not choices:
        raise InputError("choices", "is empty: there is nothing to select")
    return SelectorResult(selections=[SingleSelection(index=0, reason="the only choice")])


def _selected(result: RerankResult) -> SelectorResult:
    return SelectorResult(selections=[SingleSelection(index=hit.index, reason=_reason(result, hit)) for hit in result])


def _reason(result: RerankResult, hit: RankedDocument) -> str:
    """Thinking of the step in which a choice fell; for a survivor, of the last step that showed it."""
    shown = [step for step in result.steps if hit.index in step.shown]
    fell = [step for step in shown if step.ask == "eliminate" and hit.index in step.picked]
    thinking = (fell or shown)[-1].thinking.strip() if shown else ""
    reason = thinking or f"rank {hit.rank}, score {hit.score:.2f}"
    if result.status in ("partial", "fallback"):
        reason += f" ({result.status}: {result.faults[-1].detail})"
    return reason
