"""What a training is expected to cost, from a few steps that are timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engines.tokenization import ChatTokenizer
from ..engines.transformers import TransformersEngine
from ..rows import Row
from .generation import completion_tokens
from .label_objective import _TOKENS
from .precision import computes_mixed
from .preflight import answer_tokens, most_candidates, sample_of, share_alike
from .processes import world_size
from .prompting import Prompts
from .questions import Questions
from .recipe import LabelStage, PolicyStage, RationaleStage
from .rollouts import play
from .trajectories import trajectories
from .weights import count_parameters

if TYPE_CHECKING:
    from .recipe import Stage

_GENERATED = 4
"""Tokens by which the time of one more is measured."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a stage is expected to take.

    Args:
        stage: Its name.
        steps: Optimizer steps.
        examples: Rows.
        tokens: Mean tokens of an example: of all that goes forward and backward for it.
        longest: Tokens of the longest prompt.
        alike: Share of the examples whose first question has one reward for every answer, from which nothing is
            learned.
        seconds: For the stage, from two steps that were timed.
        memory: Bytes at the peak of each process: its own on a CPU, its device's elsewhere. Without those of vLLM.
    """

    stage: str
    steps: int
    examples: int
    tokens: float
    longest: int
    alike: float
    seconds: float
    memory: int


def estimate(
    stage: Stage, mixture: Sequence[Row], questions: Questions, model: Any, tokenizer: Any, *, longest: int
) -> Estimate:
    """Times two micro-steps of a stage and a few tokens that are generated, and counts those of some of its examples.

    Weights stay as they are. Sampled answers are taken to be as long as they may be.

    Args:
        stage: What is estimated.
        mixture: Its examples.
        questions: What is asked about them.
        model: On its device.
        tokenizer: Its tokenizer.
        longest: Tokens of the longest prompt.
    """
    chat = ChatTokenizer(tokenizer)
    label = questions.card.strategy == "iranker" and not questions.thinking
    answer = 1 if label else answer_tokens(stage, questions, chat, most_candidates(mixture))
    examples = list(_sequences(stage, mixture, questions, tokenizer, answer))
    tokens, several = (sum(map(count, examples)) / len(examples) for count in (sum, len))
    sequence = max(1, round(tokens / several))
    rows = _micro_batch(stage, several, sequence)
    rate, memory = _time(model, stage, rows, sequence, chat)
    seconds = stage.examples * tokens * rate * (stage.iterations if isinstance(stage, PolicyStage) else 1)
    if isinstance(stage, LabelStage | PolicyStage) and stage.on_policy:
        # A sampled state lies somewhere on the way; a label stage learns from all of it.
        share = 1.0 if isinstance(stage, LabelStage) else 0.5
        seconds += stage.examples * share * _time_playing(mixture[len(mixture) // 2], questions, model, tokenizer)
    if isinstance(stage, PolicyStage):
        generating, kept = _time_generating(model, rows, sequence, chat)
        seconds += stage.examples * stage.group * generating(answer)
        if stage.vllm is None and not (label and stage.method == "grpo"):  # there a rollout draws the labels
            # TRL generates a whole batch at once. Added to the peak of a step, though no step is taken meanwhile: what
            # it takes besides to compute so many prompts together is not measured.
            memory += round(stage.batch / world_size() * stage.group * (longest + answer) * kept)
        if stage.kl and not hasattr(model, "peft_config"):
            memory += sum(parameter.nbytes for parameter in model.parameters())  # TRL's copy of whole weights
    return Estimate(
        stage=stage.name,
        steps=stage.steps,
        examples=stage.examples,
        tokens=tokens,
        longest=longest,
        alike=share_alike(stage, mixture, questions),
        seconds=seconds,
        memory=memory,
    )


def _sequences(
    stage: Stage, mixture: Sequence[Row], questions: Questions, tokenizer: Any, answer: int
) -> Iterator[list[int]]:
    """Tokens of each sequence that is learned from, for some of the examples; a sampled answer has so many."""
    chat = ChatTokenizer(tokenizer)
    if isinstance(stage, RationaleStage):
        from .sft import rationale_tokens

        prompts = Prompts(questions, tokenizer)
        limit = completion_tokens(stage, prompts, most_candidates(mixture))
        for row in sample_of(mixture):
            prompt, completion = rationale_tokens(row, prompts, limit=limit, seed=stage.seed)
            yield [len(prompt) + len(completion)]
        return
    for row in sample_of(mixture):
        if isinstance(stage, PolicyStage):
            prompt = chat.prompt(
                questions.first(row).messages, thinking=questions.thinking, constrain=not questions.thinking
            )
            yield [len(prompt) + answer] * stage.group
        else:
            ranking = questions.walk(row, lambda question: question.labels[-question.pick :])
            yield [len(found.tokens) for found in trajectories(ranking, chat)]


def _time(model: Any, stage: Stage, rows: int, sequence: int, chat: ChatTokenizer) -> tuple[float, int]:
    """Seconds for a token forward and backward, and bytes at the peak.

    Args:
        model: On its device.
        stage: Whose batches are timed.
        rows: Sequences that go through the model together.
        sequence: Tokens of each.
        chat: For a token.
    """
    import torch

    tokens = _any_tokens(model, rows, sequence, chat)
    device, mixed, was_training, seconds = tokens.device, computes_mixed(model), model.training, 0.0
    model.train()
    if stage.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        for _ in range(2):  # the first one prepares kernels
            started = time.perf_counter()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
                logits = model(input_ids=tokens, logits_to_keep=1, use_cache=False).logits
            logits.float().logsumexp(-1).mean().backward()
            model.zero_grad(set_to_none=False)  # gradients stay in memory, as they do in training
            _wait(device)
            seconds = time.perf_counter() - started
        memory = _peak(device)
    finally:
        if stage.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    trained, _ = count_parameters(model)
    # Two moments of each trained weight are what the timed steps do not have.
    size = next(parameter.element_size() for parameter in model.parameters() if parameter.requires_grad)
    return seconds / (rows * sequence), memory + 2 * size * trained


def _time_generating(model: Any, rows: int, sequence: int, chat: ChatTokenizer) -> tuple[Callable[[int], float], float]:
    """Seconds for an answer of so many tokens, and the bytes that are kept of each token of prompt and answer."""
    import torch

    tokens = _any_tokens(model, rows, sequence, chat)
    device, was_training = tokens.device, model.training

    def generate(count: int) -> tuple[float, Any]:
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_mixed(model)):
            cache = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                min_new_tokens=count,
                max_new_tokens=count,
                do_sample=False,
                return_dict_in_generate=True,
            ).past_key_values
        _wait(device)
        return (time.perf_counter() - started) / rows, cache

    model.eval()
    try:
        generate(1)  # what is slow the first time alone
        (first, _), (several, cache) = generate(1), generate(1 + _GENERATED)
    finally:
        model.train(was_training)
    each = max(0.0, several - first) / _GENERATED
    kept = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    size = sum(value.nbytes for value in kept) / (rows * cache.get_seq_length())
    return lambda answer: first + (answer - 1) * each, size


def _any_tokens(model: Any, rows: int, sequence: int, chat: ChatTokenizer) -> Any:
    import torch

    device = next(model.parameters()).device
    return torch.full((rows, sequence), next(iter(chat.label_ids.values())), device=device)


def _time_playing(row: Row, questions: Questions, model: Any, tokenizer: Any) -> float:
    """Seconds in which a policy plays a row's list to its end."""
    was_training = model.training
    try:
        engine = TransformersEngine(model, tokenizer)
        started = time.perf_counter()
        play([row], questions, engine, temperature=1.0, seed="0")
        return time.perf_counter() - started
    finally:
        model.train(was_training)


def _micro_batch(stage: Stage, several: float, sequence: int) -> int:
    """Sequences that go through the model together, as the trainers decide; an example has several."""
    if isinstance(stage, LabelStage):
        return stage.micro_batch or max(1, min(round(stage.batch * several), _TOKENS // sequence))
    answers = stage.batch * (stage.group if isinstance(stage, PolicyStage) else 1)
    return min(stage.sequences, answers)


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: Any) -> int:
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
