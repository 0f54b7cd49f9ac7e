"""TransformersEngine with the embedded weights: same answers however they are batched and cached."""

from __future__ import annotations

import asyncio
import copy
import math
import random

import pytest
import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from r1_rerank import Document, IRanker, R1Reranker, Routing
from r1_rerank.engines import Engine, GenerationRequest, TransformersEngine, decoding
from r1_rerank.errors import ContextOverflowError, EngineClosedError, EngineError, InputError, OutOfMemoryError

pytestmark = pytest.mark.model

WORDS = ["tide", "moon", "sea", "harbour", "wave", "current", "salt", "wind", "shore", "boat", "gull", "reef", "net"]
APPEND = IRanker(form="append")


def passages(count: int, seed: int, words: int = 12) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def ask(text: str, labels: tuple[str, ...] | None = ("A", "B", "C"), **options: object) -> GenerationRequest:
    return GenerationRequest(messages=[{"role": "user", "content": text}], labels=labels, **options)


def near_tie(result) -> bool:
    """A step whose two best labels lie within 1e-3: rounding may decide it either way."""
    best = [sorted(step.logprobs.values())[-2:] for step in result.steps if step.logprobs]
    return any(len(pair) == 2 and pair[1] - pair[0] < 1e-3 for pair in best)


# Whatever else runs beside it, a query gets the same ranking.


@pytest.mark.parametrize(
    ("strategy", "thinking"), [(APPEND, 0), (APPEND, 6), (IRanker(form="rewrite"), 0), ("dranker", 0)]
)
def test_rankings_are_the_same_alone_in_a_batch_and_in_another_order(weights, engine, strategy, thinking):
    queries = [f"what moves the {word}?" for word in WORDS[:8]]
    lists = [passages(2 + number % 5, seed=number) for number in range(8)]
    reranker = R1Reranker(engine, strategy=strategy, thinking=thinking)
    uncached = R1Reranker(
        engine.__class__(engine.model, engine.tokenizer, batch_size=1, cache_gib=0),
        strategy=strategy,
        thinking=thinking,
    )
    together = reranker.rerank_batch(queries, lists)
    backwards = reranker.rerank_batch(queries[::-1], lists[::-1])[::-1]
    compared = 0
    for query, documents, first, second in zip(queries, lists, together, backwards, strict=True):
        alone = uncached.rerank(query, documents)
        if near_tie(alone):
            continue
        compared += 1
        order = [hit.index for hit in alone]
        assert [hit.index for hit in first] == order
        assert [hit.index for hit in second] == order
        assert [step.thinking for step in first.steps] == [step.thinking for step in alone.steps]
        for ours, theirs in zip(first.steps, alone.steps, strict=True):
            if ours.logprobs:
                assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
    assert compared >= 6


def test_appended_steps_equal_whole_prompts(weights, engine):
    whole = TransformersEngine(engine.model, engine.tokenizer, cache_gib=0)
    documents = passages(9, seed=3)
    cached = R1Reranker(engine, strategy=APPEND, thinking=0).rerank("what moves the tide?", documents)
    computed = R1Reranker(whole, strategy=APPEND, thinking=0).rerank("what moves the tide?", documents)
    assert len(cached.steps) == 8
    for ours, theirs in zip(cached.steps, computed.steps, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
        assert math.fsum(map(math.exp, ours.logprobs.values())) == pytest.approx(1, abs=1e-5)
    # What the cache saved is exactly what the other computed again.
    assert cached.usage.prompt_computed + cached.usage.prompt_reused == computed.usage.prompt_computed
    assert computed.usage.prompt_reused == 0
    assert all(step.usage.prompt_computed <= 30 for step in cached.steps[1:])


def test_rewritten_steps_reuse_what_stands_before_the_fallen_candidate(weights, engine):
    documents = passages(6, seed=4)
    result = R1Reranker(engine, strategy="iranker", thinking=0).rerank("what moves the gull?", documents)
    for before, after in zip(result.steps, result.steps[1:], strict=False):
        total = after.usage.prompt_computed + after.usage.prompt_reused
        assert total < before.usage.prompt_computed + before.usage.prompt_reused
        assert after.usage.prompt_reused > 0


def test_thinking_is_cut_out_of_the_cache_again(engine):
    result = R1Reranker(engine, strategy=APPEND, thinking=8).rerank("what moves the reef?", passages(5, seed=5))
    assert result.usage.thinking <= 8 * 4
    for step in result.steps[1:]:
        # A turn, the forced tags around the thinking, and none of the earlier thinking.
        assert step.usage.prompt_computed <= 45


# A pool of LLMs is computed once for all queries that are routed over it.


def test_routed_queries_share_the_cache_of_their_pool(engine):
    pool = [
        Document(f"{name} is a model that {text}", price=price)
        for name, text, price in [
            ("Ada", "answers short questions about daily life at low cost", 0.2),
            ("Bo", "writes programs and explains them step by step with care", 2.0),
            ("Cy", "solves mathematics and logic with long chains of thought", 9.0),
            ("Di", "summarises very long reports and keeps the figures right", 4.0),
        ]
    ]
    reranker = R1Reranker(engine, strategy=APPEND, thinking=0)
    queries = [f"what is {number} plus {number}?" for number in range(6)]
    before = engine.count_tokens([{"role": "user", "content": queries[0]}])
    results = reranker.rerank_batch([Routing(query, "cost") for query in queries], [pool] * 6)
    first = [result.steps[0].usage for result in results]
    assert sum(usage.prompt_computed > 100 for usage in first) == 1, "the pool was computed more than once"
    later = reranker.rerank(Routing("who wrote Hamlet?", "cost"), pool)
    assert later.steps[0].usage.prompt_computed < before + 60
    assert later.steps[0].usage.prompt_reused >= 100


# Answers.


def test_a_direct_ranking_names_every_label_once(engine):
    (completion,) = engine.generate([ask("Rank them.", labels=tuple("ABCDEF"), pick=6)])
    assert sorted(completion.label_logprobs) == list("ABCDEF")
    assert completion.text.startswith("<answer>[")
    assert completion.text.count(" > ") == 5
    assert completion.usage.generated == 6


def test_thinking_ends_at_its_budget_and_the_answer_follows(engine):
    (completion,) = engine.generate([ask("Which is it, and why? Explain at length.", thinking_budget=12)])
    assert completion.finish_reason == "length"
    assert completion.thinking
    assert completion.usage.thinking == 12
    assert completion.usage.generated == 13
    assert completion.text[len("<answer>[")] in "ABC"


class Writes:
    """Makes the model write a given text after a few tokens of its own."""

    def __init__(self, engine, text: str, after: int) -> None:
        self.tokens = [None] * after + engine._chat.encode(text)
        self.handle = engine.model.lm_head.register_forward_hook(self.bias)

    def bias(self, module, arguments, logits):
        token = self.tokens.pop(0) if self.tokens else None
        if token is not None:
            logits[..., token] += 1000
        return logits

    def __enter__(self) -> None: ...

    def __exit__(self, *exception) -> None:
        self.handle.remove()


def test_thinking_ends_at_its_closing_tag(engine):
    with Writes(engine, " so it is C.</think>", after=2):
        (completion,) = engine.generate([ask("Which is it?", thinking_budget=60)])
    assert completion.finish_reason == "stop"
    assert completion.thinking.endswith("so it is C.")
    assert completion.usage.thinking < 15
    assert completion.text.startswith("<answer>[")


def test_a_free_answer_ends_at_its_closing_tag(engine):
    with Writes(engine, "<answer>[B]</answer> and so on", after=0):
        (completion,) = engine.generate([ask("Which is it?", labels=None, max_answer_tokens=60)])
    assert completion.text == "<answer>[B]</answer>"
    assert completion.label_logprobs is None
    assert completion.finish_reason == "stop"
    assert completion.usage.generated < 15


def test_an_unconstrained_ranking_is_parsed_and_never_loses_a_document(engine):
    result = R1Reranker(engine, strategy="dranker", thinking=0, constrain=False).rerank("tide?", passages(4, seed=1))
    assert sorted(hit.index for hit in result) == [0, 1, 2, 3]
    assert result.score_kind == "rank"


def test_sampling_follows_the_seed_of_the_request_and_not_its_neighbours(engine):
    prompt = "Tell a story."
    request = ask(prompt, temperature=1.0, seed=7, thinking_budget=6)
    (alone,) = engine.generate([request])
    beside = engine.generate([ask(prompt, temperature=1.0, seed=8, thinking_budget=6), request])[1]
    other = engine.generate([ask(prompt, temperature=1.0, seed=9, thinking_budget=6)])[0]
    assert beside.thinking == alone.thinking
    assert other.thinking != alone.thinking


def test_bfloat16_tells_labels_apart_that_its_own_logits_would_not(weights):
    half = TransformersEngine(weights, dtype="bfloat16")
    result = R1Reranker(half, strategy=APPEND, thinking=0).rerank("what moves the tide?", passages(20, seed=2))
    values = [value for step in result.steps for value in set(step.logprobs.values())]
    assert half._head.exact
    assert len(values) >= 0.98 * sum(len(step.logprobs) for step in result.steps)


# Faults stay with their request.


def test_one_bad_request_does_not_spoil_the_others(engine):
    too_long = ask("word " * 9000)
    odd_label = ask("Which?", labels=("A", "§"))
    good, long, odd = engine.generate([ask("Which?"), too_long, odd_label])
    assert good.error is None
    assert isinstance(long.error, ContextOverflowError)
    assert "8192" in str(long.error)
    assert isinstance(odd.error, EngineError)
    assert "one token" in str(odd.error)


def test_out_of_memory_halves_the_batch_and_goes_on(engine):
    """The model refuses more than two rows, as a full GPU would."""
    seen = []

    def refuse(module, arguments, keywords):
        rows = keywords["input_ids"].shape[0]
        seen.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    small = TransformersEngine(engine.model, engine.tokenizer)
    requests = [ask(f"Which of the {number}?") for number in range(8)]
    expected = [completion.text for completion in engine.generate(requests)]
    handle = engine.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        completions = small.generate(requests)
        assert [completion.text for completion in completions] == expected
        assert max(seen) == 8
        seen.clear()
        small.generate(requests)
        assert max(seen) == 2, "the smaller batch was not remembered"
    finally:
        handle.remove()


def test_a_request_that_never_fits_is_an_error_that_says_so(engine):
    def refuse(module, arguments, keywords):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    small = TransformersEngine(engine.model, engine.tokenizer)
    handle = engine.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        (completion,) = small.generate([ask("Which?")])
    finally:
        handle.remove()
    assert isinstance(completion.error, OutOfMemoryError)


def test_an_exception_in_the_model_is_an_error_of_its_requests(engine):
    def fail(module, arguments, keywords):
        raise ValueError("odd shape")

    handle = engine.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        result = R1Reranker(engine, thinking=0).rerank("tide?", ["a", "b"])
    finally:
        handle.remove()
    assert result.status == "fallback"
    assert "odd shape" in result.faults[0].detail


def test_a_closed_engine_refuses(weights, engine):
    closed = TransformersEngine(copy.copy(engine.model), engine.tokenizer)
    closed.close()
    closed.close()
    assert isinstance(closed.generate([ask("Which?")])[0].error, EngineClosedError)
    assert isinstance(asyncio.run(closed.agenerate(ask("Which?"))).error, EngineClosedError)


# Async.


async def test_requests_that_wait_together_run_together(engine):
    requests = [ask(f"Which of {number}?") for number in range(4)]
    together = await asyncio.gather(*map(engine.agenerate, requests))
    assert [completion.text for completion in together] == [c.text for c in engine.generate(requests)]


async def test_cancelling_ends_the_thinking_and_leaves_nothing_behind(engine):
    task = asyncio.create_task(engine.agenerate(ask("Explain everything at length.", thinking_budget=4000)))
    waiting = asyncio.create_task(engine.agenerate(ask("Which?")))
    await asyncio.sleep(0.5)
    task.cancel()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Far less than 4,000 tokens later the engine is free again.
    completion = await asyncio.wait_for(engine.agenerate(ask("Which?")), timeout=60)
    assert completion.error is None
    assert not engine._queue._waiting


# Chat templates and models of other kinds.


def tokenizer_with(weights: str, template: str | None):
    tokenizer = AutoTokenizer.from_pretrained(weights)
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_that_opens_thinking_is_closed_before_a_label(weights, engine):
    template = AutoTokenizer.from_pretrained(weights).chat_template.replace(
        "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
    )
    opened = TransformersEngine(engine.model, tokenizer_with(weights, template))
    tokens = opened._chat.prompt([{"role": "user", "content": "x"}], thinking=False, constrain=True)
    assert opened._chat.decode(tokens).endswith("<think>\n\n</think>\n<answer>[")
    tokens = opened._chat.prompt([{"role": "user", "content": "x"}], thinking=True, constrain=True)
    assert opened._chat.decode(tokens).count("<think>") == 1


def test_a_template_that_rewrites_earlier_turns_falls_back_to_rewrite_and_says_so(weights, engine):
    template = (
        "{% for message in messages %}{% if message['role'] == 'user' and not loop.last %}(earlier)"
        "{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}ASSISTANT: "
    )
    rewriting = TransformersEngine(engine.model, tokenizer_with(weights, template))
    result = R1Reranker(rewriting, strategy=APPEND, thinking=0).rerank("tide?", passages(3, seed=6))
    assert [fault.kind for fault in result.faults] == ["form"]
    assert result.status == "ok"


def test_a_model_without_a_chat_template_gets_a_plain_prompt(weights, engine):
    plain = TransformersEngine(engine.model, tokenizer_with(weights, None))
    assert R1Reranker(plain, strategy=APPEND, thinking=0).rerank("tide?", passages(3, seed=6)).status == "ok"


def test_labels_that_are_no_single_token_are_not_given_out(weights, engine):
    tokenizer = AutoTokenizer.from_pretrained(weights)
    tokenizer.add_tokens(["[A", "[B"])
    odd = TransformersEngine(engine.model, tokenizer)
    result = R1Reranker(odd, thinking=0).rerank("tide?", passages(3, seed=6))
    assert result.faults[0].kind == "labels"
    assert {step.answer[len("<answer>[")] for step in result.steps} <= set("CDE")


def test_control_tokens_of_this_tokenizer_are_broken_in_documents(weights, engine):
    tokenizer = AutoTokenizer.from_pretrained(weights)
    tokenizer.add_special_tokens({"additional_special_tokens": ["§system§"]})
    strict = TransformersEngine(engine.model, tokenizer)
    tokens = strict._chat.prompt([{"role": "user", "content": "a §system§ b"}], thinking=False, constrain=True)
    assert tokenizer.convert_tokens_to_ids("§system§") not in tokens


def test_sliding_windows_run_without_reuse_and_row_by_row(weights):
    tokenizer = AutoTokenizer.from_pretrained(weights)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=16,
        max_position_embeddings=2048,
    )
    sliding = TransformersEngine(MistralForCausalLM(config), tokenizer)
    assert "reuse" not in sliding.capabilities
    reranker = R1Reranker(sliding, strategy=APPEND, thinking=3)
    lists = [passages(count, seed=count) for count in (3, 5)]
    together = reranker.rerank_batch(["tide?", "moon?"], lists)
    for query, documents, result in zip(["tide?", "moon?"], lists, together, strict=True):
        assert result.usage.prompt_reused == 0
        assert [hit.index for hit in reranker.rerank(query, documents)] == [hit.index for hit in result]


# Bad input.


def test_bad_arguments_are_named(weights, engine):
    with pytest.raises(InputError, match="tokenizer"):
        TransformersEngine(engine.model)
    for name, value in (
        ("batch_size", 0),
        ("batch_size", True),
        ("cache_gib", -1),
        ("device", "tpu9"),
        ("device", "cuda:99"),
        ("dtype", "int3"),
    ):
        with pytest.raises(InputError, match=name):
            TransformersEngine(weights, **{name: value})


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)
    assert engine.device == "cpu"
    assert engine.dtype == "float32"
    assert engine.context_tokens == 8192


def test_equal_prompts_in_one_batch_are_counted_once(engine):
    engine.clear_cache()
    prompt = " ".join(passages(1, seed=9, words=100))
    first, second = engine.generate([ask(prompt), ask(prompt)])
    total = len(engine._chat.prompt(ask(prompt).messages, thinking=False, constrain=True))
    usages = sorted((first.usage, second.usage), key=lambda usage: usage.prompt_computed)
    assert [usage.prompt_computed for usage in usages] == [1, total]
    assert [usage.prompt_reused for usage in usages] == [total - 1, 0]


@pytest.mark.parametrize("strategy", [APPEND, IRanker(form="append", drop=3), "dranker"])
def test_an_estimate_is_what_an_answer_only_run_computes(engine, strategy):
    fresh = TransformersEngine(engine.model, engine.tokenizer)
    reranker = R1Reranker(fresh, strategy=strategy, thinking=0)
    documents = passages(7, seed=11)
    estimate = reranker.estimate("what moves the tide?", documents)
    usage = reranker.rerank("what moves the tide?", documents).usage
    assert estimate.calls == usage.calls
    assert estimate.generated == usage.generated
    assert estimate.prompt_computed == usage.prompt_computed
    assert estimate.prompt_reused == usage.prompt_reused


def test_an_estimate_with_thinking_is_an_upper_bound_and_not_far_off(engine):
    reranker = R1Reranker(engine, strategy=APPEND, thinking=5)
    documents = passages(6, seed=12)
    estimate = reranker.estimate("what moves the net?", documents)
    engine.clear_cache()
    usage = reranker.rerank("what moves the net?", documents).usage
    assert usage.prompt_computed <= estimate.prompt_computed <= 1.1 * usage.prompt_computed
    assert usage.thinking <= estimate.thinking


def test_a_cache_too_small_to_keep_a_prefix_only_costs_time(engine):
    tiny = TransformersEngine(engine.model, engine.tokenizer, cache_gib=0.002)
    pool = [Document(" ".join(passages(1, seed=number, words=40))) for number in range(4)]
    results = R1Reranker(tiny, strategy=APPEND, thinking=0).rerank_batch(
        [Routing(f"what is {number}?") for number in range(3)], [pool] * 3
    )
    for result in results:
        assert result.status == "ok"
        assert all(step.usage.prompt_reused >= 0 for step in result.steps)


def test_without_a_cache_nothing_is_reused_and_the_estimate_knows(engine):
    whole = TransformersEngine(engine.model, engine.tokenizer, cache_gib=0)
    assert "reuse" not in whole.capabilities
    reranker = R1Reranker(whole, strategy=APPEND, thinking=0)
    documents = passages(5, seed=13)
    estimate = reranker.estimate("what moves the gull?", documents)
    assert estimate.prompt_computed == reranker.rerank("what moves the gull?", documents).usage.prompt_computed


@pytest.mark.parametrize("strategy", [IRanker(), IRanker(window=4, stride=2, windows="always"), IRanker(drop=2)])
def test_an_estimate_is_never_exceeded(engine, strategy):
    fresh = TransformersEngine(engine.model, engine.tokenizer)
    reranker = R1Reranker(fresh, strategy=strategy, thinking=0)
    documents = [*passages(4, seed=14, words=3), *passages(4, seed=15, words=30)]
    estimate = reranker.estimate("what moves the boat?", documents)
    usage = reranker.rerank("what moves the boat?", documents).usage
    assert usage.calls == estimate.calls
    assert usage.prompt_computed <= estimate.prompt_computed


def test_sampling_leaves_the_global_random_state_alone(engine):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    engine.generate([ask("Which?", temperature=1.0)])
    assert torch.equal(torch.rand(1), expected)


def test_a_long_prompt_is_fed_in_pieces_with_the_same_result(engine):
    fresh = TransformersEngine(engine.model, engine.tokenizer, cache_gib=0)
    requests = [ask(" ".join(passages(1, seed=16, words=count))) for count in (2600, 2300)]
    apart = [fresh.generate([request])[0] for request in requests]
    for completion, other in zip(fresh.generate(requests), apart, strict=True):
        assert completion.usage.prompt_computed > decoding.PIECE
        assert completion.usage.prompt_computed == other.usage.prompt_computed
        assert completion.label_logprobs == pytest.approx(other.label_logprobs, abs=1e-3)
    tokens = torch.tensor([fresh._chat.prompt(requests[0].messages, thinking=False, constrain=True)])
    with torch.inference_mode():
        logits = engine.model(input_ids=tokens, logits_to_keep=1).logits[0, -1]
    ids = [fresh._chat.label_ids[label] for label in "ABC"]
    assert torch.log_softmax(logits[ids], dim=0).tolist() == pytest.approx(
        list(apart[0].label_logprobs.values()), abs=1e-3
    )


def test_an_alphabet_of_two_keeps_the_append_form(engine):
    result = R1Reranker(engine, strategy=APPEND, thinking=0, alphabet="AB").rerank("tide?", passages(3, seed=6))
    assert result.faults == ()
