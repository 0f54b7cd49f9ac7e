"""The rows of a task: read, checked, and a part of them chosen for a quick look."""

from __future__ import annotations

import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ..errors import DataError, InputError
from ..rows import Row
from .systems import task_of

BadRows = Literal["refuse", "skip"]
"""What a row that cannot be evaluated does: end the evaluation before it starts, or be left out and counted."""

_MEND = "mend the line or take it out (r1-rerank eval leaves it out with --bad-rows skip)"


@dataclass(frozen=True, kw_only=True)
class RowSet:
    """The usable rows of a task.

    Args:
        name: Name of the task.
        rows: All of them.
        dropped: How many others there were, by reason.
    """

    name: str
    rows: tuple[Row, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)


def read_task(path: str | os.PathLike[str], *, name: str | None = None, bad_rows: BadRows = "refuse") -> RowSet:
    """Reads the rows of a file.

    Args:
        path: JSON Lines, a row a line.
        name: Of the task; by default that of the file's folder where the file is named after a split, else the file's.
        bad_rows: What a line does that is no row, or a row that cannot be evaluated.

    Raises:
        DataError: A line cannot be used, or the file holds no row that can.
    """
    path = Path(path)
    if name is None:
        name = path.parent.name if path.stem in ("train", "test", "dev", "valid") and path.parent.name else path.stem
    dropped: Counter[str] = Counter()
    lines: dict[str, int] = {}

    def usable() -> Iterator[Row]:
        for number, line in _lines(path):
            try:
                row = Row.from_json(line.decode("utf-8"))
            except (InputError, UnicodeDecodeError) as error:
                if bad_rows == "refuse":
                    torn = "" if line.endswith(b"\n") else " (the last line has no newline: it may have been cut off)"
                    raise DataError(str(path), number, f"{error}{torn}; {_MEND}") from error
                dropped[_not_a_row(error)] += 1
                continue
            reason = _unusable(row, lines.get(row.id))
            lines.setdefault(row.id, number)
            if reason is None:
                yield row
            elif bad_rows == "refuse":
                raise DataError(str(path), number, f"row {row.id!r} {reason[1]}; {_MEND}")
            else:
                dropped[reason[0]] += 1

    _check_policy(bad_rows)
    rows = tuple(usable())
    if not rows:
        found = f" that can be evaluated; left out: {_counted(dropped)}" if dropped else ""
        raise DataError(str(path), None, f"holds no rows{found}")
    return RowSet(name=name, rows=rows, dropped=dict(dropped))


def check_rows(rows: Iterable[Row], *, name: str = "rows", bad_rows: BadRows = "refuse") -> RowSet:
    """Checks rows that are at hand already.

    Raises:
        InputError: A row cannot be evaluated, or none can.
    """
    _check_policy(bad_rows)
    dropped: Counter[str] = Counter()
    usable: list[Row] = []
    places: dict[str, int] = {}
    for place, row in enumerate(rows):
        reason = _unusable(row, places.get(row.id))
        places.setdefault(row.id, place)
        if reason is None:
            usable.append(row)
        elif bad_rows == "refuse":
            raise InputError(f"rows[{place}]", f"row {row.id!r} {reason[1]}; mend it, or pass bad_rows='skip'")
        else:
            dropped[reason[0]] += 1
    if not usable:
        found = f" that can be evaluated; left out: {_counted(dropped)}" if dropped else ""
        raise InputError("rows", f"holds no rows{found}")
    return RowSet(name=name, rows=tuple(usable), dropped=dict(dropped))


def cluster_of(row: Row) -> str:
    """What an interval draws as one: the query, or for a recommendation the row, that is the user."""
    return row.id if row.query is None else row.query


def choose(rows: Sequence[Row], limit: int | None, seed: int = 0) -> list[Row]:
    """Some rows over as many queries as there are, in the order of the set.

    More rows hold all those of fewer, so a quick look can be carried on to the whole set.

    Args:
        rows: All of them.
        limit: How many; None for all.
        seed: Of the choice.

    Raises:
        InputError: A limit below 1.
    """
    if limit is None or limit >= len(rows):
        return list(rows)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InputError("limit", f"{limit!r} leaves nothing: pass at least 1, or leave it out")
    of_cluster: dict[str, list[int]] = defaultdict(list)
    draw = random.Random(seed)
    for place in draw.sample(range(len(rows)), len(rows)):
        of_cluster[cluster_of(rows[place])].append(place)
    rounds = max(map(len, of_cluster.values()))
    order = [places[turn] for turn in range(rounds) for places in of_cluster.values() if turn < len(places)]
    return [rows[place] for place in sorted(order[:limit])]


def find_tasks(source: str | os.PathLike[str], split: str = "test") -> dict[str, Path]:
    """The files of a folder that `r1-rerank data build` wrote, by task; or the one file that was passed.

    Raises:
        DataError: There is nothing of the kind.
    """
    source = Path(source)
    if source.is_file():
        known = source.stem in ("train", "test", "dev", "valid") and source.parent.name
        return {source.parent.name if known else source.stem: source}
    if not source.is_dir():
        raise DataError(str(source), None, "does not exist; pass a file of rows, or a folder from r1-rerank data build")
    found = {path.parent.name: path for path in sorted(source.glob(f"*/{split}.jsonl"))}
    if (own := source / f"{split}.jsonl").is_file():
        found[source.resolve().name] = own
    if not found:
        detail = f"holds no TASK/{split}.jsonl; make them with r1-rerank data build --out {source}"
        raise DataError(str(source), None, detail)
    return found


def _unusable(row: Row, first: int | None) -> tuple[str, str] | None:
    """Why a row cannot be evaluated: for counting, and for people."""
    if first is not None:
        return "id stands twice", "has the id of an earlier row"
    if len(row.candidates) < 2:
        return "fewer than 2 candidates", f"has {len(row.candidates)} candidates, so there is nothing to rank"
    if not any(value > 0 for value in row.relevance):
        return "no relevant candidate", "has no candidate with a relevance above 0: the positive is missing"
    try:
        task_of(row)
    except InputError as error:
        return f"no usable {error.argument.partition('[')[0]}", f"cannot be asked: {error}"
    return None


def _not_a_row(error: InputError | UnicodeDecodeError) -> str:
    """Why a line is no row, by the field that is to blame, where there is one."""
    field = error.argument.partition("[")[0] if isinstance(error, InputError) else "line"
    return "not a row" if field == "line" else f"not a row: unusable {field}"


def _check_policy(bad_rows: str) -> None:
    if bad_rows not in get_args(BadRows):
        raise InputError("bad_rows", f"{bad_rows!r} is not one of {', '.join(get_args(BadRows))}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except OSError as error:
        raise DataError(str(path), None, f"cannot be read: {error.strerror}") from error


def _counted(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} ({reason})" for reason, count in dropped.items())
