"""Whoever asks vLLM: here on the event loop of its asynchronous engine; `vllm_stepping` steps a `vllm.LLM`."""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from ..errors import CheckpointError, EngineClosedError, EngineError
from . import vllm_loading
from .background import BackgroundLoop, within
from .base import Completion, GenerationRequest
from .vllm_answers import Answering, Call

T = TypeVar("T")

Open = Callable[[GenerationRequest], Answering]
"""Begins the answer to a request; raises an `EngineError` where it cannot be answered."""


class Runner(Protocol):
    """Answers requests with vLLM."""

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """Starts a request; cancelling the future takes it out of vLLM."""
        ...

    def blocks(self) -> bool:
        """Whether waiting for an answer here would keep vLLM from giving it."""
        ...

    def close(self) -> None:
        """Fails what is under way with an `EngineClosedError`."""
        ...


class SharedTime:
    """Time in the engine: each stretch is shared equally among the requests that ran in it."""

    def __init__(self) -> None:
        self._active = 0
        self._share = 0.0
        self._last = 0.0

    def enter(self) -> float:
        """Begins a request; what it returns belongs into `leave`."""
        self._advance()
        self._active += 1
        return self._share

    def leave(self, entered: float) -> float:
        """Ends a request and tells its seconds."""
        self._advance()
        self._active -= 1
        return self._share - entered

    def _advance(self) -> None:
        now = time.perf_counter()
        if self._active:
            self._share += (now - self._last) / self._active
        self._last = now


class AsyncRunner:
    """Asks an asynchronous vLLM engine, which schedules requests by itself.

    Args:
        llm: A `vllm.AsyncLLMEngine`.
        open_answer: Begins an answer.
        lora: A `LoRARequest`, or None.
        loop: Where the engine runs and ends with this runner; None for an engine of the user, which stays: it is
            asked on the loop that it uses already, or else on one of ours.
    """

    def __init__(self, llm: Any, open_answer: Open, lora: Any, loop: BackgroundLoop | None) -> None:
        self._llm = llm
        self._open = open_answer
        self._lora = lora
        self._loop = loop
        self._owns = loop is not None
        self._ranks = replicas(llm.vllm_config.parallel_config)
        self._numbers = itertools.count()
        self._time = SharedTime()
        self._tasks: set[asyncio.Task[Completion]] = set()
        self._closed = False
        self._adapting: asyncio.Task[None] | None = None

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """See `Runner`."""
        return self._start(self._answer(request))

    def blocks(self) -> bool:
        """See `Runner`."""
        try:
            return asyncio.get_running_loop() is self._users_loop()
        except RuntimeError:
            return False

    def close(self) -> None:
        """See `Runner`."""
        try:
            ended = self._start(self._end())
        except EngineError:  # the user's loop has ended, and everything on it
            return
        try:
            if not self.blocks():
                ended.result()
        finally:
            if self._loop is not None:
                self._loop.close()

    def _users_loop(self) -> asyncio.AbstractEventLoop | None:
        if self._loop is not None:
            return None
        # Loading an adapter starts the second of these alone.
        reader = self._llm.output_handler or self._llm.engine_core.resources.output_queue_task
        return None if reader is None else reader.get_loop()

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        loop = self._users_loop()
        if loop is not None:
            if not loop.is_running():
                work.close()
                raise EngineError("the event loop of your vLLM engine does not run any more")
            return asyncio.run_coroutine_threadsafe(work, loop)
        if self._loop is None:
            self._loop = BackgroundLoop("r1-rerank-vllm")
        return self._loop.submit(work)

    async def _end(self) -> None:
        self._closed = True
        tasks: list[asyncio.Task[Any]] = list(self._tasks)
        if self._adapting is not None and not self._adapting.done():
            tasks.append(self._adapting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._owns:
            self._llm.shutdown(timeout=30)
            self._llm = None
        elif self._loop is not None:
            await _detach(self._llm)

    async def _answer(self, request: GenerationRequest) -> Completion:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        entered = self._time.enter()
        try:
            completion = await within(request, self._play(request))
        except asyncio.CancelledError:  # whoever gave it up holds a cancelled future, and sees nothing of this
            ended = failed(EngineError("the event loop of your vLLM engine has ended"))
            completion = closed() if self._closed else ended
        except Exception as error:
            completion = failed(error)
        finally:
            seconds = self._time.leave(entered)
            self._tasks.discard(task)
        return timed(completion, seconds)

    async def _play(self, request: GenerationRequest) -> Completion:
        answering = self._open(request)
        session = request.session
        if session is None and (request.thinking_budget or request.pick > 1):  # of several calls
            session = str(next(self._numbers))
        await self._adapt()
        reply: Any = None
        while True:
            try:
                call = answering.send(reply)
            except StopIteration as stop:
                completion: Completion = stop.value
                return completion
            reply = await self._ask(call, session)

    async def _adapt(self) -> None:
        """Loads the adapter into the user's engine, once; requests wait until it is there."""
        if self._lora is None or self._owns:  # our own engine has it since it was started
            return
        if self._adapting is None or self._adapting.cancelled():
            self._adapting = asyncio.create_task(vllm_loading.add_adapter_async(self._llm, self._lora))
            self._adapting.add_done_callback(_seen)
        try:
            await asyncio.shield(self._adapting)  # a request that is given up leaves it to the others
        except CheckpointError as error:
            raise EngineError(str(error)) from error

    async def _ask(self, call: Call, session: str | None) -> Any:
        number = f"r1-rerank-{id(self):x}-{next(self._numbers)}"
        options = {"lora_request": self._lora}
        if self._ranks > 1 and session is not None:
            # Each rank has a prefix cache of its own.
            options["data_parallel_rank"] = zlib.crc32(session.encode()) % self._ranks
        outputs: AsyncGenerator[Any, None] = self._llm.generate(*arguments(call), number, **options)
        try:
            async with aclosing(outputs):
                return await anext(outputs)
        except asyncio.CancelledError:
            # vLLM aborts by itself, but not a request that it was just about to add.
            await self._llm.abort(number)
            raise


def _seen(task: asyncio.Task[None]) -> None:
    """Those who waited for it may all have given up: asyncio would complain that nobody looked at its error."""
    if not task.cancelled():
        task.exception()


async def _detach(llm: Any) -> None:
    """Takes an asynchronous engine off the running loop, as if no loop had used it yet.

    vLLM starts the tasks that read its answers on the first loop that asks it, and is dead once they have ended; where
    there are none, it starts them on the next loop that asks.
    """
    core = llm.engine_core
    tasks = [llm.output_handler, core.resources.output_queue_task, core.resources.stats_update_task]
    llm.output_handler = core.resources.output_queue_task = core.resources.stats_update_task = None
    core.outputs_queue = asyncio.Queue()  # the old one belongs to this loop, and is told that its reader died
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def replicas(parallel: Any) -> int:
    """How many copies of the model an engine asks: behind a load balancer of the user's, only those of its own node.

    Args:
        parallel: vLLM's `ParallelConfig`.
    """
    copies: int = parallel.data_parallel_size_local if parallel.local_engines_only else parallel.data_parallel_size
    return max(1, copies)


def closed() -> Completion:
    """What a closed engine answers."""
    return Completion(error=EngineClosedError("the engine was closed; build a new one"))


def failed(error: Exception) -> Completion:
    """The answer to a request that failed, in our own words."""
    return Completion(error=failure(error))


def failure(error: Exception) -> EngineError:
    """An error of vLLM in our own words."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    if isinstance(error, EngineError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineError("vLLM's engine process has died (its own log says why); close this engine, build a new one")
    # vLLM says nothing itself where it wraps the error of another.
    cause = error.__cause__ if isinstance(error, EngineGenerateError) and error.__cause__ is not None else error
    return EngineError(f"{type(cause).__name__}: {cause}")


def timed(completion: Completion, seconds: float) -> Completion:
    """The completion with its time in the engine."""
    return replace(completion, usage=replace(completion.usage, seconds=seconds))


def arguments(call: Call) -> tuple[Any, Any]:
    """Prompt and sampling parameters as vLLM takes them."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    parameters = SamplingParams(**call.sampling, output_kind=RequestOutputKind.FINAL_ONLY)
    return TokensPrompt(prompt_token_ids=call.tokens), parameters
