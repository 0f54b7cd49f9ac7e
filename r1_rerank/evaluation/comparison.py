"""Two runs side by side, query by query: which is better, by how much, and could it be chance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from .measures import LOWER_IS_BETTER
from .records import EvaluationRun, load_run
from .statistics import Interval, bootstrap_interval, sign_flip_test

_ROUNDING = 1e-12
"""More than the error of a difference of two metrics, and less than anybody cares for."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """B against A.

    Args:
        task: Name of the task.
        metric: What is compared.
        a: Name of one system.
        b: Name of the other.
        mean_a: Its mean over the rows that both ranked.
        mean_b: The other's.
        difference: B minus A, with its interval by query.
        p: Chance of such a difference if the two were alike.
        skipped: Rows that only one of them ranked.
    """

    task: str
    metric: str
    a: str
    b: str
    mean_a: float
    mean_b: float
    difference: Interval
    p: float
    skipped: int = 0

    def __str__(self) -> str:
        gap = self.difference
        return (
            f"{self.metric} on {self.task}: {self.b} {self.mean_b:.4f} against {self.a} {self.mean_a:.4f}, "
            f"difference {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], p = {self.p:.4f} "
            f"({gap.values} rows, {gap.clusters} queries)"
        )


def compare(
    a: EvaluationRun,
    b: EvaluationRun,
    metric: str = "mrr",
    *,
    other_rows: Literal["refuse", "skip"] = "refuse",
    seed: int = 0,
) -> Comparison:
    """Compares two runs on the same rows by a paired test (see `sign_flip_test`).

    Args:
        a: What is compared with.
        b: What is compared.
        metric: Name of a metric that both have.
        other_rows: What rows do that only one of the runs ranked: end it, or be left out and counted.
        seed: Of the interval and of the flips.

    Raises:
        InputError: The runs are of other rows, or one row has other candidates in them.
    """
    return compare_means([(a, b)], metric, task=b.task, other_rows=other_rows, seed=seed)


def compare_means(
    pairs: Sequence[tuple[EvaluationRun, EvaluationRun]],
    metric: str = "mrr",
    *,
    task: str | None = None,
    other_rows: Literal["refuse", "skip"] = "refuse",
    seed: int = 0,
) -> Comparison:
    """Compares two systems by the mean of their means on several tasks: each counts alike, however many rows it has.

    A query that stands in several tasks, as a question under each objective of routing, counts with all its rows at
    once in the interval and the test.

    Args:
        pairs: The runs of both systems on each task, see `compare`.
        metric: Name of a metric that all have.
        task: What the answer calls the tasks; None: how many there are.
        other_rows: See `compare`.
        seed: Of the interval and of the flips.

    Raises:
        InputError: No pair, or one that `compare` refuses.
    """
    if not pairs:
        raise InputError("pairs", "is empty: pass the runs of both systems on at least one task")
    found = [_shared(a, b, metric, other_rows) for a, b in pairs]
    count = sum(len(shared) for shared, _, _ in found)
    clusters, values_a, values_b = list[str](), list[float](), list[float]()
    for (a, _), (shared, of_a, of_b) in zip(pairs, found, strict=True):
        weight = count / (len(pairs) * len(shared))
        queries = a.queries()
        clusters += [queries[row] for row in shared]
        values_a += [weight * of_a[row] for row in shared]
        values_b += [weight * of_b[row] for row in shared]
    differences = [of_b - of_a for of_a, of_b in zip(values_a, values_b, strict=True)]
    return Comparison(
        task=task or f"mean of {len(pairs)} tasks",
        metric=metric,
        a=pairs[0][0].system,
        b=pairs[0][1].system,
        mean_a=sum(values_a) / count,
        mean_b=sum(values_b) / count,
        difference=bootstrap_interval(differences, clusters, seed=seed),
        p=sign_flip_test(differences, clusters, seed=seed),
        skipped=sum(len(of_a.keys() ^ of_b.keys()) for _, of_a, of_b in found),
    )


def assert_no_regression(
    before: EvaluationRun | str | os.PathLike[str],
    after: EvaluationRun | str | os.PathLike[str],
    metric: str = "mrr",
    *,
    tolerance: float = 0.0,
    alpha: float = 0.05,
    other_rows: Literal["refuse", "skip"] = "refuse",
) -> Comparison:
    """Fails where a system has become worse: for a test suite, after a change of weights, prompts or code.

    Worse means that the mean fell by more than `tolerance`, and that a paired one-sided test gives that a chance
    below `alpha`. A fall that so few rows cannot tell from chance passes: `difference.low` of the answer says how
    far it may have fallen.

    Args:
        before: A run, or the file of one.
        after: Likewise, over the same rows.
        metric: Name of a metric that both have.
        tolerance: How much worse is still fine.
        alpha: Chance of a false alarm.
        other_rows: See `compare`.

    Raises:
        AssertionError: It has become worse; the message has the numbers.
        InputError: The runs cannot be compared.
    """
    if not 0 < alpha < 1:
        raise InputError("alpha", f"{alpha!r} is no chance: pass a number between 0 and 1, such as 0.05")
    if tolerance < 0:
        raise InputError("tolerance", f"{tolerance!r} is below 0: pass how much worse is still fine")
    a = before if isinstance(before, EvaluationRun) else load_run(before)
    b = after if isinstance(after, EvaluationRun) else load_run(after)
    compared = compare(a, b, metric, other_rows=other_rows)
    shared, values_a, values_b = _shared(a, b, metric, other_rows)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    queries = a.queries()
    # A fall of exactly the tolerance is fine, however the subtraction is rounded.
    beyond = [sign * (values_b[row] - values_a[row]) + tolerance + _ROUNDING for row in shared]
    p = sign_flip_test(beyond, [queries[row] for row in shared], alternative="less")
    if sum(beyond) < 0 and p < alpha:
        raise AssertionError(f"worse by more than {tolerance:g} (one-sided p = {p:.4f} < {alpha:g}): {compared}")
    return compared


def _shared(
    a: EvaluationRun, b: EvaluationRun, metric: str, other_rows: str
) -> tuple[list[str], dict[str, float], dict[str, float]]:
    """The rows that both ranked, and the values of each run."""
    if other_rows not in ("refuse", "skip"):
        raise InputError("other_rows", f"{other_rows!r} is not one of refuse, skip")
    values_a, values_b = a.values(metric), b.values(metric)
    only_a, only_b = sorted(values_a.keys() - values_b.keys()), sorted(values_b.keys() - values_a.keys())
    if other_rows == "refuse" and (only_a or only_b):
        found = [
            f"{len(rows)} rows only in {run.system}, such as {rows[0]!r}"
            for rows, run in ((only_a, a), (only_b, b))
            if rows
        ]
        raise InputError("runs", f"are over different rows: {'; '.join(found)}; evaluate the same, or skip the others")
    shared = [row for row in values_a if row in values_b]
    if not shared:
        raise InputError("runs", f"{a.system} and {b.system} have no row in common")
    judged = [{record.row: dict(zip(record.candidates, record.relevance, strict=True)) for record in run.ranked}
              for run in (a, b)]  # fmt: skip
    for row in shared:
        if judged[0][row] != judged[1][row]:
            raise InputError("runs", f"row {row!r} has other candidates or judgments in {b.system} than in {a.system}")
    return shared, values_a, values_b
