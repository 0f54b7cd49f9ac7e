"""The labelled ranking example and its file format: JSON Lines, one row a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args

from .errors import DataError, InputError, InputTypeError

TaskName = Literal["passage", "recommendation", "routing"]
Objective = Literal["performance", "balance", "cost"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One thing to rank. It is checked as part of its row, where its position is known.

    Args:
        id: Unique within the row.
        text: Passage, title or model profile.
        price: What it costs in general, where candidates are models.
    """

    id: str
    text: str
    price: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A ranking task with the answer. Lists are taken for tuples.

    Args:
        id: Name of the row in its file.
        task: What is ranked.
        query: What the candidates are ranked for, in passage and routing rows.
        history: What the user chose before, oldest first, in recommendation rows.
        objective: What a routing row trades off, one of `OBJECTIVES`.
        candidates: Any number, in the order in which they reach the ranker.
        relevance: One number per candidate; above 0 is relevant.
        effects: One number per candidate: the quality of its answer to this query.
        prices: One number per candidate: the cost of its answer to this query.
        split: Part of the data that the row belongs to, such as `train`.
        source: Data set or program that the row comes from.

    Raises:
        InputError: A field is missing, of the wrong type or does not fit the others; `argument` names it.

    Examples:
        >>> row = Row(
        ...     id="q1",
        ...     task="passage",
        ...     query="what is a kv cache?",
        ...     candidates=(Candidate(id="d1", text="Keys and values."), Candidate(id="d2", text="A shed.")),
        ...     relevance=(1.0, 0.0),
        ...     split="test",
        ...     source="example",
        ... )
        >>> Row.from_json(row.to_json()) == row
        True
    """

    id: str
    task: TaskName
    query: str | None = None
    history: tuple[str, ...] | None = None
    objective: str | None = None
    candidates: tuple[Candidate, ...]
    relevance: tuple[float, ...]
    effects: tuple[float, ...] | None = None
    prices: tuple[float, ...] | None = None
    split: str
    source: str

    def __post_init__(self) -> None:
        for name in ("id", "split", "source"):
            _check_text(name, getattr(self, name))
        self._check_task()
        self._check_candidates()
        self._check_numbers("relevance")
        for name in ("effects", "prices"):
            if getattr(self, name) is not None:
                self._check_numbers(name)

    def _freeze(self, name: str, content: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, list | tuple):
            raise InputTypeError(name, f"needs a list of {content}, got {_kind(value)}")
        object.__setattr__(self, name, tuple(value))

    def _check_task(self) -> None:
        if self.task not in get_args(TaskName):
            raise InputError("task", f"{self.task!r} is no task: use one of {', '.join(get_args(TaskName))}")
        wanted, other = ("history", "query") if self.task == "recommendation" else ("query", "history")
        if getattr(self, wanted) is None:
            raise InputError(wanted, f"missing: a {self.task} row needs it")
        if getattr(self, other) is not None:
            raise InputError(other, f"a {self.task} row has no {other}: leave it out, {wanted} takes its place")
        if self.query is not None:
            _check_text("query", self.query)
        if self.history is not None:
            self._freeze("history", "strings")
            for position, item in enumerate(self.history):
                _check_text(f"history[{position}]", item)
        if self.objective is not None:
            if self.task != "routing":
                raise InputError("objective", f"a {self.task} row has none: leave it out")
            if self.objective not in OBJECTIVES:
                raise InputError("objective", f"{self.objective!r} is unknown: use one of {', '.join(OBJECTIVES)}")

    def _check_candidates(self) -> None:
        self._freeze("candidates", "candidates")
        positions: dict[str, int] = {}
        for position, candidate in enumerate(self.candidates):
            where = f"candidates[{position}]"
            if not isinstance(candidate, Candidate):
                raise InputTypeError(where, f"needs a Candidate, got {_kind(candidate)}")
            _check_text(f"{where}.id", candidate.id)
            _check_text(f"{where}.text", candidate.text)
            if candidate.price is not None:
                _check_number(f"{where}.price", candidate.price)
            first = positions.setdefault(candidate.id, position)
            if first != position:
                raise InputError(
                    f"{where}.id", f"{candidate.id!r} is also the id of candidates[{first}]: make them unique"
                )

    def _check_numbers(self, name: str) -> None:
        self._freeze(name, "numbers")
        values = getattr(self, name)
        for position, value in enumerate(values):
            _check_number(f"{name}[{position}]", value)
        if len(values) != len(self.candidates):
            raise InputError(name, f"{len(values)} numbers for {len(self.candidates)} candidates: give one for each")

    @classmethod
    def from_json(cls, line: str) -> Row:
        """Read one line of a file; `null` stands for an optional field that is absent.

        Raises:
            InputError: The line is no JSON object, has a key too many or too few, or its values do not fit.
        """
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError("line", f"not valid JSON: {error}") from error
        values = _members(cls, "line", record)
        if isinstance(values["candidates"], list):
            values["candidates"] = [
                Candidate(**_members(Candidate, f"candidates[{position}]", candidate))
                for position, candidate in enumerate(values["candidates"])
            ]
        return cls(**values)

    def to_json(self) -> str:
        """Write the row as one line without its newline; fields that are None are left out."""
        return json.dumps(_present(self), default=_present, ensure_ascii=False, separators=(",", ":"))


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Read a file row by row; blank lines are skipped.

    Args:
        path: A UTF-8 file of JSON Lines. It is opened when the first row is asked for.

    Yields:
        The rows, in the order of the file.

    Raises:
        DataError: The file cannot be read (`line` is None), or a line of it is no row.
    """
    name = os.fspath(path)
    try:
        # Bytes, so that a line that is not UTF-8 is known by its number.
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _read_line(name, number, line)
    except OSError as error:
        raise DataError(name, None, f"cannot be read: {error.strerror}") from error


def write_rows(rows: Iterable[Row], path: str | os.PathLike[str]) -> int:
    """Write rows to a file, in place of what was there, and return how many there were.

    Raises:
        OSError: The file cannot be written.
    """
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(row.to_json() + "\n")
            count += 1
    return count


def _read_line(path: str, number: int, line: bytes) -> Row:
    try:
        return Row.from_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(path, number, f"not UTF-8: {error.reason} at byte {error.start}") from error
    except InputError as error:
        # Only the last line of a file can lack its newline.
        torn = "" if line.endswith(b"\n") else " (the last line has no newline: it may have been cut off)"
        raise DataError(path, number, f"{error}{torn}") from error


def _members(kind: type[Row] | type[Candidate], where: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputTypeError(where, f"needs a JSON object, got {_kind(value)}")
    known = {field.name: field.default is MISSING for field in fields(kind)}
    if unknown := [repr(key) for key in value if key not in known]:
        raise InputError(where, f"unknown {', '.join(unknown)}: the keys are {', '.join(known)}")
    if missing := [repr(key) for key, required in known.items() if required and key not in value]:
        raise InputError(where, f"lacks {', '.join(missing)}")
    return value


def _present(value: Row | Candidate) -> dict[str, object]:
    pairs = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {name: member for name, member in pairs if member is not None}


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputTypeError(name, f"needs a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which neither a UTF-8 file nor a tokenizer takes.
        raise InputError(name, f"half a surrogate pair at character {error.start}: repair the text") from error


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(name, f"needs a number, got {_kind(value)}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise InputError(name, "needs a finite number that a float can hold")


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
