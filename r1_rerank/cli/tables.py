"""Results as tables, for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..documents import Document, RerankResult, Step, Usage
from .console import one_line
from .queries import Query

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_TITLE_LENGTH = 80
_ID_WIDTH = 30


def print_result(console: Console, query: Query, result: RerankResult, *, trace: bool, heading: bool) -> None:
    """Prints a ranking, on request how it came about, and what it cost."""
    if heading:
        console.print(_text(f"{query.id}: {_shortened(result.query)}", "bold"))
    if trace:
        for step in result.steps:
            _print_step(console, step, query.documents)
    if result.ranking:
        console.print(_ranking(result))
    if result.error is not None:
        console.print(_text(f"error: {result.error}", "red"))
    for fault in result.faults:
        where = "" if fault.step is None else f"step {fault.step}, "
        console.print(_text(f"{where}{fault.kind}: {fault.detail}", "yellow"))
    usage = result.usage
    calls = "1 call" if usage.calls == 1 else f"{usage.calls} calls"
    cost = f"{calls}, {usage.prompt_computed} prompt tokens computed, {usage.prompt_reused} reused"
    cost = f"{cost}, {usage.generated} generated, {usage.seconds:.2f} s"
    console.print(_text(f"status {result.status}: {cost}", "dim"))
    if heading:
        console.print()


def print_estimates(console: Console, estimates: Sequence[tuple[Query, Usage]]) -> None:
    """Prints what each query would take at most, and the sum."""
    table = _table("query", "documents", "calls", "prompt computed", "prompt reused", "generated", wide="query")
    rows = [(_shortened(str(query.task)), len(query.documents), usage) for query, usage in estimates]
    if len(rows) > 1:
        rows.append(("all", sum(row[1] for row in rows), sum((row[2] for row in rows), Usage())))
    for title, count, usage in rows:
        numbers = (count, usage.calls, usage.prompt_computed, usage.prompt_reused, usage.generated)
        table.add_row(_text(title), *map(str, numbers))
    console.print(table)


def _ranking(result: RerankResult) -> Table:
    named = any(hit.document.id is not None for hit in result)
    table = _table("rank", "score", "id" if named else "index", "text", wide="text")
    for hit in result:
        table.add_row(
            str(hit.rank),
            f"{hit.score:.4f}",
            _text(_label(hit.index, hit.document) if named else str(hit.index)),
            _text(_described(hit.document)),
        )
    return table


def _print_step(console: Console, step: Step, documents: Sequence[Document]) -> None:
    if step.ask == "eliminate":
        names = ", ".join(_eliminated(step, index, documents[index]) for index in step.picked)
        console.print(_text(f"step {step.number}: of {len(step.shown)}, out goes {names}"))
    else:
        order = " > ".join(_label(index, documents[index]) for index in step.picked)
        console.print(_text(f"step {step.number}: {len(step.shown)} in order: {order}"))
    if step.thinking:
        console.print(_text(step.thinking, "italic dim"))


def _eliminated(step: Step, index: int, document: Document) -> str:
    sure = "" if step.logprobs is None else f" ({math.exp(step.logprobs[index]):.0%})"
    return f"{_label(index, document)}{sure} {_shortened(_described(document), 40)}"


def _label(index: int, document: Document) -> str:
    return f"#{index}" if document.id is None else document.id


def _described(document: Document) -> str:
    return f"{document.title}. {document.text}" if document.title else document.text


def _shortened(text: str, length: int = _TITLE_LENGTH) -> str:
    text = one_line(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _table(*headings: str, wide: str) -> Table:
    from rich.table import Table

    # Only a table that fills the line lets the one wide column, and no other, give way.
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for heading in headings:
        if heading == wide:
            table.add_column(heading, overflow="ellipsis", no_wrap=True, ratio=1)
        elif heading == "id":
            table.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=_ID_WIDTH)
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table


def _text(text: str, style: str = "") -> Text:
    """Text as it is: what a document holds is neither markup nor a command to the terminal."""
    from rich.text import Text

    return Text(one_line(text), style=style)
