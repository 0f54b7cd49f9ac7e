"""How busy an engine is kept: requests under way, and time inside the model against everything else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from r1_rerank.engines import Completion, GenerationRequest, TransformersEngine


@dataclass
class Clock:
    """Seconds that it ran."""

    seconds: float = 0.0


@contextmanager
def model_time(engine: Any) -> Iterator[Clock]:
    """Counts the time inside the model's forward, or inside the steps of vLLM.

    On vLLM a step waits for the engine's own process and reads what it wrote; rendering, tokenizing and handing a
    request over count as outside, though vLLM's process may be computing meanwhile: outside is at most what it waits.
    """
    on_cuda = False
    if isinstance(engine, TransformersEngine):
        owner, name = engine.model, "forward"
        on_cuda = engine.model.device.type == "cuda"
    else:
        owner, name = engine.llm.llm_engine, "step"
    clock, inner = Clock(), getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            made = inner(*arguments, **options)
            if on_cuda:
                import torch

                torch.cuda.synchronize()  # a kernel was only started
            return made
        finally:
            clock.seconds += time.perf_counter() - started

    setattr(owner, name, timed)
    try:
        yield clock
    finally:
        delattr(owner, name)  # the class's own is seen again


class Watched:
    """An engine that counts the requests under way.

    Args:
        engine: The engine.
        at_once: Most queries that a driver is to keep under way.
    """

    def __init__(self, engine: Any, at_once: int) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._under_way = 0
        self._since = time.perf_counter()
        self._request_seconds = 0.0
        self.batch_size = at_once
        if not hasattr(engine, "submit"):
            self.submit = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def mean_under_way(self, seconds: float) -> float:
        """Requests under way at a moment, on average over these seconds."""
        return self._request_seconds / seconds

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Passes on."""
        if self.submit is not None:
            return [future.result() for future in [self.submit(request) for request in requests]]
        self._count(len(requests))
        try:
            return self._engine.generate(requests)
        finally:
            self._count(-len(requests))

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """Passes on."""
        self._count(1)
        future = self._engine.submit(request)
        future.add_done_callback(lambda _: self._count(-1))
        return future

    def _count(self, more: int) -> None:
        with self._lock:
            now = time.perf_counter()
            self._request_seconds += self._under_way * (now - self._since)
            self._since = now
            self._under_way += more
