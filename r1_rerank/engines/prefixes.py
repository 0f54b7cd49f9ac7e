"""Prompts whose keys and values are kept between calls."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .growing import Span

MIN_SHARED = 64
"""Tokens from which on a prefix of somebody else's prompt is worth taking over."""


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading tokens that are equal."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    low, high = 0, length  # the first difference lies in [low, high): slices compare far faster than a loop
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Prefix:
    """Tokens whose keys and values are known. Never changed once made, so that many may share it.

    Args:
        tokens: The tokens.
        layers: What holds their keys and values.
        row: Where it holds those of several rows, the row of these.
        columns: Where in that row they stand, one for each token; None is from its beginning on.
    """

    tokens: list[int]
    layers: list[Span]
    row: int = 0
    columns: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take, with the room behind them and with the other rows."""
        return sum(span.buffer.nbytes for span in self.layers)

    def cut(self, length: int) -> Prefix:
        """The first `length` tokens."""
        if length == len(self.tokens):
            return self
        if self.columns is None:
            return Prefix(self.tokens[:length], [span.cut(length) for span in self.layers])
        return Prefix(self.tokens[:length], self.layers, self.row, self.columns[:length])

    def runs(self) -> list[tuple[int, int]]:
        """Where its tokens stand, as ranges of columns."""
        if self.columns is None:
            return [(0, len(self.tokens))]
        columns = self.columns.tolist()
        starts = [0, *(place for place in range(1, len(columns)) if columns[place] != columns[place - 1] + 1)]
        return [
            (columns[start], columns[end - 1] + 1)
            for start, end in zip(starts, [*starts[1:], len(columns)], strict=True)
        ]


class PrefixCache:
    """The prefixes of recent sessions, up to a number of bytes; the least recently used goes first.

    Safe to share between threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, Prefix] = OrderedDict()
        self._holders: Counter[int] = Counter()  # of each buffer: rows of one batch share theirs
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, session: str | None, tokens: list[int]) -> Prefix | None:
        """The longest known prefix of a prompt, its last token left out so that there is something to compute."""
        with self._lock:
            best, best_length = None, 0
            if session is not None and session in self._entries:  # nearly always the best: the others then fall fast
                best, best_length = session, self._shared(session, tokens)
            for name in self._entries:
                length = self._shared(name, tokens, more_than=max(best_length, MIN_SHARED - 1))
                if length > best_length:
                    best, best_length = name, length
            if best is None or not best_length:
                return None
            self._entries.move_to_end(best)
            return self._entries[best].cut(best_length)

    def store(self, session: str, prefix: Prefix) -> None:
        """Keeps a prefix under a session's name in place of what it had."""
        with self._lock:
            self._drop(session)
            if prefix.nbytes > self.max_bytes:
                return
            while (more := 0 if self._holders[_held(prefix)] else prefix.nbytes) + self._bytes > self.max_bytes:
                self._drop(next(iter(self._entries)))
            self._entries[session] = prefix
            self._holders[_held(prefix)] += 1
            self._bytes += more

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
            self._holders.clear()
            self._bytes = 0

    def _shared(self, name: str, tokens: list[int], more_than: int = 0) -> int:
        """Tokens that a prompt, its last one left out, shares with an entry; 0 where they are not more than that."""
        known = self._entries[name].tokens
        # One token tells most entries apart that cannot be it.
        if min(len(known), len(tokens) - 1) <= more_than or known[more_than] != tokens[more_than]:
            return 0
        length = min(common_prefix(known, tokens), len(tokens) - 1)
        return length if length > more_than else 0

    def _drop(self, session: str) -> None:
        entry = self._entries.pop(session, None)
        if entry is None:
            return
        self._holders[_held(entry)] -= 1
        if not self._holders[_held(entry)]:
            del self._holders[_held(entry)]
            self._bytes -= entry.nbytes


def _held(prefix: Prefix) -> int:
    """What tells the memory of a prefix from that of others, as long as it lives."""
    return id(prefix.layers[0].buffer)
