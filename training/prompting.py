"""What TRL has to know of prompts and answers: special tokens, where an answer ends, and what a tokenizer cannot do."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..engines.tokenization import ChatTokenizer
from ..errors import CheckpointError
from ..prompts import ANSWER_CLOSE, FIRST_LABEL, THINK_OPEN, close_thinking, render_answer
from ..rows import Row
from .columns import columns_of
from .questions import Question, Questions

if TYPE_CHECKING:
    from datasets import Dataset


class Prompts:
    """The prompts of a policy, as TRL reads them.

    Args:
        questions: Whose card asks.
        tokenizer: Of the policy.

    Raises:
        CheckpointError: A tokenizer that loses part of an answer.

    Attributes:
        questions: What was passed.
        chat: The tokenizer as the engines use it.
    """

    def __init__(self, questions: Questions, tokenizer: Any) -> None:
        self.questions = questions
        self.chat = ChatTokenizer(tokenizer)
        self._tokenizer = tokenizer
        # TRL reads completions without special tokens: a tag that is one would be gone.
        whole = f"{THINK_OPEN}\nIt fits.{close_thinking('')}{render_answer(questions.card.labels.alphabet[:2])}"
        read: str = tokenizer.decode(self.chat.encode(whole), skip_special_tokens=True)
        if read.strip() != whole:
            raise CheckpointError(f"this tokenizer cuts answers: {whole!r} is read as {read!r}; take another base")

    def columns(self, question: Question) -> dict[str, Any]:
        """A question as TRL and the rewards read it; its prompt is still to be tokenized without special tokens."""
        return columns_of(question, self.chat, thinking=self.questions.thinking)

    @property
    def end(self) -> list[int]:
        """What ends a turn: nothing where the tokenizer has no token for it."""
        return [] if self._tokenizer.eos_token_id is None else [self._tokenizer.eos_token_id]

    def tokens(self, question: Question) -> list[int]:
        """The prompt's tokens."""
        return self.chat.encode(self.columns(question)["prompt"])

    def dataset(self, mixture: Sequence[Row]) -> Dataset:
        """The first question about each row as TRL's data set.

        Args:
            mixture: The rows.

        Raises:
            CheckpointError: A tokenizer that adds special tokens which the chat template does not write.
        """
        from datasets import Dataset

        records = [self.columns(self.questions.first(row)) for row in mixture]
        return Dataset.from_list([{**record, "prompt": self._plain(record["prompt"])} for record in records])

    def require_plain(self, question: Question) -> None:
        """Refuses a tokenizer that makes another prompt of the text of this one.

        Raises:
            CheckpointError: It adds special tokens which the chat template does not write.
        """
        self._plain(self.columns(question)["prompt"])

    def require_labels(self) -> None:
        """Refuses labels that the model cannot choose in one step.

        Raises:
            CheckpointError: A label of the card that is not one token.
        """
        if unknown := [label for label in self.questions.card.labels.alphabet if label not in self.chat.label_ids]:
            raise CheckpointError(
                f"the labels {', '.join(unknown)} are not one token each in this model: choose another alphabet"
            )

    def answer(self, label: str) -> list[int]:
        """What follows `<answer>[`, up to the end of the turn: the label is one token."""
        closing = render_answer([label]).removeprefix(FIRST_LABEL + label)
        return [self.chat.label_ids[label], *self.chat.encode(closing), *self.end]

    def endings(self) -> set[tuple[int, ...]]:
        """The tokens that end an answer and its turn, as the closing tag is split after different text."""
        found = set()
        for before in ("A", " ", "\n", *string.punctuation):
            tokens = self.chat.encode(before + ANSWER_CLOSE)
            start = max(n for n in range(len(tokens)) if ANSWER_CLOSE in self._tokenizer.decode(tokens[n:]))
            found.add((*tokens[start:], *self.end))
        return found

    def _plain(self, text: str) -> str:
        """The text that TRL's tokenizer, which adds special tokens, turns into the tokens of this prompt."""
        tokens, bos = self.chat.encode(text), self._tokenizer.bos_token
        for candidate in (text, text.removeprefix(bos) if bos else text):
            if list(self._tokenizer(candidate)["input_ids"]) == tokens:
                return candidate
        raise CheckpointError("this tokenizer adds special tokens that its chat template does not write: take another")
