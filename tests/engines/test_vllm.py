"""VLLMEngine with the embedded weights: exact labels, kept caches, and nothing left behind."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from r1_rerank import DRanker, IRanker, R1Reranker, RerankResult
from r1_rerank.engines.base import Completion, Engine, GenerationRequest
from r1_rerank.engines.vllm import VLLMEngine
from r1_rerank.engines.vllm_loading import lora_request
from r1_rerank.engines.vllm_runners import replicas
from r1_rerank.errors import (
    CheckpointError,
    ContextOverflowError,
    DeadlineError,
    EngineClosedError,
    EngineError,
    InputError,
    InputTypeError,
    MissingExtraError,
)

from .conftest import FOREVER, wait_for

if TYPE_CHECKING:
    from r1_rerank.engines import TransformersEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.model,
    # vLLM leaves its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

WORDS = ["tide", "moon", "sea", "harbour", "wave", "current", "salt", "wind", "shore", "boat", "gull", "reef", "net"]
BLOCK = 32


def passages(count: int, seed: int, words: int = 12) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def ask(text: str, labels: tuple[str, ...] | None = ("A", "B", "C"), **options: Any) -> GenerationRequest:
    return GenerationRequest(messages=[{"role": "user", "content": text}], labels=labels, **options)


def answer(engine: Engine, request: GenerationRequest) -> Completion:
    (completion,) = engine.generate([request])
    assert completion.error is None, completion.error
    return completion


def near_tie(result: Any) -> bool:
    """A step whose two best labels lie within 1e-3: rounding may decide it either way."""
    best = [sorted(step.logprobs.values())[-2:] for step in result.steps if step.logprobs]
    return any(len(pair) == 2 and pair[1] - pair[0] < 1e-3 for pair in best)


# What an answer is.


def test_it_is_an_engine_with_all_capabilities(vllm_engine: VLLMEngine, engine: TransformersEngine) -> None:
    assert isinstance(vllm_engine, Engine)
    assert vllm_engine.capabilities == {"constrain", "logprobs", "thinking", "reuse"}
    assert vllm_engine.batch_size == 16
    assert vllm_engine.context_tokens == 8192
    messages = ask("what moves the tide?").messages
    assert vllm_engine.count_tokens(messages) == engine.count_tokens(messages)


def test_an_answer_is_a_live_label_and_the_whole_distribution_over_the_live_ones(vllm_engine: VLLMEngine) -> None:
    labels = tuple("QaZbCd")
    completion = answer(vllm_engine, ask("name a letter", labels))
    logprobs = completion.label_logprobs
    assert logprobs is not None
    assert set(logprobs) == set(labels)
    assert math.fsum(map(math.exp, logprobs.values())) == pytest.approx(1, abs=1e-6)
    assert completion.text == f"<answer>[{max(logprobs, key=logprobs.__getitem__)}]</answer>"
    # Renormalised: fewer live labels keep their proportions.
    fewer = answer(vllm_engine, ask("name a letter", labels[:3])).label_logprobs
    assert fewer is not None
    assert fewer["Q"] - fewer["a"] == pytest.approx(logprobs["Q"] - logprobs["a"], abs=1e-3)


def test_one_label_alone_is_no_question(vllm_engine: VLLMEngine) -> None:
    completion = answer(vllm_engine, ask("name a letter", ("Q",)))
    assert (completion.text, completion.usage.generated) == ("<answer>[Q]</answer>", 0)


def test_all_52_labels_can_be_live(vllm_engine: VLLMEngine) -> None:
    from r1_rerank.strategies import ALPHABET

    logprobs = answer(vllm_engine, ask("name a letter", tuple(ALPHABET))).label_logprobs
    assert logprobs is not None
    assert len(logprobs) == 52


def test_several_labels_are_picked_each_once_out_of_those_left(vllm_engine: VLLMEngine) -> None:
    labels = tuple("ABCDEFG")
    first = answer(vllm_engine, ask("order the letters", labels)).label_logprobs
    completion = answer(vllm_engine, ask("order the letters", labels, pick=7))
    assert first is not None
    assert completion.label_logprobs is not None
    named = completion.text.removeprefix("<answer>[").removesuffix("]</answer>").split("] > [")
    assert sorted(named) == sorted(labels)
    assert list(completion.label_logprobs) == named
    assert completion.label_logprobs[named[0]] == pytest.approx(max(first.values()), abs=1e-3)
    assert completion.label_logprobs[named[-1]] == 0.0
    assert completion.usage.generated == 6  # the last one is not asked for
    # Each label is a short call on the cached prompt, not the prompt again.
    assert completion.usage.prompt_computed < 7 * 2 * BLOCK


def test_thinking_ends_with_its_budget_and_a_label_follows(vllm_engine: VLLMEngine) -> None:
    completion = answer(vllm_engine, ask("which letter, and why?", thinking_budget=12))
    assert completion.thinking
    assert completion.finish_reason == "length"
    assert completion.usage.thinking == 12
    assert completion.usage.generated == 13
    assert completion.label_logprobs is not None
    assert set(completion.label_logprobs) == set("ABC")
    # What was thought decides: the label is not the one scored without it.
    unthought = answer(vllm_engine, ask("which letter, and why?")).label_logprobs
    assert completion.label_logprobs != pytest.approx(unthought, abs=1e-3)


def test_without_labels_the_answer_is_free_up_to_its_limit(vllm_engine: VLLMEngine) -> None:
    completion = answer(vllm_engine, ask("say something about tides", None, max_answer_tokens=9))
    assert completion.text
    assert completion.label_logprobs is None
    assert completion.usage.generated == 9
    assert completion.finish_reason == "length"


def test_a_seed_decides_alone_whatever_else_runs(vllm_engine: VLLMEngine) -> None:
    seeds = range(8)
    labels = tuple("ABCDEFGH")

    def drawn(seed: int) -> GenerationRequest:
        return ask("name any letter", labels, temperature=2.0, seed=seed, thinking_budget=4)

    together = [(c.text, c.thinking) for c in vllm_engine.generate([drawn(seed) for seed in seeds])]
    alone = [(c.text, c.thinking) for c in (answer(vllm_engine, drawn(seed)) for seed in seeds)]
    assert together == alone
    assert len(set(together)) > 1


# What is in the cache is not computed again.


@pytest.mark.parametrize("thinking", [0, 8])
def test_a_step_of_a_conversation_computes_little_more_than_its_own_turn(
    vllm_engine: VLLMEngine, thinking: int
) -> None:
    reranker = R1Reranker(vllm_engine, strategy=IRanker(form="append"), thinking=thinking)
    result = reranker.rerank(f"what moves the tide, {thinking}?", passages(12, seed=90 + thinking, words=30))
    first, *later = [step.usage for step in result.steps]
    assert len(later) == 10
    assert first.prompt_computed > 400
    assert first.calls == 1
    for before, usage in zip(result.steps, later, strict=False):
        # Whole blocks are kept: at most one block less than the prompt before, and no thinking of earlier steps.
        calls = 1 if not thinking else 2
        assert usage.prompt_computed <= calls * (BLOCK + 40)
        assert usage.prompt_reused >= before.usage.prompt_reused
        assert usage.prompt_reused > 400


def test_prompts_that_begin_alike_share_what_is_computed(vllm_engine: VLLMEngine) -> None:
    pool = " ".join(passages(8, seed=77, words=40))
    first = answer(vllm_engine, ask(f"{pool} Which one for a storm?")).usage
    second = answer(vllm_engine, ask(f"{pool} Which one for a calm?")).usage
    assert first.prompt_reused < 2 * BLOCK
    assert second.prompt_computed < 2 * BLOCK
    assert second.prompt_computed + second.prompt_reused == first.prompt_computed + first.prompt_reused


# Whole rankings.


@pytest.mark.parametrize("strategy", [IRanker(form="append"), IRanker(form="rewrite"), IRanker(drop=3), DRanker()])
def test_rankings_are_complete_and_the_same_sync_async_and_among_others(
    vllm_engine: VLLMEngine, strategy: IRanker | DRanker
) -> None:
    queries = [f"what moves the {word}?" for word in WORDS[:5]]
    lists = [passages(2 + number, seed=number) for number in range(5)]
    reranker = R1Reranker(vllm_engine, strategy=strategy, thinking=0)
    alone = [reranker.rerank(query, documents) for query, documents in zip(queries, lists, strict=True)]
    batch = reranker.rerank_batch(queries, lists)

    async def gather() -> list[Any]:
        return await asyncio.gather(*(reranker.arerank(q, d) for q, d in zip(queries, lists, strict=True)))

    compared = 0
    for single, *others in zip(alone, batch, asyncio.run(gather()), strict=True):
        assert single.status == "ok"
        assert sorted(hit.index for hit in single) == list(range(len(single.ranking)))
        for other in others:
            assert other.status == "ok"
            if not near_tie(single):
                compared += 1
                assert [hit.index for hit in other] == [hit.index for hit in single]
    assert compared >= 6


async def test_sync_calls_work_inside_a_running_loop(vllm_engine: VLLMEngine) -> None:
    result = R1Reranker(vllm_engine, thinking=0).rerank("what moves the tide?", passages(3, seed=1))
    assert result.status == "ok"


def test_threads_share_an_engine(vllm_engine: VLLMEngine) -> None:
    reranker = R1Reranker(vllm_engine, strategy=IRanker(form="append"), thinking=0)
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        results[number] = reranker.rerank(f"thread {number}", passages(3, seed=number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[number].status for number in range(6)] == ["ok"] * 6


# A request that fails, or that nobody waits for, costs nobody else anything.


def test_one_failed_request_fails_alone_and_in_its_place(vllm_engine: VLLMEngine) -> None:
    requests = [
        ask("first"),
        ask("tide " * 9000),
        ask("unknown label", ("A", "?")),
        ask("too many", pick=4),
        ask("think on", thinking_budget=8192),
        ask("last"),
    ]
    completions = vllm_engine.generate(requests)
    assert [type(completion.error) for completion in completions] == [
        type(None),
        ContextOverflowError,
        EngineError,
        EngineError,
        ContextOverflowError,
        type(None),
    ]
    assert "8192" in str(completions[1].error)
    assert "'?'" in str(completions[2].error)


async def test_cancelling_a_task_leaves_nothing_in_vllm(vllm_engine: VLLMEngine) -> None:
    tasks = [asyncio.create_task(vllm_engine.agenerate(ask("go on", thinking_budget=FOREVER))) for _ in range(3)]
    await asyncio.to_thread(wait_for, lambda: vllm_engine.llm.get_num_unfinished_requests() == 3)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)
    await asyncio.to_thread(wait_for, lambda: vllm_engine.llm.get_num_unfinished_requests() == 0)
    assert (await vllm_engine.agenerate(ask("still there?"))).error is None


def test_cancelling_a_future_leaves_nothing_in_vllm(vllm_engine: VLLMEngine) -> None:
    future = vllm_engine.submit(ask("go on", thinking_budget=FOREVER))
    wait_for(lambda: vllm_engine.llm.get_num_unfinished_requests() == 1)
    assert future.cancel()
    wait_for(lambda: vllm_engine.llm.get_num_unfinished_requests() == 0)


def test_a_late_answer_is_given_up_and_taken_out_of_vllm(vllm_engine: VLLMEngine) -> None:
    late, good = vllm_engine.generate([ask("go on", thinking_budget=FOREVER, timeout=1.0), ask("and you?")])
    assert isinstance(late.error, DeadlineError)
    assert good.error is None
    wait_for(lambda: vllm_engine.llm.get_num_unfinished_requests() == 0)


# An engine that the user has already.


@pytest.fixture
def wrapped(vllm_llm: Any) -> Any:
    engine = VLLMEngine(vllm_llm)
    yield engine
    engine.close()


def test_a_users_llm_ranks_and_stays_open(wrapped: VLLMEngine, vllm_llm: Any) -> None:
    assert wrapped.capabilities == {"constrain", "logprobs", "thinking", "reuse"}
    assert wrapped.batch_size == 16
    queries = [f"what moves the {word}?" for word in WORDS[:3]]
    lists = [passages(4, seed=number) for number in range(3)]
    for strategy in (IRanker(form="append"), DRanker()):
        reranker = R1Reranker(wrapped, strategy=strategy, thinking=4)
        assert [result.status for result in reranker.rerank_batch(queries, lists)] == ["ok"] * 3
        assert asyncio.run(reranker.arerank(queries[0], lists[0])).status == "ok"
    free = answer(wrapped, ask("say something", None, max_answer_tokens=5))
    assert free.usage.generated == 5
    wrapped.close()
    wrapped.close()
    assert isinstance(wrapped.generate([ask("too late")])[0].error, EngineClosedError)
    assert vllm_llm.generate("still there?", use_tqdm=False)[0].outputs[0].text


def test_in_a_users_llm_too_nothing_is_left_behind(wrapped: VLLMEngine, vllm_llm: Any) -> None:
    count = vllm_llm.llm_engine.get_num_unfinished_requests
    cancelled = wrapped.submit(ask("go on", thinking_budget=FOREVER))
    wait_for(lambda: count() == 1)
    cancelled.cancel()
    late, overflow, good = wrapped.generate(
        [ask("go on", thinking_budget=FOREVER, timeout=1.0), ask("tide " * 9000), ask("and you?")]
    )
    assert isinstance(late.error, DeadlineError)
    assert isinstance(overflow.error, ContextOverflowError)
    assert good.error is None
    wait_for(lambda: count() == 0)
    wait_for(vllm_llm.reset_prefix_cache)  # refused while the scheduler holds blocks for anyone


def test_a_prompt_that_just_fits_is_answered(wrapped: VLLMEngine) -> None:
    assert wrapped.context_tokens == 2048
    words = 2040
    while isinstance(wrapped.generate([ask("tide " * words)])[0].error, ContextOverflowError):
        words -= 1
    usage = answer(wrapped, ask("tide " * words)).usage
    assert usage.prompt_computed + usage.prompt_reused == 2047


def test_closing_answers_those_who_wait_in_a_users_llm(vllm_llm: Any) -> None:
    engine = VLLMEngine(vllm_llm)
    waiting = engine.submit(ask("go on", thinking_budget=FOREVER))
    wait_for(lambda: vllm_llm.llm_engine.get_num_unfinished_requests() == 1)
    engine.close()
    assert isinstance(waiting.result(60).error, EngineClosedError)
    assert vllm_llm.llm_engine.get_num_unfinished_requests() == 0


def test_engines_around_one_llm_take_turns(vllm_llm: Any) -> None:
    engines = [VLLMEngine(vllm_llm) for _ in range(2)]
    holding = engines[0].submit(ask("go on", thinking_budget=FOREVER))
    wait_for(lambda: vllm_llm.llm_engine.get_num_unfinished_requests() == 1)
    ended = VLLMEngine(vllm_llm)
    given_up = ended.submit(ask("me too"))
    waiting, late = engines[1].submit(ask("me too")), engines[1].submit(ask("me too", timeout=0.5))
    assert isinstance(late.result(60).error, DeadlineError)
    ended.close()
    assert isinstance(given_up.result(60).error, EngineClosedError)
    assert not waiting.done()
    assert not holding.done()
    holding.cancel()
    assert waiting.result(60).label_logprobs

    found: list[RerankResult] = []

    def rank(engine: VLLMEngine) -> None:
        reranker = R1Reranker(engine, thinking=0)
        found.extend(reranker.rerank_batch([f"what moves the {word}?" for word in WORDS[:8]], [passages(4, 1)] * 8))

    threads = [threading.Thread(target=rank, args=[engine], daemon=True) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [result.status for result in found] == ["ok"] * 16
    for engine in engines:
        engine.close()


def test_a_users_async_engine_is_asked_on_its_own_loop(vllm_engine: VLLMEngine) -> None:
    second = VLLMEngine(vllm_engine.llm)
    assert R1Reranker(second, thinking=0).rerank("what moves the tide?", passages(3, seed=2)).status == "ok"

    async def on_that_loop() -> tuple[list[Completion], RerankResult, Completion]:
        waiting = second.generate([ask("waiting for myself")])
        ranked = R1Reranker(second, thinking=0).rerank("what moves the tide?", passages(3, seed=2))
        return waiting, ranked, await second.agenerate(ask("without waiting"))

    loop = vllm_engine.llm.output_handler.get_loop()
    (blocked,), ranked, free = asyncio.run_coroutine_threadsafe(on_that_loop(), loop).result(60)
    assert "async" in str(blocked.error)
    assert (ranked.status, "async" in ranked.faults[0].detail) == ("fallback", True)
    assert free.error is None
    second.close()
    assert isinstance(second.generate([ask("too late")])[0].error, EngineClosedError)
    assert answer(vllm_engine, ask("the first one goes on")).text


def test_a_users_async_engine_that_no_loop_had_used_is_free_again_afterwards(vllm: Any, vllm_async_llm: Any) -> None:
    async def use(number: str) -> str:
        async for output in vllm_async_llm.generate("The tide is", vllm.SamplingParams(max_tokens=3), number):
            text: str = output.outputs[0].text
        return text

    async def on_a_loop_of_the_user() -> tuple[str, Completion, str]:
        before = await use("before")
        again = VLLMEngine(vllm_async_llm)
        completion = await again.agenerate(ask("and on this loop?"))
        await asyncio.to_thread(again.close)
        return before, completion, await use("after")

    for _ in range(2):  # each time on a new loop of ours
        engine = VLLMEngine(vllm_async_llm)
        waiting = engine.submit(ask("go on", thinking_budget=400))
        assert answer(engine, ask("anybody there?")).label_logprobs
        engine.close()
        assert isinstance(waiting.result(60).error, EngineClosedError)
    VLLMEngine(vllm_async_llm).close()  # never asked
    before, completion, after = asyncio.run(on_a_loop_of_the_user())
    assert completion.error is None
    assert before
    assert after


def test_a_loop_that_ends_under_another_engine_is_an_error_and_no_cancellation(vllm_async_llm: Any) -> None:
    first, second = VLLMEngine(vllm_async_llm), VLLMEngine(vllm_async_llm)
    answer(first, ask("whose loop is it?"))
    waiting = second.submit(ask("go on", thinking_budget=400))
    wait_for(lambda: vllm_async_llm.get_num_unfinished_requests() == 1)
    first.close()
    error = waiting.result(60).error
    assert type(error) is EngineError
    assert "event loop of your vLLM engine has ended" in str(error)
    assert answer(second, ask("and on a loop of its own?")).label_logprobs
    second.close()


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 1),
        ({"data_parallel_size": 4}, 4),
        ({"data_parallel_size": 4, "data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}, 2),
        ({"data_parallel_size": 4, "data_parallel_rank": 3, "data_parallel_external_lb": True}, 1),
    ],
)
def test_only_copies_of_its_own_node_are_asked_behind_a_load_balancer(
    vllm: Any, options: dict[str, Any], count: int
) -> None:
    from vllm.config import ParallelConfig

    assert replicas(ParallelConfig(**options)) == count


def test_a_session_stays_with_the_replica_that_has_its_cache(
    vllm_engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, ranks = vllm_engine.llm.generate, list[Any]()

    def record(*arguments: Any, data_parallel_rank: int | None = None, **options: Any) -> Any:
        ranks.append(data_parallel_rank)
        return generate(*arguments, **options)

    monkeypatch.setattr(vllm_engine.llm, "generate", record)
    monkeypatch.setattr(vllm_engine._runner, "_ranks", 2)
    for _ in range(2):
        for session in ("one", "two", "three", "four", None):
            answer(vllm_engine, ask("where?", session=session))
    assert ranks[:5] == ranks[5:]
    assert set(ranks[:4]) == {0, 1}
    assert ranks[4] is None  # vLLM chooses
    for text in WORDS[:6]:
        ranks.clear()
        answer(vllm_engine, ask(text, thinking_budget=2))
        assert ranks in ([0, 0], [1, 1])  # the label where the thinking is


# Adapters, and engines that end.


def make_adapter(model: Any, folder: Path, *, seed: int = 7) -> Path:
    """A LoRA adapter with random weights, large enough to change what is answered."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    targets = ["q_proj", "v_proj", "down_proj"]
    get_peft_model(
        model, LoraConfig(r=6, lora_alpha=24, target_modules=targets, init_lora_weights=False)
    ).save_pretrained(folder)
    return folder


def test_an_adapter_answers_as_merged_and_a_dead_engine_fails_fast(
    vllm_engine: VLLMEngine, weights: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    from r1_rerank.engines import TransformersEngine

    adapter = make_adapter(AutoModelForCausalLM.from_pretrained(weights), tmp_path / "adapter")
    others = multiprocessing.active_children()
    adapted = VLLMEngine(weights, adapter=adapter, dtype="float32", batch_size=4, kv_cache_memory_bytes=2**30)
    merged = TransformersEngine(weights, adapter=adapter, dtype="float32")
    request = ask("what moves the tide?", tuple("ABCDE"))
    found = answer(adapted, request).label_logprobs
    assert found == pytest.approx(answer(merged, request).label_logprobs, abs=1e-2)
    assert found != pytest.approx(answer(vllm_engine, request).label_logprobs, abs=1e-2)
    merged.close()

    # vLLM's own process ends in the middle of an answer.
    waiting: Future[Completion] = adapted.submit(ask("go on", thinking_budget=FOREVER))
    wait_for(lambda: adapted.llm.get_num_unfinished_requests() == 1)
    for process in multiprocessing.active_children():
        if process not in others:
            os.kill(process.pid or 0, signal.SIGKILL)
    assert "has died" in str(waiting.result(60).error)
    (after,) = adapted.generate([ask("anybody there?")])
    assert type(after.error) is EngineError
    assert "has died" in str(after.error)
    result = R1Reranker(adapted, thinking=0).rerank("what moves the tide?", passages(3, seed=1))
    assert result.status == "fallback"
    adapted.close()
    adapted.close()
    assert isinstance(adapted.generate([ask("and now?")])[0].error, EngineClosedError)
    assert asyncio.run(adapted.agenerate(ask("and now?"))).error is not None
    assert [process for process in multiprocessing.active_children() if process not in others] == []


def test_a_program_that_never_closes_its_engine_ends(weights: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"""\
if __name__ == "__main__":
    from r1_rerank import R1Reranker

    reranker = R1Reranker.from_pretrained({weights!r}, engine="vllm", thinking=0, kv_cache_memory_bytes=2**29)
    print(reranker.rerank("what moves the tide?", ["the moon", "a shed"]).status)
""",
        encoding="utf-8",
    )
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=180, check=True)
    assert ran.stdout.split()[-1:] == ["ok"]


def test_an_adapter_that_does_not_fit_is_named_before_anything_starts(
    vllm_engine: VLLMEngine, weights: str, tmp_path: Path
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    other = make_adapter(LlamaForCausalLM(small), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"other.*another model.*proj has"):
        VLLMEngine(weights, adapter=other)
    with pytest.raises(CheckpointError, match=r"nowhere.*adapter_config.json"):
        VLLMEngine(weights, adapter=tmp_path / "nowhere")
    (other / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(CheckpointError, match=r"no LoRA adapter but 'IA3'"):
        VLLMEngine(weights, adapter=other)


def test_an_engine_without_lora_refuses_an_adapter(vllm_llm: Any, weights: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="enable_lora"):
        VLLMEngine(vllm_llm, adapter=tmp_path)


@pytest.fixture
def unloadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter that only vLLM can refuse, as where the weights are not where they were loaded from any more."""
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = LlamaConfig(vocab_size=64, hidden_size=1152, intermediate_size=48, num_hidden_layers=1)
    monkeypatch.setattr("r1_rerank.engines.vllm.check_adapter", lambda *_: None)
    return make_adapter(LlamaForCausalLM(wide), tmp_path / "other")


def test_an_adapter_that_only_vllm_can_refuse_leaves_the_users_engine_alive(
    adapting_llm: Any, unloadable: Path
) -> None:
    for _ in range(2):  # what was loaded in part is not taken for whole
        with pytest.raises(CheckpointError, match=r"other' cannot be used: vLLM does not load it: "):
            VLLMEngine(adapting_llm, adapter=unloadable)
    assert answer(VLLMEngine(adapting_llm), ask("which?", tuple("AB"))).label_logprobs


def test_an_adapter_that_was_trained_on_in_its_folder_is_another_one(
    adapting_llm: Any, weights: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    found = []
    for seed in (7, 8):
        adapter = make_adapter(AutoModelForCausalLM.from_pretrained(weights), tmp_path / "adapter", seed=seed)
        assert 2**30 <= lora_request(adapter).lora_int_id < 2**31  # vLLM keeps it in 32 bits on a GPU
        assert lora_request(adapter) == lora_request(adapter)
        engine = VLLMEngine(adapting_llm, adapter=adapter)
        found.append(answer(engine, ask("what moves the tide?", tuple("ABCDE"))).label_logprobs)
        engine.close()
    assert found[0] != pytest.approx(found[1], abs=1e-2)


def test_such_an_adapter_fails_every_request_and_leaves_the_users_async_engine_alive(
    vllm_async_llm: Any, unloadable: Path
) -> None:
    refused = VLLMEngine(vllm_async_llm, adapter=unloadable)
    again = VLLMEngine(vllm_async_llm, adapter=unloadable)
    for completion in [*refused.generate([ask("which?")] * 2), *refused.generate([ask("and now?")])]:
        assert type(completion.error) is EngineError
        assert "other' cannot be used: vLLM does not load it: " in str(completion.error)
    assert "cannot be used" in str(again.generate([ask("which?")])[0].error)
    plain = VLLMEngine(vllm_async_llm)
    assert answer(plain, ask("which?")).label_logprobs  # beside those that were refused
    for engine in (plain, again, refused):
        engine.close()


def test_an_adapter_is_loaded_once_whoever_gives_up_meanwhile(
    vllm_async_llm: Any, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    request = ask("what moves the tide?", tuple("ABCDE"))
    plain = VLLMEngine(vllm_async_llm)
    without = answer(plain, request).label_logprobs
    plain.close()
    loads = []
    add_lora = vllm_async_llm.add_lora

    async def counted(lora: Any) -> bool:
        loads.append(lora)
        await asyncio.sleep(0.5)
        return bool(await add_lora(lora))

    monkeypatch.setattr(vllm_async_llm, "add_lora", counted)
    adapter = make_adapter(AutoModelForCausalLM.from_pretrained(weights), tmp_path / "adapter")
    closed = VLLMEngine(vllm_async_llm, adapter=adapter)
    waiting = closed.submit(request)
    wait_for(lambda: bool(loads))
    closed.close()
    assert isinstance(waiting.result(60).error, EngineClosedError)
    adapted = VLLMEngine(vllm_async_llm, adapter=adapter)
    late, good = adapted.generate([ask("too late", timeout=0.1), request])
    assert isinstance(late.error, DeadlineError)
    assert good.label_logprobs != pytest.approx(without, abs=1e-2)
    assert answer(adapted, request).label_logprobs == pytest.approx(good.label_logprobs, abs=1e-2)
    assert len(loads) == 2  # one for each engine
    adapted.close()


def test_an_engine_that_dies_while_it_loads_an_adapter_is_no_adapter_that_does_not_fit(
    vllm_async_llm: Any, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    async def never(lora: Any) -> bool:
        for process in vllm_async_llm.engine_core.resources.engine_manager.processes:
            process.kill()
        await asyncio.sleep(FOREVER)
        return True

    monkeypatch.setattr(vllm_async_llm, "add_lora", never)
    adapter = make_adapter(AutoModelForCausalLM.from_pretrained(weights), tmp_path / "adapter")
    engine = VLLMEngine(vllm_async_llm, adapter=adapter)
    assert "has died" in str(engine.submit(ask("anybody there?")).result(60).error)
    engine.close()


def test_a_users_llm_that_dies_while_it_loads_an_adapter_does_not_wait_forever(
    adapting_llm: Any, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    def never(lora: Any) -> bool:
        for process in adapting_llm.llm_engine.engine_core.resources.engine_manager.processes:
            process.kill()
        threading.Event().wait(FOREVER)
        return True

    monkeypatch.setattr(adapting_llm.llm_engine, "add_lora", never)
    adapter = make_adapter(AutoModelForCausalLM.from_pretrained(weights), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="has died"):
        VLLMEngine(adapting_llm, adapter=adapter)


# What cannot be used is said before anything starts.


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"tensor_parallel_size": True}, InputError, "tensor_parallel_size"),
        ({"context_tokens": -1}, InputError, "context_tokens"),
        ({"gpu_memory": 0.5}, InputTypeError, "gpu_memory.*AsyncEngineArgs"),
        ({"trust_remote_code": True}, InputError, "trust_remote_code"),
        ({"batch_size": 4, "max_num_seqs": 8}, InputError, "max_num_seqs.*batch_size"),
    ],
)
def test_arguments_are_checked(
    vllm_engine: VLLMEngine, weights: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        VLLMEngine(weights, **options)


def test_other_objects_are_refused_by_name(vllm_engine: VLLMEngine, engine: TransformersEngine) -> None:
    with pytest.raises(InputTypeError, match=r"vllm\.LLM.*got LlamaForCausalLM"):
        VLLMEngine(engine.model)
    with pytest.raises(InputError, match=r"dtype.*your own vLLM"):
        VLLMEngine(vllm_engine.llm, dtype="float32")
    with pytest.raises(InputError, match=r"max_num_seqs.*your own vLLM"):
        VLLMEngine(vllm_engine.llm, max_num_seqs=3)
    with pytest.raises(InputError, match=r"batch_size.*your own vLLM"):
        VLLMEngine(vllm_engine.llm, batch_size=1)
    with pytest.raises(InputError, match=r"enforce_eager.*your own vLLM"):
        VLLMEngine(vllm_engine.llm, enforce_eager=True)


def test_a_model_that_vllm_cannot_load_is_named(vllm_engine: VLLMEngine, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(CheckpointError, match=rf"(?s){tmp_path.name}.*VLLM_LOGGING_LEVEL"):
        VLLMEngine(tmp_path, kv_cache_memory_bytes=2**28)
    with pytest.raises(CheckpointError, match="float65"):
        VLLMEngine(tmp_path, dtype="float65")


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"r1-rerank\[vllm"):
        VLLMEngine("some/model")
