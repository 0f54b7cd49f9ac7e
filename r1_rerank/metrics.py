"""Ranking metrics on plain lists: one implementation for rewards and for evaluation.

Every metric takes one value per candidate. Without `scores` the values stand in ranked order, best first;
with `scores` the candidates are ranked by descending score, and tied scores count as the expected value over
all orders of the tied group (McSherry and Najork, "Computing Information Retrieval Performance Measures
Efficiently in the Presence of Tied Scores", ECIR 2008). Nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import InputError, InputTypeError

__all__ = ["hit_rate", "mrr", "ndcg", "regret"]


def ndcg(relevance: Sequence[float], scores: Sequence[float] | None = None, *, k: int | None = None) -> float:
    """Normalised discounted cumulative gain with linear gain and discount log2(rank + 1).

    The formula is Järvelin and Kekäläinen's (ACM TOIS 20(4), 2002), the discount that of trec_eval's `ndcg`.
    The ideal ranking is made of the candidates given.

    Args:
        relevance: Gain of each candidate; a negative one counts as 0.
        scores: Score of each candidate, or None where `relevance` is in ranked order.
        k: Ranks that count, all by default.

    Returns:
        A number in [0, 1]; 0 where no candidate is relevant.

    Raises:
        InputError: A number is missing or not usable, or `k` is below 1.

    Examples:
        >>> round(ndcg([0, 1, 1]), 4)
        0.6934
        >>> ndcg([0, 1], scores=[0.2, 0.9])
        1.0
        >>> ndcg([0, 1], scores=[0.5, 0.5]) == (ndcg([0, 1]) + ndcg([1, 0])) / 2
        True
    """
    _check_cutoff(k)
    groups = _tie_groups("relevance", relevance, scores)
    largest = max(map(max, groups), default=0.0)
    if largest <= 0:
        return 0.0
    # The scale cancels out, and without it no sum can leave the range of a float.
    gains = [[max(0.0, value) / largest for value in group] for group in groups]
    expected: list[float] = []
    for group in gains:
        expected += [_mean(group)] * len(group)
    ideal = sorted((gain for group in gains for gain in group), reverse=True)
    # The mean of a group may be rounded up, which would lift a perfect ranking above 1.
    return min(1.0, _dcg(expected, k) / _dcg(ideal, k))


def mrr(relevance: Sequence[float], scores: Sequence[float] | None = None, *, k: int | None = None) -> float:
    """Reciprocal rank of the first relevant candidate (Voorhees, TREC-8 question answering track, 1999).

    This is the value of one query; its mean over queries is the MRR of a run.

    Args:
        relevance: Relevance of each candidate; above 0 is relevant.
        scores: Score of each candidate, or None where `relevance` is in ranked order.
        k: Ranks that count, all by default.

    Returns:
        A number in [0, 1]; 0 where none of the first `k` candidates is relevant.

    Raises:
        InputError: A number is missing or not usable, or `k` is below 1.

    Examples:
        >>> mrr([0, 1, 1])
        0.5
        >>> mrr([0, 1, 1], k=1)
        0.0

        One relevant candidate among n, without any preference, has the n-th harmonic number over n:

        >>> round(mrr([0, 1, 0], scores=[0, 0, 0]), 4) == round((1 + 1 / 2 + 1 / 3) / 3, 4)
        True
    """
    _check_cutoff(k)
    missed = _miss_chances(_tie_groups("relevance", relevance, scores), k)
    return math.fsum((missed[rank - 1] - missed[rank]) / rank for rank in range(1, len(missed)))


def hit_rate(relevance: Sequence[float], scores: Sequence[float] | None = None, *, k: int) -> float:
    """Chance that a relevant candidate is among the first `k` (trec_eval's `success`).

    Args:
        relevance: Relevance of each candidate; above 0 is relevant.
        scores: Score of each candidate, or None where `relevance` is in ranked order.
        k: Ranks that count.

    Returns:
        0 or 1, or a number between them where a tie spans rank `k`.

    Raises:
        InputError: A number is missing or not usable, or `k` is below 1.

    Examples:
        >>> hit_rate([0, 1, 0], k=1), hit_rate([0, 1, 0], k=2)
        (0.0, 1.0)
        >>> hit_rate([0, 1, 0, 0], scores=[0, 0, 0, 0], k=1)
        0.25
    """
    _check_cutoff(k, optional=False)
    return 1.0 - _miss_chances(_tie_groups("relevance", relevance, scores), k)[-1]


def regret(rewards: Sequence[float], scores: Sequence[float] | None = None) -> float:
    """Reward that the top candidate leaves on the table: the largest reward minus its own.

    This is the simple regret of Bubeck, Munos and Stoltz ("Pure Exploration in Multi-armed Bandits Problems",
    ALT 2009), with the reward observed for this query in place of an arm's mean.

    Args:
        rewards: Reward of each candidate; may be negative.
        scores: Score of each candidate, or None where `rewards` is in ranked order.

    Returns:
        A number from 0, in the unit of the rewards.

    Raises:
        InputError: A number is missing or not usable.

    Examples:
        >>> regret([0.25, 1.0])
        0.75
        >>> regret([0.25, 1.0], scores=[0.1, 0.9])
        0.0
        >>> regret([0.25, 1.0], scores=[0, 0])
        0.375
    """
    groups = _tie_groups("rewards", rewards, scores)
    if not groups:
        return 0.0
    # The mean of a group may be rounded up, above the largest reward.
    return max(0.0, max(map(max, groups)) - _mean(groups[0]))


def _tie_groups(argument: str, values: Sequence[float], scores: Sequence[float] | None) -> list[list[float]]:
    """Return the values of each rank, best first, those with the same score together."""
    checked = _numbers(argument, values)
    if not all(map(math.isfinite, checked)):
        raise InputError(argument, "holds an infinite number: give finite ones")
    if scores is None:
        return [[value] for value in checked]
    keys = _numbers("scores", scores)
    if len(keys) != len(checked):
        raise InputError("scores", f"{len(keys)} numbers, but {argument} has {len(checked)}: give one for each")
    groups: dict[float, list[float]] = {}
    for value, key in zip(checked, keys, strict=True):
        groups.setdefault(key, []).append(value)
    return [groups[key] for key in sorted(groups, reverse=True)]


def _miss_chances(groups: list[list[float]], k: int | None) -> list[float]:
    """Return the chances that nothing relevant is among the first 0, 1, ... `k` ranks.

    Within a tied group this is drawing without replacement: C(m - r, t) / C(m, t) for t ranks of m candidates
    with r relevant ones, as a running product.
    """
    missed = [1.0]
    for group in groups:
        relevant = sum(value > 0 for value in group)
        for left in range(len(group), 0, -1):
            missed.append(missed[-1] * max(0, left - relevant) / left)
    return missed if k is None else missed[: k + 1]


def _dcg(gains: Sequence[float], k: int | None) -> float:
    return math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:k], start=1))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _numbers(argument: str, values: Sequence[float]) -> list[float]:
    try:
        # math.isnan, unlike float, refuses text.
        nan = [position for position, value in enumerate(values) if math.isnan(value)]
        numbers = list(map(float, values))
    except (TypeError, OverflowError) as error:
        raise InputTypeError(argument, f"needs a sequence of numbers: {error}") from error
    if nan:
        raise InputError(argument, f"the number at position {nan[0]} is NaN: give every candidate a number")
    return numbers


def _check_cutoff(k: int | None, *, optional: bool = True) -> None:
    if k is None and optional:
        return
    if isinstance(k, bool) or not isinstance(k, int):
        raise InputTypeError("k", f"needs an integer, got {k!r}")
    if k < 1:
        raise InputError("k", f"needs at least 1, got {k}")
