"""Reports of an evaluation: the numbers for machines, tables in Markdown, and a folder with everything."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import InputError, MissingExtraError
from .comparison import Comparison, compare, compare_means
from .records import EvaluationRun
from .reference import PAPER, PAPER_NOTE
from .statistics import holm
from .summary import ORACLES, Summary, summarise

logger = logging.getLogger(__name__)

_AGAINST = ("popularity", "best-single", "bm25", "random", "random_order")
"""What systems are held against, the first of these that a task has."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Systems on tasks.

    Args:
        metric: What the overview shows.
        summaries: Of each run.
        comparisons: Of systems with one baseline on each task, and with what they are compared with on every task, by
            the mean of all.
        adjusted: Their p-values, adjusted for how many there are (Holm).
        notes: Sentences for the reader.
        reference: Show the paper's figures beside.
    """

    metric: str
    summaries: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]
    adjusted: tuple[float, ...]
    notes: tuple[str, ...] = ()
    reference: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in order."""
        return tuple(dict.fromkeys(summary.task for summary in self.summaries))

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the systems, in order."""
        return tuple(dict.fromkeys(summary.system for summary in self.summaries))

    def of(self, task: str, system: str | None = None) -> list[Summary]:
        """The summaries of a task, or of a system on it."""
        return [
            summary
            for summary in self.summaries
            if summary.task == task and (system is None or summary.system == system)
        ]

    def to_dict(self) -> dict[str, object]:
        """Everything as JSON values."""
        record: dict[str, object] = {
            "metric": self.metric,
            "summaries": [asdict(summary) for summary in self.summaries],
            "comparisons": [
                asdict(compared) | {"p_adjusted": p}
                for compared, p in zip(self.comparisons, self.adjusted, strict=True)
            ],
            "notes": list(self.notes),
        }
        if self.reference:
            record["reference"] = {"note": PAPER_NOTE, "metric": "mrr x 100", "values": PAPER}
        return record

    def to_markdown(self, plots: Mapping[str, str] | None = None) -> str:
        """Tables.

        Args:
            plots: Address of each plot, by its title.
        """
        from .report_text import markdown

        return markdown(self, plots or {})

    def overview(self) -> str:
        """The one table in Markdown that says which system is how good on which task."""
        from .report_text import overview

        return overview(self)

    def to_html(self) -> str:
        """One page that needs no other file, with the plots in it.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from .plots import draw_plots
        from .report_html import html_page

        return html_page(self, draw_plots(self))

    def write(self, folder: Path) -> None:
        """Writes report.json, report.md, report.html and plots/; without matplotlib a warning in place of the plots."""
        from .plots import draw_plots
        from .report_html import html_page

        (folder / "plots").mkdir(parents=True, exist_ok=True)
        try:
            plots = draw_plots(self)
        except MissingExtraError as error:
            plots = []
            logger.warning("the report has no plots: %s", error)
        for plot in plots:
            (folder / "plots" / f"{plot.name}.png").write_bytes(plot.png)
        addresses = {plot.title: f"plots/{plot.name}.png" for plot in plots}
        numbers = json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n"
        (folder / "report.json").write_text(numbers, encoding="utf-8")
        (folder / "report.md").write_text(self.to_markdown(addresses), encoding="utf-8")
        (folder / "report.html").write_text(html_page(self, plots), encoding="utf-8")


def build_report(
    runs: Sequence[EvaluationRun],
    *,
    metric: str | None = None,
    against: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    reference: bool = False,
    seed: int = 0,
) -> Report:
    """Sums runs up and compares them.

    Args:
        runs: Each of another task or system.
        metric: What the overview shows and comparisons go by; by default the first that was taken.
        against: The system that the others are held against; by default the first that a task has of popularity, the
            best single LLM, BM25 and a random order.
        pairs: Further comparisons, each of two systems.
        notes: Sentences for the reader.
        reference: Show the paper's figures beside.
        seed: Of the intervals and the tests.

    Raises:
        InputError: No runs, one stands twice, an unknown metric or system.
    """
    if not runs:
        raise InputError("runs", "is empty: there is nothing to report")
    names = [(run.task, run.system) for run in runs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError("runs", f"{twice[0][1]} stands twice on {twice[0][0]}")
    # A system that failed on every row has no metrics, but its faults are worth a line.
    metric = metric or next((run.metrics[0] for run in runs if run.metrics), "mrr")
    if all(metric not in run.metrics for run in runs if run.metrics):
        raise InputError("metric", f"{metric!r} was not taken; there is {', '.join(runs[0].metrics)}")
    if against is not None and all(run.system != against for run in runs):
        raise InputError("against", f"{against!r} is no system of this evaluation")
    compared = _comparisons(runs, metric, against, pairs, seed)
    return Report(
        metric=metric,
        summaries=tuple(summarise(run, seed=seed) for run in runs),
        comparisons=tuple(compared),
        adjusted=tuple(holm([item.p for item in compared])),
        notes=tuple(notes),
        reference=reference,
    )


def _comparisons(
    runs: Sequence[EvaluationRun], metric: str, against: str | None, pairs: Sequence[tuple[str, str]], seed: int
) -> list[Comparison]:
    found: dict[tuple[str, str], list[tuple[EvaluationRun, EvaluationRun]]] = {}
    compared = []
    tasks = tuple(dict.fromkeys(run.task for run in runs))
    for task in tasks:
        of_task = {run.system: run for run in runs if run.task == task and metric in run.metrics}
        base = next((name for name in ((against,) if against else _AGAINST) if name in of_task), None)
        wanted = [(base, name) for name in of_task if base is not None and name != base and name not in ORACLES]
        for a, b in dict.fromkeys([*wanted, *pairs]):
            if a not in of_task or b not in of_task:
                continue
            shared = of_task[a].values(metric).keys() & of_task[b].values(metric).keys()
            if shared:
                found.setdefault((a, b), []).append((of_task[a], of_task[b]))
                compared.append(compare(of_task[a], of_task[b], metric, other_rows="skip", seed=seed))
    everywhere = (several for several in found.values() if len(several) == len(tasks) > 1)
    return compared + [compare_means(several, metric, other_rows="skip", seed=seed) for several in everywhere]
