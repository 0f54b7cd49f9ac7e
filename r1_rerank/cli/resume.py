"""Going on with a run that was cut off: what is done already, and whether it was done with the same settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, InputError
from .queries import Query


@dataclass
class Finished:
    """What an output file holds.

    Args:
        queries: Query text of each result, by id.
        redo: Lines to take away, by number from 1: a torn last one, and results that failed.
    """

    queries: dict[str, str] = field(default_factory=dict)
    redo: set[int] = field(default_factory=set)


def settings_file(output: Path) -> Path:
    """The file beside an output file that keeps the settings of its run."""
    return output.with_name(f"{output.name}.settings.json")


def write_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Keeps the settings of a run."""
    _replace(settings_file(output), [(json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()])


def read_finished(output: Path, settings: Mapping[str, Any]) -> Finished:
    """Reads what an earlier run left, without changing it.

    Raises:
        InputError: It ran with other settings, or nobody knows with which.
        DataError: A line that is no result.
    """
    if is_empty(output):
        return Finished()
    _check_settings(output, settings)
    finished = Finished()
    for number, line in _lines(output):
        if not line.endswith(b"\n"):
            finished.redo.add(number)
            continue
        try:
            record = json.loads(line)
            id, query, failed = str(record["id"]), str(record["query"]), record["status"] == "failed"
        except (ValueError, KeyError, TypeError) as error:
            detail = "is no result of this command; mend the line, or pass another --output-file"
            raise DataError(str(output), number, detail) from error
        if failed:
            finished.redo.add(number)
        else:
            finished.queries[id] = query
    return finished


def drop_lines(output: Path, numbers: set[int]) -> None:
    """Takes lines out of a file; it changes as a whole or not at all."""
    if numbers:
        _replace(output.resolve(), (line for number, line in _lines(output) if number not in numbers))


def left_to_do(queries: Sequence[Query], finished: Finished) -> list[Query]:
    """The queries without a result.

    Raises:
        InputError: An id now stands for another query than in the output file.
    """
    for query in queries:
        before = finished.queries.get(query.id or "", str(query.task))
        if before != str(query.task):
            detail = f"has a result for id {query.id!r} with another query ({before!r}); change the id or the file"
            raise InputError("output_file", detail)
    return [query for query in queries if query.id not in finished.queries]


def is_empty(path: Path) -> bool:
    """There is no such file, or nothing in it."""
    return not path.exists() or path.stat().st_size == 0


def _check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    path = settings_file(output)
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        detail = f"cannot tell with which settings {output} was written: {path} is missing or damaged"
        raise InputError("resume", f"{detail}; pass another --output-file") from error
    changes = [
        f"{name} was {_shown(before.get(name))}, now {_shown(settings.get(name))}"
        for name in {**settings, **before}
        if before.get(name) != settings.get(name)
    ]
    if changes:
        detail = f"{output} was written with other settings ({'; '.join(changes)})"
        raise InputError("resume", f"{detail}; pass the same ones, or another --output-file")


def _shown(value: object) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from enumerate(file, start=1)


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(lines)
        if path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
