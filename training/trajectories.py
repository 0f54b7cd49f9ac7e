"""Trajectories: a whole ranking as one sequence of tokens, with the places where a label is chosen.

In `append` form every question of an elimination continues the same conversation, so that one pass through the
model sees all its decisions; in `rewrite` form each decision is a sequence of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..engines.tokenization import ChatTokenizer
from ..errors import CheckpointError
from ..rows import Row
from ..strategies import Ask
from .questions import Choice, Question


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A place where one label is chosen out of those that are live.

    Args:
        position: Place in the sequence of the token whose successor is the label.
        ask: `eliminate` wants the worst label, `rank` the best of those that are left.
        labels: The live labels, in shown order.
        tokens: Token of each.
        places: Place of each one's candidate in the row.
        relevance: Relevance of each one's candidate.
    """

    position: int
    ask: Ask
    labels: tuple[str, ...]
    tokens: tuple[int, ...]
    places: tuple[int, ...]
    relevance: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A sequence of tokens and the decisions in it, in order.

    Args:
        row: Id of the row.
        tokens: The sequence, up to the last decision.
        decisions: At least one.
    """

    row: str
    tokens: tuple[int, ...]
    decisions: tuple[Decision, ...]


def trajectories(ranking: Iterable[tuple[Question, Sequence[str]]], tokenizer: ChatTokenizer) -> Iterator[Trajectory]:
    """Lays out a ranking, without thinking.

    Args:
        ranking: Its questions in order, each with the labels of its answer; see `Questions.walk`.
        tokenizer: Of the policy.

    Raises:
        CheckpointError: A label that is not one token, so that no single decision chooses it.
    """
    row, tokens, decisions = "", list[int](), list[Decision]()
    for question, answer in ranking:
        prompt = tokenizer.prompt(question.messages, thinking=False, constrain=True)
        if decisions and prompt[: len(tokens)] != tokens:
            yield Trajectory(row=row, tokens=tuple(tokens), decisions=tuple(decisions))
            decisions = []
        row, tokens = question.row, prompt
        gone = list[str]()
        for label in answer:
            if gone:
                tokens = [*tokens, tokenizer.label_ids[gone[-1]], *tokenizer.between]
            # The last of a whole ranking is no decision, and several that fall at once are one.
            if len(gone) < len(question.labels) - 1 and (not gone or question.ask == "rank"):
                decisions.append(_decision(len(tokens) - 1, question, gone, tokenizer))
            gone.append(label)
    if decisions:
        yield Trajectory(row=row, tokens=tuple(tokens), decisions=tuple(decisions))


def sparing(row: Row, rng: random.Random, guide: Sequence[float] | None = None) -> Choice:
    """A behaviour that keeps the most relevant candidate to the end; the others fall at random, the worst rather.

    Args:
        row: What is ranked.
        rng: Source of chance.
        guide: How good each candidate of the row is, as log-odds; None: all but the most relevant are alike.
    """
    values = list(guide) if guide is not None else [0.0] * len(row.candidates)
    # The order by value plus Gumbel noise is a draw from Plackett and Luce's model.
    noisy = [value - math.log(-math.log(1.0 - rng.random()) + 1e-12) for value in values]

    def choose(question: Question) -> tuple[str, ...]:
        worth = {
            label: (relevance, noisy[place])
            for label, place, relevance in zip(question.labels, question.places, question.relevance, strict=True)
        }
        top = max(question.relevance)
        if question.ask == "rank":
            return tuple(sorted(worth, key=lambda label: worth[label], reverse=True))
        spared = next(label for label in question.labels if worth[label][0] == top)
        others = sorted((label for label in question.labels if label != spared), key=lambda label: worth[label][1])
        return tuple(others[: question.pick])

    return choose


def _decision(position: int, question: Question, gone: Sequence[str], tokenizer: ChatTokenizer) -> Decision:
    unknown = [label for label in question.labels if label not in tokenizer.label_ids]
    if unknown:
        raise CheckpointError(
            f"the labels {', '.join(unknown)} are not one token each in this model: "
            "choose another alphabet for the card, or train with sampled answers (grpo)"
        )
    live = [number for number, label in enumerate(question.labels) if label not in gone]
    labels = tuple(question.labels[number] for number in live)
    return Decision(
        position=position,
        ask=question.ask,
        labels=labels,
        tokens=tuple(tokenizer.label_ids[label] for label in labels),
        places=tuple(question.places[number] for number in live),
        relevance=tuple(question.relevance[number] for number in live),
    )
