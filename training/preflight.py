"""What is looked at before the first step: tokenizer, templates, prompts, rewards and processes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..engines.tokenization import ChatTokenizer
from ..engines.transformers import TransformersEngine
from ..errors import InputError
from ..options import RankingOptions, settle
from ..parsing import parse
from ..prompts import THINK_OPEN, close_thinking, open_turn, render_answer
from ..rows import Row
from .arguments import training_arguments
from .processes import sharding
from .questions import Question, Questions
from .recipe import LabelStage
from .rewards import elimination_regret_reward, elimination_reward, ranking_reward

if TYPE_CHECKING:
    from .recipe import Stage

_SAMPLE = 200
"""Examples that a share is counted over."""


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
    labels = question.labels[-question.pick :] if question.ask == "eliminate" else question.labels[::-1]
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


def check_label_stage(stage: LabelStage, model: Any) -> None:
    """Sees to it that the processes can train a stage that answers at once.

    Raises:
        InputError: They spread weights, or cannot share its batch.
    """
    if (by := sharding()) is not None:
        detail = f"{stage.method} keeps whole weights in each process, and {by} spreads them or takes over its steps"
        raise InputError("accelerate", f"stage {stage.name!r}: {detail}: use distributed_type: MULTI_GPU")
    training_arguments(stage, "", model)


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
    chat, most = ChatTokenizer(tokenizer), most_candidates(mixture)
    answer = answer_tokens(stage, questions, chat, most)
    limit, where = stage.max_prompt_tokens, f"stage {stage.name!r}"
    if context is not None:
        if answer >= context:
            raise InputError("max_completion_tokens", f"{where}: {answer} tokens fill the model's context of {context}")
        limit = min(limit or context, context - answer)
    if answer < (needed := _closing_tokens(questions, chat, most)):
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


def answer_tokens(stage: Stage, questions: Questions, chat: ChatTokenizer, most: int) -> int:
    """Most tokens that a stage lets an answer have, where its longest list has so many candidates."""
    limit = None if isinstance(stage, LabelStage) else stage.max_completion_tokens
    return questions.card.thinking.budget + _closing_tokens(questions, chat, most) if limit is None else limit


def _closing_tokens(questions: Questions, chat: ChatTokenizer, most: int) -> int:
    """Tokens of the end of thinking and the longest answer."""
    closed = close_thinking("") if questions.thinking else ""
    card = questions.card
    labels = card.labels.alphabet[: most if card.strategy == "dranker" else card.drop]
    return len(chat.encode(closed + render_answer(labels)))


def most_candidates(mixture: Sequence[Row]) -> int:
    """How many the longest list has."""
    return max(len(row.candidates) for row in mixture)


def sample_of(mixture: Sequence[Row]) -> list[Row]:
    """Some of the examples, for counts that need not be exact; the same each time."""
    places = random.Random(0).sample(range(len(mixture)), min(_SAMPLE, len(mixture)))
    return [mixture[place] for place in sorted(places)]


def share_alike(stage: Stage, mixture: Sequence[Row], questions: Questions) -> float:
    """Share of the examples whose first question teaches nothing: every answer has the same reward."""
    rows = sample_of(mixture)
    return sum(_all_alike(questions.first(row), stage.graded) for row in rows) / len(rows)


def _all_alike(question: Question, graded: bool) -> bool:
    return len({value for _, value in sample_rewards(question, graded=graded)}) == 1


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
