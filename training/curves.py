"""The curves of a training, drawn from its log."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MissingExtraError

_PANEL, _COLUMNS, _DPI = (4.3, 2.9), 3, 130
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
"""Okabe and Ito's, which people who are colour-blind can tell apart."""
_PANELS: Mapping[str, Sequence[str]] = {
    "MRR on held-out rows": ("eval_mrr",),
    "loss": ("loss",),
    "reward": ("reward", r"rewards/(.+)/mean", "eval_reward"),
    "accuracy of the decisions": ("accuracy", "mean_token_accuracy"),
    "tokens of an answer": ("completions/mean_length",),
    "divergence from the start (KL)": ("kl",),
    "groups whose answers all earn the same": ("frac_reward_zero_std",),
    "entropy of the answers": ("entropy",),
}
"""Title -> names in the log, as regular expressions."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a panel; every stage begins a new one.

    Args:
        name: For the legend.
        points: Step over all stages, and value.
        band: Bounds of each point, where it has an interval.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    band: tuple[tuple[float, float], ...] = ()


def curves_of(log: Sequence[Mapping[str, Any]]) -> dict[str, list[Curve]]:
    """The curves of a log by panel; panels that would be empty are left out."""
    ends = [0, *itertools.accumulate(last for _, last in _stages(log))]
    begin = {name: start for (name, _), start in zip(_stages(log), ends, strict=False)}
    names = list(dict.fromkeys(name for line in log for name in line))
    panels: dict[str, list[Curve]] = {}
    for title, patterns in _PANELS.items():
        for name in (name for pattern in patterns for name in names if re.fullmatch(pattern, name)):
            for stage, start in begin.items():
                lines = [line for line in log if line["stage"] == stage and isinstance(line.get(name), int | float)]
                bounds = [(line.get(f"{name}_low"), line.get(f"{name}_high")) for line in lines]
                curve = Curve(
                    name=_readable(name),
                    points=tuple((start + line["step"], float(line[name])) for line in lines),
                    band=tuple(bounds) if all(None not in bound for bound in bounds) else (),  # type: ignore[arg-type]
                )
                if lines:
                    panels.setdefault(title, []).append(curve)
    return panels


def draw_curves(log: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Draws a log as a PNG; None where it holds nothing to draw.

    Args:
        log: Lines as `RunLog` writes them; stages follow each other from left to right.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("train", "matplotlib") from error
    panels = curves_of(log)
    if not panels:
        return None
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    # A figure of its own, not pyplot's: no state is shared with the user's plots, and Agg needs no screen.
    figure = Figure(figsize=(max(6.0, _PANEL[0] * columns), _PANEL[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [axis for line in figure.subplots(rows, columns, squeeze=False) for axis in line]
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        _draw(axis, title, curves, log)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def _draw(axis: Any, title: str, curves: Sequence[Curve], log: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(curve.name for curve in curves))
    labelled = set[str]()
    for curve in curves:
        steps, values = zip(*curve.points, strict=True)
        axis.plot(
            steps,
            values,
            color=(colour := _COLOURS[names.index(curve.name) % len(_COLOURS)]),
            linewidth=1.4,
            marker="o" if len(steps) < 30 else None,
            markersize=3,
            label=None if curve.name in labelled else curve.name,
        )
        labelled.add(curve.name)
        if curve.band:
            axis.fill_between(steps, *zip(*curve.band, strict=True), color=colour, alpha=0.15, linewidth=0)
    stages = list(_stages(log))
    ends = list(itertools.accumulate(last for _, last in stages))
    for (name, last), end in zip(stages, ends, strict=True):
        if end < ends[-1]:
            axis.axvline(end, color="#888888", linestyle=":", linewidth=1)
        if len(stages) > 1:
            axis.annotate(name.replace("$", r"\$"), (end - last, 1), xycoords=("data", "axes fraction"), xytext=(2, -2),
                          textcoords="offset points", fontsize=7, color="#666666", va="top")  # fmt: skip
    axis.set_xlim(0, max(1, ends[-1]))
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if len(names) > 1:
        axis.legend(fontsize=7, frameon=False)


def _stages(log: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    """Name and last step of each stage."""
    for name in dict.fromkeys(line["stage"] for line in log):
        yield name, max(line["step"] for line in log if line["stage"] == name)


def _readable(name: str) -> str:
    part = re.fullmatch(r"rewards/(.+)/mean", name)
    if part is not None:
        return part[1].removesuffix("_reward").replace("_", " ")
    return "held out" if name.startswith("eval_") else name.rpartition("/")[2].replace("_", " ")
