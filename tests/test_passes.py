"""Several passes over a query vote: positions stop to matter, and the result says how far the passes agree."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank import Budget, DRanker, IRanker, R1Reranker, RerankResult, ScriptedEngine
from r1_rerank.engines import GenerationRequest
from r1_rerank.errors import EngineError, InputError
from r1_rerank.strategies import Strategy
from r1_rerank.voting import stability, vote

QUERY = "which number is largest?"
NUMBERS = [str(number) for number in (3, 0, 4, 1, 2)]
orders_of_five = st.lists(st.permutations(range(5)), min_size=1, max_size=6)


def shown(request: GenerationRequest) -> dict[str, str]:
    """Label -> text of the live candidates, in shown order."""
    found = dict(re.findall(r"^\[(\w)\] ?(.*?) ?\[\1\]$", request.messages[0]["content"], re.MULTILINE))
    return {label: found[label] for label in found if label in (request.labels or found)}


def answer(labels: Sequence[str]) -> str:
    return "<answer>" + " > ".join(f"[{label}]" for label in labels) + "</answer>"


def knows(request: GenerationRequest) -> str:
    """Names the smallest number, or all of them, largest first."""
    live = sorted(shown(request), key=lambda label: -int(shown(request)[label]))
    return answer(live if request.pick == len(live) > 2 else live[::-1][: request.pick])


def first_falls(request: GenerationRequest) -> str:
    """A model that only looks at places."""
    return answer(list(shown(request))[: request.pick])


def reranker(script: Any = knows, **options: Any) -> R1Reranker:
    return R1Reranker(ScriptedEngine(script), **({"thinking": 0, "passes": 3} | options))


def texts(result: RerankResult) -> list[str]:
    return [hit.text for hit in result]


# What is promised


@pytest.mark.parametrize("strategy", [IRanker(), IRanker(form="append"), DRanker()])
@pytest.mark.parametrize("fusion", ["borda", "rrf"])
def test_passes_that_agree_change_nothing(strategy: Strategy, fusion: Any) -> None:
    result = reranker(strategy=strategy, fusion=fusion).rerank(QUERY, NUMBERS)
    assert texts(result) == ["4", "3", "2", "1", "0"]
    assert (result.status, result.score_kind, result.stability) == ("ok", "vote", 1.0)
    assert {step.run for step in result.steps} == {1, 2, 3}
    assert result.usage.calls == len(result.steps)


def test_borda_scores_are_the_share_of_votes() -> None:
    result = reranker().rerank(QUERY, NUMBERS)
    assert [hit.score for hit in result] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_steps_speak_of_the_documents_as_they_were_passed() -> None:
    result = reranker(IRanker).rerank(QUERY, ["only"])
    assert (result.stability, result.score_kind, texts(result)) == (None, "rank", ["only"])
    result = reranker().rerank(QUERY, NUMBERS)
    for run in (1, 2, 3):
        fallen = [step.picked[0] for step in result.steps if step.run == run]
        assert [NUMBERS[index] for index in fallen] == ["0", "1", "2", "3"]
        assert [step.number for step in result.steps if step.run == run] == [1, 2, 3, 4]
    assert {step.shown for step in result.steps if step.number == 1} != {(0, 1, 2, 3, 4)}  # shuffled


def test_a_model_that_only_looks_at_places_is_found_out() -> None:
    once = reranker(first_falls, passes=1).rerank(QUERY, NUMBERS)
    assert once.stability is None
    often = reranker(first_falls, passes=8).rerank(QUERY, NUMBERS)
    assert often.stability is not None
    assert often.stability < 0.4
    assert texts(often) != texts(once)


def test_the_first_pass_keeps_the_incoming_order_and_the_seed_makes_the_others() -> None:
    def looks(seed: int | None) -> list[tuple[int, ...]]:
        return [step.shown for step in reranker(seed=seed).rerank(QUERY, NUMBERS).steps if step.number == 1]

    assert looks(1)[0] == (0, 1, 2, 3, 4)
    assert looks(1) == looks(1) != looks(2)
    assert looks(None) == looks(None)


def test_labels_are_shuffled_too() -> None:
    engine = ScriptedEngine(first_falls)
    R1Reranker(engine, thinking=0, passes=3, strategy="dranker").rerank(QUERY, NUMBERS)
    first, *others = [list(shown(request)) for request in engine.requests]
    assert first == ["A", "B", "C", "D", "E"]
    assert all(sorted(labels) == first != labels for labels in others)


def test_an_estimate_counts_all_passes() -> None:
    assert reranker().estimate(QUERY, NUMBERS).calls == 12


async def test_async_gives_what_sync_gives() -> None:
    ranker = reranker(first_falls)
    stream = ranker.astream(QUERY, NUMBERS)
    runs = [step.run async for step in stream]
    assert sorted(runs) == [1] * 4 + [2] * 4 + [3] * 4
    assert stream.result is not None
    assert texts(stream.result) == texts(ranker.rerank(QUERY, NUMBERS))
    assert stream.result.stability == ranker.rerank(QUERY, NUMBERS).stability


def test_votes_can_be_held_against_a_threshold() -> None:
    result = reranker(strategy="dranker").rerank(QUERY, NUMBERS, score_threshold=0.5)
    assert texts(result) == ["4", "3", "2"]


def test_equal_votes_leave_the_order_of_the_stage_before() -> None:
    class Backwards:
        name = "backwards"
        keep = 4

        def order(self, query: str, texts: Sequence[str]) -> list[int]:
            return [4, 3, 2, 1, 0]

    flip = itertools.cycle([1, -1])

    def cannot_decide(request: GenerationRequest) -> str:
        found = shown(request)
        return answer(sorted(found, key=lambda label: int(found[label]))[:: next(flip)])

    ranker = reranker(cannot_decide, strategy="dranker", passes=2, prefilter=Backwards())
    result = ranker.rerank(QUERY, NUMBERS)
    assert [hit.index for hit in result] == [4, 3, 2, 1, 0]
    assert (result.stability, [hit.score for hit in result]) == (-1.0, [0.5] * 4 + [0.0])


# How it could break


@pytest.mark.parametrize(("calls", "passes_done"), [(3, 0), (4, 1), (7, 1), (8, 2), (11, 2)])
def test_within_a_budget_whole_passes_vote(calls: int, passes_done: int) -> None:
    result = reranker(budget=Budget(calls=calls)).rerank(QUERY, NUMBERS)
    assert result.status == "partial"
    assert result.usage.calls == calls
    assert sorted(texts(result)) == sorted(NUMBERS)
    if passes_done:
        assert texts(result) == ["4", "3", "2", "1", "0"]
    assert (result.stability is not None) == (passes_done > 1)
    assert [fault.kind for fault in result.faults] == ["budget"]


def test_a_budget_that_suffices_is_no_fault() -> None:
    result = reranker(budget=Budget(calls=12)).rerank(QUERY, NUMBERS)
    assert (result.status, result.faults, result.usage.calls) == ("ok", (), 12)


def test_a_pass_that_fails_does_not_vote() -> None:
    failing = itertools.count()

    def script(request: GenerationRequest) -> Any:
        if next(failing) == 5:
            raise EngineError("lost")
        return knows(request)

    result = reranker(script, budget=Budget(calls=100)).rerank(QUERY, NUMBERS)
    assert (result.status, texts(result)) == ("partial", ["4", "3", "2", "1", "0"])
    assert [(fault.kind, fault.run) for fault in result.faults] == [("engine", 2)]


def test_useless_answers_keep_the_incoming_order() -> None:
    result = reranker(lambda _: "I cannot tell.").rerank(QUERY, NUMBERS)
    assert (result.status, texts(result), result.malformed) == ("fallback", NUMBERS, 12)


def test_a_pass_that_was_cut_off_counts_where_none_finished() -> None:
    asked = itertools.count(1)

    def script(request: GenerationRequest) -> str:
        return "I cannot tell." if next(asked) <= 4 else knows(request)

    result = reranker(script, passes=2, budget=Budget(calls=6)).rerank(QUERY, NUMBERS)
    assert (result.status, texts(result)[-2:]) == ("partial", ["1", "0"])
    assert result.stability is None


def test_an_engine_fault_is_raised_where_wanted() -> None:
    with pytest.raises(EngineError, match="lost"):
        reranker(lambda _: EngineError("lost"), on_error="raise").rerank(QUERY, NUMBERS)


@pytest.mark.parametrize("options", [{"passes": 0}, {"passes": 1.5}, {"fusion": "mean"}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        reranker(**options)


# The vote itself


@given(orders_of_five, st.sampled_from(["borda", "rrf"]))
def test_a_vote_is_an_order_with_falling_scores(orders: list[list[int]], fusion: Any) -> None:
    result = vote(orders, fusion)
    assert sorted(document for document, _ in result) == [0, 1, 2, 3, 4]
    scores = [score for _, score in result]
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 <= score <= 1.0 for score in scores)


@given(st.permutations(range(5)), st.sampled_from(["borda", "rrf"]))
def test_one_ranking_elects_itself(order: list[int], fusion: Any) -> None:
    assert [document for document, _ in vote([order], fusion)] == order
    assert vote([order], fusion)[0][1] == 1.0


@given(st.lists(st.permutations(range(8)), min_size=1, max_size=6))
def test_equal_votes_are_equal_to_the_last_digit(orders: list[list[int]]) -> None:
    places = {document: sum(order.index(document) for order in orders) for document in range(8)}
    assert [document for document, _ in vote(orders)] == sorted(places, key=lambda document: places[document])


def test_rrf_lets_high_places_count_more() -> None:
    others = list(range(2, 40))
    first = [0, *others[:18], 1, *others[18:]]  # 0 is best, 1 in the middle
    second = [*others[:19], 1, *others[19:], 0]  # 0 is worst, 1 in the middle

    def better(fusion: Any) -> int:
        return next(document for document, _ in vote([first, second], fusion) if document in (0, 1))

    assert (better("borda"), better("rrf")) == (1, 0)


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_stability_is_kendalls_tau(first: list[int], second: list[int]) -> None:
    pairs = list(itertools.combinations(range(6), 2))
    agree = sum((first.index(a) < first.index(b)) == (second.index(a) < second.index(b)) for a, b in pairs)
    assert stability([first, second]) == pytest.approx((2 * agree - len(pairs)) / len(pairs))


def test_stability_of_many_documents_is_quick_to_tell() -> None:
    orders = [random.Random(seed).sample(range(5000), 5000) for seed in range(2)]
    agreement = stability(orders)
    assert agreement is not None
    assert abs(agreement) < 0.1
