"""A cache layer that is appended to in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

_LEAST_ROOM = 256
"""Tokens of room behind those that are known: about ten steps of an elimination."""


@dataclass
class Buffer:
    """Keys and values of a layer, shaped (rows, heads, room, head size), of which the first `used` tokens are known.

    What is known never changes, so that many may look at it; only who knows all of it may append.
    """

    keys: torch.Tensor
    values: torch.Tensor
    used: int

    @classmethod
    def with_room(cls, keys: torch.Tensor, values: torch.Tensor, tokens: int) -> Buffer:
        """An empty buffer of the shape of these keys and values, with room for so many tokens and a few more."""
        room = tokens + max(_LEAST_ROOM, tokens // 4)
        rows, heads, _, size = keys.shape
        return cls(
            keys.new_empty(rows, heads, room, size),
            values.new_empty(rows, heads, room, values.shape[-1]),
            0,
        )

    @property
    def nbytes(self) -> int:
        """Bytes with the room."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes behind what is known."""
        end = self.used + keys.shape[-2]
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        self.used = end


@dataclass(frozen=True)
class Span:
    """The first `length` tokens of a buffer."""

    buffer: Buffer
    length: int

    @property
    def keys(self) -> torch.Tensor:
        """Shaped (rows, heads, length, head size)."""
        return self.buffer.keys[:, :, : self.length]

    @property
    def values(self) -> torch.Tensor:
        """Shaped (rows, heads, length, head size)."""
        return self.buffer.values[:, :, : self.length]

    def cut(self, length: int) -> Span:
        """The first of them."""
        return Span(self.buffer, length)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A `DynamicLayer` that appends where there is room, and copies only where there is none.

    Args:
        start: What is known already.
    """

    def __init__(self, start: Span | None = None) -> None:
        super().__init__()
        self._span = start
        if start is not None:
            self.dtype, self.device = start.keys.dtype, start.keys.device
            self.keys, self.values = start.keys, start.values
            self.is_initialized = True

    def span(self) -> Span:
        """What is known."""
        assert self._span is not None, "nothing was fed"
        return self._span

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends keys and values, and returns all of them."""
        known = self._span
        length = 0 if known is None else known.length
        end = length + key_states.shape[-2]
        buffer = known.buffer if known is not None else None
        if buffer is None or buffer.used != length or buffer.keys.shape[-2] < end:
            buffer = Buffer.with_room(key_states, value_states, end)
            if known is not None:
                buffer.append(known.keys, known.values)
        buffer.append(key_states, value_states)
        self._span = Span(buffer, end)
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = self._span.keys, self._span.values
        return self.keys, self.values
