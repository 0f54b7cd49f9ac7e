"""What a ranking may cost at most, and how long documents share a context fairly."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from .documents import Usage
from .errors import InputError, InputTypeError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits for one query, all its passes together. The run ends before a call that would break one, with the
    best order so far.

    Args:
        calls: Requests to the model.
        tokens: Tokens computed, prompt and generated together.
        thinking_tokens: Tokens generated while thinking; the last call's thinking is cut to what is left.
        seconds: Wall time since the start of the query; a call that is under way by then is given up.
    """

    calls: int | None = None
    tokens: int | None = None
    thinking_tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None:
                continue
            numeric = (int, float) if item.name == "seconds" else int
            if isinstance(value, bool) or not isinstance(value, numeric):
                raise InputTypeError(f"budget.{item.name}", f"expected a number, got {type(value).__name__}")
            if not value > 0:
                raise InputError(f"budget.{item.name}", f"{value} allows nothing; pass more than 0, or leave it out")

    def exceeded(self, spent: Usage, seconds: float, next_call: int = 0) -> str | None:
        """Names the limit that one more call would break; None where it may go ahead.

        Args:
            spent: What was used so far.
            seconds: Time since the start of the query.
            next_call: Tokens that the next call is going to compute at most.
        """
        if self.calls is not None and spent.calls >= self.calls:
            return f"the budget of {self.calls} calls is used up"
        if self.tokens is not None and spent.tokens + next_call > self.tokens:
            return f"the next call would take {spent.tokens + next_call} tokens, the budget is {self.tokens}"
        if self.thinking_tokens is not None and spent.thinking >= self.thinking_tokens:
            return f"the budget of {self.thinking_tokens} thinking tokens is used up"
        if self.seconds is not None and seconds >= self.seconds:
            return self.deadline_passed()
        return None

    def deadline_passed(self) -> str:
        """What to say of a run that took too long."""
        return f"the deadline of {self.seconds:g} s has passed"

    def thinking_left(self, asked: int, spent: Usage) -> int:
        """Thinking tokens that the next call may take."""
        if self.thinking_tokens is None:
            return asked
        return max(0, min(asked, self.thinking_tokens - spent.thinking))


NO_LIMIT = Budget()


class Ledger:
    """What one query has spent of its budget. Its clock starts when it is made.

    Attributes:
        budget: The limits.
        spent: Sum of what was used so far.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.spent = Usage()
        self._started = time.monotonic()

    def exceeded(self, next_call: int = 0) -> str | None:
        """See `Budget.exceeded`."""
        return self.budget.exceeded(self.spent, time.monotonic() - self._started, next_call)

    def thinking_left(self, asked: int) -> int:
        """See `Budget.thinking_left`."""
        return self.budget.thinking_left(asked, self.spent)

    def seconds_left(self) -> float | None:
        """Until the deadline, at least 0; None without one."""
        if self.budget.seconds is None:
            return None
        return max(0.0, self.budget.seconds - (time.monotonic() - self._started))


def fair_cap(lengths: Sequence[int], total: int) -> int:
    """The largest length to which all can be cut so that they fit together: short ones stay whole.

    Args:
        lengths: Tokens of each document.
        total: Tokens for all of them together.

    >>> fair_cap([10, 100, 300], 210)
    100
    >>> fair_cap([10, 20], 100)
    20
    """
    left = max(total, 0)
    ordered = sorted(lengths)
    for position, length in enumerate(ordered):
        share = left // (len(ordered) - position)
        if length > share:
            return share
        left -= length
    return ordered[-1] if ordered else 0


def shorten(text: str, limit: int, count: Callable[[str], int]) -> str:
    """The beginning of a text that counts at most `limit` tokens, cut between words where that costs little.

    Args:
        text: Any text, also one without spaces.
        limit: Tokens to keep, 0 or more.
        count: Number of tokens in a text.
    """
    low, high = 0, max(limit, 1)
    while high < len(text) and count(text[:high]) <= limit:  # grow first: a long text is never counted whole
        low, high = high, 2 * high
    high = min(high, len(text))
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[:middle]) <= limit:
            low = middle
        else:
            high = middle - 1
    kept = text[:low]
    if not (text[low : low + 1].strip() and kept[-1:].strip()):
        return kept.rstrip()  # the cut does not fall inside a word
    whole = len(kept) - len(kept.split()[-1])
    # Scripts without spaces have no word to spare.
    return kept[:whole].rstrip() if whole > max(0, low - _LONGEST_WORD) else kept


_LONGEST_WORD = 30
"""Characters that may be given up so that a cut does not fall inside a word."""
