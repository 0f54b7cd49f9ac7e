"""Readers of public data sets: each turns its files into `Row`s, and counts what it leaves out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError, InputError
from ...rows import Candidate, Objective, Row
from ...tasks import OBJECTIVE_WEIGHTS


@dataclass
class Dropped:
    """How many rows a reader left out, by reason."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        """Counts one row."""
        self.counts[reason] = self.counts.get(reason, 0) + 1


def read_llmrouter(
    folder: str | Path, split: str = "test", objective: Objective = "performance", *, dropped: Dropped | None = None
) -> Iterator[Row]:
    """Reads the routing data of LLMRouter (`train.json`, `test.json`, `default_llm.json`).

    The files hold an effect for each LLM but no cost of a response: the cost is the LLM's output price, divided by
    the highest in the pool. Relevant is the LLM with the highest a * effect - b * cost, the cheapest of several.
    Left out are rows in which all LLMs do equally well, and test questions that also stand in the training file.

    Args:
        folder: Folder of the files.
        split: `train` or `test`.
        objective: Which reward decides.
        dropped: Counts what is left out.

    Raises:
        InputError: Another split.
        DataError: A file that is missing, truncated or of another shape.
    """
    if split not in ("train", "test"):
        raise InputError("split", f"{split!r} is not one of train, test")
    folder, dropped = Path(folder), dropped or Dropped()
    profiles = _load(folder / "default_llm.json", dict)
    a, b = OBJECTIVE_WEIGHTS[objective]
    seen = {_normalised(row["question"]) for row in _questions(folder / "train.json")} if split == "test" else set()
    path = folder / f"{split}.json"
    for number, row in enumerate(_questions(path)):
        scores = row["scores"]
        # The order of the scores differs from row to row.
        names = [name for name in profiles if name in scores]
        if len(names) != len(scores):
            missing = ", ".join(sorted(set(scores) - set(profiles)))
            raise DataError(str(path), None, f"row {number}: no profile in default_llm.json for {missing}")
        effects = [float(scores[name]) for name in names]
        if any(math.isnan(effect) for effect in effects):
            dropped.add("an effect is not a number")
        elif len(set(effects)) == 1:
            dropped.add("all LLMs do equally well")
        elif _normalised(row["question"]) in seen:
            dropped.add("the question stands in train")
        else:
            prices = [float(profiles[name]["output_price"]) for name in names]
            costs = [price / max(prices) for price in prices]
            rewards = [a * effect - b * cost for effect, cost in zip(effects, costs, strict=True)]
            best = max(range(len(names)), key=lambda place: (rewards[place], -costs[place]))
            yield Row(
                id=f"llmrouter-{split}-{number}",
                task="routing",
                query=row["question"],
                objective=objective,
                candidates=tuple(
                    Candidate(id=name, text=profiles[name]["feature"], price=price)
                    for name, price in zip(names, prices, strict=True)
                ),
                relevance=tuple(float(place == best) for place in range(len(names))),
                effects=tuple(effects),
                prices=tuple(costs),
                split=split,
                source="LLMRouter",
            )


def _questions(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _load(path, list)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not isinstance(row.get("question"), str) or not row.get("scores"):
            raise DataError(str(path), None, f"row {number} has no question with scores")
    return rows


def _load(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(str(path), None, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(str(path), getattr(error, "lineno", None), f"is not JSON (truncated?): {error}") from error
    if not isinstance(content, kind):
        raise DataError(str(path), None, f"expected a JSON {kind.__name__}, got a {type(content).__name__}")
    return content


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())
