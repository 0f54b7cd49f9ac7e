"""Reasons made from the data, for a cold start: what a candidate shares with the query, and the right answer.

They teach a model the form, to look at every candidate before it answers, and where it may end; reinforcement
learning then finds out which reasons are worth their tokens.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ..prompts import close_thinking, quote, render_answer
from ..rows import Row
from .questions import Question, Questions
from .trajectories import sparing

_WORD = re.compile(r"[^\W_]{4,}")
_NAMED = 3
"""Shared words that a reason names of a candidate."""
_TOLD = 4
"""Candidates that a reason speaks of."""


@dataclass(frozen=True, kw_only=True)
class Rationale:
    """A question with a reason and its answer.

    Args:
        question: What is asked.
        thinking: Sentences, the last of them the conclusion.
        answer: The right labels.
    """

    question: Question
    thinking: tuple[str, ...]
    answer: tuple[str, ...]

    def text(self, sentences: int | None = None) -> str:
        """What the policy should write after its thinking was opened.

        Args:
            sentences: Keep only so many, the last ones; None: all.
        """
        thought = " ".join(self.thinking if sentences is None else self.thinking[len(self.thinking) - sentences :])
        return thought + close_thinking(thought) + render_answer(self.answer)


def rationale(row: Row, questions: Questions, *, seed: int = 0) -> Rationale:
    """A reason for one question about a row: the first, or one that a perfect policy comes to.

    Args:
        row: With a relevant candidate.
        questions: Whose card asks.
        seed: Decides, with the row, which question it is.
    """
    rng = random.Random(f"{seed}/{row.id}")
    walked = [question for question, _ in questions.walk(row, sparing(row, rng))]
    question = rng.choice(walked)
    shared = _shared_words(row)
    relevance = dict(zip(question.labels, question.relevance, strict=True))
    words = {label: shared[place] for label, place in zip(question.labels, question.places, strict=True)}
    # Best first: by relevance, then by what a candidate has in common with the query, then by chance: an order that
    # follows the labels would teach that the last of them is the worst.
    order = sorted(question.labels, key=lambda label: (-relevance[label], -len(words[label]), rng.random()))
    # The worst first where they are eliminated.
    answer = tuple(order) if question.ask == "rank" else tuple(reversed(order))[: question.pick]
    last = order[-1:] if question.ask == "rank" else answer
    told = {*order[: max(1, _TOLD - len(last))], *last}
    thinking = [
        _sentence(label, row, words[label], best=label == order[0]) for label in question.labels if label in told
    ]
    named = answer[:1] if question.ask == "rank" else answer
    conclusion = " ".join(wording()["conclusion"][question.ask].format(label=label) for label in named)
    return Rationale(question=question, thinking=(*thinking, conclusion), answer=answer)


def _sentence(label: str, row: Row, words: Sequence[str], *, best: bool) -> str:
    say = wording()[row.task]
    kind = "fits" if best else "shares" if words else "differs"
    return say[kind].format(label=label, words=", ".join(words[:_NAMED]))


def wording() -> Mapping[str, Mapping[str, str]]:
    """The sentences of reasons, by task; `conclusion` by what is asked."""
    return {name: value for name, value in _file().items() if name != "unsaid"}


@cache
def _file() -> dict[str, Any]:
    import yaml

    text = (resources.files(__package__) / "rationales.yaml").read_text(encoding="utf-8")
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def _shared_words(row: Row) -> Sequence[Sequence[str]]:
    """For each candidate the words that it shares with the query or the history, the rarest of the list first."""
    asked = set(_WORD.findall(" ".join([row.query or "", *(row.history or ())]).casefold()))
    asked -= set(_file()["unsaid"].split())
    texts = [dict.fromkeys(_WORD.findall(quote(candidate.text).casefold())) for candidate in row.candidates]
    common = Counter(word for words in texts for word in words)
    return [
        # What all have in common tells nothing.
        sorted((word for word in words if word in asked and common[word] < len(texts)), key=lambda word: common[word])
        for words in texts
    ]
