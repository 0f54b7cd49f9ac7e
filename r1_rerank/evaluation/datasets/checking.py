"""Checks a file of rows and counts what is in it."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ...errors import DataError
from ...rows import read_rows
from .leaks import content_key


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a file holds.

    Args:
        rows: How many.
        tasks: Task (with its objective) -> rows.
        splits: Split -> rows.
        sources: Source -> rows.
        candidates: Candidates of a row -> rows.
        positives: Relevant candidates of a row -> rows.
        duplicates: Rows with the question and the candidates of an earlier one.
        repeated: Rows that list the same text twice.
    """

    rows: int
    tasks: dict[str, int]
    splits: dict[str, int]
    sources: dict[str, int]
    candidates: dict[int, int]
    positives: dict[int, int]
    duplicates: int
    repeated: int


def check_file(path: str | os.PathLike[str]) -> Checked:
    """Reads every row of a file.

    Raises:
        DataError: At the first line that is no row, whose id stood before, or that has no relevant candidate; or the
            file holds no rows.
    """
    name = os.fspath(path)
    tasks, splits, sources = Counter[str](), Counter[str](), Counter[str]()
    candidates, positives = Counter[int](), Counter[int]()
    ids, contents, duplicates, repeated = dict[str, int](), set[int](), 0, 0
    number = 0
    for number, row in enumerate(read_rows(path), start=1):
        if row.id in ids:
            raise DataError(name, None, f"row {number}: its id {row.id!r} is also that of row {ids[row.id]}")
        ids[row.id] = number
        relevant = sum(value > 0 for value in row.relevance)
        if not relevant:
            raise DataError(name, None, f"row {number} ({row.id!r}): no candidate is relevant")
        tasks[f"{row.task}, {row.objective}" if row.objective else row.task] += 1
        splits[row.split] += 1
        sources[row.source] += 1
        candidates[len(row.candidates)] += 1
        positives[relevant] += 1
        key = hash(content_key(row))
        duplicates += key in contents
        contents.add(key)
        repeated += len({candidate.text for candidate in row.candidates}) < len(row.candidates)
    if not number:
        raise DataError(name, None, "holds no rows (truncated?)")
    return Checked(
        rows=number,
        tasks=dict(tasks),
        splits=dict(splits),
        sources=dict(sources),
        candidates=dict(sorted(candidates.items())),
        positives=dict(sorted(positives.items())),
        duplicates=duplicates,
        repeated=repeated,
    )


@cache
def _schema_text() -> str:
    return files("r1_rerank.evaluation").joinpath("row.schema.json").read_text(encoding="utf-8")


def row_schema() -> dict[str, Any]:
    """The JSON Schema of a line of a row file."""
    schema: dict[str, Any] = json.loads(_schema_text())
    return schema
