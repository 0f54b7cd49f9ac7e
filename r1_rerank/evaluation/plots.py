"""The plots of a report: quality, quality against cost, position bias, and when the relevant candidates fell."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from .report_text import metric_title
from .summary import ORACLES, Summary

if TYPE_CHECKING:
    from .report import Report

_DPI = 130
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c564b", "#444444",
            "#b8b800", "#00a5a5", "#a00030")  # fmt: skip
"""Okabe and Ito's palette, told apart also by people who are colour-blind, and a few more."""
_MARKERS = "osD^vPX*hp<>"
_PANEL, _COLUMNS = (4.3, 3.3), 3


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture.

    Args:
        name: For a file.
        title: What it shows.
        note: How to read it.
        png: The picture.
    """

    name: str
    title: str
    note: str
    png: bytes


def draw_plots(report: Report) -> list[Plot]:
    """Draws what there is to show.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    title = metric_title(report.metric)
    pictures = (
        (
            "quality",
            f"{title} by task and system",
            "Bars are 95% intervals by query; the dotted line is a random order.",
            _quality,
        ),
        (
            "cost",
            f"{title} against cost",
            "Tokens that had to be computed for a query, on a logarithmic axis; systems without tokens are lines.",
            _cost,
        ),
        (
            "position",
            "Position bias",
            "Where relevant candidates ended, by where they stood in the input; a level line is no bias, the dashed "
            "diagonal keeps the input's order.",
            _position,
        ),
        (
            "falls",
            "Eliminations at which the positive fell",
            "Share of the positives that were gone after each share of the eliminations, the lower the better; the "
            "dotted line is a random order.",
            _falls,
        ),
    )  # fmt: skip
    drawn = []
    for name, heading, note, draw in pictures:
        picture = draw(report)
        if picture is not None:
            drawn.append(Plot(name=name, title=heading, note=note, png=picture))
    return drawn


def _quality(report: Report) -> bytes:
    panels = _Panels(report, share_y=False, height=max(1.6, 0.34 * len(report.systems) + 1.0))
    for axis, task in panels:
        of_task = [summary for summary in report.of(task) if report.metric in summary.metrics and _can_lose(summary)]
        for place, summary in enumerate(of_task):
            interval = summary.metrics[report.metric]
            colour = panels.colour(summary.system)
            bars = [[interval.mean - interval.low], [interval.high - interval.mean]]
            axis.errorbar(
                interval.mean, place, xerr=bars, fmt="o", color=colour, capsize=3, markersize=5, elinewidth=1.6
            )
            axis.annotate(
                f"{interval.mean:.3f}", (interval.mean, place), xytext=(0, 5), textcoords="offset points", ha="center",
                fontsize=7, color=colour,
            )  # fmt: skip
            if summary.system in ("random", "random_order"):
                axis.axvline(interval.mean, color="#888888", linestyle=":", linewidth=1)
        axis.set_yticks(range(len(of_task)), [_short(summary.system) for summary in of_task], fontsize=8)
        axis.set_ylim(len(of_task) - 0.4, -0.7)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlabel(metric_title(report.metric), fontsize=8)
    return panels.png(legend=False)


def _cost(report: Report) -> bytes | None:
    if all(summary.cost.get("tokens", 0) == 0 for summary in report.summaries):
        return None
    panels = _Panels(report)
    for axis, task in panels:
        for summary in report.of(task):
            interval = summary.metrics.get(report.metric)
            if interval is None or not _can_lose(summary):
                continue
            tokens = summary.cost.get("tokens", 0.0)
            if not tokens:
                axis.axhline(
                    interval.mean,
                    color=panels.colour(summary.system),
                    linestyle=":" if summary.system in ("random", "random_order") else "--",
                    linewidth=1.2,
                    label=_short(summary.system),
                )
                continue
            axis.errorbar(
                tokens,
                interval.mean,
                yerr=[[interval.mean - interval.low], [interval.high - interval.mean]],
                fmt=panels.marker(summary.system),
                color=panels.colour(summary.system),
                capsize=2,
                markersize=6,
                label=_short(summary.system),
            )
        axis.set_xscale("log")
        spent = [summary.cost["tokens"] for summary in report.of(task) if summary.cost.get("tokens")]
        if spent:
            axis.set_xlim(min(spent) / 2, max(spent) * 2)
        axis.grid(alpha=0.3)
        axis.set_xlabel("tokens computed a query", fontsize=8)
        axis.set_ylabel(metric_title(report.metric), fontsize=8)
    return panels.png()


def _position(report: Report) -> bytes | None:
    if not any(_shows_bias(summary) for summary in report.summaries):
        return None
    panels = _Panels(report, share_y=True)
    for axis, task in panels:
        axis.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
        for summary in filter(_shows_bias, report.of(task)):
            axis.plot(
                [point.place for point in summary.placements],
                [point.rank for point in summary.placements],
                marker=panels.marker(summary.system),
                markersize=4,
                linewidth=1.4,
                color=panels.colour(summary.system),
                label=_short(summary.system),
            )
        axis.set_ylim(1.03, -0.03)
        axis.grid(alpha=0.3)
        axis.set_xlabel("place in the input (0: first)", fontsize=8)
        axis.set_ylabel("mean place in the result", fontsize=8)
    return panels.png()


def _falls(report: Report) -> bytes | None:
    if not any(summary.falls for summary in report.summaries):
        return None
    panels = _Panels(report, share_y=True)
    for axis, task in panels:
        for summary in report.of(task):
            if not summary.falls or not _can_lose(summary):
                continue
            random = summary.system in ("random", "random_order")
            axis.plot(
                [share for share, _ in summary.falls],
                [gone for _, gone in summary.falls],
                marker="." if len(summary.falls) <= 21 else None,
                color="#888888" if random else panels.colour(summary.system),
                linestyle=":" if random else "-",
                linewidth=1.5,
                label=_short(summary.system),
            )
        axis.set_ylim(-0.02, 1.02)
        axis.grid(alpha=0.3)
        axis.set_xlabel("share of the eliminations done", fontsize=8)
        axis.set_ylabel("share of positives gone", fontsize=8)
    return panels.png()


def _shows_bias(summary: Summary) -> bool:
    return summary.bias is not None and len(summary.placements) > 1 and _can_lose(summary)


def _can_lose(summary: Summary) -> bool:
    """An oracle would only stretch the axes."""
    return summary.system not in ORACLES


class _Panels:
    """A small picture for each task, and one legend for all."""

    def __init__(self, report: Report, *, share_y: bool = False, height: float = _PANEL[1]) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError("eval", "matplotlib") from error
        self._tasks = report.tasks
        self._systems = report.systems
        columns = min(_COLUMNS, len(self._tasks))
        rows = math.ceil(len(self._tasks) / columns)
        # A figure of its own, not pyplot's: no state is shared with the user's plots, and Agg needs no screen.
        self._figure = Figure(figsize=(max(6.0, _PANEL[0] * columns), height * rows + 0.9), layout="constrained")
        FigureCanvasAgg(self._figure)
        axes = self._figure.subplots(rows, columns, squeeze=False, sharey=share_y)
        self._axes = [axis for line in axes for axis in line]
        for axis in self._axes[len(self._tasks) :]:
            axis.set_axis_off()

    def __iter__(self) -> Any:
        for axis, task in zip(self._axes, self._tasks, strict=False):
            axis.set_title(task, fontsize=10, loc="left")
            axis.tick_params(which="both", labelsize=8)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
            yield axis, task

    def colour(self, system: str) -> str:
        """The same in every panel."""
        return _COLOURS[self._systems.index(system) % len(_COLOURS)]

    def marker(self, system: str) -> str:
        """The same in every panel."""
        place = self._systems.index(system)
        return _MARKERS[(place + place // len(_COLOURS)) % len(_MARKERS)]

    def png(self, *, legend: bool = True) -> bytes:
        """The picture."""
        if legend:
            entries: dict[str, Any] = {}
            for axis in self._axes:
                for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                    entries.setdefault(label, handle)
            if entries:
                self._figure.legend(
                    list(entries.values()), list(entries), loc="outside lower center", ncols=min(5, len(entries)),
                    fontsize=8, frameon=False,
                )  # fmt: skip
        content = io.BytesIO()
        self._figure.savefig(content, format="png", dpi=_DPI)
        return content.getvalue()


def _short(name: str, most: int = 34) -> str:
    # A dollar would begin a formula.
    name = name.replace("$", r"\$")
    return name if len(name) <= most else f"{name[: most - 1]}…"
