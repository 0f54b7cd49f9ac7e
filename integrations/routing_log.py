"""What a router decided and how it turned out: a file of JSON Lines that reads back as training rows."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from ..errors import DataError, InputError, InputTypeError
from ..rows import Candidate, Row

logger = logging.getLogger(__name__)

_FOREIGN = "is neither a decision nor an outcome of a router"


class DecisionLog:
    """Appends decisions and outcomes to a file, a line each, written at once. Safe to share between threads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError("log", f"{path} is a folder; pass a file")
        if not self.path.parent.is_dir():
            raise InputError("log", f"the folder {self.path.parent} does not exist; make it first")
        self._lock = threading.Lock()

    def decision(self, decision: Mapping[str, Any], candidates: Sequence[Candidate]) -> None:
        """Appends a decision, with the LLMs that could have been chosen, in the order in which they were shown."""
        self._append({"event": "decision", **decision, "candidates": [asdict(candidate) for candidate in candidates]})

    def outcome(self, decision_id: str, effect: float, cost: float, llm: str | None) -> None:
        """Appends an outcome."""
        if not isinstance(decision_id, str):
            raise InputTypeError("decision_id", f"expected a str, got {type(decision_id).__name__}")
        for argument, value in (("effect", effect), ("cost", cost)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputTypeError(argument, f"expected a number, got {value!r}")
            if not math.isfinite(value):
                raise InputError(argument, f"expected a finite number, got {value!r}")
        if cost < 0:
            raise InputError("cost", f"expected 0 or more, got {cost!r}")
        self._append(
            {"event": "outcome", "decision_id": decision_id, "llm": llm, "effect": float(effect), "cost": float(cost)}
        )

    def _append(self, record: Mapping[str, Any]) -> None:
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}
        # Half a surrogate pair, which UTF-8 cannot write, must not cost the decision.
        line = json.dumps(stamped, ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n"
        with self._lock, self.path.open("ab+") as file:
            # A line that was cut off when a process died must not swallow this one.
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                line = b"\n" + line
            file.write(line)


def read_log(path: str | os.PathLike[str], *, threshold: float = 0.0, split: str = "train") -> list[Row]:
    """Turns a log into training rows: one for each query, objective, weights and list of LLMs with a good outcome.

    Only LLMs that answered are judged: by a * effect - b * cost, averaged over their outcomes for the query. The best
    of them gets relevance 1.0 where it lies above the threshold, all else 0.0; a query without such an LLM has no
    right answer and gives no row. Where every LLM answered, the row also has their `effects` and `prices`.

    Args:
        path: A file that an `R1Router` wrote. A line that was cut off is skipped.
        threshold: Reward above which an outcome is good.
        split: Split of the rows.

    Raises:
        DataError: The file cannot be read, or a line is neither a decision nor an outcome.
    """
    path = os.fspath(path)
    decisions: dict[str, tuple[_Question, str]] = {}
    outcomes: list[tuple[str, str | None, _Outcome]] = []
    for number, record in _records(path):
        try:
            if record["event"] == "decision":
                decisions[record["decision_id"]] = _Question.of(record), record["llm"]
            elif record["event"] == "outcome":
                outcome = _Outcome(float(record["effect"]), float(record["cost"]))
                outcomes.append((record["decision_id"], record["llm"], outcome))
            else:
                raise ValueError(record["event"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(path, number, _FOREIGN) from error
    judged: dict[_Question, dict[str, list[_Outcome]]] = {}
    first: dict[_Question, str] = {}
    for decision_id, llm, outcome in outcomes:
        if decision_id not in decisions:
            logger.warning("%s: the outcome of the unknown decision %s is skipped", path, decision_id)
            continue
        question, winner = decisions[decision_id]
        first.setdefault(question, decision_id)
        judged.setdefault(question, {}).setdefault(llm or winner, []).append(outcome)
    rows = (_row(first[question], question, seen, threshold, split) for question, seen in judged.items())
    return [row for row in rows if row is not None]


class _Question(NamedTuple):
    """What outcomes are merged by."""

    query: str
    objective: str
    weights: tuple[float, float]
    candidates: tuple[Candidate, ...]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Question:
        a, b = map(float, record["weights"])
        candidates = tuple(Candidate(**candidate) for candidate in record["candidates"])
        return cls(record["query"], record["objective"], (a, b), candidates)


class _Outcome(NamedTuple):
    effect: float
    cost: float


def _row(
    id: str, question: _Question, seen: Mapping[str, Sequence[_Outcome]], threshold: float, split: str
) -> Row | None:
    effects = {llm: fmean(outcome.effect for outcome in outcomes) for llm, outcomes in seen.items()}
    costs = {llm: fmean(outcome.cost for outcome in outcomes) for llm, outcomes in seen.items()}
    a, b = question.weights
    names = [candidate.id for candidate in question.candidates]
    rewards = {name: a * effects[name] - b * costs[name] for name in names if name in seen}
    best = max(rewards, key=rewards.__getitem__, default=None)
    if best is None or rewards[best] <= threshold:
        return None
    complete = len(rewards) == len(names)
    return Row(
        id=id,
        task="routing",
        query=question.query,
        objective=question.objective,
        candidates=question.candidates,
        relevance=tuple(float(name == best) for name in names),
        effects=tuple(effects[name] for name in names) if complete else None,
        prices=tuple(costs[name] for name in names) if complete else None,
        split=split,
        source="router-log",
    )


def _records(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip() and (record := _record(path, number, line)) is not None:
                    yield number, record
    except OSError as error:
        raise DataError(path, None, f"cannot be read: {error.strerror}") from error


def _record(path: str, number: int, line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        if line.startswith(b'{"time"'[: len(line.rstrip())]):  # the beginning of what is written here
            logger.warning("%s, line %d: was cut off, and is skipped", path, number)
            return None
        raise DataError(path, number, _FOREIGN) from error
    return record if isinstance(record, dict) else {}
