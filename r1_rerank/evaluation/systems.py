"""What an evaluation asks: anything that gives each candidate of a row a score."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..documents import Document, RerankResult, Status, Usage
from ..errors import InputError, InputTypeError
from ..rows import Row
from ..tasks import PassageRanking, Recommendation, Routing, Task
from .measures import objective_of

if TYPE_CHECKING:
    from ..reranker import R1Reranker

Ranker = Callable[[Row], Sequence[float]]
"""The simplest system: a row goes in, one number per candidate comes out, the highest is best, equal ones tie."""
Settings = Mapping[str, object]
"""Everything that changes what a system answers, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a system made of a row.

    Args:
        scores: One number per candidate, the highest is best; None where it failed.
        status: See `r1_rerank.documents.Status`.
        faults: How often each kind of fault occurred.
        malformed: Answers that were not well-formed.
        usage: What it cost.
        error: Why it failed.
    """

    scores: tuple[float, ...] | None
    status: Status = "ok"
    faults: Mapping[str, int] = field(default_factory=dict)
    malformed: int = 0
    usage: Usage = Usage()
    error: str | None = None


@runtime_checkable
class System(Protocol):
    """Ranks rows. `as_system` makes one of a function or an `R1Reranker`."""

    name: str

    def settings(self) -> Settings:
        """Everything that changes the outcomes."""
        ...

    def rank_iter(self, rows: Sequence[Row]) -> Iterator[tuple[int, Outcome]]:
        """Gives the outcome of each row, with its position, as soon as it is known."""
        ...


class FunctionSystem:
    """A function of a row as a system; its scores are checked and its time is taken.

    Args:
        ranker: Gives one number per candidate.
        name: What reports call it.
        settings: Everything that changes its answers.
    """

    def __init__(self, ranker: Ranker, name: str, settings: Settings | None = None) -> None:
        self.name = name
        self._ranker = ranker
        self._settings = dict(settings or {})

    def settings(self) -> Settings:
        """What was passed."""
        return self._settings

    def rank_iter(self, rows: Sequence[Row]) -> Iterator[tuple[int, Outcome]]:
        """Asks the function row by row."""
        for number, row in enumerate(rows):
            started = time.perf_counter()
            scores = check_scores(self._ranker(row), row, self.name)
            yield number, Outcome(scores=scores, usage=Usage(seconds=time.perf_counter() - started))


class RerankerSystem:
    """An `R1Reranker` as a system: the LLM itself, in any strategy, trained or not.

    Args:
        reranker: Ranks the rows, as many at a time as its engine takes; or a function that loads it, called when
            there is something to rank.
        name: What reports call it.
        settings: Everything that changes its answers.
    """

    def __init__(
        self,
        reranker: R1Reranker | Callable[[], R1Reranker],
        name: str = "r1-rerank",
        settings: Settings | None = None,
    ) -> None:
        self.name = name
        self._reranker = reranker
        self._settings = dict(settings or {})

    def settings(self) -> Settings:
        """What was passed."""
        return self._settings

    def rank_iter(self, rows: Sequence[Row]) -> Iterator[tuple[int, Outcome]]:
        """Ranks the rows; each comes as soon as it is done."""
        if not rows:
            return
        if callable(self._reranker):
            self._reranker = self._reranker()
        tasks, documents = [task_of(row) for row in rows], [documents_of(row) for row in rows]
        for number, result in self._reranker.rerank_iter(tasks, documents):
            yield number, outcome_of(result, len(documents[number]))

    def close(self) -> None:
        """Frees the model, if it was loaded."""
        if not callable(self._reranker):
            self._reranker.close()


def as_system(system: System | R1Reranker | Ranker, name: str | None = None) -> System:
    """Takes whatever can rank a row.

    Args:
        system: A system, an `R1Reranker`, or a function from a row to one number per candidate.
        name: What reports call it; by default its own name.

    Raises:
        InputTypeError: It can do none of that.
    """
    from ..reranker import R1Reranker

    if isinstance(system, R1Reranker):
        return RerankerSystem(system, name or "r1-rerank")
    if isinstance(system, System):
        return system
    if callable(system):
        return FunctionSystem(system, name or str(getattr(system, "__name__", type(system).__name__)))
    kind = type(system).__name__
    raise InputTypeError("system", f"expected a System, an R1Reranker or a function of a row, got {kind}")


def task_of(row: Row) -> Task:
    """What a row asks of a reranker.

    Raises:
        InputError: An empty query or history.
    """
    if row.task == "recommendation":
        return Recommendation(row.history or ())
    if row.task == "routing":
        return Routing(row.query or "", objective_of(row))
    return PassageRanking(row.query or "")


def documents_of(row: Row) -> tuple[Document, ...]:
    """The candidates of a row as a reranker takes them."""
    return tuple(Document(candidate.text, id=candidate.id, price=candidate.price) for candidate in row.candidates)


def outcome_of(result: RerankResult, count: int) -> Outcome:
    """What an evaluation keeps of a reranker's result.

    Args:
        result: Every candidate is in it, or it failed.
        count: Number of candidates.
    """
    scores: tuple[float, ...] | None = None
    if result.status != "failed":
        # The order, not the scores: survival probabilities tie where the order does not.
        ranks = {hit.index: hit.rank for hit in result}
        scores = tuple(1 - (ranks[index] - 1) / count for index in range(count))
    return Outcome(
        scores=scores,
        status=result.status,
        faults=dict(Counter(fault.kind for fault in result.faults)),
        malformed=result.malformed,
        usage=result.usage,
        error=None if result.error is None else str(result.error),
    )


def check_scores(scores: Sequence[float], row: Row, system: str) -> tuple[float, ...]:
    """The scores as plain floats.

    Raises:
        InputError: Their number is not that of the candidates, or one is not finite.
    """
    try:
        numbers = tuple(map(float, scores))
    except (TypeError, ValueError) as error:
        raise InputTypeError("system", f"{system} gave row {row.id!r} no list of numbers: {error}") from error
    if len(numbers) != len(row.candidates):
        detail = f"{system} gave row {row.id!r} {len(numbers)} scores for {len(row.candidates)} candidates"
        raise InputError("system", detail)
    bad = [position for position, number in enumerate(numbers) if not math.isfinite(number)]
    if bad:
        detail = f"{system} gave candidate {bad[0]} of row {row.id!r} the score {numbers[bad[0]]}: scores are finite"
        raise InputError("system", detail)
    return numbers


def permuted(row: Row, order: Sequence[int]) -> Row:
    """The row with its candidates in another order, or with some of them.

    Args:
        row: Any row.
        order: Positions of the old candidates that are kept, in the new order.
    """

    def pick(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if values is None else tuple(values[place] for place in order)

    return replace(
        row,
        candidates=tuple(row.candidates[place] for place in order),
        relevance=tuple(row.relevance[place] for place in order),
        effects=pick(row.effects),
        prices=pick(row.prices),
    )
