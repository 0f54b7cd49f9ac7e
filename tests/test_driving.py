"""Queries over engines that schedule by themselves: each advances on its own, and nothing is left behind."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from r1_rerank import Budget, R1Reranker, ScriptedEngine
from r1_rerank.engines import Completion, GenerationRequest
from r1_rerank.errors import DeadlineError, EngineError

QUERY = "which number is largest?"


def smallest(request: GenerationRequest) -> str:
    shown = dict(re.findall(r"^\[(\w)\] ?(.*?) ?\[\1\]$", request.messages[0]["content"], re.MULTILINE))
    return f"<answer>[{min(shown, key=lambda label: int(shown[label]))}]</answer>"


class SchedulingEngine(ScriptedEngine):
    """Answers each request in a thread of its own."""

    def __init__(self, script: Any = smallest, *, delay: Callable[[GenerationRequest], float] | None = None) -> None:
        super().__init__(script, batch_size=4)
        self._delay = delay
        self._threads = ThreadPoolExecutor(16)
        self.cancelled: list[GenerationRequest] = []
        self.together = self.most_together = 0
        self._count = threading.Lock()

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        future: Future[Completion] = Future()
        with self._count:
            self.together += 1
            self.most_together = max(self.most_together, self.together)

        def run() -> None:
            time.sleep(0.0 if self._delay is None else self._delay(request))
            with self._count:
                self.together -= 1
            if future.set_running_or_notify_cancel():
                future.set_result(self.generate([request])[0])
            else:
                self.cancelled.append(request)

        self._threads.submit(run)
        return future


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_many_queries_are_ranked_right() -> None:
    engine = SchedulingEngine()
    sizes = [0, 1, 2, 9, 3, 7, 1, 20, 5, 4]
    results = R1Reranker(engine, thinking=0).rerank_batch([QUERY] * len(sizes), [numbers(size) for size in sizes])
    assert [[hit.text for hit in result] for result in results] == [numbers(size)[::-1] for size in sizes]
    assert engine.most_together <= 4  # its batch_size


def test_a_slow_query_holds_nobody_up() -> None:
    def delay(request: GenerationRequest) -> float:
        return 1.0 if "slow" in request.messages[0]["content"] else 0.0

    found = R1Reranker(SchedulingEngine(delay=delay), thinking=0).rerank_iter(
        ["slow", *[QUERY] * 6], [numbers(3), *[numbers(5)] * 6]
    )
    assert [number for number, _ in found][-1] == 0


def test_passes_of_a_query_run_together() -> None:
    engine = SchedulingEngine(delay=lambda _: 0.3)
    result = R1Reranker(engine, thinking=0, passes=3).rerank(QUERY, numbers(4))
    assert [hit.text for hit in result] == ["3", "2", "1", "0"]
    assert engine.most_together == 3


def test_a_failed_request_costs_only_its_query() -> None:
    def script(request: GenerationRequest) -> Any:
        return EngineError("lost") if "bad" in request.messages[0]["content"] else smallest(request)

    results = R1Reranker(SchedulingEngine(script), thinking=0).rerank_batch(["bad", QUERY], [numbers(3)] * 2)
    assert [result.status for result in results] == ["fallback", "ok"]


def test_an_engine_that_raises_costs_only_the_query() -> None:
    class Broken(SchedulingEngine):
        def submit(self, request: GenerationRequest) -> Future[Completion]:
            if "bad" in request.messages[0]["content"]:
                raise RuntimeError("no room")
            return super().submit(request)

    results = R1Reranker(Broken(), thinking=0).rerank_batch(["bad", QUERY], [numbers(3)] * 2)
    assert [result.status for result in results] == ["fallback", "ok"]
    assert "RuntimeError: no room" in results[0].faults[0].detail


def test_nobody_wants_the_rest() -> None:
    engine = SchedulingEngine(delay=lambda request: 0.0 if "quick" in request.messages[0]["content"] else 1.0)
    found = R1Reranker(engine, thinking=0).rerank_iter(["quick", *[QUERY] * 7], [numbers(2), *[numbers(9)] * 7])
    next(found)
    found.close()
    deadline = time.monotonic() + 30
    while len(engine.cancelled) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(engine.cancelled) == 3  # the others of the four that were under way
    assert len(engine.requests) == 1


def test_a_deadline_reaches_the_engine_and_ends_the_run() -> None:
    def script(request: GenerationRequest) -> Any:
        assert request.timeout is not None
        assert 0 <= request.timeout <= 5
        if len(engine.requests) < 3:
            return smallest(request)
        return Completion(error=DeadlineError("no answer in time"))

    engine = ScriptedEngine(script)
    result = R1Reranker(engine, thinking=0, on_error="raise").rerank(QUERY, numbers(6), budget=Budget(seconds=5))
    assert (result.status, len(result.steps)) == ("partial", 2)
    assert [(fault.kind, fault.detail) for fault in result.faults] == [("budget", "the deadline of 5 s has passed")]
    assert [hit.text for hit in result] == ["2", "3", "4", "5", "1", "0"]


def test_without_a_deadline_the_engine_hears_of_none() -> None:
    engine = ScriptedEngine(smallest)
    R1Reranker(engine, thinking=0).rerank(QUERY, numbers(3))
    assert [request.timeout for request in engine.requests] == [None, None]


# On an event loop


class WaitingEngine(ScriptedEngine):
    """Answers three requests at once; with the others it waits until they are cancelled."""

    def __init__(self) -> None:
        super().__init__(smallest)
        self.asked = self.given_up = 0

    async def agenerate(self, request: GenerationRequest) -> Completion:
        self.asked += 1
        if self.asked > 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.given_up += 1
                raise
        return await super().agenerate(request)


async def test_a_stream_that_is_left_early_leaves_nothing_behind() -> None:
    engine = WaitingEngine()
    stream = R1Reranker(engine, thinking=0, passes=2).astream(QUERY, numbers(6))
    async for _ in stream:
        if engine.asked > 3:
            break
    assert len(asyncio.all_tasks()) > 1
    await stream.aclose()
    assert engine.given_up == engine.asked - 3
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert stream.result is None


def test_a_loop_that_ends_closes_a_stream_without_complaint(caplog: pytest.LogCaptureFixture) -> None:
    engine = WaitingEngine()
    stream = R1Reranker(engine, thinking=0, passes=2).astream(QUERY, numbers(6))

    async def leave() -> None:
        async for _ in stream:
            if engine.asked > 3:
                break

    asyncio.run(leave())
    assert engine.given_up > 0
    assert caplog.messages == []


async def test_an_engine_that_cancels_its_own_request_does_not_cancel_the_caller() -> None:
    class Ending(ScriptedEngine):
        async def agenerate(self, request: GenerationRequest) -> Completion:
            lost: Future[Completion] = Future()
            lost.cancel()
            return await asyncio.wrap_future(lost)

    result = await R1Reranker(Ending(smallest), thinking=0).arerank(QUERY, numbers(4))
    assert (result.status, [hit.text for hit in result]) == ("fallback", numbers(4))
    assert [fault.kind for fault in result.faults] == ["engine"]


def test_an_engine_that_cannot_count_a_step_costs_that_query_alone() -> None:
    class Uncounted(ScriptedEngine):
        def count_tokens(self, messages: Any) -> int:
            if self.requests and "odd" in str(messages):  # after the first step
                raise ValueError("lost count")
            return super().count_tokens(messages)

    ranker = R1Reranker(Uncounted(smallest, context_tokens=10_000), thinking=0, budget=Budget(tokens=100_000))
    odd, even = ranker.rerank_batch(["odd", "even"], [numbers(4), numbers(4)])
    assert even.status == "ok"
    assert odd.status == "partial"
    assert [(fault.kind, fault.detail) for fault in odd.faults] == [("engine", "ValueError: lost count")]
    assert sorted(hit.index for hit in odd) == [0, 1, 2, 3]


async def test_tokens_are_not_counted_on_the_loop() -> None:
    threads = set()

    class Counting(ScriptedEngine):
        def count_tokens(self, messages: Any) -> int:
            threads.add(threading.current_thread())
            return super().count_tokens(messages)

    ranker = R1Reranker(Counting(smallest, context_tokens=10_000), thinking=0, budget=Budget(tokens=100_000))
    threads.clear()
    assert (await ranker.arerank(QUERY, numbers(4))).status == "ok"
    assert threads
    assert threading.current_thread() not in threads


@pytest.mark.model
def test_a_deadline_ends_thinking(engine: Any) -> None:
    started = time.monotonic()
    result = R1Reranker(engine, thinking=4000).rerank(QUERY, numbers(3), budget=Budget(seconds=1))
    assert result.status in ("partial", "fallback")
    assert [fault.kind for fault in result.faults if fault.kind == "budget"] == ["budget"]
    assert sorted(hit.index for hit in result) == [0, 1, 2]
    assert result.usage.thinking < 4000
    assert time.monotonic() - started < 60  # and not the minutes that 4,000 tokens take
