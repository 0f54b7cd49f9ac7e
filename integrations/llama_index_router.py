"""Routing in LlamaIndex to an LLM of a pool. Import from `llama_index`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any, TypeVar

from ..errors import InputError, InputTypeError, MissingExtraError
from .fallback import DECISION_KEY, Attempts, readable
from .router import LLMProfile, NoEligibleLLMError, R1Router, RoutingDecision

try:
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
    from llama_index.core.llms.function_calling import FunctionCallingLLM
    from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
    from llama_index.core.tools.types import BaseTool
except ModuleNotFoundError as error:
    raise MissingExtraError("llama-index", error.name or "llama_index") from error

Response = TypeVar("Response", ChatResponse, CompletionResponse)


class R1RouterLLM(CustomLLM, FunctionCallingLLM):
    """An LLM that sends each prompt or chat to the best LLM of a pool.

    The `client` of each profile in the router's pool is an LLM of LlamaIndex. A chat is routed by its last user
    message. Where the chosen LLM fails before its first token, the next in rank answers; where all fail, the error of
    the first is raised.

    Every response, and every part of a streamed one, has the decision in `additional_kwargs["r1_router"]`: what
    `RoutingDecision.to_dict` gives, without the query, and `answered_by` and `failed`.

    Tools go to the best LLM that calls functions; the others count as failed. `metadata` says that the router calls
    functions, which makes agents and structured answers use tools, where all LLMs within its limits do: over a mixed
    pool such an agent would never ask the others.

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
        try:
            eligible, _ = self._router.limits.split(self._router.pool)
        except NoEligibleLLMError:
            eligible = self._router.pool  # the first call says which limit rules out which LLM
        llms = [_llm(profile).metadata for profile in eligible]
        return LLMMetadata(
            context_window=min(llm.context_window for llm in llms),
            num_output=max(llm.num_output for llm in llms),
            is_chat_model=any(llm.is_chat_model for llm in llms),
            is_function_calling_model=all(_calls_functions(_llm(profile)) for profile in eligible),
            model_name=f"router over {', '.join(profile.name for profile in eligible)}",
        )

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """What the LLM that answered wants to have called; it alone knows how it says so.

        Raises:
            InputError: A response of another LLM.
            ValueError: It calls nothing, and `error_on_no_tool_call` is set.
        """
        name = response.additional_kwargs.get(DECISION_KEY, {}).get("answered_by")
        llm = next((_llm(profile) for profile in self._router.pool if profile.name == name), None)
        if llm is None:
            raise InputError("response", "no LLM of this router gave it")
        if isinstance(llm, FunctionCallingLLM):
            return llm.get_tool_calls_from_response(response, error_on_no_tool_call=error_on_no_tool_call, **kwargs)
        if error_on_no_tool_call:
            raise ValueError(f"{name} takes no tools, so it called none")
        return []

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            spoken = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
            messages.append(spoken)
        options = {"verbose": verbose, "allow_parallel_tool_calls": allow_parallel_tool_calls}
        if tool_required:  # not every LLM knows it
            options["tool_required"] = True
        return {"messages": messages, "tools": _Tools(tools, options), **kwargs}

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Sends a chat to the best LLM."""
        response: ChatResponse = self._answer(_request(messages), _ask("chat", messages, kwargs))
        return response

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Sends a chat to the best LLM and streams its answer."""
        return self._stream(_request(messages), _ask("stream_chat", messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Sends a chat to the best LLM."""
        response: ChatResponse = await self._aanswer(_request(messages), _ask("achat", messages, kwargs))
        return response

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Sends a chat to the best LLM and streams its answer."""
        return self._astream(_request(messages), _ask("astream_chat", messages, kwargs))

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

    def _attempts(self, decision: RoutingDecision) -> Attempts:
        return Attempts(decision.to_dict(), self._router.pool)

    def _answer(self, request: str, ask: Callable[[BaseLLM], Response]) -> Response:
        attempts = self._attempts(self._router.route(readable(request)))
        for profile in attempts:
            with attempts.or_next():
                return _marked(ask(_llm(profile)), attempts)
        raise attempts.error()

    async def _aanswer(self, request: str, ask: Callable[[BaseLLM], Awaitable[Response]]) -> Response:
        attempts = self._attempts(await self._router.aroute(readable(request)))
        for profile in attempts:
            with attempts.or_next():
                return _marked(await ask(_llm(profile)), attempts)
        raise attempts.error()

    def _stream(
        self, request: str, ask: Callable[[BaseLLM], Generator[Response, None, None]]
    ) -> Generator[Response, None, None]:
        attempts = self._attempts(self._router.route(readable(request)))
        for profile in attempts:
            with attempts.or_next():
                stream = ask(_llm(profile))
                first = next(stream, None)
                break
        else:
            raise attempts.error()
        with closing(stream):
            if first is not None:
                yield _marked(first, attempts)
            for part in stream:
                yield _marked(part, attempts)

    async def _astream(
        self, request: str, ask: Callable[[BaseLLM], Awaitable[AsyncGenerator[Response, None]]]
    ) -> AsyncGenerator[Response, None]:
        attempts = self._attempts(await self._router.aroute(readable(request)))
        for profile in attempts:
            with attempts.or_next():
                stream = await ask(_llm(profile))
                first = await anext(stream, None)
                break
        else:
            raise attempts.error()
        async with aclosing(stream):
            if first is not None:
                yield _marked(first, attempts)
            async for part in stream:
                yield _marked(part, attempts)


class _Tools(list[dict[str, Any]]):
    """Tools on their way to the LLM that is chosen; a trace shows them as it shows those of any LLM."""

    def __init__(self, tools: Sequence[BaseTool], options: dict[str, Any]) -> None:
        super().__init__(tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools)
        self.tools = tools
        self.options = options


def _ask(way: str, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Callable[[BaseLLM], Any]:
    """Asks an LLM in one of the four ways to chat, with tools where there are some."""
    tools = kwargs.get("tools")
    if not isinstance(tools, _Tools):
        return lambda llm: getattr(llm, way)(messages, **kwargs)
    others = {name: value for name, value in kwargs.items() if name != "tools"}

    def ask(llm: BaseLLM) -> Any:
        if not _calls_functions(llm):
            raise InputTypeError("tools", f"{type(llm).__name__} takes none")
        chat = getattr(llm, f"{way}_with_tools")
        return chat(tools.tools, chat_history=list(messages), **tools.options, **others)

    return ask


def _calls_functions(llm: BaseLLM) -> bool:
    return isinstance(llm, FunctionCallingLLM) and llm.metadata.is_function_calling_model


def _marked(response: Response, attempts: Attempts) -> Response:
    """A copy of the response with the decision in it."""
    extra = {**response.additional_kwargs, DECISION_KEY: attempts.record()}
    return response.model_copy(update={"additional_kwargs": extra})


def _llm(profile: LLMProfile) -> BaseLLM:
    if isinstance(profile.client, BaseLLM):
        return profile.client
    kind = type(profile.client).__name__
    raise InputTypeError("router", f"the client of {profile.name!r} has to be an LLM of LlamaIndex, got {kind}")


def _request(messages: Sequence[ChatMessage]) -> str:
    """What a chat asks for: its last user message with text, or else all the text there is."""
    asked = [message.content for message in messages if message.role == MessageRole.USER and message.content]
    return asked[-1] if asked else "\n".join(message.content or "" for message in messages)
