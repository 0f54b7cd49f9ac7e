"""What one ranking costs, in tokens, time and memory, against one bare pass over query and documents.

    python benchmarks/cost.py [--engine vllm] [--think 64] [--sizes 5,10,20,50,100] [--repeats 3] [--no-whole]

Lists of 60 words a document, of 30 from 100 documents on. All ways rank the same list, one after the other in each
repeat, so that what else the machine does hits all alike; the median time counts. Prints a table, the slopes of time
against size and which targets were met, and draws `cost-ENGINE-THINK.png`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from measuring import WIDE, Bench, Way, interleaved, ranked
from released import eliminate_in_lockstep
from tables import FOLDER, Out, Target, caption, figure, print_rows, print_table, print_targets, save
from workloads import PACKAGES, Cost, EngineKind, bare_pass, documents_of

from r1_rerank import IRanker, Usage
from r1_rerank.strategies import ALPHABET

LIMIT = "one bare pass"
RELEASED = "whole prompt each step"
APPEND = "IRanker, append"
WINDOWS = f"{APPEND}, windows of {WIDE['window']}"
"""Only of lists that one window does not hold."""
HEAD = ["documents", "", "calls", "prompt tokens computed", "x limit", "reused", "generated", "seconds", "x limit"]
MEMORY = ["peak MiB", "x limit"]

Found = Mapping[str, Mapping[int, Cost]]
"""For each way and number of documents what it took."""


def main(
    engine: Annotated[EngineKind, typer.Option(help="What runs the model.")] = "transformers",
    think: Annotated[int, typer.Option(help="Thinking tokens before each answer.")] = 0,
    sizes: Annotated[str, typer.Option(help="Documents in a list.")] = "5,10,20,50,100",
    words: Annotated[int | None, typer.Option(help="Words in each document; else 60, or 30 from 100 on.")] = None,
    repeats: Annotated[int, typer.Option(help="Runs of each; the median counts.", min=1)] = 3,
    whole: Annotated[bool, typer.Option(help="Also the two slow ways, `rewrite` and whole prompts.")] = True,
    apart: Annotated[bool, typer.Option(help="A process for each way and size: tells their memory.")] = True,
    out: Out = FOLDER,
) -> None:
    """Prints the tables in Markdown and draws the plot."""
    ways: dict[str, tuple[Way, bool]] = {  # and whether prompts are cached
        LIMIT: (bare_pass, False),
        APPEND: (partial(ranked, strategy=IRanker(form="append"), thinking=think), True),
        WINDOWS: (partial(ranked, strategy=IRanker(form="append", **WIDE), thinking=think), True),
        "DRanker": (partial(ranked, strategy="dranker", thinking=think), True),
    }
    if whole:
        ways["IRanker, rewrite"] = partial(ranked, strategy=IRanker(form="rewrite"), thinking=think), True
        ways[RELEASED] = partial(released, thinking=think), False
    found: dict[str, dict[int, Cost]] = {name: {} for name in ways}
    weighed = apart and engine == "transformers"
    print_table([*HEAD, *MEMORY] if weighed else HEAD, [])
    for count in sorted(map(int, sizes.split(","))):
        length = words or (30 if count >= 100 else 60)
        with ExitStack() as stack:
            benches = {
                name: stack.enter_context(Bench(way, engine, cached=cached, apart=apart))
                for name, (way, cached) in ways.items()
                if name != WINDOWS or count > len(ALPHABET)
            }
            costs = interleaved(benches, repeats, *documents_of(count, length))
        for name, cost in costs.items():
            found[name][count] = cost
        print_rows(_rows(f"{count} of {length} words", costs, weighed=weighed))
    if whole:
        print(f"\n{APPEND}, against {RELEASED}:\n")
        for count, slow in found[RELEASED].items():
            fast = found[APPEND][count]
            fewer, faster = slow.computed / fast.computed, slow.seconds / fast.seconds
            print(f"- {count} documents: {fewer:.1f} x fewer prompt tokens, {faster:.1f} x faster")
    slope = slopes(found)
    if slope:
        figures = ", ".join(f"{name} {value:.2f}" for name, value in slope.items())
        print(f"\nSlope of time against documents, log-log: {figures}.")
    if not think:
        print_targets(targets(found, engine))
    note = caption(*PACKAGES)
    print("\n" + note)
    _draw(found, f"{engine}, {think or 'no'} thinking tokens", f"cost-{engine}-{think}", out, note)


def released(engine: Any, query: str, documents: list[str], *, thinking: int) -> Usage:
    """One list the way of the released code."""
    return eliminate_in_lockstep(engine, [(query, documents)], thinking=thinking)


def slopes(found: Found) -> dict[str, float]:
    """Least-squares slope of log time against log number of documents, over the lists of 60 words.

    Ways that have not ranked all of those have none.
    """
    sizes = [count for count in found[LIMIT] if count < 100]
    if len(sizes) < 2:
        return {}
    x = [math.log(count) for count in sizes]
    return {
        name: statistics.linear_regression(x, [math.log(costs[count].seconds) for count in sizes]).slope
        for name, costs in found.items()
        if costs.keys() >= set(sizes)
    }


def targets(found: Found, engine: EngineKind) -> list[Target]:
    """What answer-only rankings of these sizes should cost, and what they did."""
    limit, append, whole = found[LIMIT], found[APPEND], found.get(RELEASED, {})
    made = []
    if 20 in limit:
        tokens = 1.7 if engine == "vllm" else 1.5  # vLLM reuses whole blocks only
        made += [
            Target("20 documents: tokens of `append` to the limit's", append[20].computed / limit[20].computed, tokens),
            Target("20 documents: time of `append` to the limit's", append[20].seconds / limit[20].seconds, 2),
        ]
    for count, faster in ((20, 5), (100, 20)):
        for name, way in ((APPEND, "`append`"), (WINDOWS, f"`append` in windows of {WIDE['window']}")):
            if count in whole and count in found.get(name, {}):
                ratio = whole[count].seconds / found[name][count].seconds
                made.append(Target(f"{count} documents: {way} faster than the whole prompt", ratio, faster, True))
    slope = slopes(found)
    if slope:
        made.append(Target("slope of `append` above the limit's", slope[APPEND] - slope[LIMIT], 0.1, unit=""))
    return made


def _rows(documents: str, costs: Mapping[str, Cost], *, weighed: bool) -> Iterator[list[str]]:
    limit = costs[LIMIT]
    for name, cost in costs.items():
        row = [
            documents,
            name,
            f"{cost.calls}",
            f"{cost.computed:,}",
            f"{cost.computed / limit.computed:.2f}",
            f"{cost.reused:,}",
            f"{cost.generated:,}",
            f"{cost.seconds:.2f}",
            f"{cost.seconds / limit.seconds:.2f}",
        ]
        if weighed:  # a device has memory of its own, which is not measured
            row += ["–" if cost.mib is None else f"{cost.mib:.0f}"]
            row += [f"{cost.mib / limit.mib:.2f}" if cost.mib and limit.mib else "–"]
        yield row


def _draw(found: Found, title: str, name: str, folder: Path, note: str) -> None:
    drawing, axes = figure(f"Time of one ranking ({title})", "documents", "seconds")
    for way, costs in found.items():
        if not costs:  # no list was long enough for it
            continue
        axes.plot(list(costs), [cost.seconds for cost in costs.values()], marker="o", label=way)
    axes.set_xticks(list(found[LIMIT]), [str(count) for count in found[LIMIT]])
    axes.legend()
    save(drawing, name, folder, note)


if __name__ == "__main__":
    typer.run(main)
