"""Every metric of an evaluation equals ir-measures where that has it, a definition by hand elsewhere."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1_rerank.errors import InputError
from r1_rerank.evaluation.measures import average_precision, check_metrics, expected_ranks, measure, rewards
from r1_rerank.evaluation.trec import ir_measures_values
from r1_rerank.rows import Candidate, Row

METRICS = ("mrr", "mrr@2", "ndcg", "ndcg@3", "hit@1", "hit@3", "map")
# relevance and score of each candidate; scores differ, so that no tool has to break ties.
lists = st.integers(2, 9).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(-1, 3), min_size=size, max_size=size).filter(lambda values: max(values) > 0),
        st.permutations(range(size)),
    )
)


def passage(relevance, id="q1") -> Row:
    candidates = tuple(Candidate(id=f"d{place}", text=f"text {place}") for place in range(len(relevance)))
    return Row(
        id=id,
        task="passage",
        query="why?",
        candidates=candidates,
        relevance=tuple(relevance),
        split="test",
        source="test",
    )


def routing(effects, prices, objective) -> Row:
    candidates = tuple(Candidate(id=f"llm{place}", text="an LLM") for place in range(len(effects)))
    return Row(
        id="r1",
        task="routing",
        query="why?",
        objective=objective,
        candidates=candidates,
        relevance=(1.0, *(0.0,) * (len(effects) - 1)),
        effects=effects,
        prices=prices,
        split="test",
        source="test",
    )


@given(st.lists(lists, min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_every_ranking_metric_equals_ir_measures(cases):
    rows = [passage(relevance, id=f"q{number}") for number, (relevance, _) in enumerate(cases)]
    run = {
        row.id: {candidate.id: float(score) for candidate, score in zip(row.candidates, scores, strict=True)}
        for row, (_, scores) in zip(rows, cases, strict=True)
    }
    theirs = ir_measures_values(rows, run, METRICS)
    for row, (_, scores) in zip(rows, cases, strict=True):
        ours = measure(row, scores, METRICS)
        assert ours == pytest.approx({metric: theirs[metric][row.id] for metric in METRICS}, abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_average_precision_of_ties_is_the_mean_over_all_their_orders(pairs):
    relevance, scores = zip(*pairs, strict=True)
    orders = [
        [relevance[place] for place in order]
        for order in itertools.permutations(range(len(pairs)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    assert average_precision(relevance, scores) == pytest.approx(statistics.fmean(map(average_precision, orders)))


def test_average_precision_by_hand():
    # Relevant at ranks 1, 3 and 5: (1/1 + 2/3 + 3/5) / 3.
    assert average_precision([1, 0, 2, 0, 1]) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precision([0, 0]) == 0


@pytest.mark.parametrize(
    ("objective", "expected"), [("performance", [1.0, 0.5]), ("balance", [0.0, 0.2]), ("cost", [-0.6, 0.02])]
)
def test_rewards_of_each_objective(objective, expected):
    assert rewards(routing((1.0, 0.5), (1.0, 0.1), objective)) == pytest.approx(expected)


def test_routing_numbers_are_of_the_llm_on_top_and_its_distance_to_the_best():
    row = routing((1.0, 0.5, 0.0), (1.0, 0.1, 0.0), "balance")
    first = measure(row, [9, 1, 0], ["mrr"])
    assert first == pytest.approx({"mrr": 1.0, "effect": 1.0, "price": 1.0, "reward": 0.0, "regret": 0.2})
    # Tied on top: half of each.
    tied = measure(row, [1, 1, 0], ["mrr"])
    assert tied == pytest.approx({"mrr": 0.75, "effect": 0.75, "price": 0.55, "reward": 0.1, "regret": 0.1})


def test_a_passage_row_has_no_routing_numbers():
    assert set(measure(passage([1, 0]), [1, 0], ["mrr"])) == {"mrr"}


def test_ties_share_the_middle_of_their_ranks():
    assert expected_ranks([3, 1, 3, 3, 0]) == [2, 4, 2, 2, 5]


@pytest.mark.parametrize("names", [["mrr", "bleu"], ["hit"], ["ndcg@0"], ["ndcg@ten"], ["map@3"], [3], []])
def test_an_unknown_metric_is_refused(names):
    with pytest.raises(InputError, match="metrics"):
        check_metrics(names)


def test_rewards_need_effects():
    with pytest.raises(InputError, match="no effects"):
        rewards(passage([1, 0]))


def test_ir_measures_names_what_it_does_not_have():
    with pytest.raises(InputError, match="reward"):
        ir_measures_values([passage([1, 0])], {"q1": {"d0": 1.0}}, ["reward"])
