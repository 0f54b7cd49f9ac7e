"""Async requests for an engine that works in batches: those that arrive while one batch runs form the next."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from .background import within
from .base import Completion, GenerationRequest


class Deadline:
    """Until when an answer is of use. Its clock starts when it is made, so make it when the request arrives.

    Args:
        request: What is asked.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._end = math.inf if request.timeout is None else time.monotonic() + request.timeout

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._end = -math.inf

    def passed(self) -> bool:
        """The answer would come too late."""
        return time.monotonic() >= self._end

    def left(self) -> float:
        """Seconds, at least 0."""
        return max(0.0, self._end - time.monotonic())


Generate = Callable[[Sequence[GenerationRequest], Sequence[Deadline]], list[Completion]]
"""Answers requests, each of which is given up at its deadline."""


@dataclass
class _Waiting:
    request: GenerationRequest
    deadline: Deadline
    future: Future[Completion] = field(default_factory=Future)


class RequestQueue:
    """Feeds requests from any number of event loops and threads to one worker thread.

    Args:
        generate: Answers a batch.
        batch_size: Most requests in one batch.
    """

    def __init__(self, generate: Generate, batch_size: int) -> None:
        self._generate = generate
        self._batch_size = batch_size
        self._waiting: deque[_Waiting] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="r1-rerank")

    async def answer(self, request: GenerationRequest) -> Completion:
        """Waits for the answer, at most until its deadline.

        Cancelling takes the request from the queue, or tells the batch that it runs in; so does the deadline.
        """
        entry = _Waiting(request, Deadline(request))
        self._waiting.append(entry)
        self._worker.submit(self._drain)
        return await within(request, self._answer(entry))

    def close(self) -> None:
        """Lets the worker end once the queue is empty."""
        self._worker.shutdown(wait=False)

    async def _answer(self, entry: _Waiting) -> Completion:
        try:
            return await asyncio.wrap_future(entry.future)
        except asyncio.CancelledError:
            entry.deadline.cancel()
            raise

    def _drain(self) -> None:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._batch_size:
            entry = self._waiting.popleft()
            if entry.future.set_running_or_notify_cancel():
                batch.append(entry)
        if not batch:
            return
        try:
            completions = self._generate([entry.request for entry in batch], [entry.deadline for entry in batch])
        except BaseException as error:
            for entry in batch:
                entry.future.set_exception(error)
            return
        for entry, completion in zip(batch, completions, strict=True):
            entry.future.set_result(completion)
