"""What is found before the first step of the first stage, though it is a later one that could not run."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1_rerank.engines.tokenization import ChatTokenizer
from r1_rerank.errors import CheckpointError, InputError
from r1_rerank.prompts import close_thinking, render_answer
from r1_rerank.rows import Row, write_rows
from r1_rerank.training.estimates import estimate
from r1_rerank.training.generation import completion_tokens, require_vllm
from r1_rerank.training.label_objective import LabelObjective
from r1_rerank.training.preflight import answer_tokens, share_alike
from r1_rerank.training.prompting import Prompts
from r1_rerank.training.recipe import RationaleStage
from r1_rerank.training.rewards import elimination_reward
from r1_rerank.training.run import Training
from r1_rerank.training.sft import rationale_dataset
from r1_rerank.training.weights import count_parameters, load_policy

STAGE: dict[str, Any] = {
    "name": "Cold start",
    "method": "supervised",
    "examples": 8,
    "batch": 4,
    "learning_rate": 1e-2,
    "phases": [{"candidates": [2, 3]}],
}
GRPO = {**STAGE, "name": "RL", "method": "grpo", "group": 2}
REWRITE = {"alphabet": "ABCDEF", "form": "rewrite"}
THINKING = {**REWRITE, "thinking": 8}


def test_a_vllm_that_trl_was_not_made_for_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trl = importlib.import_module("trl.import_utils")
    for version, told in (("0.30.0", False), ("0.99.0", True)):
        monkeypatch.setattr(trl, "_is_package_available", lambda *_, v=version, **__: (True, v))
        require_vllm()
        assert ("0.99.0 installed" in caplog.text) is told


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_generator_that_is_not_there(make: Callable[..., Training]) -> None:
    training = make(ranker=THINKING, stages=[{**STAGE, "method": "sft"}, {**GRPO, "vllm": "colocate"}])
    with pytest.raises(InputError, match="vllm: is not installed"):
        training.run()
    assert not training.out.exists()


@pytest.mark.parametrize(
    ("by", "stage", "told"),
    [
        ("FSDP", STAGE, "accelerate: stage 'Cold start': supervised keeps whole weights.* FSDP"),
        ("DEEPSPEED", STAGE, "accelerate: stage 'Cold start': supervised keeps whole weights.* DeepSpeed"),
        ("FSDP", {**GRPO, "on_policy": True}, "accelerate: answers at once .* use DDP or ZeRO-3"),
    ],
)
def test_processes_that_spread_the_weights(
    make: Callable[..., Training],
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    stage: dict[str, Any],
    told: str,
) -> None:
    training = make(stages=[stage])
    model, tokenizer = load_policy(training.start, training.recipe)
    monkeypatch.setenv(f"ACCELERATE_USE_{by}", "true")
    with pytest.raises(InputError, match=told):
        training.check(model, tokenizer)


@pytest.mark.parametrize("last", [{**STAGE, "name": "last"}, {**GRPO, "name": "last"}])
def test_a_batch_that_processes_cannot_share(
    make: Callable[..., Training], monkeypatch: pytest.MonkeyPatch, last: dict[str, Any]
) -> None:
    from accelerate import PartialState

    training = make(stages=[STAGE, {**last, "batch": 3}])
    model, tokenizer = load_policy(training.start, training.recipe)
    PartialState(cpu=True)
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(InputError, match="batch: 3 rows cannot be shared by 2 processes"):
        training.check(model, tokenizer)


def test_a_tokenizer_that_adds_tokens(
    make: Callable[..., Training], make_tokenizer: Callable[..., Any], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer()
    ending = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    tokenizer.backend_tokenizer.post_processor = ending
    make_model(tokenizer).save_pretrained(tmp_path / "odd-base")
    tokenizer.save_pretrained(tmp_path / "odd-base")
    training = make(base=str(tmp_path / "odd-base"), ranker=REWRITE, stages=[STAGE, GRPO])
    with pytest.raises(CheckpointError, match="adds special tokens"):
        training.run()
    assert not training.out.exists()


# What is no fault


@pytest.mark.parametrize(("candidates", "alphabet"), [(8, "ABCDE"), (60, "ABCDEF")])
def test_rows_with_more_candidates_than_labels_are_cut_by_a_phase(
    make: Callable[..., Training], toy_rows: Callable[..., list[Row]], tmp_path: Path, candidates: int, alphabet: str
) -> None:
    write_rows(toy_rows(6, candidates=candidates), tmp_path / "long.jsonl")
    data = {"train": [{"rows": str(tmp_path / "long.jsonl")}], "validation_limit": 0}
    training = make(data=data, ranker={"alphabet": alphabet}, stages=[{**STAGE, "phases": [{"candidates": [2, 5]}]}])
    assert training.run()[0].steps == 2


# What a dry run measures, and what it tells


class Passes:
    """Counts how often the first layer is computed, and on how many sequences."""

    def __init__(self, model: Any) -> None:
        self.sizes: list[int] = []
        layer = next(module for module in model.modules() if type(module).__name__ == "LlamaDecoderLayer")
        layer.register_forward_pre_hook(lambda _, inputs: self.sizes.append(len(inputs[0])))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_dry_run_times_what_will_run(make: Callable[..., Training], checkpointing: bool) -> None:
    training = make(stages=[{**STAGE, "gradient_checkpointing": checkpointing}])
    model, tokenizer = load_policy(training.start, training.recipe)
    (stage,), (mixture,) = training.recipe.stages, training.inputs.mixtures
    passes = Passes(model)
    estimate(stage, mixture, training.questions, model, tokenizer, longest=100)
    assert len(passes.sizes) == (4 if checkpointing else 2)  # two steps; each again for its gradients
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("stage", "sequences"),
    [
        ({**GRPO, "batch": 4}, 8),  # all answers of a batch
        ({**GRPO, "examples": 16, "batch": 16}, 16),
        ({**GRPO, "micro_batch": 3}, 3),
        ({**STAGE, "method": "sft", "batch": 16}, 8),
        ({**STAGE, "micro_batch": 2}, 2),
    ],
)
def test_a_dry_run_takes_as_many_at_once_as_training(
    make: Callable[..., Training], stage: dict[str, Any], sequences: int
) -> None:
    training = make(ranker=THINKING if stage["method"] == "sft" else REWRITE, stages=[stage])
    model, tokenizer = load_policy(training.start, training.recipe)
    passes = Passes(model)
    (settings,), (mixture,) = training.recipe.stages, training.inputs.mixtures
    estimate(settings, mixture, training.questions, model, tokenizer, longest=100)
    assert passes.sizes[:2] == [sequences] * 2


class Widths:
    """Notes how many sequences of how many tokens are computed."""

    def __init__(self, model: Any) -> None:
        self.seen: list[tuple[int, int]] = []
        layer = next(module for module in model.modules() if type(module).__name__ == "LlamaDecoderLayer")
        layer.register_forward_pre_hook(lambda _, inputs: self.seen.append(tuple(inputs[0].shape[:2])))


def test_a_dry_run_of_reasons_times_the_one_question_that_is_asked_about_a_row(make: Callable[..., Training]) -> None:
    training = make(ranker=THINKING, stages=[{**STAGE, "method": "sft"}])
    model, tokenizer = load_policy(training.start, training.recipe)
    (stage,), (mixture,) = training.recipe.stages, training.inputs.mixtures
    assert isinstance(stage, RationaleStage)
    prompts = Prompts(training.questions, tokenizer)
    limit = completion_tokens(stage, prompts, 3)
    trained = [len(one["input_ids"]) for one in rationale_dataset(mixture, prompts, limit=limit, seed=stage.seed)]
    widths = Widths(model)
    found = estimate(stage, mixture, training.questions, model, tokenizer, longest=100)
    assert found.tokens == sum(trained) / len(trained)
    assert {width for _, width in widths.seen} == {round(found.tokens)}


def test_a_dry_run_of_rewritten_eliminations_times_each_as_a_sequence(
    make: Callable[..., Training], toy_rows: Callable[..., list[Row]]
) -> None:
    training = make(ranker=REWRITE, stages=[STAGE])
    model, tokenizer = load_policy(training.start, training.recipe)
    rows = toy_rows(8, candidates=6)  # five eliminations each
    laid_out = LabelObjective(
        training.questions, ChatTokenizer(tokenizer), method="supervised", reward=elimination_reward
    ).lay_out(rows)
    assert len(laid_out.sequences) == 8 * 5
    widths = Widths(model)
    found = estimate(training.recipe.stages[0], rows, training.questions, model, tokenizer, longest=100)
    trained = sum(len(one.tokens) for one in laid_out.sequences)
    assert found.tokens == pytest.approx(trained / 8, rel=0.01)  # other candidates fall
    assert all(width == pytest.approx(trained / 40, rel=0.01) for _, width in widths.seen)
    assert {count for count, _ in widths.seen} == {1280 // round(found.tokens / 5)}


@pytest.mark.parametrize(("lora", "copies"), [(None, 1), ({"r": 4}, 0)])
def test_a_dry_run_counts_the_weights_that_a_policy_must_not_leave_far(
    make: Callable[..., Training], monkeypatch: pytest.MonkeyPatch, lora: Any, copies: int
) -> None:
    from r1_rerank.training import estimates

    monkeypatch.setattr(estimates, "_peak", lambda _: 0)
    found = []
    for kl in (0.0, 0.1):
        training = make(ranker=REWRITE, lora=lora, stages=[{**GRPO, "kl": kl}])
        model, tokenizer = load_policy(training.start, training.recipe)
        (stage,), (mixture,) = training.recipe.stages, training.inputs.mixtures
        found.append(estimate(stage, mixture, training.questions, model, tokenizer, longest=100).memory)
    whole = sum(4 * parameter.numel() for parameter in model.parameters())
    assert found[1] - found[0] == copies * whole


@pytest.mark.parametrize(
    ("ranker", "stage", "processes", "sequences"),
    [
        (THINKING, {**GRPO, "micro_batch": 2}, 1, 8),  # a whole batch, whatever is trained on together
        (THINKING, GRPO, 2, 4),
        (REWRITE, {**GRPO, "method": "rloo"}, 1, 8),
        (REWRITE, GRPO, 1, 0),  # a rollout draws labels
        (THINKING, {**GRPO, "vllm": "server"}, 1, 0),
        (THINKING, {**STAGE, "method": "sft"}, 1, 0),
    ],
)
def test_a_dry_run_counts_what_generation_keeps_of_its_tokens(
    make: Callable[..., Training],
    monkeypatch: pytest.MonkeyPatch,
    ranker: dict[str, Any],
    stage: dict[str, Any],
    processes: int,
    sequences: int,
) -> None:
    from r1_rerank.training import estimates

    monkeypatch.setattr(estimates, "_peak", lambda _: 0)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    training = make(ranker=ranker, stages=[stage])
    model, tokenizer = load_policy(training.start, training.recipe)
    (settings,), (mixture,) = training.recipe.stages, training.inputs.mixtures
    found = estimate(settings, mixture, training.questions, model, tokenizer, longest=100)
    answer = answer_tokens(settings, training.questions, ChatTokenizer(tokenizer), 3) if "thinking" in ranker else 1
    config, (trained, _) = model.config, count_parameters(model)
    head = config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4  # keys and values in float32
    assert found.memory == 2 * 4 * trained + sequences * (100 + answer) * token


def test_a_dry_run_counts_each_update_on_the_same_samples(
    make: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    from r1_rerank.training import estimates

    training = make(ranker=REWRITE, stages=[{**GRPO, "iterations": 3, "patience": None}])
    (result,) = training.run()
    monkeypatch.setattr(estimates, "_time", lambda *_: (1.0, 0))  # a token takes a second, and nothing to generate
    monkeypatch.setattr(estimates, "_time_generating", lambda *_: (lambda _: 0.0, 0.0))
    (found,) = training.dry_run().estimates
    assert found.steps == result.steps == 2 * 3
    assert found.seconds == 3 * 8 * found.tokens


def test_a_whole_order_needs_room_for_no_more_labels_than_are_shown(make: Callable[..., Training]) -> None:
    dranker = {"strategy": "dranker", "thinking": 8}
    stage = {**GRPO, "max_completion_tokens": 60, "phases": [{"candidates": [3, 3]}]}
    training = make(ranker=dranker, stages=[stage])
    model, tokenizer = load_policy(training.start, training.recipe)
    training.check(model, tokenizer)
    (settings,) = training.recipe.stages
    free = settings.model_copy(update={"max_completion_tokens": None})
    chat = ChatTokenizer(tokenizer)
    assert answer_tokens(free, training.questions, chat, 3) == 8 + len(
        chat.encode(close_thinking("") + render_answer("ABC"))
    )
    tight = make(ranker=dranker, stages=[{**stage, "max_completion_tokens": 4}])
    with pytest.raises(InputError, match=r"max_completion_tokens: .* 4 tokens cut answers"):
        tight.check(model, tokenizer)


def test_examples_from_which_nothing_is_learned_are_counted(
    make: Callable[..., Training],
    toy_rows: Callable[..., list[Row]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where all are relevant, the reward is one, whatever falls."""
    training = make()
    stage = training.recipe.stages[0]
    rows = toy_rows(4)
    dull = [replace(row, relevance=(1.0, 1.0, 1.0)) for row in rows]
    assert share_alike(stage, rows, training.questions) == 0
    assert share_alike(stage, [*rows, *dull], training.questions) == 0.5
    assert [one.alike for one in training.dry_run().estimates] == [0.0, 0.0]
    with caplog.at_level(logging.INFO, "r1_rerank.training"):
        training.run()
    assert "RL: every answer has the same reward in 0% of first questions" in caplog.text
