"""A model's tokenizer and chat template, as an engine needs them: prompts in, labels out."""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..errors import EngineError
from ..prompts import (
    ANSWER_CLOSE,
    FIRST_LABEL,
    NEXT_LABEL,
    THINK_CLOSE,
    Message,
    break_tokens,
    close_thinking,
    open_turn,
    plain_chat,
    quote,
)
from ..strategies import ALPHABET
from .base import GenerationRequest, Probe, require_room

_PARTS = 128
"""Parts of recent prompts whose tokens are remembered: a step of a conversation then encodes its new turn only."""


class ChatTokenizer:
    """Wraps a Hugging Face tokenizer.

    Attributes:
        label_ids: Token of each label that is one token inside an answer.
        between: Tokens that separate two labels of an answer.
        stops: Tokens that end a turn.
    """

    def __init__(self, tokenizer: Any, end_tokens: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._cutting = re.compile("|".join(map(re.escape, _cutting_tokens(tokenizer))) or "(?!)")
        self._encode_part = lru_cache(_PARTS)(self._encode_whole)
        self.stops = frozenset([*end_tokens, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])])
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        # Longest first: one control token may be part of another.
        self._control_tokens = sorted((token for token in special if token in quote(token)), key=len, reverse=True)
        opening = self.encode(FIRST_LABEL)
        self.label_ids: dict[str, int] = {}
        for label in ALPHABET:
            ids = self.encode(FIRST_LABEL + label)
            if ids[:-1] == opening:
                self.label_ids[label] = ids[-1]
        first = f"{FIRST_LABEL}{ALPHABET[0]}"
        self.between = self.encode(first + NEXT_LABEL)[len(self.encode(first)) :]

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the chat template writes it, up to where the model's turn begins."""
        safe = [
            {"role": message["role"], "content": break_tokens(message["content"], self._control_tokens)}
            for message in messages
        ]
        if not getattr(self._tokenizer, "chat_template", None):
            return (self._tokenizer.bos_token or "") + plain_chat(safe)
        rendered: str = self._tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=True)
        return rendered

    def prompt(self, messages: Sequence[Message], *, thinking: bool, constrain: bool) -> list[int]:
        """Tokens of the prompt and of what opens the model's turn."""
        rendered = self.render(messages)
        return self.encode(rendered + open_turn(rendered, thinking=thinking, constrain=constrain))

    def checked_prompt(self, request: GenerationRequest, context_tokens: int | None) -> list[int]:
        """Tokens of a request's prompt, once it is known that it can be answered.

        Args:
            request: What is asked.
            context_tokens: Longest prompt and answer together, None for no limit.

        Raises:
            EngineError: Labels that are not one token each, or fewer of them than are to be picked.
            ContextOverflowError: Prompt, thinking and answer together are too long.
        """
        constrain = request.labels is not None
        answer = request.max_answer_tokens
        if request.labels is not None:
            unknown = [label for label in request.labels if label not in self.label_ids]
            if unknown or not 1 <= request.pick <= len(request.labels):
                raise EngineError(
                    f"cannot pick {request.pick} of the labels {list(request.labels)}: "
                    + (f"{unknown} are not one token of this model" if unknown else "there are not that many")
                )
            answer = 1 + (request.pick - 1) * (1 + len(self.between))
        if request.thinking_budget:
            answer += request.thinking_budget + len(self.encode(close_thinking("", constrain=constrain)))
        tokens = self.prompt(request.messages, thinking=request.thinking_budget > 0, constrain=constrain)
        require_room(len(tokens), answer, context_tokens)
        return tokens

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; the chat template has written the special tokens already."""
        cuts = [0, *(found.start() for found in self._cutting.finditer(text)), len(text)]
        ids: list[int] = []
        for start, end in itertools.pairwise(cuts):
            ids.extend(self._encode_part(text[start:end]))
        return ids

    def _encode_whole(self, text: str) -> array[int]:
        return array("i", self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of what the model wrote, without the tokens that end its turn."""
        text: str = self._tokenizer.decode([token for token in tokens if token not in self.stops])
        return text

    def thinking_text(self, tokens: Sequence[int]) -> str:
        """What was thought, without the tag that closes it."""
        return self.decode(tokens).partition(THINK_CLOSE)[0].strip()

    def answer_text(self, tokens: Sequence[int]) -> str:
        """An answer that was not constrained, up to the tag that closes it."""
        head, closed, _ = self.decode(tokens).partition(ANSWER_CLOSE)
        return (head + closed).strip()

    def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """Compares the tokens of a conversation with those a step later, and the labels with the vocabulary."""
        # With thinking, a turn is taken up again where it opened: thinking and label are new each time.
        prompts = [
            self.encode(self.render(messages)) if thinking else self.prompt(messages, thinking=False, constrain=True)
            for messages in turns
        ]
        return Probe(
            append=all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(prompts)),
            labels=tuple(label for label in alphabet if label in self.label_ids),
        )


def _cutting_tokens(tokenizer: Any) -> list[str]:
    """Tokens of the chat template before which a text can be cut: its tokens are those of its parts, in a row.

    A fast tokenizer looks for its added tokens first, and encodes what stands between them apart. That does not hold
    for tokens that look at what stands before them, nor where another token could reach across the cut.
    """
    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "split_special_tokens", False):
        return []
    added = list(tokenizer.added_tokens_decoder.values())
    template = str(getattr(tokenizer, "chat_template", None))
    looking_back = [str(token) for token in added if token.lstrip or token.single_word or token.normalized]
    return [
        text
        for text, special in ((str(token), token.special) for token in added)
        if special
        and text in template
        and not text[:1].isspace()
        and not any(other.startswith(text) for other in looking_back)
        and not any(_begins_inside(text, str(other)) for other in added)
    ]


def _begins_inside(token: str, other: str) -> bool:
    """Whether a token can begin behind the first and before the last character of another one."""
    rests = (other[start:] for start in range(1, len(other)))
    return token[:1] in other[1:] and any(rest.startswith(token) or token.startswith(rest) for rest in rests)
