"""Questions: the states of a ranking that a policy answers, in the words and the form of its ranker card.

The strategies decide what is asked and the templates word it, as at inference: a prompt seen in training is the
prompt that `R1Reranker` sends for the same documents.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from ..checkpoint import RankerCard
from ..errors import InputError
from ..evaluation.systems import documents_of, task_of
from ..prompts import Message, PromptTemplate
from ..rows import Row
from ..strategies import Answer, Ask, Run, Window
from ..tasks import Task


@dataclass(frozen=True, kw_only=True)
class Question:
    """One state of a ranking, as a policy sees it.

    Args:
        row: Id of the row.
        messages: The conversation so far; the policy writes the next turn.
        ask: `eliminate` wants the worst live labels, worst first, `rank` all of them, best first.
        pick: How many labels the answer names.
        labels: The live labels, in shown order.
        places: For each live label, its candidate's place in the row.
        relevance: For each live label, the relevance of its candidate.
    """

    row: str
    messages: tuple[Message, ...]
    ask: Ask
    pick: int
    labels: tuple[str, ...]
    places: tuple[int, ...]
    relevance: tuple[float, ...]


Choice = Callable[[Question], Sequence[str]]
"""A policy: a question -> the labels of its answer."""
Interview = Generator[Question, Sequence[str], None]
"""Yields questions, is sent the labels of each answer, ends with the ranking."""


class Questions:
    """Asks about rows as the checkpoint with this card asks about documents.

    Args:
        card: Strategy, form, labels, thinking and templates.
    """

    def __init__(self, card: RankerCard) -> None:
        self.card = card
        self.thinking = card.thinking.mode == "free" and card.thinking.budget > 0
        self._templates = card.prompt_templates()
        self._strategy = card.ranking_strategy()

    def run(self, row: Row) -> Interview:
        """Starts to rank a row: yields each question and is sent its answer, as a strategy's run is.

        Args:
            row: With 2 candidates to as many as there are labels.

        Raises:
            InputError: Fewer candidates, or more.
        """
        alphabet = self.card.labels.alphabet
        if not 2 <= len(row.candidates) <= len(alphabet):
            count = len(row.candidates)
            raise InputError("row", f"{row.id!r} has {count} candidates: a question shows 2 to {len(alphabet)}")
        task = task_of(row)
        template = self._templates[task.name]
        texts = [task.candidate_text(document) for document in documents_of(row)]
        return _interview(row, task, texts, template, self._strategy.run(len(texts), alphabet=alphabet), self.thinking)

    def first(self, row: Row) -> Question:
        """What is asked about a whole row."""
        return next(self.run(row))

    def walk(self, row: Row, choose: Choice) -> Iterator[tuple[Question, tuple[str, ...]]]:
        """Ranks a row to its end: each question with the answer that `choose` gave."""
        interview = self.run(row)
        question = next(interview)
        while True:
            answer = tuple(choose(question))
            yield question, answer
            try:
                question = interview.send(answer)
            except StopIteration:
                return


def _interview(
    row: Row, task: Task, texts: Sequence[str], template: PromptTemplate, run: Run, thinking: bool
) -> Interview:
    window, messages = next(run), list[Message]()
    while True:
        # In `append` form a step goes on with the conversation, else each is a new one.
        messages = (
            template.extend(messages, window)
            if window.removed
            else template.render(task, texts, window, thinking=thinking)
        )
        answer = yield _question(row, window, messages)
        try:
            window = run.send(Answer(tuple(answer)))
        except StopIteration:
            return


def _question(row: Row, window: Window, messages: Sequence[Message]) -> Question:
    live = window.live
    return Question(
        row=row.id,
        messages=tuple(messages),
        ask=window.ask,
        pick=window.pick,
        labels=tuple(live),
        places=tuple(live.values()),
        relevance=tuple(row.relevance[place] for place in live.values()),
    )
