"""The tables of a report, and the report in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .measures import ROUTING_METRICS
from .reference import PAPER, PAPER_NOTE, PAPER_TASKS
from .statistics import Interval
from .summary import STATUSES, Summary

if TYPE_CHECKING:
    from .report import Report

NOTHING = "–"
_COST: Mapping[str, str] = {
    "calls": "calls",
    "tokens": "tokens computed",
    "prompt_reused": "tokens reused",
    "generated": "generated",
    "thinking": "of that thinking",
    "seconds": "seconds",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text.

    Args:
        title: Its heading.
        note: What the reader should know, in a sentence.
        head: Names of the columns.
        body: Rows, each as long as the head.
        other_data: The figures are of other data than the rest of the report.
    """

    title: str
    note: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    other_data: bool = False

    def markdown(self) -> str:
        """The table without its heading."""
        lines = [_line(self.head), "|---" * len(self.head) + "|", *map(_line, self.body)]
        return "\n".join(lines)


def tables(report: Report) -> list[Table]:
    """All tables of a report, in the order in which they are read."""
    found = [overview_table(report)]
    if report.reference:
        found.append(_reference(report))
    for task in report.tasks:
        found += [_quality(report, task), _cost(report, task)]
    found += [_differences(report), _behaviour(report), _dropped(report)]
    return [table for table in found if table.body]


def overview(report: Report) -> str:
    """The overview in Markdown."""
    return _text(overview_table(report))


def routing(report: Report) -> str:
    """The quality of routing tasks in Markdown, which no single metric tells; empty where there are none."""
    found = [_quality(report, task) for task in report.tasks if _is_routing(report.of(task))]
    # The note is the same under each.
    return "\n".join(map(_text, (*found[:1], *(replace(table, note="") for table in found[1:]))))


def overview_table(report: Report) -> Table:
    """Systems against tasks."""
    body = []
    for system in report.systems:
        cells = []
        for task in report.tasks:
            most = max(summary.rows for summary in report.of(task))
            found = report.of(task, system)
            cells.append(_cell(found[0], report.metric, most) if found else NOTHING)
        body.append((system, *cells))
    sizes = "; ".join(
        f"{task}: {max(summary.rows for summary in report.of(task))} rows of "
        f"{max(summary.queries for summary in report.of(task))} queries"
        for task in report.tasks
    )
    return Table(
        title=f"{metric_title(report.metric)} × 100",
        note=f"95% bootstrap intervals by query. {sizes}. Cells over fewer rows say so.",
        head=("system", *report.tasks),
        body=tuple(body),
    )


def markdown(report: Report, plots: Mapping[str, str]) -> str:
    """The whole report.

    Args:
        report: What it says.
        plots: Address of each plot, by its title.
    """
    parts = ["# Evaluation", *(f"- {note}" for note in report.notes)]
    for table in tables(report):
        parts += [f"\n## {table.title}", f"\n{table.note}" if table.note else "", f"\n{table.markdown()}"]
    for title, address in plots.items():
        parts.append(f"\n## {title}\n\n![{title}]({address})")
    return "\n".join(part for part in parts if part) + "\n"


def _text(table: Table) -> str:
    return f"{table.title}. {table.note}".rstrip() + f"\n\n{table.markdown()}\n"


def _reference(report: Report) -> Table:
    tasks = [task for task in report.tasks if task in PAPER_TASKS] or list(PAPER_TASKS)
    body = tuple((system, *(f"{values[task]:.2f}" for task in tasks)) for system, values in PAPER.items())
    head = ("system", *tasks)
    return Table(title="Reference: the paper, on other data", note=PAPER_NOTE, head=head, body=body, other_data=True)


def _quality(report: Report, task: str) -> Table:
    summaries = report.of(task)
    names = tuple(dict.fromkeys(name for summary in summaries for name in summary.metrics))
    body = tuple(
        (
            summary.system,
            str(summary.rows),
            str(summary.queries),
            *(_interval(summary.metrics.get(name)) for name in names),
        )
        for summary in summaries
    )
    note = (
        "Effect, price, reward and regret are of the LLM on top; the price is a share of the dearest LLM's where the "
        "data was built here; regret is against the best for each query."
    )
    return Table(
        title=f"{task}: quality",
        note=note if _is_routing(summaries) else "",
        head=("system", "rows", "queries", *map(metric_title, names)),
        body=body,
    )


def _is_routing(summaries: Iterable[Summary]) -> bool:
    return any(name in ROUTING_METRICS for summary in summaries for name in summary.metrics)


def _cost(report: Report, task: str) -> Table:
    body = tuple(
        (
            summary.system,
            *(_percent(summary.statuses.get(status, 0.0)) for status in STATUSES),
            _percent(summary.malformed),
            *(_number(summary.cost.get(name, 0.0)) for name in _COST),
        )
        for summary in report.of(task)
    )
    return Table(
        title=f"{task}: answers and cost of a query",
        note="Share of the rows by status, and with a malformed answer; means of what a row took.",
        head=("system", *STATUSES, "malformed", *_COST.values()),
        body=body,
    )


def _differences(report: Report) -> Table:
    body = tuple(
        (
            item.task,
            item.b,
            item.a,
            _interval(item.difference, form="+.3f"),
            f"{item.p:.4f}",
            f"{p:.4f}",
            f"{item.difference.values} ({item.skipped} left out)" if item.skipped else str(item.difference.values),
        )
        for item, p in zip(report.comparisons, report.adjusted, strict=True)
    )
    return Table(
        title=f"Differences in {metric_title(report.metric)}",
        note="Sign-flip test on the difference of each query; adjusted for the length of this table (Holm).",
        head=("task", "system", "against", "difference", "p", "p adjusted", "rows"),
        body=body,
    )


def _behaviour(report: Report) -> Table:
    body = []
    for summary in report.summaries:
        stable = summary.stability
        values = (summary.bias, *((stable.tau, stable.top, stable.spread) if stable else (None,) * 3))
        shown = (NOTHING if value is None else f"{value:.3f}" for value in values)
        body.append((summary.task, summary.system, *shown))
    return Table(
        title="Position bias and stability",
        note="Bias: correlation of a relevant candidate's place in the input with its rank (0: none, 1: the input's "
        "order); where a first stage made that order, agreement with it counts too. Over shuffles of the input: mean "
        "Kendall tau of two orders, share of equal winners, and standard deviation of the first metric.",
        head=("task", "system", "bias", "tau", "same winner", "spread"),
        body=tuple(body),
    )


def _dropped(report: Report) -> Table:
    body = []
    for summary in report.summaries:
        body += [(summary.task, summary.system, reason, str(count)) for reason, count in summary.dropped.items()]
        body += [(summary.task, summary.system, f"fault: {kind}", str(count)) for kind, count in summary.faults.items()]
    return Table(title="Left out and faults", note="", head=("task", "system", "what", "count"), body=tuple(body))


def _cell(summary: Summary, metric: str, most: int) -> str:
    interval = summary.metrics.get(metric)
    if interval is None:
        return NOTHING
    fewer = f" (n = {summary.rows})" if summary.rows < most else ""
    return _interval(interval, scale=100, form=".1f") + fewer


def _interval(interval: Interval | None, *, scale: float = 1, form: str = ".3f") -> str:
    """The mean and its interval; one query alone tells nothing about others, and has none."""
    if interval is None:
        return NOTHING
    mean, low, high = (format(scale * value, form) for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]" if interval.clusters > 1 else mean


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(value: float) -> str:
    if value == 0 or value >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.2g}"


def metric_title(metric: str) -> str:
    """A metric as people write it."""
    names = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP", "hit": "Hit"}
    kind, at, cutoff = metric.partition("@")
    return names.get(kind, kind) + at + cutoff


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
