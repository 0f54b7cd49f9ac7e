"""Elimination cases: smaller lists from a row, each with the question which candidate is the worst."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from ...errors import InputError
from ...rows import Row
from ...strategies import IRanker, Window
from ..systems import permuted


def elimination_cases(row: Row, *, seed: int = 0) -> Iterator[Row]:
    """For k = 1 to n - 1, the positive among k negatives drawn at random, in random order.

    These are the lists that an elimination sees on its way; `first_window` gives the question to each.

    Args:
        row: With one relevant candidate.
        seed: Decides which negatives are drawn, and on the order.

    Raises:
        InputError: The row has no relevant candidate, or several.
    """
    positives = [place for place, value in enumerate(row.relevance) if value > 0]
    if len(positives) != 1:
        raise InputError("row", f"{row.id!r} has {len(positives)} relevant candidates: elimination cases need one")
    negatives = [place for place in range(len(row.candidates)) if place != positives[0]]
    for k in range(1, len(negatives) + 1):
        rng = random.Random(f"{row.id}/{seed}/{k}")
        places = [*rng.sample(negatives, k), positives[0]]
        rng.shuffle(places)
        yield replace(permuted(row, places), id=f"{row.id}/{k}")


def first_window(row: Row, ranker: IRanker | None = None) -> Window:
    """What the ranker asks first about a row: the same window that it would ask at inference.

    Raises:
        InputError: The row has fewer than two candidates: nothing is asked.
    """
    if len(row.candidates) < 2:
        raise InputError("row", f"{row.id!r} has {len(row.candidates)} candidates: there is nothing to eliminate")
    return next((ranker or IRanker()).run(len(row.candidates)))
