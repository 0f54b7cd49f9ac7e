"""Where training rows come from: files and task folders, some of them held out, none of them seen in validation."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DataError, InputError, InputTypeError
from ..evaluation.datasets.common import Dropped, normalised
from ..evaluation.datasets.leaks import LeakFilter, question_key
from ..evaluation.rowsets import BadRows, check_rows, find_tasks, read_task
from ..rows import Row


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows that are drawn from with one weight.

    Args:
        name: Of the task or the file.
        rows: All of them.
        weight: Share of the examples, relative to the other sources.
        path: File that they were read from.
    """

    name: str
    rows: tuple[Row, ...]
    weight: float = 1.0
    path: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float):
            raise InputTypeError("weight", f"source {self.name!r} has {self.weight!r}: pass a number")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError("weight", f"source {self.name!r} has {self.weight}: pass a number above 0")


def read_sources(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    split: str = "train",
    weight: float = 1.0,
    bad_rows: BadRows = "refuse",
) -> tuple[Source, ...]:
    """Reads files of rows, folders of tasks, and folders that hold such folders.

    Args:
        paths: One of these, or several.
        split: Which file of a folder.
        weight: Of each path; the tasks of a folder share it.
        bad_rows: What a line does that is no row, or a row without a positive or with fewer than two candidates.

    Raises:
        DataError: Nothing there, or a line that cannot be used.
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    sources: dict[str, Source] = {}
    for path in several:
        found = find_tasks(path, split)
        for task, file in found.items():
            # Two folders may hold a task of the same name.
            name = task if task not in sources else str(file)
            if name in sources:
                raise DataError(str(file), None, "is named twice")
            rows = read_task(file, name=name, bad_rows=bad_rows).rows
            if bad_rows == "skip":
                rows = tuple(row for row in rows if not _all_relevant(row))
            sources[name] = Source(name=name, rows=rows, weight=weight / len(found), path=file)
    if not sources:
        raise InputError("paths", "is empty: name at least one file of rows")
    return tuple(sources.values())


def check_sources(sources: Iterable[Source], *, any_split: bool = False) -> tuple[Source, ...]:
    """The sources, once it is known that every row of them can be trained on.

    Args:
        sources: At least one.
        any_split: Rows may belong to another split than `train`.

    Raises:
        InputError: No source or no row, two sources of one name, or rows that are of no use: says how many, and
            names the first.
    """
    checked = tuple(sources)
    if not checked:
        raise InputError("sources", "is empty: pass at least one")
    names = set[str]()
    for source in checked:
        if source.name in names:
            raise InputError("sources", f"{source.name!r} is the name of two: give each its own")
        names.add(source.name)
        if not source.rows:
            raise InputError("sources", f"{_where(source)} holds no rows")
        _check_usable(source)
        strangers = [] if any_split else [row for row in source.rows if row.split != "train"]
        if strangers:
            first = strangers[0]
            raise InputError(
                "sources",
                f"{_where(source)}: {len(strangers)} of {len(source.rows)} rows are not of the split train, the first "
                f"is {first.id!r} of {first.split!r}: train on other rows, or if that is meant, write `split: train` "
                f"in them, or `split: {first.split}` where data.train of a recipe names them (in Python: "
                "any_split=True)",
            )
    return checked


def hold_out(
    sources: Iterable[Source], count: int | Sequence[int], *, seed: int = 0
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Takes some questions of each source for validation, and all that would leak out of the others.

    A question that stands in several sources, as under each objective of routing, is held out of all of them.

    Args:
        sources: Rows to train on.
        count: Questions to hold out of each source, with one row each; several numbers: one for each source, of which
            some may be 0.
        seed: Decides which.

    Returns:
        The sources to train on, and those held out, where there are any; names, weights and paths stay.

    Raises:
        InputError: Counts that hold nothing out, or a source that would keep no row.
    """
    whole = tuple(sources)
    counts = (count,) * len(whole) if isinstance(count, int) else tuple(count)
    if len(counts) != len(whole):
        raise InputError("count", f"has {len(counts)} numbers for {len(whole)} sources: pass one for each")
    if any(one < 0 for one in counts) or not any(counts):
        raise InputError("count", f"{count} holds nothing out: pass at least 1")
    held = [_first_questions(source, one, seed) for source, one in zip(whole, counts, strict=True) if one]
    unseen = LeakFilter(row for source in held for row in source.rows)
    kept = [replace(source, rows=tuple(unseen(source.rows))) for source in whole]
    for source, rest in zip(whole, kept, strict=True):
        if not rest.rows:
            detail = f"with {sum(counts)} questions held out, {_where(source)} has no row of {len(source.rows)} to"
            raise InputError("count", f"{detail} train on: hold out fewer")
    return tuple(kept), tuple(held)


def check_apart(train: Iterable[Source], validation: Iterable[Source]) -> None:
    """Sees to it that validation asks nothing that was trained on.

    Raises:
        InputError: A row of train asks what validation asks, or its passage answers a question of validation.
    """
    seen = [row for source in validation for row in source.rows]
    for source in train:
        leaked = Dropped()
        kept = {row.id for row in LeakFilter(seen, dropped=leaked)(source.rows)}
        if leaked.counts:
            first = next(row.id for row in source.rows if row.id not in kept)
            reasons = ", ".join(f"{count} x {reason}" for reason, count in leaked.counts.items())
            raise InputError(
                "validation",
                f"is no test of {_where(source)}: {reasons.replace('test', 'validation')}; the first is row {first!r}: "
                "hold out other rows, or leave these out of training",
            )


def relevant_texts(rows: Iterable[Row]) -> dict[str, set[str]]:
    """For each question, as `question_key` gives it, the texts that any of its rows calls relevant, normalised."""
    found: dict[str, set[str]] = {}
    for row in rows:
        texts = found.setdefault(question_key(row), set())
        texts.update(normalised(c.text) for c, value in zip(row.candidates, row.relevance, strict=True) if value > 0)
    return found


def _check_usable(source: Source) -> None:
    try:
        check_rows(source.rows)
    except InputError as error:
        raise InputError("sources", f"{_where(source)}, {_count_unusable(source)}; {error}") from error
    if alike := [row.id for row in source.rows if _all_relevant(row)]:
        raise InputError(
            "sources",
            f"{_where(source)}: {len(alike)} of {len(source.rows)} rows have relevant candidates alone, the first is "
            f"{alike[0]!r}: there is nothing to prefer; mend them or take them out (read_sources: bad_rows='skip')",
        )


def _count_unusable(source: Source) -> str:
    try:
        usable = len(check_rows(source.rows, bad_rows="skip").rows)
    except InputError:
        usable = 0
    return f"{len(source.rows) - usable} of {len(source.rows)} rows cannot be trained on"


def _all_relevant(row: Row) -> bool:
    return all(value > 0 for value in row.relevance)


def _first_questions(source: Source, count: int, seed: int) -> Source:
    chosen: dict[str, Row] = {}
    for row in source.rows:
        chosen.setdefault(question_key(row), row)
    order = sorted(chosen, key=lambda question: hashlib.sha256(f"{seed}/{question}".encode()).digest())
    return replace(source, rows=tuple(chosen[question] for question in order[:count]))


def _where(source: Source) -> str:
    return f"source {source.name!r}" + (f" ({source.path})" if source.path is not None else "")
