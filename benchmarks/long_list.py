"""What the ten best of a very long list cost, in tokens, time and memory, against one pass over all documents.

    python benchmarks/long_list.py [--engine vllm] [--documents 1000] [--only "windows of 30"]

Prints a table and which targets were met, and draws `long-list-ENGINE.png`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import typer
from measuring import WIDE, Bench, Way, ranked
from tables import FOLDER, Out, Target, bars, caption, print_table, print_targets, save
from workloads import PACKAGES, Cost, EngineKind, bare_pass, documents_of

from r1_rerank import DRanker, IRanker, Usage

TOP = 10
CHUNK = 50
"""The limit is passed in pieces: no context holds it whole."""
LIMIT = f"bare passes over pieces of {CHUNK}"
MOST_TOKENS = 2.5
MOST_MIB = 4 * 1024


def main(
    engine: Annotated[EngineKind, typer.Option(help="What runs the model.")] = "transformers",
    documents: Annotated[int, typer.Option(help="Documents in the list.")] = 1000,
    words: Annotated[int, typer.Option(help="Words in each document.")] = 60,
    only: Annotated[str, typer.Option(help="Only the ways whose names hold this, beside the limit.")] = "",
    out: Out = FOLDER,
) -> None:
    """Prints the table in Markdown and draws the plot."""
    ways: dict[str, tuple[Way, bool]] = {  # and whether prompts are cached
        LIMIT: (in_pieces, False),
        "IRanker, windows of 20": (partial(ranked, strategy=IRanker(form="append"), thinking=0, top_k=TOP), True),
        "IRanker, windows of 30": (
            partial(ranked, strategy=IRanker(form="append", **WIDE), thinking=0, top_k=TOP),
            True,
        ),
        "DRanker, windows of 20": (partial(ranked, strategy=DRanker(), thinking=0, top_k=TOP), True),
        "DRanker, windows of 30": (partial(ranked, strategy=DRanker(**WIDE), thinking=0, top_k=TOP), True),
    }
    costs = {}
    for name, (way, cached) in ways.items():
        if name != LIMIT and only not in name:
            continue
        with Bench(way, engine, cached=cached) as bench:
            costs[name] = bench.measure(*documents_of(documents, words))
    limit = costs[LIMIT]
    head = ["", "calls", "prompt tokens computed", "x limit", "seconds", "x limit"]
    print_table(
        head if limit.mib is None else [*head, "peak MiB above the weights"],
        (
            (
                name,
                cost.calls,
                f"{cost.computed:,}",
                f"{cost.computed / limit.computed:.2f}",
                f"{cost.seconds:.1f}",
                f"{cost.seconds / limit.seconds:.2f}",
                *([] if cost.mib is None else [f"{cost.mib:.0f}"]),
            )
            for name, cost in costs.items()
        ),
    )
    print_targets(targets(costs))
    note = caption(*PACKAGES)
    print("\n" + note)
    title = f"The {TOP} best of {documents} documents ({engine})"
    drawing, axes = bars(title, "prompt tokens computed", {name: cost.computed for name, cost in costs.items()})
    axes.axhline(MOST_TOKENS * limit.computed, color="grey", linestyle="--", label=f"{MOST_TOKENS} x the limit")
    axes.legend()
    save(drawing, f"long-list-{engine}", out, note)


def in_pieces(engine: Any, query: str, documents: list[str]) -> Usage:
    """One bare pass over all documents, a few at a time."""
    chunks = [documents[start : start + CHUNK] for start in range(0, len(documents), CHUNK)]
    return sum((bare_pass(engine, query, chunk) for chunk in chunks), Usage())


def targets(costs: Mapping[str, Cost]) -> list[Target]:
    """What both rankers should need, and what they did."""
    made = []
    for name, cost in costs.items():
        if name != LIMIT:
            made.append(Target(f"{name}: tokens to one pass", cost.computed / costs[LIMIT].computed, MOST_TOKENS))
            if cost.mib is not None:
                made.append(Target(f"{name}: peak above the weights", cost.mib, MOST_MIB, unit=" MiB"))
    return made


if __name__ == "__main__":
    typer.run(main)
