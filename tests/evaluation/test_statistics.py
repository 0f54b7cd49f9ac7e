"""Intervals and tests go by query: a query that stands in the data ten times says no more than once."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1_rerank.errors import InputError
from r1_rerank.evaluation.statistics import bootstrap_interval, holm, sign_flip_test

numbers = st.floats(-1, 1, allow_nan=False, width=32)


def test_the_interval_of_a_mean_is_that_of_the_textbook():
    draw = random.Random(1)
    values = [draw.gauss(0.5, 0.2) for _ in range(400)]
    interval = bootstrap_interval(values)
    half = 1.96 * statistics.stdev(values) / 20
    assert interval.mean == pytest.approx(statistics.fmean(values))
    assert interval.low == pytest.approx(interval.mean - half, abs=0.003)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.003)
    assert (interval.values, interval.clusters) == (400, 400)


def test_copies_of_a_query_do_not_narrow_its_interval():
    draw = random.Random(2)
    values = [draw.random() for _ in range(50)]
    once = bootstrap_interval(values)
    copied = bootstrap_interval(values * 10, [f"q{place}" for place in range(50)] * 10)
    naive = bootstrap_interval(values * 10)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (once.high - once.low)
    assert (copied.values, copied.clusters) == (500, 50)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    draw = random.Random(3)
    covered = 0
    for seed in range(200):
        values = [float(draw.random() < 0.3) for _ in range(80)]
        interval = bootstrap_interval(values, draws=400, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 180 <= covered <= 200


@given(st.lists(numbers, min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_an_interval_holds_its_mean_and_a_seed_repeats_it(values):
    interval = bootstrap_interval(values, draws=300)
    assert interval.low <= interval.mean <= interval.high
    assert interval == bootstrap_interval(values, draws=300)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_the_p_value_of_few_queries_is_exact(differences):
    totals = [
        sum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    two_sided = statistics.fmean(abs(total) >= abs(sum(differences)) for total in totals)
    less = statistics.fmean(total <= sum(differences) for total in totals)
    assert sign_flip_test(differences) == pytest.approx(two_sided)
    assert sign_flip_test(differences, alternative="less") == pytest.approx(less)


def test_many_queries_are_sampled_close_to_the_exact_value():
    scipy_stats = pytest.importorskip("scipy.stats")
    draw = random.Random(4)
    values = [draw.gauss(0.05, 0.3) for _ in range(120)]
    theirs = scipy_stats.permutation_test(
        (values,), statistics.fmean, permutation_type="samples", n_resamples=5000, vectorized=False, rng=0
    ).pvalue
    assert sign_flip_test(values) == pytest.approx(theirs, abs=0.02)


def test_the_lists_of_one_query_flip_together():
    # Ten lists that agree are one observation, and one flip in two is as extreme.
    assert sign_flip_test([0.3] * 10, ["same"] * 10) == 1.0
    assert sign_flip_test([0.3] * 10) < 0.01


def test_equal_systems_differ_by_chance_alone():
    assert sign_flip_test([0.0] * 50) == 1.0
    draw = random.Random(5)
    small = sum(sign_flip_test([draw.gauss(0, 1) for _ in range(30)], draws=500) < 0.05 for _ in range(200))
    assert small <= 22  # 10 expected; above 22 has a chance of 0.0002


def test_several_p_values_are_adjusted():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (([],), "values"),
        (([0.1, float("nan")],), "values"),
        (([0.1, 0.2], ["q"]), "clusters"),
    ],
)
def test_what_cannot_be_averaged_is_refused(arguments, name):
    for function in (bootstrap_interval, sign_flip_test):
        with pytest.raises(InputError) as caught:
            function(*arguments)
        assert caught.value.argument == name


def test_a_level_is_a_share():
    with pytest.raises(InputError, match="level"):
        bootstrap_interval([1.0], level=95)
    with pytest.raises(InputError, match="alternative"):
        sign_flip_test([1.0], alternative="more")
