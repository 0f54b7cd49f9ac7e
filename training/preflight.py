"""What is looked at before the first step: tokenizer, templates and prompts; and what a training will cost."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engines.tokenization import ChatTokenizer
from ..engines.transformers import TransformersEngine
from ..errors import InputError
from ..options import RankingOptions, settle
from ..parsing import parse
from ..prompts import THINK_OPEN, close_thinking, open_turn, render_answer
from ..rows import Row
from .questions import Question, Questions
from .recipe import LabelStage, PolicyStage
from .rewards import elimination_regret_reward, elimination_reward, ranking_reward
from .weights import count_parameters

if TYPE_CHECKING:
    from .recipe import Stage

_SAMPLE = 200
"""Examples whose tokens are counted for an estimate."""


def check_answers(model: Any, tokenizer: Any, questions: Questions, rows: Sequence[Row]) -> None:
    """Sees to it that an answer can be written and read.

    Args:
        model: What answers.
        tokenizer: Its tokenizer.
        questions: What it is asked.
        rows: At least one of each task.

    Raises:
        InputError: Labels of several tokens, a chat template that rewrites earlier turns (in `append` form), or a
            tokenizer that loses a part of an answer.
    """
    card, chat = questions.card, ChatTokenizer(tokenizer)
    split = [label for label in card.labels.alphabet if label not in chat.label_ids]
    if split:
        good = "".join(label for label in card.labels.alphabet if label in chat.label_ids)
        raise InputError(
            "ranker.alphabet", f"{', '.join(split)} are not one token each in this model: use {good!r} or a part of it"
        )
    settled = settle(
        TransformersEngine(model, tokenizer),
        RankingOptions(
            strategy=card.ranking_strategy(), templates=card.prompt_templates(), thinking=card.thinking.budget
        ),
    )
    if rewritten := [fault.detail for fault in settled.notes if fault.kind == "form"]:
        raise InputError("ranker.form", f"{rewritten[0]}: set it to rewrite")
    seen = {row.task: row for row in rows}
    for row in seen.values():
        _check_answer(questions.first(row), questions.thinking, chat)


def _check_answer(question: Question, thinking: bool, chat: ChatTokenizer) -> None:
    """Writes a right answer behind a prompt, as a model would, and reads it back from its tokens."""
    rendered = chat.render(question.messages)
    opened = open_turn(rendered, thinking=thinking, constrain=False)
    labels = question.labels[-1:] if question.ask == "eliminate" else question.labels[::-1]
    answer = ("It fits." + close_thinking("It fits.") if thinking else "") + render_answer(labels)
    said = chat.decode(chat.encode(rendered + opened + answer))[-len(answer) :]
    # Where thinking is opened by the template, the parser has to be told.
    read = parse((THINK_OPEN if thinking and THINK_OPEN not in opened else opened) + said, question.labels, len(labels))
    if read.labels != labels or read.faults:
        raise InputError(
            "ranker",
            f"this tokenizer cuts answers: of {answer[-60:]!r} behind the prompt of row {question.row!r} it leaves "
            f"{said[-60:]!r}; lift its limit, if it has one, or take another base",
        )


def check_lengths(
    stage: Stage, mixture: Sequence[Row], questions: Questions, tokenizer: Any, context: int | None
) -> int:
    """Sees to it that all prompts of a stage fit, and gives the tokens of the longest.

    Args:
        stage: Its limit, and how long answers may be.
        mixture: All its examples.
        questions: What is asked about them.
        tokenizer: Of the model.
        context: Most tokens that the model takes, answer included; None: any number.

    Raises:
        InputError: Prompts are longer, or no room is left for an answer; says how many and names the longest.
    """
    chat = ChatTokenizer(tokenizer)
    answer = answer_tokens(stage, questions, chat)
    limit, where = stage.max_prompt_tokens, f"stage {stage.name!r}"
    if context is not None:
        if answer >= context:
            raise InputError("max_completion_tokens", f"{where}: {answer} tokens fill the model's context of {context}")
        limit = min(limit or context, context - answer)
    if answer < (needed := _closing_tokens(questions, chat)):
        detail = f"{where}: {answer} tokens cut answers, of which the longest alone takes {needed}"
        raise InputError("max_completion_tokens", f"{detail}: allow more")
    lengths = {row.id: prompt_tokens(row, questions, chat) for row in mixture}
    over = [length for length in lengths.values() if limit is not None and length > limit]
    longest = max(lengths, key=lambda name: lengths[name])
    if over:
        raise InputError(
            "max_prompt_tokens",
            f"{where}: {len(over)} of {len(lengths)} prompts are longer than {limit} tokens, the longest is of row "
            f"{longest!r} with {lengths[longest]}: shorten them by the stage's phases (candidates, words, history), "
            "or allow more",
        )
    return lengths[longest]


def prompt_tokens(row: Row, questions: Questions, chat: ChatTokenizer) -> int:
    """Tokens of the longest prompt of a row's ranking: in `append` form that of its last step."""
    question = questions.first(row)
    if questions.card.form == "append" and question.ask == "eliminate":
        *_, (question, _) = questions.walk(row, lambda asked: asked.labels[-1:])
    return len(chat.prompt(question.messages, thinking=questions.thinking, constrain=not questions.thinking))


def answer_tokens(stage: Stage, questions: Questions, chat: ChatTokenizer) -> int:
    """Most tokens that a stage lets an answer have."""
    limit = None if isinstance(stage, LabelStage) else stage.max_completion_tokens
    return questions.card.thinking.budget + _closing_tokens(questions, chat) if limit is None else limit


def _closing_tokens(questions: Questions, chat: ChatTokenizer) -> int:
    """Tokens of the end of thinking and the longest answer."""
    closed = close_thinking("") if questions.thinking else ""
    labels = questions.card.labels.alphabet
    return len(chat.encode(closed + render_answer(labels if questions.card.strategy == "dranker" else labels[:1])))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a stage is expected to take.

    Args:
        stage: Its name.
        steps: Optimizer steps.
        examples: Rows.
        tokens: Mean tokens of an example: of all that goes forward and backward for it.
        longest: Tokens of the longest prompt.
        seconds: For the stage, from two steps that were timed.
        memory: Bytes at the peak: the process on a CPU, the device's memory elsewhere.
    """

    stage: str
    steps: int
    examples: int
    tokens: float
    longest: int
    seconds: float
    memory: int


def estimate(
    stage: Stage, mixture: Sequence[Row], questions: Questions, model: Any, tokenizer: Any, *, longest: int
) -> Estimate:
    """Times two micro-steps of a stage, and counts the tokens of some of its examples.

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
    places = sorted(random.Random(0).sample(range(len(mixture)), min(_SAMPLE, len(mixture))))
    lengths = [_example_tokens(stage, mixture[place], questions, chat) for place in places]
    tokens = sum(lengths) / len(lengths)
    sequence = max(1, round(tokens / (stage.group if isinstance(stage, PolicyStage) else 1)))
    rate, generating, memory = _time(model, tokenizer, stage, sequence, chat)
    seconds = stage.examples * tokens * rate
    if isinstance(stage, PolicyStage):
        answer = answer_tokens(stage, questions, chat) if questions.thinking else 1
        seconds += stage.examples * stage.group * answer * generating
    return Estimate(
        stage=stage.name,
        steps=stage.steps,
        examples=stage.examples,
        tokens=tokens,
        longest=longest,
        seconds=seconds,
        memory=memory,
    )


def _example_tokens(stage: Stage, row: Row, questions: Questions, chat: ChatTokenizer) -> int:
    if isinstance(stage, PolicyStage):
        question = questions.first(row)
        prompt = len(chat.prompt(question.messages, thinking=questions.thinking, constrain=not questions.thinking))
        answer = answer_tokens(stage, questions, chat) if questions.thinking else 1
        return stage.group * (prompt + answer)
    if questions.card.form == "append" or questions.card.strategy == "dranker":
        return prompt_tokens(row, questions, chat)
    asked = (question for question, _ in questions.walk(row, lambda question: question.labels[-1:]))
    return sum(len(chat.prompt(question.messages, thinking=False, constrain=True)) for question in asked)


def _time(model: Any, tokenizer: Any, stage: Stage, sequence: int, chat: ChatTokenizer) -> tuple[float, float, int]:
    """Seconds for a token forward and backward, seconds for a token generated, and bytes at the peak."""
    import torch

    device = next(model.parameters()).device
    rows = stage.micro_batch or max(1, min(stage.batch, 1280 // sequence))
    tokens = torch.full((rows, sequence), next(iter(chat.label_ids.values())), device=device)
    mixed = stage.precision == "mixed"
    was_training, seconds = model.training, 0.0
    model.train()
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
        model.eval()
        generating = 0.0
        if isinstance(stage, PolicyStage):
            started = time.perf_counter()
            with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
                model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
            _wait(device)
            generating = (time.perf_counter() - started) / (4 * rows)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    trained, _ = count_parameters(model)
    # Two moments of each trained weight are what the timed steps do not have.
    size = next(parameter.element_size() for parameter in model.parameters() if parameter.requires_grad)
    return seconds / (rows * sequence), generating, memory + 2 * size * trained


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


def sample_rewards(question: Question, *, graded: bool = False) -> Iterator[tuple[str, float]]:
    """Answers to a question with their rewards: each live label, or for a whole ranking three orders."""
    reward = elimination_regret_reward if graded else elimination_reward
    answers: list[tuple[str, ...]] = [(label,) for label in question.labels]
    if question.ask == "rank":
        worth = dict(zip(question.labels, question.relevance, strict=True))
        best = tuple(sorted(question.labels, key=lambda label: -worth[label]))
        reward, answers = ranking_reward, list(dict.fromkeys([best, question.labels, best[::-1]]))
    for labels in answers:
        text = render_answer(labels)
        (value,) = reward(
            completions=[text], labels=[question.labels], relevance=[question.relevance], ask=[question.ask]
        )
        assert value is not None
        yield text, value
