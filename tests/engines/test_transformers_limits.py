"""TransformersEngine within its limits: deadlines, budgets, memory, and what a step may cost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1_rerank import Budget, Document, IRanker, PromptTemplate, R1Reranker, Routing, ScriptedEngine, Usage
from r1_rerank.engines import Completion, GenerationRequest, TransformersEngine, decoding
from r1_rerank.engines.batching import buckets
from r1_rerank.engines.decoding import Job
from r1_rerank.engines.kv_cache import Batch
from r1_rerank.engines.prefixes import Prefix
from r1_rerank.engines.queueing import Deadline
from r1_rerank.errors import DeadlineError

from .test_transformers import APPEND, ask, passages

SECONDS = 60
"""After which a test that waits for ever fails instead."""


def sharing_weights(engine: TransformersEngine, **options: Any) -> TransformersEngine:
    """Another engine over the same weights, with a cache of its own."""
    return TransformersEngine(engine.model, engine.tokenizer, **options)


def request(tokens: int = 2, known: int = 0) -> Job:
    asked = ask("Which?")
    prefix = Prefix([0] * known, []) if known else None
    return Job(asked, [0] * (known + tokens), Deadline(asked), prefix=prefix)


# A deadline counts from when a request arrives.


@contextmanager
def blocked(engine: TransformersEngine) -> Iterator[threading.Event]:
    """The first batch from now on stands still until the end of the block; the event tells that it has begun."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(module: Any, arguments: Any) -> None:
        if not begun.is_set():
            begun.set()
            go_on.wait(SECONDS)

    handle = engine.model.register_forward_pre_hook(wait)
    try:
        yield begun
    finally:
        go_on.set()
        handle.remove()


@pytest.mark.model
def test_a_deadline_counts_while_another_thread_runs_a_batch(engine: TransformersEngine) -> None:
    with ThreadPoolExecutor(1) as pool:
        with blocked(engine) as begun:
            first = pool.submit(engine.generate, [ask("Which of these?")])
            assert begun.wait(SECONDS)
            (late,) = engine.generate([ask("Which?", timeout=0.2)])
            result = R1Reranker(engine, thinking=0).rerank("tide?", ["a", "b"], budget=Budget(seconds=0.2))
            assert not first.done()
        assert first.result()[0].error is None
    assert isinstance(late.error, DeadlineError)
    assert (result.status, [fault.kind for fault in result.faults]) == ("fallback", ["budget"])


@pytest.mark.model
def test_waiting_for_the_others_of_a_call_counts_too(engine: TransformersEngine) -> None:
    """One of two requests has no deadline, so that the call waits; the other one's passes meanwhile."""
    with ThreadPoolExecutor(2) as pool:
        with blocked(engine) as begun:
            first = pool.submit(engine.generate, [ask("Which of these?")])
            assert begun.wait(SECONDS)
            second = pool.submit(engine.generate, [ask("Which?"), ask("Which?", timeout=0.5)])
            first_is_done = threading.Event()
            first.add_done_callback(lambda _: first_is_done.set())
            assert not first_is_done.wait(3)
        patient, late = second.result()
    assert patient.error is None
    assert isinstance(late.error, DeadlineError)


@pytest.mark.model
async def test_a_deadline_counts_in_the_queue(engine: TransformersEngine) -> None:
    with blocked(engine) as begun:
        first = asyncio.create_task(engine.agenerate(ask("Which of these?")))
        assert await asyncio.to_thread(begun.wait, SECONDS)
        late = await engine.agenerate(ask("Which?", timeout=0.2))
        assert not first.done()
    assert (await first).error is None
    assert isinstance(late.error, DeadlineError)


@pytest.mark.model
@pytest.mark.parametrize(
    "late",
    [
        ask("Which is it?", thinking_budget=4000, timeout=1),
        ask("Which is it?", thinking_budget=4000, labels=None, timeout=1),
        ask("Which is it?", labels=None, max_answer_tokens=4000, timeout=1),
    ],
    ids=["thinking", "thinking of a free answer", "free answer"],
)
def test_a_deadline_that_passes_says_so_alone_and_in_a_batch(engine: TransformersEngine, late: Any) -> None:
    (alone,) = engine.generate([late])
    in_batch, other = engine.generate([late, ask("Which was it?", thinking_budget=6)])
    assert isinstance(alone.error, DeadlineError)
    assert str(in_batch.error) == str(alone.error) == "no answer within 1 s"
    assert isinstance(in_batch.error, DeadlineError)
    assert other.error is None
    assert other.text.startswith("<answer>[")


@pytest.mark.model
def test_what_prompts_share_is_left_when_nobody_waits(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PIECE", 16)
    fed: list[Any] = []
    monkeypatch.setattr(Batch, "feed", lambda batch, rows, feed=Batch.feed: (fed.append(rows), feed(batch, rows)))
    begin = " ".join(passages(1, seed=3, words=100))
    requests = [ask(f"{begin} {end}?", timeout=SECONDS) for end in ("Which", "What")]
    fresh = sharing_weights(engine)
    with monkeypatch.context() as patch:
        patch.setattr(Deadline, "passed", lambda deadline: bool(fed))
        late = fresh.generate(requests)
    assert all(isinstance(completion.error, DeadlineError) for completion in late)
    assert len(fed) == 1  # the first piece of what they share
    assert len(fresh._prefixes) == 0
    assert all(completion.error is None for completion in fresh.generate(requests))
    assert max(len(row) for rows in fed for row in rows) <= 16


# What a ranking leaves behind.


@pytest.mark.model
@pytest.mark.parametrize("form", ["append", "rewrite"])
def test_a_window_takes_the_place_of_the_last_one(engine: TransformersEngine, form: Any) -> None:
    fresh = sharing_weights(engine)
    strategy = IRanker(form=form, window=4, stride=2, windows="always")
    result = R1Reranker(fresh, strategy=strategy, thinking=0).rerank("tide?", passages(8, seed=1, words=5))
    assert result.usage.calls == 2 + 2 + 3
    assert len(fresh._prefixes) == 1
    # A window's later steps go on from its first one, and a window from the query of the one before.
    assert all(step.usage.prompt_reused > 0 for step in result.steps[1:])


@pytest.mark.model
def test_windows_over_a_pool_are_there_for_the_next_query(engine: TransformersEngine) -> None:
    """The pool stands before the query: the last window of one query is not where the next one begins."""
    fresh = sharing_weights(engine)
    pool = [Document(text) for text in passages(8, seed=2, words=20)]
    reranker = R1Reranker(fresh, strategy=IRanker(form="append", window=4, stride=2, windows="always"), thinking=0)
    first, second = (reranker.rerank(Routing(query), pool) for query in ("what is a tide?", "what is 2 + 2?"))
    assert [step.usage.prompt_reused > 100 for step in (first.steps[0], second.steps[0])] == [False, True]


# Budgets.


@pytest.mark.model
def test_a_budget_of_tokens_is_kept_where_the_cache_is_too_small(engine: TransformersEngine) -> None:
    documents = passages(6, seed=3)
    tiny = R1Reranker(sharing_weights(engine, cache_gib=1e-6), strategy=APPEND, thinking=0)
    roomy = R1Reranker(sharing_weights(engine), strategy=APPEND, thinking=0)
    whole = tiny.estimate("tide?", documents)
    budget = Budget(tokens=whole.tokens)
    assert roomy.rerank("tide?", documents, budget=budget).usage.calls >= whole.calls - 1
    cut = tiny.rerank("tide?", documents, budget=budget)
    assert (cut.status, cut.usage.calls) == ("partial", 1)
    assert cut.usage.tokens <= whole.tokens


def test_an_engine_that_did_not_keep_a_conversation_is_not_trusted_again() -> None:
    """It claims to reuse what it computed, and then computes 1,000 tokens anew with every step."""

    def forgets(request: GenerationRequest) -> Completion:
        answer = f"<answer>[{request.labels[0]}]</answer>" if request.labels else "<answer>[A]</answer>"
        return Completion(text=answer, usage=Usage(calls=1, prompt_computed=1000))

    engine = ScriptedEngine(forgets, capabilities=frozenset({"reuse"}))
    documents = ["word " * 110 + str(number) for number in range(9)]
    reranker = R1Reranker(engine, strategy=APPEND, thinking=0)
    assert reranker.rerank("tide?", documents, budget=Budget(tokens=2900)).usage.tokens == 2000


# Batches.


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 6000)), max_size=20), st.integers(1, 8))
def test_rows_of_a_batch_are_about_equally_long(lengths: list[tuple[int, int]], rows: int) -> None:
    jobs = {number: request(tokens, known) for number, (tokens, known) in enumerate(lengths)}
    made = buckets(jobs, rows)
    assert sorted(number for bucket in made for number in bucket) == list(jobs)
    for bucket in made:
        assert len(bucket) <= rows
        computed = [jobs[number].to_compute for number in bucket]
        assert max(computed) <= 1.25 * min(computed) + 64
        known = [jobs[number].known for number in bucket]
        assert max(known) <= 2 * min(known) + 512


def test_rows_that_are_about_equally_long_share_a_batch() -> None:
    known = [3000, 40, 2900, 100, 5000, 300]
    jobs = {number: request(24 + number, length) for number, length in enumerate(known)}
    assert sorted(map(sorted, buckets(jobs, 8))) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.model
@pytest.mark.parametrize("cache_gib", [4.0, 0.1])
def test_a_step_in_a_batch_does_not_copy_what_is_known(engine: TransformersEngine, cache_gib: float) -> None:
    """The rows go on together, or each in memory of its own; and those of both are what the model would compute."""
    fresh = sharing_weights(engine, cache_gib=cache_gib)
    reranker = R1Reranker(fresh, strategy=APPEND, thinking=0)
    lists = [passages(3, seed=seed, words=words) for seed, words in ((4, 5), (5, 9))]
    store, buffers = fresh._prefixes.store, dict[str, list[int]]()

    def storing(session: str, prefix: Prefix) -> None:
        buffers.setdefault(session, []).append(id(prefix.layers[0].buffer))
        store(session, prefix)

    fresh._prefixes.store = storing  # type: ignore[method-assign]
    results = reranker.rerank_batch(["tide?", "moon?"], lists)
    first, second = (seen for name, seen in buffers.items() if not name.startswith("shared/"))
    assert len(set(first)) == len(set(second)) == 1
    assert (first == second) == (cache_gib == 4.0)
    for query, documents, result in zip(["tide?", "moon?"], lists, results, strict=True):
        alone = R1Reranker(sharing_weights(engine, cache_gib=0), strategy=APPEND, thinking=0).rerank(query, documents)
        for ours, theirs in zip(result.steps, alone.steps, strict=True):
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


@pytest.mark.model
@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_that_failed_halfway_leaves_the_conversations_as_they_were(
    engine: TransformersEngine, rows: int
) -> None:
    """Half of the layers have taken the new tokens by then."""
    fresh, whole = sharing_weights(engine), sharing_weights(engine, cache_gib=0)

    def step(turn: str) -> list[GenerationRequest]:
        texts = [text for (text,) in (passages(1, seed=seed, words=30 + seed) for seed in range(rows))]
        return [
            GenerationRequest(
                messages=[
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": "<answer>[D]</answer>"},
                    {"role": "user", "content": turn},
                ][: 3 if turn else 1],
                labels=("A", "B", "C"),
                session=str(number),
            )
            for number, text in enumerate(texts)
        ]

    def fail(module: Any, arguments: Any) -> None:
        raise ValueError("odd shape")

    fresh.generate(step(""))
    layers = engine.model.get_decoder().layers
    handle = layers[len(layers) // 2].register_forward_pre_hook(fail)
    try:
        assert all("odd shape" in str(completion.error) for completion in fresh.generate(step("And now?")))
    finally:
        handle.remove()
    for turn in ("Which of those?", "And now?"):
        for ours, theirs in zip(fresh.generate(step(turn)), whole.generate(step(turn)), strict=True):
            assert ours.usage.prompt_reused > 30
            assert ours.label_logprobs == pytest.approx(theirs.label_logprobs, abs=1e-3)


# Routing.


@pytest.mark.model
def test_a_decision_over_a_known_pool_costs_its_question_and_30_tokens_a_step(engine: TransformersEngine) -> None:
    fresh = sharing_weights(engine)
    pool = [Document(text, price=0.1 * 2**number) for number, text in enumerate(passages(10, seed=6, words=10))]
    reranker = R1Reranker(fresh, strategy=APPEND, thinking=0)
    template = PromptTemplate.builtin("routing")
    empty = fresh.count_tokens([{"role": "user", "content": ""}])
    for query, known in (("what is a tide?", False), ("who wrote Hamlet, and when?", True)):
        usage = reranker.rerank(Routing(query, "cost"), pool).usage
        assert usage.calls == 9
        question = template.layout.partition("{candidates}")[2].format(
            query=query, objective=template.objectives["cost"], think="", ask=template.eliminate
        )
        limit = fresh.count_tokens([{"role": "user", "content": question}]) - empty + 30 * usage.calls
        assert (usage.prompt_computed <= limit) == known
