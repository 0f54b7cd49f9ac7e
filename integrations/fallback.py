"""The next LLM in rank where one fails: what every router that calls its choice has in common."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .routing_pool import LLMProfile

logger = logging.getLogger(__name__)

DECISION_KEY = "r1_router"
"""Where the decision stands in an answer."""


class Attempts:
    """Goes down a ranking until an LLM answers, and remembers which did not.

    Args:
        decision: What `RoutingDecision.to_dict` gave.
        pool: The profiles that it names, and maybe others.
    """

    def __init__(self, decision: Mapping[str, Any], pool: Sequence[LLMProfile]) -> None:
        profiles = {profile.name: profile for profile in pool}
        self._decision = decision
        self._ranking = [profiles[ranked["llm"]] for ranked in decision["ranking"]]
        self._name = ""
        self._failed: dict[str, Exception] = {}

    def __iter__(self) -> Iterator[LLMProfile]:
        for profile in self._ranking:
            self._name = profile.name
            yield profile

    @contextmanager
    def or_next(self) -> Iterator[None]:
        """Keeps an error, so that the next LLM can be tried."""
        try:
            yield
        except Exception as error:
            logger.warning("LLM %s failed, and the next in rank is asked if there is one: %s", self._name, error)
            self._failed[self._name] = error

    def record(self) -> dict[str, Any]:
        """How the answer came about, JSON-ready: the decision but for the query, `answered_by`, and who `failed`."""
        decision = {key: value for key, value in self._decision.items() if key not in ("id", "query")}
        failed = {name: f"{type(error).__name__}: {error}" for name, error in self._failed.items()}
        return {**decision, "answered_by": self._name, "failed": failed}

    def error(self) -> Exception:
        """That of the LLM which was chosen first, as with LangChain's fallbacks; notes name the others."""
        first, *others = self._failed.items()
        for name, error in others:
            first[1].add_note(f"then {name} failed too: {type(error).__name__}: {error}")
        return first[1]


def readable(request: str) -> str:
    """What a request is routed by: an image alone has to be answered too."""
    return request if request.strip() else "(no text)"
