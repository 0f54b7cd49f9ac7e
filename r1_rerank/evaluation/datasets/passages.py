"""Passage lists of k candidates: from graded judgments, and from questions with one answer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...errors import InputError
from ...rows import Candidate, Row
from .common import Dropped, normalised, shuffled

Passage = tuple[str, str]
"""Id and text."""


@dataclass(frozen=True, kw_only=True)
class JudgedQuery:
    """A query with graded passages.

    Args:
        id: Of the query.
        query: Its text.
        passages: Id, text and grade of each; above 0 is relevant.
    """

    id: str
    query: str
    passages: Sequence[tuple[str, str, float]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with the passage that answers it.

    Args:
        id: Of the question.
        query: Its text.
        positive: The passage that answers it.
        negatives: Passages that do not, the best first.
    """

    id: str
    query: str
    positive: Passage
    negatives: Sequence[Passage]


def graded_lists(
    queries: Iterable[JudgedQuery],
    k: int,
    *,
    split: str,
    source: str,
    seed: int = 0,
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """As many lists as a query's judgments give: one relevant passage and k - 1 of grade 0 each.

    The relevant ones are those of the query's highest grade. No passage stands in two lists of a query.

    Args:
        queries: With their judgments.
        k: Candidates of a list.
        split: Name of the split.
        source: Name of the data set.
        seed: Decides which passages meet, and their order.
        dropped: Counts queries that give no list.
    """
    _check_k(k)
    dropped = Dropped() if dropped is None else dropped
    for judged in queries:
        best = max((grade for _, _, grade in judged.passages), default=0.0)
        if best <= 0:
            dropped.add("a query without a relevant passage")
            continue
        positives = [(id, text) for id, text, grade in judged.passages if grade == best]
        others = [(id, text) for id, text, grade in judged.passages if grade <= 0]
        rng = random.Random(f"{source}/{seed}/{judged.id}/{k}")
        rng.shuffle(positives)
        rng.shuffle(others)
        count = min(len(positives), len(others) // (k - 1))
        if not count:
            dropped.add(f"a query with fewer than {k - 1} passages of grade 0")
        for number in range(count):
            chosen = others[number * (k - 1) : (number + 1) * (k - 1)]
            id = f"{source}-{judged.id}-{k}-{number}"
            yield _list(id, judged.query, positives[number], chosen, split, source, seed)


def question_lists(
    questions: Iterable[Question],
    k: int,
    *,
    split: str,
    source: str,
    seed: int = 0,
    longest: int = 800,
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """A list for each question: the passage that answers it and the first k - 1 negatives that are short enough.

    Args:
        questions: With their passages.
        k: Candidates of a list.
        split: Name of the split.
        source: Name of the data set.
        seed: Decides on the order of the candidates.
        longest: Characters that a passage may have.
        dropped: Counts questions that give no list.
    """
    _check_k(k)
    dropped = Dropped() if dropped is None else dropped
    for question in questions:
        if len(question.positive[1]) > longest:
            dropped.add(f"the passage that answers has more than {longest} characters")
            continue
        seen, chosen = {normalised(question.positive[1])}, list[Passage]()
        for id, text in question.negatives:
            if len(chosen) == k - 1:
                break
            if len(text) <= longest and (key := normalised(text)) not in seen:
                seen.add(key)
                chosen.append((id, text))
        if len(chosen) < k - 1:
            dropped.add(f"fewer than {k - 1} passages that do not answer, of at most {longest} characters")
            continue
        id = f"{source}-{question.id}-{k}"
        yield _list(id, question.query, question.positive, chosen, split, source, seed)


def _check_k(k: int) -> None:
    if k < 2:
        raise InputError("k", f"{k} is too small: a list holds at least 2 passages")


def _list(
    id: str, query: str, positive: Passage, negatives: Sequence[Passage], split: str, source: str, seed: int
) -> Row:
    candidates = [Candidate(id=name, text=text) for name, text in (positive, *negatives)]
    relevance = [1.0] + [0.0] * len(negatives)
    return Row(
        id=id,
        task="passage",
        query=query,
        split=split,
        source=source,
        **shuffled(candidates, relevance, f"{id}/{seed}"),
    )
