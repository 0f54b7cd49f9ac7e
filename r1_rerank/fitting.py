"""Makes a list fit into the model's context: smaller windows first, shorter documents where that is not enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from .budget import fair_cap, shorten
from .documents import Fault
from .engines.base import Engine, context_tokens, count_many
from .errors import ContextOverflowError
from .options import RankingOptions
from .prompts import Message, quote
from .strategies import IRanker, Window
from .tasks import Task

ANSWER_TOKENS_PER_LABEL = 8
"""Room for one label and its separator in an answer."""
TURN_TOKENS = 30
"""Most tokens that a further step adds to a conversation."""
SMALLEST_WINDOW = 4
"""Documents that a prompt should hold; longer documents are shortened so far."""
SHORTEST_DOCUMENT = 8
"""Tokens below which a shortened document is no document any more."""
BYTES_PER_TOKEN = 6
"""More than text has on average; a list that would not fit even so has no chance to."""
_SPLIT = 1
"""A label may split a word of its document, which then counts one more."""


@dataclass(frozen=True)
class Fit:
    """What the prompts will show.

    Args:
        texts: Every document, shortened where needed.
        capacity: How many of them one prompt can hold; None: no limit but the labels.
        notes: What had to be done.
    """

    texts: Sequence[str]
    capacity: int | None = None
    notes: tuple[Fault, ...] = ()


def fit(task: Task, texts: Sequence[str], options: RankingOptions, engine: Engine) -> Fit:
    """Finds windows and lengths with which every prompt of a run fits, whichever documents meet in it.

    Raises:
        ContextOverflowError: Not even a few words of two documents fit.
    """
    context = context_tokens(engine)
    if context is None:
        return Fit(texts)
    strategy, alphabet = options.strategy, len(options.alphabet)
    in_one = len(texts) <= (alphabet if strategy.windows == "auto" else min(strategy.window, alphabet))
    most = len(texts) if in_one else min(strategy.window, alphabet)
    room = _Room(task, options, engine, most)
    # A token is at least one byte, so short lists need no counting.
    sizes_in_bytes = [len(quote(text).encode()) for text in texts]
    if room.left(most, sizes_in_bytes) >= 0:
        return Fit(texts)
    # Next the prompt as a whole, where it holds all: a server is asked once, and then for a prompt that it knows.
    has_chance = in_one and room.left(most, [size // BYTES_PER_TOKEN for size in sizes_in_bytes]) >= 0
    if has_chance and room.left_in_one(texts) >= 0:
        return Fit(texts)
    lengths = count_texts(engine, list(map(quote, texts)))
    sizes = [most, *range(min(strategy.window, most - 1), 1, -1)]
    size = next((size for size in sizes if room.left(size, lengths) >= 0), 1)
    smallest = min(SMALLEST_WINDOW, most)
    if size >= smallest:
        return Fit(texts, size, () if size == most else (_windowed(most, context, size),))
    for size in range(smallest, 1, -1):
        cap = fair_cap(sorted(lengths)[-size:], room.left(size, []))
        if cap >= SHORTEST_DOCUMENT:
            break
    else:
        raise ContextOverflowError(
            f"no room for documents in a context of {context} tokens, of which query and instructions take "
            f"{room.frame} and thinking {options.thinking}: pass a shorter query, think less, raise the engine's "
            "context_tokens or the server's own limit, or take a model with a longer context"
        )
    cut = [index for index, length in enumerate(lengths) if length > cap]
    count = partial(count_text, engine)
    shortened = [
        shorten(quote(text), cap, count) if length > cap else text for text, length in zip(texts, lengths, strict=True)
    ]
    shown = ", ".join(map(str, cut[:10])) + (", …" if len(cut) > 10 else "")
    notes = [Fault(None, "shortened", f"{len(cut)} documents cut to {cap} tokens to fit the context: {shown}")]
    if size < most:
        notes.append(_windowed(most, context, size))
    return Fit(shortened, size, tuple(notes))


def count_text(engine: Engine, text: str) -> int:
    """Tokens of a text inside a message."""
    return count_texts(engine, [text])[0]


def count_texts(engine: Engine, texts: Sequence[str]) -> list[int]:
    """Tokens of each text inside a message."""
    empty, *whole = count_many(engine, [[{"role": "user", "content": text}] for text in ("", *texts)])
    return [count - empty for count in whole]


class _Room:
    """How many tokens of a context are left for documents, by how many of them a prompt holds."""

    def __init__(self, task: Task, options: RankingOptions, engine: Engine, most: int) -> None:
        self._task = task
        self._options = options
        self._engine = engine
        self._context = context_tokens(engine) or 0
        # The frame grows evenly with the number of candidates: two points tell its size for all.
        few, many = count_many(engine, [self._prompt([""] * 2), self._prompt([""] * max(most, 3))])
        self._for_each = math.ceil((many - few) / (max(most, 3) - 2)) + _SPLIT
        self.frame = few - 2 * (self._for_each - _SPLIT)
        """Tokens of a prompt without any document."""

    def left(self, size: int, lengths: Sequence[int]) -> int:
        """Tokens left when the `size` longest documents meet in one prompt."""
        return self._beside(size) - self.frame - self._for_each * size - sum(sorted(lengths)[-size:])

    def left_in_one(self, texts: Sequence[str]) -> int:
        """Tokens left when all documents stand in one prompt."""
        return self._beside(len(texts)) - _SPLIT * len(texts) - self._engine.count_tokens(self._prompt(texts))

    def _beside(self, size: int) -> int:
        """Tokens of the context beside thinking, answers and further turns."""
        strategy = self._options.strategy
        turns = 0
        if isinstance(strategy, IRanker) and strategy.form == "append":
            each = TURN_TOKENS + ANSWER_TOKENS_PER_LABEL * (strategy.drop - 1)
            turns = each * math.ceil(size / strategy.drop)
        return self._context - turns - self._options.thinking - ANSWER_TOKENS_PER_LABEL * (size + 1)

    def _prompt(self, texts: Sequence[str]) -> list[Message]:
        """The first prompt over these documents."""
        options, size = self._options, len(texts)
        window = Window(
            number=0,
            ask="rank" if options.strategy.name == "dranker" else "eliminate",
            pick=1,
            candidates=tuple(range(size)),
            labels=(options.alphabet * (1 + size // len(options.alphabet)))[:size],
            removed=(),
            standing=(),
        )
        template = options.templates[self._task.name]
        return template.render(self._task, texts, window, thinking=options.thinking > 0)


def _windowed(most: int, context: int, size: int) -> Fault:
    return Fault(None, "windowed", f"{most} documents do not fit into a context of {context} tokens: windows of {size}")
