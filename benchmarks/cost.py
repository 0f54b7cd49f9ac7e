"""What one ranking of 20 documents of 60 words costs, in tokens and in time, against one bare pass over them.

python benchmarks/cost.py [--documents 20] [--words 60] [--repeats 3]
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from r1_rerank import IRanker, R1Reranker
from r1_rerank.checkpoint import embedded_base
from r1_rerank.engines import TransformersEngine

TEXT = Path(__file__).parents[1] / "examples" / "tides.jsonl"


def documents_of(count: int, words: int) -> tuple[str, list[str]]:
    """The query, and the running text of the example cut into documents of equal length."""
    record = json.loads(TEXT.read_text(encoding="utf-8"))
    running = itertools.cycle(" ".join(document["text"] for document in record["documents"]).split())
    return record["query"], [" ".join(itertools.islice(running, words)) for _ in range(count)]


def main(
    documents: Annotated[int, typer.Option(help="Documents in the list.")] = 20,
    words: Annotated[int, typer.Option(help="Words in each document.")] = 60,
    repeats: Annotated[int, typer.Option(help="Runs of each; the median counts.")] = 3,
) -> None:
    """Prints the table in Markdown."""
    query, texts = documents_of(documents, words)
    engine = TransformersEngine(embedded_base()[0])
    uncached = TransformersEngine(engine.model, engine.tokenizer, cache_gib=0)
    bare = engine.tokenizer("\n".join([query, *texts]), return_tensors="pt")["input_ids"]
    width = bare.shape[1]

    def one_pass() -> tuple[int, int, int, int]:
        import torch

        with torch.inference_mode():
            engine.model(input_ids=bare, logits_to_keep=1)
        return 1, width, 0, 0

    def ranking(engine: TransformersEngine, strategy: str | IRanker) -> Callable[[], tuple[int, int, int, int]]:
        reranker = R1Reranker(engine, strategy=strategy, thinking=0)

        def run() -> tuple[int, int, int, int]:
            engine.clear_cache()
            usage = reranker.rerank(query, texts).usage
            return usage.calls, usage.prompt_computed, usage.prompt_reused, usage.generated

        return run

    ways = {
        "one bare pass": one_pass,
        "IRanker, append": ranking(engine, IRanker(form="append")),
        "IRanker, rewrite": ranking(engine, IRanker(form="rewrite")),
        "IRanker, rewrite, no cache": ranking(uncached, IRanker(form="rewrite")),
        "DRanker": ranking(engine, "dranker"),
    }
    one_pass()  # warm up
    counts, seconds = {}, {}
    for name, way in ways.items():
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            counts[name] = way()
            times.append(time.perf_counter() - started)
        seconds[name] = statistics.median(times)
    print("| | calls | prompt tokens computed | x one pass | reused | generated | seconds | x one pass |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (calls, computed, reused, generated) in counts.items():
        tokens, wall = computed / width, seconds[name] / seconds["one bare pass"]
        print(
            f"| {name} | {calls} | {computed:,} | {tokens:.2f} | {reused:,} | {generated} "
            f"| {seconds[name]:.2f} | {wall:.2f} |"
        )
    less = counts["IRanker, rewrite, no cache"][1] / counts["IRanker, append"][1]
    print(f"\n`append` computes {less:.1f} times fewer prompt tokens than `rewrite` without a cache.")
    print(
        f"{documents} documents of {words} words, answer-only, {engine.dtype} on {engine.device} "
        f"({platform.machine()}), torch {version('torch')}, transformers {version('transformers')}"
    )


if __name__ == "__main__":
    typer.run(main)
