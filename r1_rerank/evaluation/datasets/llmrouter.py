"""LLMRouter: questions with the effect of each LLM of a pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError, InputError
from ...rows import Candidate, Objective, Row
from .common import Dropped, finite_number_of, load_json, normalised, number_of
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
    profiles = _profiles(folder / "default_llm.json")
    seen = {normalised(row["question"]) for row in _questions(folder / "train.json")} if split == "test" else set()
    path = folder / f"{split}.json"
    for number, row in enumerate(_questions(path)):
        scores = row["scores"]
        # The order of the scores differs from row to row.
        names = [name for name in profiles if name in scores]
        if len(names) != len(scores):
            missing = ", ".join(sorted(set(scores) - set(profiles)))
            raise DataError(str(path), None, f"row {number}: no profile in default_llm.json for {missing}")
        prices = [profiles[name][1] for name in names]
        built = routing_row(
            id=f"llmrouter-{split}-{number}",
            query=row["question"],
            objective=objective,
            candidates=[
                Candidate(id=name, text=profiles[name][0], price=price)
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


def _profiles(path: Path) -> dict[str, tuple[str, float]]:
    """Description and output price of each LLM."""
    profiles = {}
    for name, entry in load_json(path, dict).items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("feature"), str):
            raise DataError(str(path), None, f"{name!r} has no feature, the text that describes it")
        price = finite_number_of(path, None, f"{name}, output_price", entry.get("output_price"))
        profiles[name] = (entry["feature"], price)
    return profiles


def _questions(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = load_json(path, list)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not isinstance(row.get("question"), str):
            raise DataError(str(path), None, f"row {number} has no question with scores")
        if not isinstance(row.get("scores"), Mapping) or not row["scores"]:
            raise DataError(str(path), None, f"row {number} has no question with scores")
    return rows
