"""Passes, windows, prefilters, budgets and cancellation over the real weights, on every engine alike."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from r1_rerank import Budget, DRanker, IRanker, R1Reranker, RerankResult
from r1_rerank.engines.base import Engine
from r1_rerank.engines.openai import OpenAIEngine

from .conftest import FOREVER, in_float32, wait_for

if TYPE_CHECKING:
    from .conftest import VLLMServer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

QUERY = "why are there two high tides a day?"
DOCUMENTS = [
    f"Passage {number} tells of {what}." for number, what in enumerate(("tides", "bread", "the moon", "cats") * 2)
]


@pytest.fixture(params=["transformers", "vllm", "server"])
def any_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each engine with the same weights in float32."""
    with in_float32(request.param, request) as engine:
        yield engine


def complete(result: RerankResult) -> bool:
    return sorted(hit.index for hit in result) == list(range(len(DOCUMENTS)))


@pytest.mark.parametrize("strategy", [IRanker(form="append"), DRanker()])
def test_passes_vote_and_tell_how_far_they_agree(any_engine: Engine, strategy: IRanker | DRanker) -> None:
    result = R1Reranker(any_engine, strategy=strategy, thinking=0, passes=3, seed=7).rerank(QUERY, DOCUMENTS)
    assert (result.status, result.score_kind) == ("ok", "vote")
    assert complete(result)
    assert result.stability is not None
    assert -1 <= result.stability <= 1
    assert {step.run for step in result.steps} == {1, 2, 3}


@pytest.mark.parametrize("kind", [IRanker, DRanker])
def test_windows_go_over_a_list_that_is_longer_than_they_are(
    any_engine: Engine, kind: type[IRanker] | type[DRanker]
) -> None:
    result = R1Reranker(any_engine, strategy=kind(windows="always", window=4, stride=2), thinking=0).rerank(
        QUERY, DOCUMENTS
    )
    assert result.status == "ok"
    assert complete(result)
    assert max(len(step.shown) for step in result.steps) == 4


@dataclass(frozen=True)
class Backwards:
    """A first stage that turns the order round."""

    name: str = "backwards"
    keep: int = 3

    def order(self, query: str, texts: Sequence[str]) -> list[int]:
        return list(reversed(range(len(texts))))


def test_a_first_stage_hands_its_head_over_and_the_tail_follows(any_engine: Engine) -> None:
    result = R1Reranker(any_engine, thinking=0, prefilter=Backwards()).rerank(QUERY, DOCUMENTS)
    assert result.status == "ok"
    order = [hit.index for hit in result]
    assert sorted(order[:3]) == [5, 6, 7]
    assert order[3:] == [4, 3, 2, 1, 0]
    assert len(result.steps) == 2


def test_time_that_is_up_leaves_the_best_order_so_far(any_engine: Engine) -> None:
    result = R1Reranker(any_engine, thinking=FOREVER).rerank(QUERY, DOCUMENTS, budget=Budget(seconds=1.5))
    assert result.status in ("partial", "fallback")
    assert complete(result)
    assert result.faults[-1].kind == "budget"
    assert result.usage.seconds < 60


def test_a_cancelled_ranking_leaves_nothing_on_a_server(vllm_server: VLLMServer) -> None:
    engine = OpenAIEngine(vllm_server.model, base_url=vllm_server.base_url, timeout=300)
    reranker = R1Reranker(engine, thinking=FOREVER)

    async def abandon() -> None:
        tasks = [asyncio.create_task(reranker.arerank(f"{QUERY} ({number})", DOCUMENTS)) for number in range(3)]
        await asyncio.to_thread(wait_for, lambda: under_way(vllm_server) == 3)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)

    asyncio.run(abandon())
    wait_for(lambda: under_way(vllm_server) == 0)
    engine.close()


def under_way(server: VLLMServer) -> float:
    """Requests that run on a server or wait for it, as it tells its monitoring."""
    with urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    counts = [line for line in lines if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))]
    assert len(counts) == 2, counts
    return sum(float(line.rsplit(" ", 1)[1]) for line in counts)
