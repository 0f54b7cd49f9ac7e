"""The label of a routing row: which LLM serves a query best, under an objective."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...rows import Candidate, Objective, Row
from ...tasks import OBJECTIVE_WEIGHTS
from .common import Dropped


def routing_row(
    *,
    id: str,
    query: str,
    objective: Objective,
    candidates: Sequence[Candidate],
    effects: Sequence[float],
    costs: Sequence[float],
    split: str,
    source: str,
    dropped: Dropped,
) -> Row | None:
    """A row whose relevant LLM has the highest a * effect - b * cost, the cheapest of several.

    Of several that are equally good and equally cheap it is the first in the order of `candidates`: the others then
    count as not relevant, though their regret is 0.

    Costs are divided by the highest of the row: against effects of 0 to 1, cents would never count.

    Returns:
        None where the row decides nothing, which is counted: a number is missing, or all LLMs do equally well.
    """
    if any(not math.isfinite(effect) for effect in effects):
        dropped.add("an effect is not a number")
        return None
    if any(not math.isfinite(cost) for cost in costs):
        dropped.add("a cost is not a number")
        return None
    if len(set(effects)) == 1:
        dropped.add("all LLMs do equally well")
        return None
    a, b = OBJECTIVE_WEIGHTS[objective]
    highest = max(costs) or 1.0
    scaled = [cost / highest for cost in costs]
    rewards = [a * effect - b * cost for effect, cost in zip(effects, scaled, strict=True)]
    best = max(range(len(candidates)), key=lambda place: (rewards[place], -scaled[place]))
    return Row(
        id=id,
        task="routing",
        query=query,
        objective=objective,
        candidates=tuple(candidates),
        relevance=tuple(float(place == best) for place in range(len(candidates))),
        effects=tuple(effects),
        prices=tuple(scaled),
        split=split,
        source=source,
    )
