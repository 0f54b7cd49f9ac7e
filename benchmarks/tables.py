"""Markdown tables with the machine and the versions that they were measured on, and plots beside them."""

from __future__ import annotations

import os
import platform
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

FOLDER = Path(__file__).parent
BAR_WIDTH, CAPTION_WIDTH = 16, 140
"""Letters in a line of the name of a bar, and of a caption."""
Out = Annotated[Path, typer.Option(help="Folder of the plot.")]


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table."""
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|", flush=True)
    print_rows(rows)


def print_rows(rows: Iterable[Sequence[object]]) -> None:
    """Prints further rows of the table that was printed last."""
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


@dataclass(frozen=True)
class Target:
    """What a run should reach.

    Args:
        what: What is measured.
        measured: The figure.
        bound: What it should be at most.
        at_least: The bound is from below.
        unit: Of both numbers.
    """

    what: str
    measured: float
    bound: float
    at_least: bool = False
    unit: str = " x"

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def print_targets(targets: Sequence[Target]) -> None:
    """Prints which targets the run met."""
    if targets:
        print()
        print_table(
            ["target", "", "measured", "met"],
            (
                (
                    target.what,
                    f"{'at least' if target.at_least else 'at most'} {target.bound:g}{target.unit}",
                    f"{target.measured:.2f}{target.unit}",
                    "yes" if target.met else "no",
                )
                for target in targets
            ),
        )


def caption(*packages: str) -> str:
    """The command without the folders of this machine, what machine it is, and the versions of these packages."""
    arguments = sys.argv[1:]
    for folder in {"--out", "--env"} & set(arguments):
        place = arguments.index(folder)
        del arguments[place : place + 2]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    # A process may be kept to some of the cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"`{command}` — {cores} cores ({platform.machine()}), Python {platform.python_version()}, " + (
        ", ".join(versions)
    )


def figure(title: str, x: str, y: str) -> tuple[Any, Any]:
    """A plot with logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
    axes.grid(which="both", alpha=0.25)
    return drawing, axes


def bars(title: str, y: str, values: Mapping[str, float]) -> tuple[Any, Any]:
    """A plot with a bar for each name."""
    drawing, axes = figure(title, "", y)
    axes.set(xscale="linear", yscale="linear")
    names = [textwrap.fill(name, BAR_WIDTH) for name in values]
    axes.bar_label(axes.bar(names, list(values.values()), 0.6, zorder=2), fmt="{:,.1f}", fontsize=8)
    return drawing, axes


def save(drawing: Any, name: str, folder: Path, note: str) -> Path:
    """Writes a plot as PNG, with its caption below."""
    from matplotlib import pyplot as plt

    lines = [line for part in note.split(" — ") for line in textwrap.wrap(part, CAPTION_WIDTH)]
    drawing.supxlabel("\n".join(lines), fontsize=6)
    path = folder / f"{name}.png"
    drawing.savefig(path, dpi=130)
    plt.close(drawing)
    return path
