"""What an evaluation leaves behind, row by row: one JSON line each, and from them everything that reports say."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..documents import Status, Usage
from ..errors import DataError, InputError
from .statistics import Interval, bootstrap_interval


@dataclass(frozen=True, kw_only=True)
class Record:
    """One ranked row.

    Args:
        id: Unique in its run: the row's, with the number of the shuffle behind it where there is one.
        row: Id of the row.
        shuffle: 0 for the order in which the candidates came, else the number of the shuffle.
        query: What intervals draw as one: the row's query, for a recommendation its id.
        status: How far the ranking is the system's own.
        candidates: Their ids, in the order in which they were shown.
        relevance: Of each of them.
        scores: Of each of them, the highest is best; None where the system failed.
        metrics: By name; empty where the system failed.
        faults: How often each kind occurred.
        malformed: Answers that were not well-formed.
        usage: What it cost.
        error: Why it failed.
    """

    id: str
    row: str
    shuffle: int = 0
    query: str
    status: Status
    candidates: tuple[str, ...]
    relevance: tuple[float, ...]
    scores: tuple[float, ...] | None
    metrics: Mapping[str, float]
    faults: Mapping[str, int] = field(default_factory=dict)
    malformed: int = 0
    usage: Usage = Usage()
    error: str | None = None

    def to_json(self) -> str:
        """Writes it as one line without its newline; all that differs from run to run stands under `timing`."""
        content = asdict(self)
        content["timing"] = {"seconds": content["usage"].pop("seconds")}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Reads one line.

        Raises:
            InputError: It is none.
        """
        try:
            content = json.loads(line)
            seconds = content.pop("timing")["seconds"]
            content["usage"] = Usage(**content["usage"], seconds=seconds)
            for name in ("candidates", "relevance", "scores"):
                content[name] = None if content[name] is None else tuple(content[name])
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("line", f"is no record of an evaluation: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class EvaluationRun:
    """A system over a task.

    Args:
        task: Name of the task.
        system: Name of the system.
        records: Sorted by id.
        dropped: Rows that were left out, by reason.
        settings: Everything that changes results.
    """

    task: str
    system: str
    records: tuple[Record, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def ranked(self) -> list[Record]:
        """Those in incoming order that did not fail: what metrics are taken of."""
        return [record for record in self.records if not record.shuffle and record.scores is not None]

    @property
    def failed(self) -> int:
        """Rows that the system failed on; they are in no mean."""
        return sum(not record.shuffle and record.scores is None for record in self.records)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that were taken."""
        return tuple(dict.fromkeys(name for record in self.ranked for name in record.metrics))

    def values(self, metric: str) -> dict[str, float]:
        """The metric of each row, by id.

        Raises:
            InputError: It was not taken.
        """
        values = {record.row: record.metrics[metric] for record in self.ranked if metric in record.metrics}
        if not values:
            known = ", ".join(self.metrics) or "none: every row failed"
            raise InputError("metric", f"{metric!r} was not taken of {self.system} on {self.task}; there is {known}")
        return values

    def queries(self) -> dict[str, str]:
        """What each row counts with in intervals, by id."""
        return {record.row: record.query for record in self.ranked}

    def interval(self, metric: str, *, level: float = 0.95, seed: int = 0) -> Interval:
        """Mean of a metric with its bootstrap interval by query."""
        values, queries = self.values(metric), self.queries()
        return bootstrap_interval(list(values.values()), [queries[row] for row in values], level=level, seed=seed)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the records as JSON Lines, in place of what was there."""
        Path(path).write_text("".join(record.to_json() + "\n" for record in self.records), encoding="utf-8")


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Reads a file of records; a torn last line is left out.

    Raises:
        DataError: The file cannot be read, or a whole line is no record.
    """
    name, records = os.fspath(path), []
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(name, None, f"cannot be read: {error.strerror}") from error
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            records.append(Record.from_json(line.decode("utf-8")))
        except (InputError, UnicodeDecodeError) as error:
            raise DataError(name, number, str(error).removeprefix("line: ")) from error
    return records


def load_run(path: str | os.PathLike[str]) -> EvaluationRun:
    """Reads a run that `r1-rerank eval --out` wrote: `OUT/TASK/SYSTEM.jsonl`, its settings beside it.

    Raises:
        DataError: The file cannot be read, or holds nothing.
    """
    path = Path(path)
    records = read_records(path)
    if not records:
        raise DataError(str(path), None, "holds no records: the evaluation did not begin")
    beside = path.with_name(f"{path.name}.settings.json")
    settings: dict[str, Any] = {}
    if beside.is_file():
        try:
            settings = dict(json.loads(beside.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise DataError(str(beside), None, f"is no JSON object: {error}") from error
    return EvaluationRun(
        task=str(settings.get("task", path.parent.name)),
        system=str(settings.get("system", path.stem)),
        records=sorted_records(records),
        settings=settings,
    )


def sorted_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """In the order of their ids, which does not depend on which was done first; a row that stands twice is an error.

    Raises:
        InputError: Two records of one id.
    """
    ordered = sorted(records, key=lambda record: (record.row, record.shuffle))
    twice = [id for id, count in Counter(record.id for record in ordered).items() if count > 1]
    if twice:
        raise InputError("records", f"{len(twice)} rows stand twice, such as {twice[0]!r}")
    return tuple(ordered)


def status_counts(records: Iterable[Record]) -> dict[Status, int]:
    """How many records have each status."""
    return dict(Counter(record.status for record in records))
