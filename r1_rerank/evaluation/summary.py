"""A run in numbers: quality with intervals, faults, cost, position bias, stability, and when the positives fell."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ..documents import Usage
from .measures import expected_ranks
from .records import EvaluationRun, Record, status_counts
from .statistics import Interval

ORACLES = frozenset({"oracle"})
"""Systems that know the answer: nothing is compared with them."""
STATUSES = ("ok", "repaired", "partial", "fallback", "failed")
_BINS = 5
"""Parts into which lists are cut where they are not all of one length, or too few."""
_ENOUGH = 30
"""Lists that a place needs to have a point of its own in a curve."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a relevant candidate ended, by where it stood in the input.

    Args:
        place: Share of the list before it in the input, from 0 to 1.
        rank: Mean share of the list before it in the result; 0.5 everywhere is no bias and no skill.
        count: How many there were.
    """

    place: float
    rank: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How much the order depends on the order of the input.

    Args:
        tau: Mean Kendall tau-b between two results of a row; 1: the order of the input does not matter.
        top: Share of such pairs with the same candidate on top.
        spread: Mean standard deviation of the first metric over the results of a row.
        shuffles: Results of a row, besides that for the incoming order.
    """

    tau: float
    top: float
    spread: float
    shuffles: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a report says of a run.

    Args:
        task: Name of the task.
        system: Name of the system.
        rows: Rows that it ranked.
        queries: How many queries they belong to.
        metrics: Mean and interval by query of each.
        statuses: Share of the rows by status.
        malformed: Share of the rows with an answer that was not well-formed.
        faults: How often each kind of fault occurred.
        cost: Means over the rows of `r1_rerank.documents.Usage`, and `tokens`: what had to be computed.
        bias: Correlation of a relevant candidate's place in the input with its rank; 0: no bias, 1: the input's order.
        placements: The same as a curve.
        falls: Share of the relevant candidates that fell during each share of the eliminations, as a curve.
        stability: Only where rows were shuffled.
        dropped: Rows that were left out, by reason.
    """

    task: str
    system: str
    rows: int
    queries: int
    metrics: Mapping[str, Interval]
    statuses: Mapping[str, float]
    malformed: float
    faults: Mapping[str, int]
    cost: Mapping[str, float]
    bias: float | None
    placements: tuple[Placement, ...]
    falls: tuple[tuple[float, float], ...]
    stability: Stability | None
    dropped: Mapping[str, int]


def summarise(run: EvaluationRun, *, seed: int = 0) -> Summary:
    """Takes the numbers of a run.

    Args:
        run: Any run.
        seed: Of the intervals.
    """
    first = [record for record in run.records if not record.shuffle]
    ranked = run.ranked
    counts = status_counts(first)
    faults: Counter[str] = Counter()
    for record in first:
        faults.update(record.faults)
    everything = [record for record in run.records if record.scores is not None]
    places = _places(everything)
    return Summary(
        task=run.task,
        system=run.system,
        rows=len(ranked),
        queries=len({record.query for record in ranked}),
        metrics={name: run.interval(name, seed=seed) for name in run.metrics},
        statuses={name: counts.get(name, 0) / len(first) for name in STATUSES} if first else {},  # type: ignore[call-overload]
        malformed=sum(record.malformed > 0 for record in first) / len(first) if first else 0.0,
        faults=dict(faults),
        cost=_cost(first),
        bias=_correlation(places),
        placements=_placements(places, everything),
        falls=_falls(ranked),
        stability=_stability(run),
        dropped=dict(run.dropped),
    )


def _cost(records: Sequence[Record]) -> dict[str, float]:
    if not records:
        return {}
    cost = {
        item.name: math.fsum(getattr(record.usage, item.name) for record in records) / len(records)
        for item in fields(Usage)
    }
    return cost | {"tokens": math.fsum(record.usage.tokens for record in records) / len(records)}


def _places(records: Sequence[Record]) -> list[tuple[float, float]]:
    """Shares of the list before each relevant candidate, in the input and in the result."""
    pairs = []
    for record in records:
        last = len(record.candidates) - 1
        if last < 1:
            continue
        ranks = expected_ranks(record.scores or ())
        pairs += [
            (place / last, (ranks[place] - 1) / last) for place, value in enumerate(record.relevance) if value > 0
        ]
    return pairs


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """None where there is nothing to correlate: all in one place, or all with one rank."""
    places, ranks = {place for place, _ in pairs}, {rank for _, rank in pairs}
    if len(places) < 2 or len(ranks) < 2:
        return None
    return statistics.correlation([place for place, _ in pairs], [rank for _, rank in pairs])


def _placements(pairs: Sequence[tuple[float, float]], records: Sequence[Record]) -> tuple[Placement, ...]:
    sizes = {len(record.candidates) for record in records}
    steps = sizes.pop() - 1 if len(sizes) == 1 else _BINS
    if len(pairs) < _ENOUGH * (steps + 1):
        steps = min(steps, _BINS)
    groups: dict[int, list[float]] = defaultdict(list)
    for place, rank in pairs:
        groups[round(place * steps)].append(rank)
    return tuple(
        Placement(place=step / steps, rank=statistics.fmean(ranks), count=len(ranks))
        for step, ranks in sorted(groups.items())
    )


def _falls(records: Sequence[Record]) -> tuple[tuple[float, float], ...]:
    """The worst falls first, so the candidate of rank r of n falls with elimination n - r + 1, and the best never."""
    sizes = {len(record.candidates) for record in records}
    steps = sizes.pop() - 1 if len(sizes) == 1 else 20
    fallen = [0.0] * (steps + 1)
    total = 0.0
    for record in records:
        scores, last = record.scores or (), len(record.candidates) - 1
        relevant = [place for place, value in enumerate(record.relevance) if value > 0]
        if last < 1 or not relevant:
            continue
        total += 1
        for place in relevant:
            better = sum(score > scores[place] for score in scores)
            tied = sum(score == scores[place] for score in scores)
            for rank in range(better + 1, better + tied + 1):
                if rank > 1:
                    step = math.ceil((last + 2 - rank) / last * steps - 1e-9)
                    fallen[step] += 1 / tied / len(relevant)
    if not total:
        return ()
    return tuple((step / steps, share / total) for step, share in enumerate(itertools.accumulate(fallen)))


def _stability(run: EvaluationRun) -> Stability | None:
    import numpy as np

    by_row: dict[str, list[Record]] = defaultdict(list)
    for record in run.records:
        if record.scores is not None:
            by_row[record.row].append(record)
    groups = [records for records in by_row.values() if len(records) > 1]
    if not groups:
        return None
    taus, tops, spreads = [], [], []
    metric = run.metrics[0]
    for records in groups:
        signs, best = [], []
        for record in records:
            scores = dict(zip(record.candidates, record.scores or (), strict=True))
            ordered = np.asarray([scores[name] for name in sorted(scores)])
            signs.append(np.sign(ordered[:, None] - ordered[None, :]).ravel())
            best.append({name for name, score in scores.items() if score == max(scores.values())})
        for one, other in itertools.combinations(range(len(records)), 2):
            norm = math.sqrt(float(signs[one] @ signs[one]) * float(signs[other] @ signs[other]))
            # A row of ties has no order to agree with.
            taus.append(float(signs[one] @ signs[other]) / norm if norm else 0.0)
            tops.append(len(best[one] & best[other]) / (len(best[one]) * len(best[other])))
        spreads.append(statistics.pstdev(record.metrics[metric] for record in records))
    return Stability(
        tau=statistics.fmean(taus),
        top=statistics.fmean(tops),
        spread=statistics.fmean(spreads),
        shuffles=max(map(len, groups)) - 1,
    )
