"""Which numbers an evaluation takes of a ranked row, by name: `mrr`, `ndcg@10`, `hit@1`, `map`, and those of routing.

Everything that is ranked by tied scores counts as the expected value over all orders of the tie.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import cast

from ..errors import InputError
from ..metrics import hit_rate, mrr, ndcg, regret
from ..rows import Objective, Row
from ..tasks import OBJECTIVE_WEIGHTS

DEFAULT_METRICS = ("mrr", "ndcg@10", "hit@1", "map")
ROUTING_METRICS = ("effect", "price", "reward", "regret")
"""Taken of rows that carry effects and prices, of the candidate on top."""
LOWER_IS_BETTER = frozenset({"price", "regret"})

_NAME = re.compile(r"(?:(mrr|ndcg|hit)(?:@([1-9]\d*))?|map)")


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names of ranking metrics, each once.

    Raises:
        InputError: A name that is none.
    """
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "hit":
            raise InputError("metrics", f"{name!r} is unknown: use mrr, map, ndcg, hit@K, or mrr@K and ndcg@K")
    if not names:
        raise InputError("metrics", "is empty: name at least one, such as mrr")
    return tuple(dict.fromkeys(names))


def measure(row: Row, scores: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    """Takes the metrics of one ranked row.

    Args:
        row: What was ranked.
        scores: One number per candidate, the highest is best; equal numbers tie.
        names: Ranking metrics; those of routing come by themselves where the row has effects and prices.
    """
    taken = {name: _measure(name, row.relevance, scores) for name in names}
    if row.effects is not None and row.prices is not None:
        gains = rewards(row)
        taken["effect"] = _top(row.effects, scores)
        taken["price"] = _top(row.prices, scores)
        taken["reward"] = _top(gains, scores)
        taken["regret"] = regret(gains, scores)
    return taken


def objective_of(row: Row) -> Objective:
    """What a routing row is for; `performance` where it does not say."""
    return cast(Objective, row.objective or "performance")


def rewards(row: Row) -> list[float]:
    """a * effect - b * price of each candidate of a routing row, by its objective.

    Raises:
        InputError: The row has no effects or no prices.
    """
    if row.effects is None or row.prices is None:
        raise InputError("row", f"{row.id!r} has no effects or no prices, so nobody can tell its rewards")
    a, b = OBJECTIVE_WEIGHTS[objective_of(row)]
    return [a * effect - b * price for effect, price in zip(row.effects, row.prices, strict=True)]


def average_precision(relevance: Sequence[float], scores: Sequence[float] | None = None) -> float:
    """Mean, over the relevant candidates, of the precision at their rank; ties as expected value.

    For one relevant candidate it is the reciprocal rank. The expectation within a tie is that of McSherry and
    Najork (ECIR 2008).

    Args:
        relevance: Relevance of each candidate; above 0 is relevant.
        scores: Score of each candidate, or None where `relevance` is in ranked order.

    Examples:
        >>> round(average_precision([1, 0, 1]), 4)
        0.8333
        >>> average_precision([1, 0], scores=[0, 0])
        0.75
    """
    keys = range(len(relevance), 0, -1) if scores is None else scores
    groups: dict[float, list[float]] = {}
    for value, key in zip(relevance, keys, strict=True):
        groups.setdefault(key, []).append(value)
    total, rank, found = 0.0, 0, 0
    for key in sorted(groups, reverse=True):
        size, hits = len(groups[key]), sum(value > 0 for value in groups[key])
        for place in range(1, size + 1 if hits else 1):
            # A relevant candidate stands here with this chance, and so many relevant ones are expected before it.
            before = (place - 1) * (hits - 1) / (size - 1) if size > 1 else 0.0
            total += hits / size * (found + 1 + before) / (rank + place)
        rank, found = rank + size, found + hits
    return total / found if found else 0.0


def expected_ranks(scores: Sequence[float]) -> list[float]:
    """Rank of each candidate from 1; tied ones share the middle of their ranks.

    >>> expected_ranks([0.5, 0.9, 0.5])
    [2.5, 1.0, 2.5]
    """
    return [
        1 + sum(other > score for other in scores) + (sum(other == score for other in scores) - 1) / 2
        for score in scores
    ]


def _measure(name: str, relevance: Sequence[float], scores: Sequence[float]) -> float:
    if name == "map":
        return average_precision(relevance, scores)
    kind, _, cutoff = name.partition("@")
    k = int(cutoff) if cutoff else None
    if kind == "hit":
        return hit_rate(relevance, scores, k=k or 1)
    return (mrr if kind == "mrr" else ndcg)(relevance, scores, k=k)


def _top(values: Sequence[float], scores: Sequence[float]) -> float:
    """What the candidate on top has, expected over ties."""
    best = max(scores)
    top = [value for value, score in zip(values, scores, strict=True) if score == best]
    return math.fsum(top) / len(top)
