"""Negatives: easy ones of other questions, and hard ones, which a first stage or the policy itself ranks high."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ..errors import EngineError, InputError
from ..evaluation.datasets.common import normalised
from ..evaluation.datasets.leaks import question_key
from ..evaluation.retrieval import query_text
from ..evaluation.systems import Ranker, System, as_system, permuted
from ..prefilter import BM25Index
from ..rows import Candidate, Row
from .sources import relevant_texts

if TYPE_CHECKING:
    from ..reranker import R1Reranker

Miner = Literal["bm25"] | System | Ranker
"""What finds hard negatives: BM25, or anything that ranks rows, such as the policy as a `RerankerSystem`."""

_TRIES = 64
"""Draws for a candidate of another question before the row's own stays."""


class EasyNegatives:
    """Lends candidates of other questions of the same data set, for lists that are easy to tell apart.

    Args:
        rows: Passage rows lend and borrow; others stay as they are.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    @property
    def passages(self) -> bool:
        """Whether there are passage rows."""
        return bool(self._of_set)

    @cached_property
    def several(self) -> bool:
        """Whether there are questions that could lend a candidate to each other."""
        return any(len({question_key(row) for row in rows}) > 1 for rows in self._of_set.values())

    @cached_property
    def _of_set(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self._rows:
            if row.task == "passage":
                found.setdefault(row.source, []).append(row)
        return found

    @cached_property
    def _answers(self) -> dict[str, set[str]]:
        return relevant_texts(self._rows)

    def mixed_in(self, row: Row, share: float, rng: random.Random) -> Row:
        """The row with about this share of its negatives exchanged, where others are found."""
        candidates = list(row.candidates)
        question = question_key(row)
        taken = {normalised(candidate.text) for candidate in candidates} | self._answers[question]
        for place, value in enumerate(row.relevance):
            if value > 0 or rng.random() >= share:
                continue
            stranger = self._draw(row, question, taken, rng)
            if stranger is not None:
                candidates[place] = stranger
                taken.add(normalised(stranger.text))
        return replace(row, candidates=tuple(candidates))

    def _draw(self, row: Row, question: str, taken: set[str], rng: random.Random) -> Candidate | None:
        others = self._of_set[row.source]
        for _ in range(_TRIES):
            other = rng.choice(others)
            candidate = rng.choice(other.candidates)
            if question_key(other) != question and normalised(candidate.text) not in taken:
                return replace(candidate, id=f"{other.id}/{candidate.id}")
        return None


def pool_of(rows: Iterable[Row]) -> tuple[Candidate, ...]:
    """All candidates of rows, each text once, under the ids of their rows and their own."""
    found: dict[str, Candidate] = {}
    for row in rows:
        for candidate in row.candidates:
            found.setdefault(normalised(candidate.text), replace(candidate, id=f"{row.id}/{candidate.id}"))
    return tuple(found.values())


def hard_negatives(
    rows: Iterable[Row],
    pool: Iterable[Candidate],
    *,
    by: Miner | R1Reranker = "bm25",
    count: int = 8,
    depth: int = 20,
    seed: int = 0,
) -> Iterator[Row]:
    """Rows with the same questions and relevant candidates, and with the hardest of a pool for negatives.

    Nothing that any of the rows calls relevant to the same question becomes a negative, nor what stands in the history
    of a recommendation. Candidates without a word of the query come last, in random order.

    Args:
        rows: Passage or recommendation rows.
        pool: Candidates for all of them, such as `pool_of(rows)`.
        by: Ranks the pool. Anything but BM25 ranks the best of BM25 among the relevant ones.
        count: Negatives of each row; fewer where the pool has no more.
        depth: How many of the best of BM25 another ranker reads.
        seed: Decides on the order of candidates, and of those that BM25 cannot tell apart.

    Yields:
        A row for each, `/hard` added to its id.

    Raises:
        InputError: A routing row, a row without a relevant candidate, or a pool without anything to use.
        EngineError: The ranker failed on a row.
        MissingExtraError: bm25s is not installed.
    """
    asked = tuple(rows)
    if isinstance(by, str) and by != "bm25":
        raise InputError("by", f"{by!r}: pass 'bm25', or a ranker of rows itself")
    if count < 1:
        raise InputError("count", f"{count} leaves no negatives: pass at least 1")
    if by != "bm25" and depth < count:
        raise InputError("depth", f"{depth} is less than count, {count}: the ranker needs some to choose from")
    for row in asked:
        if row.task == "routing":
            raise InputError("rows", f"row {row.id!r} is of routing: its candidates are its pool of LLMs")
        if not any(value > 0 for value in row.relevance):
            raise InputError("rows", f"row {row.id!r} has no relevant candidate: mend it, or leave it out")
    shortlists = _shortlisted(asked, _Pool(pool, seed), count if by == "bm25" else depth)
    if by == "bm25":
        return (_shuffled(row, seed) for row in shortlists)
    return _ranked(tuple(_shuffled(row, seed) for row in shortlists), as_system(by), count)


@dataclass(frozen=True)
class _Known:
    """A candidate of the pool, and its normalised text."""

    candidate: Candidate
    text: str


class _Pool:
    """Candidates that BM25 can order for a query."""

    def __init__(self, candidates: Iterable[Candidate], seed: int) -> None:
        found: dict[str, Candidate] = {}
        ids = set[str]()
        for candidate in candidates:
            if candidate.id in ids:
                raise InputError("pool", f"the id {candidate.id!r} stands twice: make them unique, as pool_of does")
            ids.add(candidate.id)
            found.setdefault(normalised(candidate.text), candidate)
        self._known = [_Known(candidate, text) for text, candidate in found.items()]
        # Equal scores keep this order.
        random.Random(f"pool/{seed}").shuffle(self._known)
        self._texts = [known.candidate.text for known in self._known]
        self._index = BM25Index(self._texts)

    def best(self, query: str, count: int, *, without: set[str], ids: set[str]) -> list[Candidate]:
        """The best for a query, best first, but not these texts nor these ids."""
        scores = self._index.scores(query, self._texts)
        # A text stands once in the pool, so no more than these can fall out.
        ahead = heapq.nlargest(count + len(without) + len(ids), range(len(scores)), key=scores.__getitem__)
        usable = (self._known[place] for place in ahead)
        kept = [known.candidate for known in usable if known.text not in without and known.candidate.id not in ids]
        return kept[:count]


def _shortlisted(rows: Sequence[Row], pool: _Pool, count: int) -> Iterator[Row]:
    """Each row with its relevant candidates, and the best of BM25 behind them."""
    answers = relevant_texts(rows)
    for row in rows:
        relevant = [(one, value) for one, value in zip(row.candidates, row.relevance, strict=True) if value > 0]
        found = pool.best(
            query_text(row),
            count,
            without=answers[question_key(row)] | {normalised(title) for title in row.history or ()},
            ids={candidate.id for candidate, _ in relevant},
        )
        if not found:
            raise InputError("pool", f"holds nothing but relevant candidates for row {row.id!r}: pass a larger one")
        yield replace(
            row,
            id=f"{row.id}/hard",
            candidates=(*(candidate for candidate, _ in relevant), *found),
            relevance=(*(value for _, value in relevant), *[0.0] * len(found)),
        )


def _ranked(rows: Sequence[Row], system: System, count: int) -> Iterator[Row]:
    """The rows with the negatives that a system ranks highest."""
    for number, outcome in system.rank_iter(rows):
        row = rows[number]
        if outcome.scores is None:
            raise EngineError(f"{system.name} failed on row {row.id!r}: {outcome.error}")
        negatives = [place for place, value in enumerate(row.relevance) if value <= 0]
        negatives.sort(key=outcome.scores.__getitem__, reverse=True)
        fallen = set(negatives[count:])
        yield permuted(row, [place for place in range(len(row.candidates)) if place not in fallen])


def _shuffled(row: Row, seed: int) -> Row:
    order = list(range(len(row.candidates)))
    random.Random(f"{row.id}/{seed}").shuffle(order)
    return permuted(row, order)
