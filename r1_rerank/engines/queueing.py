"""Async requests for an engine that works in batches: those that arrive while one batch runs form the next."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from .base import Completion, GenerationRequest

Generate = Callable[[Sequence[GenerationRequest], Sequence[Callable[[], bool]]], list[Completion]]
"""Answers requests; the second argument tells for each of them whether it was cancelled."""


@dataclass
class _Waiting:
    request: GenerationRequest
    future: Future[Completion] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)


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
        """Waits for the answer; cancelling takes the request from the queue, or tells the batch that it runs in."""
        entry = _Waiting(request)
        self._waiting.append(entry)
        self._worker.submit(self._drain)
        try:
            return await asyncio.wrap_future(entry.future)
        except asyncio.CancelledError:
            entry.cancelled.set()
            raise

    def close(self) -> None:
        """Lets the worker end once the queue is empty."""
        self._worker.shutdown(wait=False)

    def _drain(self) -> None:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._batch_size:
            entry = self._waiting.popleft()
            if entry.future.set_running_or_notify_cancel():
                batch.append(entry)
        if not batch:
            return
        try:
            completions = self._generate(
                [entry.request for entry in batch], [entry.cancelled.is_set for entry in batch]
            )
        except BaseException as error:
            for entry in batch:
                entry.future.set_exception(error)
            return
        for entry, completion in zip(batch, completions, strict=True):
            entry.future.set_result(completion)
