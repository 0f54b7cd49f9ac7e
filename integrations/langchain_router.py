"""A chat model that is a pool of chat models. Import it from `langchain`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

from pydantic import Field, field_validator  # noqa: TID253  LangChain's own classes are pydantic models

from ..errors import InputTypeError, MissingExtraError
from .fallback import DECISION_KEY, Attempts, readable
from .router import R1Router

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError("langchain", "langchain_core") from error

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import merge_configs

_SILENT: RunnableConfig = {"callbacks": []}
"""For calls inside an LLM run of our own, which has the tokens already and cannot have other runs inside."""

Prepare = Callable[[Any], Runnable[Any, Any]]
"""What is called for a chat model of the pool: itself, with tools, with a schema."""


class R1RouterChatModel(BaseChatModel):
    """A chat model that sends each call to the best chat model of a pool.

    The `client` of each profile in the router's pool is a LangChain chat model, or a runnable that takes messages
    and gives one. Where the chosen one fails before its first token, the next in rank answers. The message, or the
    first chunk of a streamed one, carries the decision in its `response_metadata` under `r1_router`: what
    `RoutingDecision.to_dict` gives, without the query, and `answered_by` (the LLM that answered) and `failed` (those
    that did not, with their errors).

    A chat is routed by its last message from the user. Cache, rate limit and output version are settings of the LLMs.

    In LangChain's trace a call is a chain run with the decision and the chosen LLM inside, so that tokens are
    counted once.

    Raises:
        ValidationError: A client that is no chat model.
    """

    router: R1Router = Field(exclude=True, repr=False, description="Chooses.")

    @field_validator("router")
    @classmethod
    def _require_chat_models(cls, router: R1Router) -> R1Router:
        for profile in router.pool:
            if not isinstance(profile.client, Runnable):
                kind = type(profile.client).__name__
                raise InputTypeError("router", f"the client of {profile.name!r} must be a chat model, got {kind}")
        return router

    @property
    def _llm_type(self) -> str:
        return "r1-router"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"pool": [profile.name for profile in self.router.pool], "objective": self.router.objective}

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Sends the messages to the best LLM."""
        answer = self._routed().invoke(input, self._config(config), **_with_stop(kwargs, stop))
        return cast(AIMessage, answer)

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Sends the messages to the best LLM."""
        answer = await self._routed().ainvoke(input, self._config(config), **_with_stop(kwargs, stop))
        return cast(AIMessage, answer)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Sends the messages to the best LLM and streams its answer."""
        yield from self._routed().stream(input, self._config(config), **_with_stop(kwargs, stop))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """Sends the messages to the best LLM and streams its answer."""
        async for chunk in self._routed().astream(input, self._config(config), **_with_stop(kwargs, stop)):
            yield chunk

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The router with tools, which the chosen LLM gets; one that takes no tools counts as failed."""
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self._routed(lambda llm: llm.bind_tools(tools, **kwargs))

    def with_structured_output(
        self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """The router with a schema, which the chosen LLM gets; with `include_raw` the raw message has the decision."""
        return self._routed(lambda llm: llm.with_structured_output(schema, include_raw=include_raw, **kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self._routed().invoke(messages, _SILENT, **_with_stop(kwargs, stop))
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = await self._routed().ainvoke(messages, _SILENT, **_with_stop(kwargs, stop))
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for message in self._routed().stream(messages, _SILENT, **_with_stop(kwargs, stop)):
            yield ChatGenerationChunk(message=_chunk(message))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for message in self._routed().astream(messages, _SILENT, **_with_stop(kwargs, stop)):
            yield ChatGenerationChunk(message=_chunk(message))

    def _routed(self, prepare: Prepare = lambda llm: llm) -> Runnable[LanguageModelInput, Any]:
        """Chooses, and hands the input on: LangChain runs the runnable that this one returns."""
        route = RunnableLambda(self._route, afunc=self._aroute, name="R1Router")

        def choose(given: LanguageModelInput, config: RunnableConfig, **kwargs: Any) -> Runnable[Any, Any]:
            return _Candidates(self.router, route.invoke(self._query(given), config), prepare, kwargs)

        async def achoose(given: LanguageModelInput, config: RunnableConfig, **kwargs: Any) -> Runnable[Any, Any]:
            return _Candidates(self.router, await route.ainvoke(self._query(given), config), prepare, kwargs)

        return RunnableLambda(choose, afunc=achoose, name=self.get_name())

    def _route(self, query: str) -> dict[str, Any]:
        return self.router.route(query).to_dict()

    async def _aroute(self, query: str) -> dict[str, Any]:
        return (await self.router.aroute(query)).to_dict()

    def _query(self, given: LanguageModelInput) -> str:
        messages = self._convert_input(given).to_messages()
        asked = [str(message.text) for message in messages if isinstance(message, HumanMessage)]
        texts = asked or [str(message.text) for message in messages]
        return readable(texts[-1] if texts else "")

    def _config(self, config: RunnableConfig | None) -> RunnableConfig:
        own: RunnableConfig = {"callbacks": self.callbacks, "tags": self.tags or [], "metadata": self.metadata or {}}
        return merge_configs(own, config)


class _Candidates(Runnable[LanguageModelInput, Any]):
    """The LLMs of one decision, best first: where one fails, the next is called. It leaves no run in the trace."""

    def __init__(self, router: R1Router, decision: dict[str, Any], prepare: Prepare, kwargs: dict[str, Any]) -> None:
        self._router = router
        self._decision = decision
        self._prepare = prepare
        self._kwargs = kwargs

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **_: Any) -> Any:
        attempts = self._attempts()
        for profile in attempts:
            with attempts.or_next():
                return _marked(self._prepare(profile.client).invoke(input, config, **self._kwargs), attempts)
        raise attempts.error()

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **_: Any) -> Any:
        attempts = self._attempts()
        for profile in attempts:
            with attempts.or_next():
                return _marked(await self._prepare(profile.client).ainvoke(input, config, **self._kwargs), attempts)
        raise attempts.error()

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **_: Any) -> Iterator[Any]:
        attempts = self._attempts()
        for profile in attempts:
            with attempts.or_next():
                parts: Any = self._prepare(profile.client).stream(input, config, **self._kwargs)
                first = next(parts, None)
                break
        else:
            raise attempts.error()
        try:
            if first is not None:
                yield _marked(first, attempts)  # parts are added up, so only one may bear the mark
            yield from parts
        finally:
            if hasattr(parts, "close"):
                parts.close()

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **_: Any
    ) -> AsyncIterator[Any]:
        attempts = self._attempts()
        for profile in attempts:
            with attempts.or_next():
                parts: Any = self._prepare(profile.client).astream(input, config, **self._kwargs)
                first = await anext(parts, None)
                break
        else:
            raise attempts.error()
        try:
            if first is not None:
                yield _marked(first, attempts)
            async for part in parts:
                yield part
        finally:
            if hasattr(parts, "aclose"):
                await parts.aclose()

    def _attempts(self) -> Attempts:
        return Attempts(self._decision, self._router.pool)


def _marked(answer: Any, attempts: Attempts) -> Any:
    """A copy of the message with the decision in it; anything else as it is."""
    if isinstance(answer, dict) and isinstance(answer.get("raw"), BaseMessage):
        return {**answer, "raw": _marked(answer["raw"], attempts)}
    if not isinstance(answer, BaseMessage):
        return answer
    metadata = {**answer.response_metadata, DECISION_KEY: attempts.record()}
    return answer.model_copy(update={"response_metadata": metadata})


def _with_stop(kwargs: dict[str, Any], stop: list[str] | None) -> dict[str, Any]:
    return kwargs if stop is None else {**kwargs, "stop": stop}


def _chunk(message: BaseMessage) -> AIMessageChunk:
    """A whole message, from an LLM that does not stream, as the only chunk."""
    if isinstance(message, AIMessageChunk):
        return message
    return AIMessageChunk(**message.model_dump(exclude={"type"}))
