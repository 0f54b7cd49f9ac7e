"""What a router decides: the LLMs in order, by which objective, and how that came about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..documents import RerankResult
from ..errors import InputError, InputTypeError
from ..rows import OBJECTIVES, Objective
from ..tasks import OBJECTIVE_WEIGHTS, Weights
from .routing_pool import LLMProfile


@dataclass(frozen=True)
class RankedLLM:
    """An LLM in its place: `rank` from 1, `score` in [0, 1]."""

    rank: int
    profile: LLMProfile
    score: float


@dataclass(frozen=True, kw_only=True)
class RoutingDecision:
    """Which LLM shall answer a query, and how that came about.

    Args:
        decision_id: Stands for this decision in the log; see `R1Router.record_outcome`.
        query: What is to be answered.
        objective: What the model was asked to judge by.
        weights: (a, b) of the reward a * effect - b * cost.
        ranking: The LLMs within the limits, best first; the others of the ranking are the fallbacks. Empty only
            where `result.status` is `failed`, in a batch under `on_error="raise"`.
        excluded: Which limits ruled out each other LLM, by name.
        result: Status, steps, faults and usage of the ranking.
    """

    decision_id: str
    query: str
    objective: Objective
    weights: Weights
    ranking: tuple[RankedLLM, ...]
    excluded: Mapping[str, str]
    result: RerankResult

    @property
    def profile(self) -> LLMProfile:
        """The winner.

        Raises:
            EngineError: The ranking failed, under `on_error="raise"`.
        """
        if self.result.error is not None:
            raise self.result.error
        return self.ranking[0].profile

    @property
    def expected_price(self) -> float | None:
        """US dollars per million tokens of the winner, where known."""
        return self.profile.price

    @property
    def reasoning(self) -> str:
        """What the model thought, step by step; empty where it was not asked to think."""
        return "\n\n".join(step.thinking for step in self.result.steps if step.thinking)

    def to_dict(self, *, id: str | None = None, trace: bool = False) -> dict[str, Any]:
        """The decision as JSON-ready values.

        Args:
            id: Identifier of the query, written as it is.
            trace: Include the steps.
        """
        shared = self.result.to_dict(id=id, trace=trace)
        del shared["results"]
        winner = self.ranking[0].profile if self.ranking else None
        return {
            "id": shared.pop("id"),
            "decision_id": self.decision_id,
            "query": shared.pop("query"),
            "objective": self.objective,
            "weights": list(self.weights),
            "llm": None if winner is None else winner.name,
            "expected_price": None if winner is None else winner.price,
            "ranking": [
                {"rank": ranked.rank, "llm": ranked.profile.name, "score": ranked.score, "price": ranked.profile.price}
                for ranked in self.ranking
            ],
            "excluded": dict(self.excluded),
            "reasoning": self.reasoning,
            **shared,
        }


def nearest_objective(weights: Weights) -> Objective:
    """The objective whose share of cost is nearest."""
    if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != 2:
        raise InputTypeError("weights", f"expected two numbers (a, b), got {weights!r}")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise InputTypeError("weights", f"expected two numbers (a, b), got {weights!r}")
        if not 0 <= weight < math.inf:
            raise InputError("weights", f"expected 0 or more, got {weight!r}")
    effect, cost = weights
    if not effect + cost > 0:
        raise InputError("weights", "are both 0; nothing would be better than anything else")
    share = cost / (effect + cost)
    return min(OBJECTIVES, key=lambda objective: abs(OBJECTIVE_WEIGHTS[objective][1] - share))
