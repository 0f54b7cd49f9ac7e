"""The next LLM in rank where one fails: what every router that calls its choice has in common."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Attempts:
    """Remembers which LLMs of a ranking were asked, and how they failed.

    Attributes:
        name: The LLM that is being asked, or that answered.
    """

    def __init__(self) -> None:
        self.name = ""
        self._failed: dict[str, Exception] = {}

    @property
    def failures(self) -> dict[str, str]:
        """How each LLM failed, by name, JSON-ready."""
        return {name: f"{type(error).__name__}: {error}" for name, error in self._failed.items()}

    @contextmanager
    def or_next(self) -> Iterator[None]:
        """Keeps an error, so that the next LLM can be tried."""
        try:
            yield
        except Exception as error:
            logger.warning("LLM %s failed, trying the next in rank: %s", self.name, error)
            self._failed[self.name] = error

    def error(self) -> Exception:
        """That of the LLM which was chosen first, as with LangChain's fallbacks; notes name the others."""
        first, *others = self._failed.items()
        for name, error in others:
            first[1].add_note(f"then {name} failed too: {type(error).__name__}: {error}")
        return first[1]
