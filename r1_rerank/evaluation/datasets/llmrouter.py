"""LLMRouter: questions with the effect of each LLM of a pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError, InputError
from ...rows import Candidate, Objective, Row
from .common import Dropped, load_json, normalised, number_of
from .routing import routing_row


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
    folder, dropped = Path(folder), Dropped() if dropped is None else dropped
    profiles = load_json(folder / "default_llm.json", dict)
    seen = {normalised(row["question"]) for row in _questions(folder / "train.json")} if split == "test" else set()
    path = folder / f"{split}.json"
    for number, row in enumerate(_questions(path)):
        scores = row["scores"]
        # The order of the scores differs from row to row.
        names = [name for name in profiles if name in scores]
        if len(names) != len(scores):
            missing = ", ".join(sorted(set(scores) - set(profiles)))
            raise DataError(str(path), None, f"row {number}: no profile in default_llm.json for {missing}")
        prices = [float(profiles[name]["output_price"]) for name in names]
        built = routing_row(
            id=f"llmrouter-{split}-{number}",
            query=row["question"],
            objective=objective,
            candidates=[
                Candidate(id=name, text=profiles[name]["feature"], price=price)
                for name, price in zip(names, prices, strict=True)
            ],
            effects=[number_of(path, None, f"row {number}, {name}", scores[name]) for name in names],
            costs=prices,
            split=split,
            source="LLMRouter",
            dropped=dropped,
        )
        if built is not None and normalised(row["question"]) in seen:
            dropped.add("the question stands in train")
        elif built is not None:
            yield built


def _questions(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = load_json(path, list)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not isinstance(row.get("question"), str) or not row.get("scores"):
            raise DataError(str(path), None, f"row {number} has no question with scores")
    return rows
