"""Where results go: JSON Lines as they come, one JSON value at the end, or tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

from ..documents import RerankResult, Usage
from .queries import Query

if TYPE_CHECKING:
    from rich.console import Console

Format = Literal["table", "json", "jsonl"]

_FILE_WIDTH = 120


class Writer(Protocol):
    """Takes results in the order in which they are known."""

    def write(self, number: int, query: Query, result: RerankResult) -> None:
        """Takes the result of the query with this number."""
        ...

    def finish(self) -> None:
        """Writes what had to wait for the last result."""
        ...


class JsonLinesWriter:
    """A line a result, complete and flushed at once."""

    def __init__(self, stream: IO[bytes], trace: bool) -> None:
        self._stream = stream
        self._trace = trace

    def write(self, number: int, query: Query, result: RerankResult) -> None:
        """Writes a line."""
        self._stream.write(_json(result.to_dict(id=query.id, trace=self._trace)))
        self._stream.flush()

    def finish(self) -> None:
        """Nothing is left."""


class JsonWriter:
    """One object for one query, an array in the order of the queries for any other number."""

    def __init__(self, stream: IO[bytes], trace: bool) -> None:
        self._stream = stream
        self._trace = trace
        self._records: dict[int, dict[str, Any]] = {}

    def write(self, number: int, query: Query, result: RerankResult) -> None:
        """Keeps a result."""
        self._records[number] = result.to_dict(id=query.id, trace=self._trace)

    def finish(self) -> None:
        """Writes all results."""
        records = [self._records[number] for number in sorted(self._records)]
        self._stream.write(_json(records[0] if len(records) == 1 else records, indent=2))
        self._stream.flush()


class TableWriter:
    """Tables; each with its query as heading where there are several."""

    def __init__(self, console: Console, trace: bool, heading: bool) -> None:
        self._console = console
        self._trace = trace
        self._heading = heading

    def write(self, number: int, query: Query, result: RerankResult) -> None:
        """Prints a result."""
        from .tables import print_result

        print_result(self._console, query, result, trace=self._trace, heading=self._heading)

    def finish(self) -> None:
        """Nothing is left."""


@contextmanager
def open_writer(format: Format, path: Path | None, *, trace: bool, many: bool) -> Iterator[Writer]:
    """Opens a file to be appended to, or standard output where `path` is None.

    Args:
        format: What the results look like.
        path: Output file.
        trace: Show the steps.
        many: There are several queries.
    """
    if format == "table":
        with _open_console(path) as console:
            yield TableWriter(console, trace, heading=many)
        return
    with _open_bytes(path) as stream:
        yield JsonLinesWriter(stream, trace) if format == "jsonl" else JsonWriter(stream, trace)


def print_estimates(format: Format, estimates: Sequence[tuple[Query, Usage]]) -> None:
    """Prints what the queries would take at most."""
    if format == "table":
        from .tables import print_estimates as print_table

        with _open_console(None) as console:
            print_table(console, estimates)
        return
    records = []
    for query, usage in estimates:
        cost = {name: value for name, value in asdict(usage).items() if name != "seconds"}
        records.append({"id": query.id, "query": str(query.task), "documents": len(query.documents), "estimate": cost})
    with _open_bytes(None) as stream:
        if format == "jsonl":
            stream.writelines(map(_json, records))
        else:
            stream.write(_json(records[0] if len(records) == 1 else records, indent=2))
        stream.flush()


@contextmanager
def _open_bytes(path: Path | None) -> Iterator[IO[bytes]]:
    # Bytes, so that JSON is UTF-8 whatever the terminal speaks.
    if path is None:
        yield sys.stdout.buffer
        return
    with path.open("ab") as file:
        yield file


@contextmanager
def _open_console(path: Path | None) -> Iterator[Console]:
    from rich.console import Console

    if path is None:
        yield Console()
        return
    with path.open("a", encoding="utf-8") as file:
        yield Console(file=file, width=_FILE_WIDTH)


def _json(value: object, indent: int | None = None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode()
