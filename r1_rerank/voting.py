"""Makes one order of several rankings of the same documents, and tells how far they agree."""

from __future__ import annotations

import itertools
import math
import statistics
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Literal

Fusion = Literal["borda", "rrf"]
"""`borda`: the mean place counts. `rrf`: reciprocal rank fusion, where high places count more."""

_RRF_K = 60
"""As in Cormack, Clarke and Buettcher, SIGIR 2009."""


def vote(orders: Sequence[Sequence[int]], fusion: Fusion = "borda") -> list[tuple[int, float]]:
    """The documents in the order of their votes, each with its share of the most votes possible.

    Borda: a document at rank r of n has (n - r) / (n - 1) votes of a ranking. Reciprocal rank fusion: 1 / (60 + r).
    The lower index stands first where votes are equal.

    Args:
        orders: At least one ranking, best first, each of the same documents (indices), at least two.
        fusion: How places become votes.

    >>> vote([[0, 1, 2], [1, 0, 2], [1, 0, 2]])
    [(1, 0.8333333333333334), (0, 0.6666666666666666), (2, 0.0)]
    """
    count = len(orders[0])
    # Borda in whole numbers: rounded shares of documents with equal votes would differ in the last place.
    votes = [float(count - rank) if fusion == "borda" else 1 / (_RRF_K + rank) for rank in range(1, count + 1)]
    received: dict[int, list[float]] = {document: [] for document in sorted(orders[0])}
    for order in orders:
        for document, share in zip(order, votes, strict=True):
            received[document].append(share)
    most = votes[0] * len(orders)
    shares = {document: math.fsum(found) / most for document, found in received.items()}
    return sorted(shares.items(), key=lambda hit: -hit[1])


def stability(orders: Sequence[Sequence[int]]) -> float | None:
    """Mean Kendall's tau over all pairs of rankings, from -1 to 1; None for fewer than two.

    >>> stability([[0, 1, 2], [0, 1, 2], [2, 1, 0]])
    -0.3333333333333333
    """
    pairs = list(itertools.combinations(orders, 2))
    return statistics.fmean(_kendall_tau(first, second) for first, second in pairs) if pairs else None


def _kendall_tau(first: Sequence[int], second: Sequence[int]) -> float:
    place = {document: rank for rank, document in enumerate(second)}
    before: list[int] = []
    discordant = 0
    for document in first:
        # Whatever stands earlier here and later there.
        discordant += len(before) - bisect_left(before, place[document])
        insort(before, place[document])
    pairs = len(first) * (len(first) - 1) / 2
    return 1.0 - 2.0 * discordant / pairs
