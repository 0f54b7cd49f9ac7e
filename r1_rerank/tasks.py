"""What is ranked, and for whom: passages for a query, items for a history, LLMs for a query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, get_args

from .documents import Document
from .errors import InputError, InputTypeError
from .rows import OBJECTIVES, Objective, TaskName

TASKS: tuple[TaskName, ...] = get_args(TaskName)

Weights = tuple[float, float]
"""(a, b): routing seeks the highest a * effect - b * cost."""
OBJECTIVE_WEIGHTS: Mapping[Objective, Weights] = {"performance": (1.0, 0.0), "balance": (0.5, 0.5), "cost": (0.2, 0.8)}
"""As in the R1-Ranker paper, arXiv 2506.21638."""


@dataclass(frozen=True)
class PassageRanking:
    """Order passages by how well they answer `query`."""

    query: str
    name: ClassVar[TaskName] = "passage"

    def __post_init__(self) -> None:
        _require_text("query", self.query)

    def fields(self) -> Mapping[str, str | tuple[str, ...]]:
        """What fills the template's placeholders."""
        return {"query": self.query}

    def candidate_text(self, document: Document) -> str:
        """What the model reads of a candidate."""
        return _titled(document)

    def __str__(self) -> str:
        return self.query


@dataclass(frozen=True)
class Recommendation:
    """Order items by how likely they come next after `history` (oldest first)."""

    history: tuple[str, ...]
    name: ClassVar[TaskName] = "recommendation"

    def __init__(self, history: Iterable[str]) -> None:
        if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
            raise InputTypeError(
                "history", f"expected a list of str, got {type(history).__name__}; wrap one item as [item]"
            )
        items = tuple(history)
        if not items:
            raise InputError("history", "is empty; pass the items that the user chose so far, oldest first")
        for index, item in enumerate(items):
            _require_text(f"history[{index}]", item)
        object.__setattr__(self, "history", items)

    def fields(self) -> Mapping[str, str | tuple[str, ...]]:
        """What fills the template's placeholders."""
        return {"history": self.history}

    def candidate_text(self, document: Document) -> str:
        """What the model reads of a candidate."""
        return _titled(document)

    def __str__(self) -> str:
        return " | ".join(self.history)


@dataclass(frozen=True)
class Routing:
    """Order LLMs by how well they serve `query` under an objective.

    Each candidate's text describes an LLM; its `price` is shown beside it.
    """

    query: str
    objective: Objective = "performance"
    name: ClassVar[TaskName] = "routing"

    def __post_init__(self) -> None:
        _require_text("query", self.query)
        if self.objective not in OBJECTIVES:
            raise InputError("objective", f"{self.objective!r} is not one of {', '.join(OBJECTIVES)}")

    def fields(self) -> Mapping[str, str | tuple[str, ...]]:
        """What fills the template's placeholders."""
        return {"query": self.query, "objective": self.objective}

    def candidate_text(self, document: Document) -> str:
        """What the model reads of a candidate."""
        text = _titled(document)
        return text if document.price is None else f"{text} (${document.price:g} per million tokens)"

    def __str__(self) -> str:
        return self.query


Task = PassageRanking | Recommendation | Routing


def as_task(query: str | Task, argument: str = "query") -> Task:
    """A bare query is a passage ranking.

    Raises:
        InputTypeError: Neither a str nor a task.
        InputError: An empty query.
    """
    if isinstance(query, str):
        _require_text(argument, query)
        return PassageRanking(query)
    if isinstance(query, Task):
        return query
    raise InputTypeError(
        argument, f"expected a str, PassageRanking, Recommendation or Routing, got {type(query).__name__}"
    )


def _titled(document: Document) -> str:
    return f"{document.title}. {document.text}" if document.title else document.text


def _require_text(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputTypeError(argument, f"expected a str, got {type(value).__name__}")
    if not value.strip():
        raise InputError(argument, "is empty; pass the text to rank by")
