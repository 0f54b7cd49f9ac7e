"""Rankers that need no language model, and what nobody can beat: they stand beside every model.

Each is a function of a row that gives one number per candidate; `fit` ones learned from training rows.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import InputError
from ..rows import Row
from .measures import objective_of, rewards


def random_order(row: Row) -> list[float]:
    """No preference at all: through the ties, every metric is its exact expectation under a random order."""
    return [0.0] * len(row.candidates)


@dataclass(frozen=True)
class RandomDraw:
    """One random order for each row.

    Args:
        seed: The same seed draws the same order for a row, whatever other rows there are.
    """

    seed: int = 0

    def __call__(self, row: Row) -> list[float]:
        """Draws a number for each candidate."""
        draw = random.Random(f"{self.seed}:{row.id}")
        return [draw.random() for _ in row.candidates]


def incoming_order(row: Row) -> list[float]:
    """The order in which the candidates came."""
    return [float(len(row.candidates) - place) for place in range(len(row.candidates))]


def oracle(row: Row) -> list[float]:
    """The right answer."""
    return list(row.relevance)


def cheapest_first(row: Row) -> list[float]:
    """LLMs by list price, the lowest first; by the price of this answer where there is no list price."""
    return [-price for price in _list_prices(row)]


def dearest_first(row: Row) -> list[float]:
    """LLMs by list price, the highest first."""
    return _list_prices(row)


@dataclass(frozen=True)
class ConstantLLM:
    """The same order of LLMs for every query: by mean reward on training rows, under the row's objective.

    Args:
        gains: Mean reward of each LLM, by objective and id.
    """

    gains: Mapping[str, Mapping[str, float]]

    @classmethod
    def fit(cls, train: Iterable[Row]) -> ConstantLLM:
        """Averages rewards; RouterBench and others may bring other LLMs, which do no harm.

        Raises:
            InputError: No row has effects and prices.
        """
        seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in routed(train):
            for candidate, reward in zip(row.candidates, rewards(row), strict=True):
                seen[objective_of(row)][candidate.id].append(reward)
        return cls(
            {
                objective: {name: sum(values) / len(values) for name, values in sorted(by_name.items())}
                for objective, by_name in sorted(seen.items())
            }
        )

    def __call__(self, row: Row) -> list[float]:
        """Looks the LLMs up; those that were never seen share the last place.

        Raises:
            InputError: None of them was seen under this objective.
        """
        return unseen_last(row, self.gains.get(objective_of(row), {}))


def routed(train: Iterable[Row]) -> list[Row]:
    """The routing rows from which a router can learn: those with effects and prices.

    Raises:
        InputError: There are none.
    """
    rows = [row for row in train if row.task == "routing" and row.effects is not None and row.prices is not None]
    if not rows:
        raise InputError("train", "has no routing rows with effects and prices: there is nothing to choose an LLM by")
    return rows


def unseen_last(row: Row, gains: Mapping[str, float]) -> list[float]:
    """What each LLM of a row would gain, by what was learned; those that were never seen share the last place.

    Raises:
        InputError: None of them was seen under this objective.
    """
    known = {candidate.id: gains[candidate.id] for candidate in row.candidates if candidate.id in gains}
    if not known:
        detail = f"has none of the LLMs of row {row.id!r} under the objective {objective_of(row)}"
        raise InputError("train", f"{detail}: pass the training rows of the same pool")
    last = min(known.values()) - 1.0
    return [known.get(candidate.id, last) for candidate in row.candidates]


@dataclass(frozen=True)
class Popularity:
    """Items by how often they were chosen in training rows, in histories and as the next item.

    Args:
        counts: How often each title was chosen.
    """

    counts: Mapping[str, int]

    @classmethod
    def fit(cls, train: Iterable[Row]) -> Popularity:
        """Counts titles.

        Raises:
            InputError: No row is a recommendation.
        """
        counts: Counter[str] = Counter()
        for row in train:
            if row.task == "recommendation":
                counts.update(row.history or ())
                counts.update(
                    candidate.text for candidate, value in zip(row.candidates, row.relevance, strict=True) if value > 0
                )
        if not counts:
            raise InputError("train", "has no recommendation rows: nothing to count")
        return cls(counts)

    def __call__(self, row: Row) -> list[float]:
        """Looks the titles up."""
        return [float(self.counts.get(candidate.text, 0)) for candidate in row.candidates]


def digest(rows: Iterable[Row]) -> str:
    """Stands for rows in settings: others have another."""
    content = hashlib.sha256()
    for row in rows:
        content.update(row.to_json().encode() + b"\n")
    return content.hexdigest()[:16]


def _list_prices(row: Row) -> list[float]:
    prices = [candidate.price for candidate in row.candidates]
    known = [price for price in prices if price is not None]
    if len(known) == len(prices):
        return known
    if row.prices is not None:
        return list(row.prices)
    raise InputError("row", f"{row.id!r} has candidates without a price: an order by price needs one for each")
