"""Markdown tables with the machine and the versions that they were measured on, and plots beside them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table."""
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def caption(*packages: str) -> str:
    """The command, the machine, and the versions of these packages."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"`{command}` — {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, " + (
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


def save(drawing: Any, name: str) -> Path:
    """Writes a plot as PNG beside the benchmarks."""
    path = FOLDER / f"{name}.png"
    drawing.savefig(path, dpi=130)
    return path
