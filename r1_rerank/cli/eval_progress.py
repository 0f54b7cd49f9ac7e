"""How far an evaluation is, and how good the system is so far."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..evaluation.records import Record
from ..evaluation.report_text import metric_title
from .console import note

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress(title: str, metric: str, count: int) -> Iterator[Callable[[Record], None]]:
    """Shows a bar with the mean so far on a terminal, one line at the end elsewhere."""
    total, ranked, seconds = 0.0, 0, 0.0
    bar: Progress | None = None
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=False)
        bar.add_task(escape(title), total=count)

    def mean() -> str:
        return f"{title}: {metric_title(metric)} {total / ranked:.3f}" if ranked else title

    def advance(record: Record) -> None:
        nonlocal total, ranked, seconds
        seconds += record.usage.seconds
        if metric in record.metrics and not record.shuffle:
            total, ranked = total + record.metrics[metric], ranked + 1
        if bar is not None:
            bar.update(bar.task_ids[0], advance=1, description=escape(mean()))

    if bar is None:
        yield advance
        note(f"{mean()} ({ranked} rows, {seconds:.1f} s)")
        return
    with bar:
        yield advance
