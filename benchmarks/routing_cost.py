"""Prompt tokens that a routing decision computes, over one pool whose profiles all queries share.

    python benchmarks/routing_cost.py [--engine vllm] [--queries 200]

Prints a table and whether every decision stayed within the target, and draws `routing-ENGINE.png`. vLLM reuses whole
blocks of its cache only, so there a step may compute the rest of a block once more.
"""

from __future__ import annotations

import statistics
from typing import Annotated

import typer
from tables import FOLDER, Out, Target, bars, caption, print_table, print_targets, save
from workloads import PACKAGES, EngineKind, documents_of, forget, load

from r1_rerank import Document, IRanker, R1Reranker, Routing

WORDS = 25
STEP = 30
"""Tokens that a step after the first may compute."""
APPEND = "append, pool shared"


def main(
    engine: Annotated[EngineKind, typer.Option(help="What runs the model.")] = "transformers",
    queries: Annotated[int, typer.Option(help="Queries to route.", min=2)] = 200,
    profiles: Annotated[int, typer.Option(help="LLMs in the pool.")] = 10,
    words: Annotated[int, typer.Option(help="Words in a profile.")] = 40,
    out: Out = FOLDER,
) -> None:
    """Prints the table in Markdown and draws the plot."""
    pool = [
        Document(text, id=f"llm-{number}", price=0.1 * 2**number)
        for number, text in enumerate(documents_of(profiles, words)[1])
    ]
    tasks = [Routing(documents_of(1, WORDS, offset=1 + 7 * number)[1][0]) for number in range(queries)]
    engines = {cached: load(engine, cached=cached) for cached in (True, False)}
    rows, means, shares = [], {}, {}
    for name, cached, form in (
        (APPEND, True, "append"),
        ("rewrite, pool shared", True, "rewrite"),
        ("rewrite, whole prompt each time", False, "rewrite"),
    ):
        one = engines[cached]
        forget(one)
        few = tasks if cached else tasks[: max(2, queries // 10)]
        reranker = R1Reranker(one, strategy=IRanker(form=form), thinking=0)
        first = reranker.rerank(few[0], pool).usage
        results = reranker.rerank_batch(few[1:], [pool] * len(few[1:]))
        assert all(result.status == "ok" for result in results)  # one that failed computes little
        further = [result.usage for result in results]
        block = 1 if engine == "transformers" else one.llm.llm_engine.vllm_config.cache_config.block_size
        empty = one.count_tokens([{"role": "user", "content": ""}])
        bounds = [
            bound(one.count_tokens([{"role": "user", "content": task.query}]) - empty, usage.calls, block)
            for task, usage in zip(few[1:], further, strict=True)
        ]
        within = sum(usage.prompt_computed <= most for usage, most in zip(further, bounds, strict=True))
        shares[name] = 100 * within / len(further)
        means[name] = statistics.mean(usage.prompt_computed for usage in further)
        rows.append(
            (
                name,
                len(few),
                f"{statistics.mean(usage.calls for usage in further):.0f}",
                f"{first.prompt_computed:,}",
                f"{means[name]:,.0f}",
                f"{statistics.mean(result.steps[0].usage.prompt_computed for result in results):,.0f}",
                f"{statistics.mean(usage.prompt_reused for usage in further):,.0f}",
                f"{statistics.mean(bounds):,.0f}",
                f"{within} of {len(further)}",
            )
        )
    blocks = "" if engine == "transformers" else " + the rest of a block a step"
    head = ["", "queries", "steps", "computed, first", "computed, each further", "in its first step", "reused"]
    print_table([*head, f"query + {STEP} a further step{blocks}", "decisions within it"], rows)
    print_targets([Target(f"{APPEND}: decisions within it", shares[APPEND], 100, at_least=True, unit="%")])
    note = caption(*PACKAGES)
    print("\n" + note)
    drawing, _ = bars(f"Routing over one pool of {profiles} ({engine})", "prompt tokens computed per decision", means)
    save(drawing, f"routing-{engine}", out, note)


def bound(query: int, steps: int, block: int) -> int:
    """Most prompt tokens that a decision may compute, once its pool is known.

    Args:
        query: Tokens of the query.
        steps: Eliminations.
        block: Tokens that the cache keeps or forgets together.
    """
    return query + STEP * (steps - 1) + (block - 1) * steps


if __name__ == "__main__":
    typer.run(main)
