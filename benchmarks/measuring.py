"""Runs one way of ranking on an engine of its own, and reads clock and memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import psutil
from workloads import Cost, EngineKind, documents_of, forget, load, on_cpu

from r1_rerank import R1Reranker, Usage
from r1_rerank.strategies import Strategy

Way = Callable[[Any, str, list[str]], Usage]
"""Reads or ranks documents on an engine. It is sent to another process, so it is a function of a module."""
WIDE: dict[str, Any] = {"window": 30, "stride": 20}
"""Windows that carry on as many documents as those of 20, ten, so that most documents stand in one window only."""
PRELOADED = [
    "torch",
    "transformers.models.auto.auto_factory",
    "transformers.models.auto.tokenization_auto",
    "workloads",
]


def ranked(
    engine: Any, query: str, documents: list[str], *, strategy: str | Strategy, thinking: int, top_k: int | None = None
) -> Usage:
    """Ranks the way that we do."""
    result = R1Reranker(engine, strategy=strategy, thinking=thinking).rerank(query, documents, top_k=top_k)
    assert result.status == "ok", result.faults
    assert len(result) == min(top_k or len(documents), len(documents))
    return result.usage


class Bench:
    """One way of ranking, measured on lists that its engine has not seen.

    In a process of its own its memory is counted from the loaded weights up, and nothing that another way has freed
    serves it again. vLLM has processes of its own, which all ways share that are alike in `cached`: its memory is the
    most that these and this one have taken since it was loaded, by the ways before too.

    Args:
        way: What is measured.
        kind: The engine.
        cached: Whether the engine keeps prompts.
        apart: Whether it has a process of its own, on transformers; without one its memory is not told.
    """

    def __init__(self, way: Way, kind: EngineKind, *, cached: bool = True, apart: bool = True) -> None:
        self._way, self._engine = way, (kind, cached)
        self._pool: ProcessPoolExecutor | None = None
        if apart and kind == "transformers":
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)  # imported once, not by every process
            self._pool = ProcessPoolExecutor(1, mp_context=context)
        self._loaded: int = self._call(_prepare)

    def measure(self, query: str, documents: list[str]) -> Cost:
        """Runs it once."""
        cost: Cost = self._call(_measure, self._loaded, query, documents)
        return cost if self._pool is not None or self._engine[0] == "vllm" else replace(cost, mib=None)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _call(self, work: Callable[..., Any], *arguments: object) -> Any:
        everything = (self._way, self._engine, *arguments)
        return work(*everything) if self._pool is None else self._pool.submit(work, *everything).result()


def interleaved(benches: Mapping[str, Bench], repeats: int, query: str, documents: list[str]) -> dict[str, Cost]:
    """Several runs of each over one list, all ways in turn, so that what else the machine does hits all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in benches}
    for _ in range(repeats):
        for name, bench in benches.items():
            costs[name].append(bench.measure(query, documents))
    return {name: middle(runs) for name, runs in costs.items()}


def middle(costs: Sequence[Cost]) -> Cost:
    """Of several runs over the same list: the median time, the highest memory."""
    peaks = [cost.mib for cost in costs if cost.mib is not None]
    seconds = statistics.median(cost.seconds for cost in costs)
    return replace(costs[0], seconds=seconds, mib=max(peaks, default=None))


class PeakMemory:
    """Highest resident memory of this process and those that it has started, while it is open, in bytes."""

    def __enter__(self) -> PeakMemory:
        self._stop = threading.Event()
        self._processes = processes()
        self.peak = resident(self._processes)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, resident(self._processes))


def processes() -> list[psutil.Process]:
    """This process and those that it has started."""
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def resident(whose: Sequence[psutil.Process]) -> int:
    """Resident memory of processes, in bytes."""
    total = 0
    for process in whose:
        with suppress(psutil.NoSuchProcess):
            total += int(process.memory_info().rss)
    return total


@functools.cache
def _loaded(kind: EngineKind, cached: bool) -> tuple[Any, int]:
    """An engine, and the memory that there was once it was loaded."""
    engine = load(kind, cached=cached)
    return engine, resident(processes())


@functools.cache
def _prepare(way: Way, engine: tuple[EngineKind, bool]) -> int:
    """Loads and warms up; returns the memory that the weights take, with everything that is imported."""
    loaded, then = _loaded(*engine)
    way(loaded, *documents_of(3, 5))
    _empty(loaded)
    return then if engine[0] == "vllm" else resident(processes())


def _empty(engine: Any) -> None:
    """Leaves nothing but the weights."""
    forget(engine)
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc keeps what was freed, and would serve the next run out of it
        ctypes.CDLL(None).malloc_trim(0)


def _measure(way: Way, engine: tuple[EngineKind, bool], weights: int, query: str, documents: list[str]) -> Cost:
    loaded, _ = _loaded(*engine)
    _empty(loaded)
    with PeakMemory() as memory:
        started = time.perf_counter()
        usage = way(loaded, query, documents)
        seconds = time.perf_counter() - started
    mib = (memory.peak - weights) / 2**20 if on_cpu(loaded) else None  # a device has memory of its own
    return Cost(usage.calls, usage.prompt_computed, usage.prompt_reused, usage.generated, seconds, mib)
