"""How sure a mean is, and whether two systems differ: bootstrap and sign flips over queries, not over lists.

Several lists may belong to one query, and then say nearly the same: what is drawn anew is always a whole query.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DRAWS = 5000
_CHUNK = 250
"""Draws at a time: their weights stand in memory together."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and where it would lie with other queries of the same kind.

    Args:
        mean: Mean over the values.
        low: Lower bound.
        high: Upper bound.
        values: How many values there are.
        clusters: How many queries they belong to.
    """

    mean: float
    low: float
    high: float
    values: int
    clusters: int


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean, drawing whole queries (Efron and Tibshirani, 1993; Field and Welsh, 2007).

    Args:
        values: One number per list.
        clusters: The query of each list; None where every list has its own.
        level: Share of the draws inside the interval.
        draws: How many there are.
        seed: Of the draws.

    Raises:
        InputError: No values, a value that is not finite, or lengths that differ.
    """
    import numpy as np

    if not 0 < level < 1:
        raise InputError("level", f"{level!r} is no share: pass a number between 0 and 1, such as 0.95")
    _check_draws(draws)
    sums, sizes = _by_cluster(values, clusters)
    means = np.concatenate(
        [(weights @ sums) / (weights @ sizes) for weights in _resamples(len(sums), draws, np.random.default_rng(seed))]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    mean = math.fsum(values) / len(values)
    return Interval(
        mean=mean,
        # Rounding must not put the mean of equal values outside its own interval.
        low=min(float(low), mean),
        high=max(float(high), mean),
        values=len(values),
        clusters=len(sums),
    )


def sign_flip_test(
    differences: Sequence[float],
    clusters: Sequence[str] | None = None,
    *,
    alternative: str = "two-sided",
    draws: int = 2 * DRAWS,
    seed: int = 0,
) -> float:
    """Chance of a mean difference as large as this if either system could have been the other, query by query.

    Fisher's randomisation test for paired values. All flips are tried where there are no more than `draws`, else
    that many at random, and the observed one counts as one of them.

    Args:
        differences: B minus A for each list.
        clusters: The query of each list; the lists of one query are flipped together.
        alternative: `two-sided`, or `less` where only a B that is worse counts.
        draws: Most flips to try.
        seed: Of the flips.

    Returns:
        The p-value.
    """
    import numpy as np

    if alternative not in ("two-sided", "less"):
        raise InputError("alternative", f"{alternative!r} is not one of two-sided, less")
    _check_draws(draws)
    sums, _ = _by_cluster(differences, clusters)
    observed = float(sums.sum())
    slack = 1e-9 * float(np.abs(sums).sum())

    def extreme(totals: Floats) -> int:
        if alternative == "less":
            return int((totals <= observed + slack).sum())
        return int((np.abs(totals) >= abs(observed) - slack).sum())

    count = len(sums)
    if count <= 30 and 2**count <= draws:
        codes = np.arange(2**count)[:, None] >> np.arange(count)
        return extreme((1.0 - 2.0 * (codes & 1)) @ sums) / len(codes)
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, draws, _CHUNK):
        signs = rng.integers(0, 2, size=(min(_CHUNK, draws - start), count)) * 2.0 - 1.0
        hits += extreme(signs @ sums)
    return (hits + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that stay honest when there are several (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for done, place in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = worst
    return adjusted


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise InputError("draws", f"{draws!r} is too few: pass at least 1")


def _by_cluster(values: Sequence[float], clusters: Sequence[str] | None) -> tuple[Floats, Floats]:
    """Sum and number of the values of each cluster, clusters in the order in which they appear."""
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise InputError("values", "needs at least one number")
    if not np.isfinite(numbers).all():
        raise InputError(
            "values", f"the number at position {int(np.flatnonzero(~np.isfinite(numbers))[0])} is not finite"
        )
    if clusters is None:
        return numbers, np.ones(len(numbers))
    if len(clusters) != len(numbers):
        raise InputError("clusters", f"{len(clusters)} names for {len(numbers)} values: give one for each")
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    codes = np.fromiter((places[name] for name in clusters), dtype=np.int64, count=len(clusters))
    return np.bincount(codes, weights=numbers).astype(np.float64), np.bincount(codes).astype(np.float64)


def _resamples(count: int, draws: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each cluster was drawn, a row a draw."""
    import numpy as np

    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
