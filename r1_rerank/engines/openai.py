"""Asks a server that speaks OpenAI's chat API: `vllm serve`, a llama.cpp server, hosted models."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, get_args

from ..documents import Fault
from ..errors import EngineClosedError, EngineError, InputError, InputTypeError
from ..prompts import Message
from .background import BackgroundLoop, within
from .base import Completion, GenerationRequest, Probe
from .openai_chat import ChatDialect
from .openai_replies import Body
from .openai_server import AbsentError, Server, connect
from .openai_vllm import VLLMDialect

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

logger = logging.getLogger(__name__)

T = TypeVar("T")

DialectName = Literal["auto", "vllm", "structured", "plain"]


class Dialect(Protocol):
    """How a kind of server is asked."""

    context_tokens: int | None

    @property
    def capabilities(self) -> frozenset[str]:
        """See `Engine`."""
        ...

    @property
    def notes(self) -> tuple[Fault, ...]:
        """What every result should say about the server."""
        ...

    async def answer(self, request: GenerationRequest) -> Completion:
        """Answers one request, or raises an EngineError."""
        ...

    async def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt."""
        ...

    async def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """See `Engine`."""
        ...


class OpenAIEngine:
    """A model behind an OpenAI-compatible API.

    What the server can do is found out when the engine is built, with its list of models and one small question:

    - `vllm serve`: as exact as in process. Prompts are tokens, answers are decoded over the live labels, with their
      distribution. Start it with `--enable-prompt-tokens-details`, and `usage` tells what came from its cache.
    - Servers that hold answers to a JSON schema (llama.cpp, hosted models): answers name live labels only, though a
      list may repeat one. With a thinking budget the JSON begins with the reasoning; where that uses the budget up,
      a second call asks for the answer alone. For servers that reason by themselves the budget only bounds
      reasoning and answer together. Label probabilities come only from servers that tell those of all live labels.
    - Any other: the model writes freely, and the parser reads what it wrote.

    Requests run side by side, each on its own, and are tried again after errors of the server or the network.
    Safe to share between threads and event loops.

    Args:
        model: Name under which the server has the model.
        client: An `openai.OpenAI` or `openai.AsyncOpenAI`. Its address, key, headers and query are taken over, its
            connections are not, and neither are its time-out and retries. Proxies and certificates come from the
            environment (`HTTPS_PROXY`, `SSL_CERT_FILE`).
        base_url: Address of the API, mostly ending in `/v1`; default: `OPENAI_BASE_URL`, else OpenAI's.
        api_key: Default: `OPENAI_API_KEY`; a server of your own may need none.
        timeout: Seconds that one try of a call may take, until the last byte of its reply.
        max_retries: Further tries after a time-out, a lost connection, or an answer of 429 or 5xx.
        concurrency: Most calls under way at a time; on `vllm serve`, as many more may count tokens.
        context_tokens: Longest prompt and answer together; default: what the server says, else without limit.
        dialect: `auto` finds out; `vllm`, `structured` (JSON schema) and `plain` are taken at your word, and the last
            two ask nothing of the server when the engine is built.

    Raises:
        MissingExtraError: `openai` is not installed.
        InputError: An argument that cannot be used, a model that the server does not have, or no key.
        EngineError: The server cannot be reached, or refuses.
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        *,
        client: OpenAI | AsyncOpenAI | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 3,
        concurrency: int = 16,
        context_tokens: int | None = None,
        dialect: DialectName = "auto",
    ) -> None:
        if not isinstance(model, str) or not model:
            raise InputTypeError("model", f"expected the name under which the server has it, got {model!r}")
        for name, text in (("base_url", base_url), ("api_key", api_key)):
            if text is not None and (not isinstance(text, str) or not text.strip()):
                wrong = "is empty" if isinstance(text, str) else f"expected text, got {type(text).__name__}"
                raise InputTypeError(name, wrong)
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise InputError("base_url", "expected an address such as http://localhost:8000/v1")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise InputError("timeout", f"expected more than 0 seconds, got {timeout!r}")
        counts = [("max_retries", max_retries, 0), ("concurrency", concurrency, 1)]
        if context_tokens is not None:
            counts.append(("context_tokens", context_tokens, 1))
        for name, number, least in counts:
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise InputError(name, f"expected an int of at least {least}, got {number!r}")
        if dialect not in get_args(DialectName):
            raise InputError("dialect", f"{dialect!r} is not one of {', '.join(get_args(DialectName))}")
        self.model = model
        self.batch_size = concurrency
        self._server = Server(connect(client, base_url, api_key, timeout, max_retries), model, timeout, concurrency)
        self._lock = threading.Lock()
        self._closed = False
        self._loop = BackgroundLoop("r1-rerank-openai")
        try:
            self._dialect = self._loop.run(self._find(dialect, context_tokens))
        except AbsentError as error:
            self.close()
            raise InputError("base_url", str(error)) from None
        except BaseException:
            self.close()
            raise
        self.context_tokens = context_tokens or self._dialect.context_tokens
        self._dialect.context_tokens = self.context_tokens
        self.capabilities = self._dialect.capabilities
        logger.debug("%r: %s", self, ", ".join(sorted(self.capabilities)) or "free text only")

    def __repr__(self) -> str:
        return f"OpenAIEngine({self.model!r}, base_url={self._server.url!r})"

    @property
    def notes(self) -> tuple[Fault, ...]:
        """What every result should say: what the server was found to refuse, and what to change."""
        return self._dialect.notes

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """Starts a request; cancelling the future closes its connection."""
        with self._lock:
            if not self._closed:
                return self._loop.submit(self._answer(request))
        done = Future[Completion]()
        done.set_result(_closed())
        return done

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Answers every request, in order; see `Engine.generate`."""
        futures = [self.submit(request) for request in requests]
        try:
            return [_result(future) for future in futures]
        finally:  # an interrupt leaves none behind
            for future in futures:
                future.cancel()

    async def agenerate(self, request: GenerationRequest) -> Completion:
        """Answers one request on any loop; cancelling the task closes its connection."""
        return await asyncio.wrap_future(self.submit(request))

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, chat template included; an estimate, rather too high, where the server does not tell.

        A server is given 3 seconds to tell, at most `timeout`; one that does not is estimated for, and not asked again
        for ten times as long.
        """
        return self.count_many([messages])[0]

    def count_many(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of several prompts, as many at a time as there may be calls."""
        return self._ask(lambda: self._count(prompts))

    def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """Finds out what holds for the model's tokenizer and chat template, as far as the server tells."""
        return self._ask(lambda: self._dialect.probe(turns, alphabet, thinking))

    def close(self) -> None:
        """Closes all connections; requests under way and from now on fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self._loop.run(self._server.close())
        finally:
            self._loop.close()

    async def _find(self, dialect: DialectName, context_tokens: int | None) -> Dialect:
        server = self._server
        if dialect in ("structured", "plain"):
            return ChatDialect(server, structured=dialect == "structured", context_tokens=context_tokens)
        cards = await server.models() or []
        card: Body = next((card for card in cards if card["id"] == self.model), {})
        if cards and not card and not await server.knows_model():
            names = ", ".join(card["id"] for card in cards)
            raise InputError("model", f"{server.url} does not have {self.model!r}; it has: {names}")
        if dialect == "vllm" or card.get("owned_by") == "vllm":
            vllm = await VLLMDialect.find(server)
            if vllm is not None:
                return vllm
            if dialect == "vllm":
                raise InputError("dialect", f"{server.url} is no vLLM server: it has no /tokenize beside its /v1")
        said = card.get("max_model_len") or card.get("context_length")
        return await ChatDialect.find(server, context_tokens or (said if isinstance(said, int) else None))

    async def _count(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(prompts), self.batch_size):
            some = prompts[start : start + self.batch_size]
            counts += await asyncio.gather(*map(self._dialect.count, some))
        return counts

    async def _answer(self, request: GenerationRequest) -> Completion:
        started = time.perf_counter()
        try:
            completion = await within(request, self._run(request))
        except asyncio.CancelledError:
            if not self._closed:
                raise
            return _closed()
        if self._closed and completion.error is not None:
            return _closed()
        return replace(completion, usage=replace(completion.usage, calls=1, seconds=time.perf_counter() - started))

    async def _run(self, request: GenerationRequest) -> Completion:
        try:
            completion = await self._dialect.answer(request)
        except EngineError as error:
            completion = Completion(error=error)
        except Exception as error:
            logger.exception("a request to %s failed", self._server.url)
            completion = Completion(error=EngineError(f"{type(error).__name__}: {error}"))
        self.capabilities = self._dialect.capabilities
        return completion

    def _ask(self, question: Callable[[], Coroutine[object, object, T]]) -> T:
        with self._lock:
            if self._closed:
                raise EngineClosedError(_CLOSED)
            future = self._loop.submit(question())
        try:
            return future.result()
        except CancelledError:  # closed meanwhile
            raise EngineClosedError(_CLOSED) from None
        finally:  # an interrupt leaves nothing behind
            future.cancel()


_CLOSED = "the engine was closed; build a new one"


def _closed() -> Completion:
    return Completion(error=EngineClosedError(_CLOSED))


def _result(future: Future[Completion]) -> Completion:
    try:
        return future.result()
    except CancelledError:  # the engine was closed meanwhile
        return _closed()
