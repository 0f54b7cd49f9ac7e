"""The metrics equal the field's own on a ranking, and the mean over all orders where scores tie."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from statistics import fmean
from typing import Any

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.errors import InputError, InputTypeError
from r1_rerank.metrics import hit_rate, mrr, ndcg, regret

gains = st.integers(min_value=-1, max_value=4)
numbers = st.floats(min_value=-1e6, max_value=1e6)
cutoffs = st.integers(min_value=1, max_value=12)

RANKED: list[Callable[..., float]] = [
    ndcg,
    lambda *ranking: ndcg(*ranking, k=2),
    mrr,
    lambda *ranking: mrr(*ranking, k=2),
    lambda *ranking: hit_rate(*ranking, k=2),
    regret,
]
RANKED_NAMES = ["ndcg", "ndcg@2", "mrr", "mrr@2", "hit_rate@2", "regret"]


# Rankings without ties


@pytest.mark.parametrize(
    ("relevance", "k", "expected"),
    [
        ([3, 2, 0], None, 1.0),
        ([0, 1], None, 1 / math.log2(3)),
        ([0, 2, 3], None, (2 / math.log2(3) + 3 / 2) / (3 + 2 / math.log2(3))),
        ([0, 2, 3], 2, (2 / math.log2(3)) / (3 + 2 / math.log2(3))),
        ([0, 2, 3], 1, 0.0),
        ([0.5, 1.0], 1, 0.5),
        ([-5, 1], None, 1 / math.log2(3)),
        ([-5, -1], None, 0.0),
        ([0, 0], None, 0.0),
        ([], None, 0.0),
    ],
)
def test_ndcg_by_hand(relevance: list[float], k: int | None, expected: float) -> None:
    assert ndcg(relevance, k=k) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("relevance", "k", "expected"),
    [
        ([1, 0], None, 1.0),
        ([0, 0, 0.1, 1], None, 1 / 3),
        ([0, 0, 1], 3, 1 / 3),
        ([0, 0, 1], 2, 0.0),
        ([-1, 1], None, 1 / 2),
        ([0], None, 0.0),
        ([], None, 0.0),
    ],
)
def test_mrr_by_hand(relevance: list[float], k: int | None, expected: float) -> None:
    assert mrr(relevance, k=k) == expected


def test_hit_rate_by_hand() -> None:
    assert hit_rate([0, 0, 1], k=2) == 0.0
    assert hit_rate([0, 0, 1], k=3) == hit_rate([0, 0, 1], k=99) == 1.0
    assert hit_rate([-1, 0], k=2) == 0.0
    assert hit_rate([], k=1) == 0.0


def test_regret_by_hand() -> None:
    assert regret([0.25, 1.0, 0.5]) == 0.75
    assert regret([-1.0, -3.0], scores=[1, 2]) == 2.0
    assert regret([1.0, 0.0]) == 0.0
    assert regret([]) == 0.0


@pytest.mark.parametrize("metric", RANKED, ids=RANKED_NAMES)
def test_scores_rank_the_candidates_by_falling_score(metric: Callable[..., float]) -> None:
    assert metric([0, 3, 1], [0.1, 0.2, 0.9]) == metric([1, 3, 0])
    assert metric([0, 3, 1], [-math.inf, 0, math.inf]) == metric([1, 3, 0])


@given(
    # No negative relevance: pytrec_eval's nDCG can loop for ever on it.
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 1000)),
        min_size=1,
        max_size=12,
        unique_by=lambda pair: pair[1],
    ),
    cutoffs,
)
def test_the_numbers_are_those_of_ir_measures(ranking: list[tuple[int, int]], k: int) -> None:
    relevance, scores = zip(*ranking, strict=True)
    measures = {
        ir_measures.nDCG: ndcg(relevance, scores),
        ir_measures.nDCG @ k: ndcg(relevance, scores, k=k),
        ir_measures.RR: mrr(relevance, scores),
        ir_measures.RR @ k: mrr(relevance, scores, k=k),
        ir_measures.Success @ k: hit_rate(relevance, scores, k=k),
    }
    qrels = {"q": {str(position): gain for position, gain in enumerate(relevance)}}
    run = {"q": {str(position): float(score) for position, score in enumerate(scores)}}
    assert ir_measures.calc_aggregate(list(measures), qrels, run) == pytest.approx(measures)


# Ties


@pytest.mark.parametrize("metric", RANKED, ids=RANKED_NAMES)
@given(st.lists(st.tuples(gains, st.integers(0, 2)), max_size=6))
def test_a_tie_counts_as_the_mean_over_its_orders(metric: Callable[..., float], ranking: list[tuple[int, int]]) -> None:
    relevance = [gain for gain, _ in ranking]
    scores = [score for _, score in ranking]
    orders = [
        metric([gain for gain, _ in order])
        for order in permutations(ranking)
        if [score for _, score in order] == sorted(scores, reverse=True)
    ]
    assert metric(relevance, scores) == pytest.approx(fmean(orders))


@pytest.mark.parametrize("n", [1, 2, 20, 1000])
def test_one_relevant_candidate_in_a_random_order_has_the_nth_harmonic_number_over_n(n: int) -> None:
    relevance = [0] * (n - 1) + [1]
    expected = math.fsum(1 / rank for rank in range(1, n + 1)) / n
    assert mrr(relevance, [0.0] * n) == pytest.approx(expected, rel=1e-12)
    assert hit_rate(relevance, [0.0] * n, k=1) == pytest.approx(1 / n, rel=1e-12)


def test_both_zeros_are_one_score() -> None:
    assert hit_rate([1, 0], [0.0, -0.0], k=1) == 0.5


@given(st.lists(st.tuples(numbers, st.integers(0, 2))), cutoffs)
def test_every_value_is_in_its_range(ranking: list[tuple[float, int]], k: int) -> None:
    values = [value for value, _ in ranking]
    scores = [score for _, score in ranking]
    assert 0 <= ndcg(values, scores, k=k) <= 1
    assert 0 <= mrr(values, scores, k=k) <= hit_rate(values, scores, k=k) <= 1
    assert regret(values, scores) >= 0


@given(st.lists(numbers, min_size=1))
def test_a_perfect_ranking_leaves_nothing_to_gain(values: list[float]) -> None:
    assert ndcg(values, values) == pytest.approx(1.0 if max(values) > 0 else 0.0)
    assert mrr(values, values) == (1.0 if max(values) > 0 else 0.0)
    assert regret(values, values) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("gain", [5e-324, 1e308])
def test_ndcg_does_not_depend_on_the_scale_of_the_gains(gain: float) -> None:
    assert ndcg([0, gain, gain], [1, 1, 1]) == ndcg([0, 1, 1], [1, 1, 1])


# Bad input


@pytest.mark.parametrize("metric", RANKED, ids=RANKED_NAMES)
@pytest.mark.parametrize(
    ("arguments", "at_fault"),
    [
        (([0.0, math.nan],), "values"),
        (([0.0, math.inf],), "values"),
        (([0.0, None],), "values"),
        (("01",), "values"),
        ((None,), "values"),
        (([10**400],), "values"),
        (([0.0, 1.0], [0.0, math.nan]), "scores"),
        (([0.0, 1.0], [0.0, "1"]), "scores"),
        (([0.0, 1.0], [0.0]), "scores"),
        (([0.0, 0.0], []), "scores"),
        (([], [1.0]), "scores"),
    ],
)
def test_an_unusable_list_is_named(metric: Callable[..., float], arguments: tuple[Any, ...], at_fault: str) -> None:
    values = "rewards" if metric is regret else "relevance"
    with pytest.raises(InputError) as caught:
        metric(*arguments)
    assert caught.value.argument == (values if at_fault == "values" else at_fault)


def test_the_message_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"^scores: 1 numbers, but relevance has 2: give one for each$"):
        ndcg([0, 1], [0.5])
    with pytest.raises(InputError, match=r"^rewards: the number at position 1 is NaN: "):
        regret([0, math.nan])


@pytest.mark.parametrize("metric", [ndcg, mrr, hit_rate])
@pytest.mark.parametrize("relevance", [[], [0, 1]])
def test_an_unusable_cutoff_is_named(metric: Callable[..., float], relevance: list[float]) -> None:
    wrong_type: list[Any] = [True, 1.0, "1"]
    for k in wrong_type:
        with pytest.raises(InputTypeError, match=r"^k: "):
            metric(relevance, k=k)
    for k in (0, -1):
        with pytest.raises(InputError, match=r"^k: needs at least 1"):
            metric(relevance, k=k)


def test_a_hit_rate_has_a_cutoff() -> None:
    k: Any = None
    with pytest.raises(InputTypeError, match=r"^k: "):
        hit_rate([1], k=k)
