"""Documents per second over many queries with lists of mixed sizes, against the whole prompt each step in lock-step.

    python benchmarks/throughput.py [--engine vllm] [--queries 200] [--released-queries 20] [--at-once 20]

The baseline is slow, so it ranks fewer lists of the same mixture; its rate counts. Every way starts with empty caches
and keeps equally many queries under way. *Outside the model* is all the time that was spent neither in the model's
forward (transformers) nor in a step of vLLM, while there was something left to rank. On vLLM the ways run around a
`vllm.LLM`; `append` also on the asynchronous engine that `VLLMEngine` makes of a name, and against `vllm serve`. These
two compute while we do: nothing tells how long they wait. For them it is told what this process computed meanwhile:
our code, and vLLM's front end or the HTTP client.
Prints a table and which targets were met, and draws `throughput-ENGINE.png`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from released import eliminate_in_lockstep
from serving import NAME, served
from tables import FOLDER, Out, Target, bars, caption, print_table, print_targets, save
from watching import Watched, model_time
from workloads import PACKAGES, EngineKind, documents_of, forget, load, load_by_name, mixed_lists

from r1_rerank import IRanker, R1Reranker, Usage
from r1_rerank.checkpoint import embedded_base
from r1_rerank.engines import Engine, OpenAIEngine
from r1_rerank.strategies import Strategy

APPEND = "IRanker, append"
RELEASED = "whole prompt each step"

Lists = Sequence[tuple[str, list[str]]]


@dataclass(frozen=True)
class Run:
    """How one way went.

    Args:
        queries: Lists ranked.
        documents: Documents in them.
        computed: Prompt tokens computed.
        seconds: Wall time.
        inside: Seconds of them inside the model; None where nothing tells.
        under_way: Requests under way, on average.
        here: Processor time of this process, in seconds.
    """

    queries: int
    documents: int
    computed: int
    seconds: float
    inside: float | None
    under_way: float
    here: float = 0.0

    @property
    def rate(self) -> float:
        """Documents per second."""
        return self.documents / self.seconds

    @property
    def outside(self) -> float | None:
        """Share of the time outside of the model, in per cent."""
        return None if self.inside is None else 100 * (1 - self.inside / self.seconds)

    @property
    def busy(self) -> float:
        """Processor time of this process, in per cent of the time."""
        return 100 * self.here / self.seconds


def main(
    engine: Annotated[EngineKind, typer.Option(help="What runs the model.")] = "transformers",
    queries: Annotated[int, typer.Option(help="Queries to rank.")] = 200,
    released_queries: Annotated[int, typer.Option(help="Queries for the baseline.")] = 20,
    at_once: Annotated[
        int | None, typer.Option(help="Most queries under way; else as many as the engine and the baseline have.")
    ] = None,
    words: Annotated[int, typer.Option(help="Words in each document.")] = 30,
    fewest: Annotated[int, typer.Option(help="Documents in the shortest list.")] = 5,
    most: Annotated[int, typer.Option(help="Documents in the longest list.")] = 50,
    out: Out = FOLDER,
) -> None:
    """Prints the table in Markdown and draws the plot."""
    cached, plain = load(engine), load(engine, cached=False)
    at_once = at_once or min(cached.batch_size, released_queries)
    lists = mixed_lists(queries, words, fewest=fewest, most=most)
    some = mixed_lists(released_queries, words, fewest=fewest, most=most)
    strategies: dict[str, str | Strategy] = {APPEND: IRanker(form="append"), "DRanker": "dranker"}
    for strategy in strategies.values():
        ours(cached, [documents_of(3, words)], strategy)  # warm up
    lockstep(plain, [documents_of(3, words)], 1)
    runs = {
        name: measured(cached, at_once, lists, lambda watched, strategy=strategy: ours(watched, lists, strategy))
        for name, strategy in strategies.items()
    }
    if engine == "vllm":
        runs |= apart(lists, at_once, words)
    runs[RELEASED] = measured(plain, at_once, some, lambda watched: lockstep(watched, some, at_once))
    head = ["", "queries", "of them at once", "documents", "prompt tokens computed", "seconds", "documents / s"]
    head += ["requests under way", "outside the model", *(["processor time here"] if engine == "vllm" else [])]
    print_table(
        head,
        (
            (
                name,
                run.queries,
                min(at_once, run.queries),
                run.documents,
                f"{run.computed:,}",
                f"{run.seconds:.1f}",
                f"{run.rate:.1f}",
                f"{run.under_way:.1f}",
                "–" if run.outside is None else f"{run.outside:.1f}%",
                *([f"{run.busy:.1f}%"] if engine == "vllm" else []),
            )
            for name, run in runs.items()
        ),
    )
    print_targets(targets(runs, engine))
    note = caption(*PACKAGES)
    print("\n" + note)
    drawing, _ = bars(
        f"Throughput ({engine})", "documents ranked in a second", {name: run.rate for name, run in runs.items()}
    )
    save(drawing, f"throughput-{engine}", out, note)


def targets(runs: dict[str, Run], engine: EngineKind) -> list[Target]:
    """How little of the time should be ours, and how much faster than the baseline we should be."""
    made = []
    for name, run in runs.items():
        if name == RELEASED:
            continue
        if run.outside is not None:
            made.append(Target(f"{name}: outside the model", run.outside, 5, unit="%"))
        else:
            made.append(Target(f"{name}: processor time here", run.busy, 5, unit="%"))
    if engine == "vllm":
        made.append(Target(f"{APPEND}: documents per second to {RELEASED}", ratio(runs), 3, at_least=True))
    return made


def ratio(runs: dict[str, Run]) -> float:
    """How many times the baseline's documents per second `append` makes."""
    return runs[APPEND].rate / runs[RELEASED].rate


def measured(engine: Any, at_once: int, lists: Lists, work: Callable[[Any], Usage]) -> Run:
    """Does the work on an engine that has seen none of it."""
    forget(engine)
    with model_time(engine) as model:
        run = timed(engine, at_once, lists, work)
    return replace(run, inside=model.seconds)


def timed(engine: Any, at_once: int, lists: Lists, work: Callable[[Any], Usage]) -> Run:
    """Does the work, whatever the engine has seen and wherever it computes."""
    watched = Watched(engine, at_once)
    started, used = time.perf_counter(), time.process_time()
    usage = work(watched)
    seconds, here = time.perf_counter() - started, time.process_time() - used
    documents = sum(len(documents) for _, documents in lists)
    under_way = watched.mean_under_way(seconds)
    return Run(len(lists), documents, usage.prompt_computed, seconds, None, under_way, here)


def apart(lists: Lists, at_once: int, words: int) -> dict[str, Run]:
    """`append` on vLLM in processes of its own, each new, so that it has seen none of the lists."""
    strategy = IRanker(form="append")

    def run(engine: Engine) -> Run:
        with closing(engine):
            ours(engine, [documents_of(3, words)], strategy)  # warm up
            return timed(engine, at_once, lists, lambda watched: ours(watched, lists, strategy))

    runs = {f"{APPEND}, asynchronous engine": run(load_by_name())}
    with served(embedded_base()[0]) as base_url:
        runs[f"{APPEND}, vllm serve"] = run(OpenAIEngine(NAME, base_url=base_url, concurrency=at_once))
    return runs


def ours(engine: Any, lists: Lists, strategy: str | Strategy) -> Usage:
    """Every query on its own way, as many at once as the engine says."""
    reranker = R1Reranker(engine, strategy=strategy, thinking=0)
    results = reranker.rerank_batch([query for query, _ in lists], [documents for _, documents in lists])
    assert all(result.status == "ok" for result in results)
    return sum((result.usage for result in results), Usage())


def lockstep(engine: Any, lists: Lists, at_once: int) -> Usage:
    """The baseline, so many queries at a time."""
    groups = [lists[start : start + at_once] for start in range(0, len(lists), at_once)]
    return sum((eliminate_in_lockstep(engine, group) for group in groups), Usage())


if __name__ == "__main__":
    typer.run(main)
