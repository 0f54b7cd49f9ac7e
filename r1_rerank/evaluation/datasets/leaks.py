"""Duplicates: what stands in two splits, or twice in one, by normalised text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from ...errors import InputError
from ...rows import Row
from .common import Dropped, normalised

Leaks = Literal["drop", "refuse"]


def question_key(row: Row) -> str:
    """What a row asks, normalised: its query, or its whole history."""
    return normalised(row.query) if row.query is not None else "\n".join(map(normalised, row.history or ()))


def content_key(row: Row) -> str:
    """What a row asks and what it lists, whatever the order."""
    texts = sorted(f"{candidate.id}\t{normalised(candidate.text)}" for candidate in row.candidates)
    return "\n".join([row.objective or "", question_key(row), *texts])


class LeakFilter:
    """Takes rows out of train that ask what test asks, or whose passage answers a question of test.

    Args:
        test: The rows of the test split.
        leaks: `refuse` raises at the first, `drop` counts.
        dropped: Counts.
    """

    def __init__(self, test: Iterable[Row], *, leaks: Leaks = "drop", dropped: Dropped | None = None) -> None:
        if leaks not in ("drop", "refuse"):
            raise InputError("leaks", f"{leaks!r} is not one of drop, refuse")
        self._leaks, self._dropped = leaks, Dropped() if dropped is None else dropped
        self._questions: dict[str, str] = {}
        self._passages: dict[str, str] = {}
        for row in test:
            self._questions.setdefault(question_key(row), row.id)
            for text in _answers(row):
                self._passages.setdefault(text, row.id)

    def __call__(self, train: Iterable[Row]) -> Iterator[Row]:
        """Rows that do not leak.

        Raises:
            InputError: A row leaks, and is to be refused.
        """
        for row in train:
            reason, other = self._leak(row)
            if other is None:
                yield row
            elif self._leaks == "refuse":
                raise InputError(
                    "leaks", f"row {row.id!r} of train: {reason} ({other!r}); drop such rows, or mend them"
                )
            else:
                self._dropped.add(reason)

    def _leak(self, row: Row) -> tuple[str, str | None]:
        other = self._questions.get(question_key(row))
        if other is not None:
            return "its question stands in test", other
        found = (self._passages[text] for text in _answers(row) if text in self._passages)
        return "its passage answers a question of test", next(found, None)


def _answers(row: Row) -> Iterator[str]:
    if row.task == "passage":
        for candidate, value in zip(row.candidates, row.relevance, strict=True):
            if value > 0:
                yield normalised(candidate.text)
