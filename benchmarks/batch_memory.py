"""How the memory of the transformers engine grows with the lists that are ranked together.

    python benchmarks/batch_memory.py [--most 8] [--repeats 5]

Each batch has a process of its own, and its memory is counted above the loaded weights: activations, keys and values of
the batch, and the prompts that the engine keeps. The median of several runs counts. Prints a table and which targets
were met, and draws `batch-memory.png`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from measuring import Bench
from tables import FOLDER, Out, Target, caption, figure, print_table, print_targets, save
from workloads import PACKAGES, Cost, documents_of

from r1_rerank import IRanker, R1Reranker, Usage

SIZE = 20
"""Documents in a list."""


def main(
    most: Annotated[int, typer.Option(help="Lists in the largest batch; a batch of the engine takes 8.", min=2)] = 8,
    repeats: Annotated[int, typer.Option(help="Runs of each, in processes of their own.", min=1)] = 5,
    words: Annotated[int, typer.Option(help="Words in each document.")] = 60,
    out: Out = FOLDER,
) -> None:
    """Prints the table in Markdown and draws the plot."""
    runs: dict[int, list[Cost]] = {lists: [] for lists in _doubled(most)}
    for _ in range(repeats):
        for lists, found in runs.items():
            with Bench(together, "transformers") as bench:
                found.append(bench.measure(*documents_of(SIZE * lists, words)))
    costs = {lists: sorted(found, key=_mib)[len(found) // 2] for lists, found in runs.items()}
    print_table(
        ["lists at once", "prompt tokens computed", "peak MiB above the weights", "least and most", "x one list"],
        (
            (
                lists,
                f"{cost.computed:,}",
                f"{_mib(cost):.0f}",
                f"{min(map(_mib, runs[lists])):.0f} to {max(map(_mib, runs[lists])):.0f}",
                f"{_mib(cost) / _mib(costs[1]):.2f}",
            )
            for lists, cost in costs.items()
        ),
    )
    print_targets(targets(costs))
    note = caption(*PACKAGES)
    print("\n" + note)
    drawing, axes = figure(f"Memory of lists of {SIZE} documents", "lists at once", "MiB above the weights")
    axes.plot(list(costs), [_mib(cost) for cost in costs.values()], marker="o", label="measured")
    axes.plot(list(costs), [_mib(costs[1]) * lists for lists in costs], linestyle="--", color="grey", label="linear")
    axes.set_xticks(list(costs), [str(lists) for lists in costs])
    axes.legend()
    save(drawing, "batch-memory", out, note)


def together(engine: Any, query: str, documents: list[str]) -> Usage:
    """Ranks lists of equal length at once, by elimination."""
    lists = [documents[start : start + SIZE] for start in range(0, len(documents), SIZE)]
    reranker = R1Reranker(engine, strategy=IRanker(form="append"), thinking=0)
    results = reranker.rerank_batch([query] * len(lists), lists)
    assert all(result.status == "ok" for result in results)
    return sum((result.usage for result in results), Usage())


def targets(costs: Mapping[int, Cost]) -> list[Target]:
    """Memory grows at most linearly."""
    return [
        Target(f"{lists} lists: peak to that of one", _mib(cost) / _mib(costs[1]), lists)
        for lists, cost in costs.items()
        if lists > 1
    ]


def _doubled(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def _mib(cost: Cost) -> float:
    if cost.mib is None:
        raise typer.BadParameter("the memory of a device is not measured: hide it, such as by CUDA_VISIBLE_DEVICES=")
    return cost.mib


if __name__ == "__main__":
    typer.run(main)
