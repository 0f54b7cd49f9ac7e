"""What a router would spend under each setting, over a sample of queries, and which setting keeps a target."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError, InputTypeError, MissingExtraError
from ..rows import Objective
from .routing_pool import LLMProfile

if TYPE_CHECKING:
    from .router import R1Router


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a sample of queries was routed.

    Args:
        objective: What the model judged by.
        max_price: Price ceiling, in US dollars per million tokens; None: the router's own.
        shares: Part of the queries that each LLM got, by name; they add up to 1.
        spend: US dollars per thousand queries.
    """

    objective: Objective
    max_price: float | None
    shares: Mapping[str, float]
    spend: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Every setting that was tried, and the one that spends most within the target.

    Args:
        target_spend: US dollars per thousand queries.
        settings: In order of spend.
        chosen: None where every setting spends more than the target. Its `objective` and `max_price` are arguments
            of the router and of `route`.
    """

    target_spend: float
    settings: tuple[Setting, ...]
    chosen: Setting | None

    def table(self) -> list[dict[str, Any]]:
        """A row for each setting: `objective`, `max_price`, `spend`, `chosen`, and `share NAME` for each LLM."""
        return [
            {
                "objective": setting.objective,
                "max_price": setting.max_price,
                "spend": setting.spend,
                "chosen": setting is self.chosen,
                **{f"share {name}": share for name, share in setting.shares.items()},
            }
            for setting in self.settings
        ]

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON-ready values; `chosen` is one of the settings, or None."""
        chosen = None if self.chosen is None else asdict(self.chosen)
        return {"target_spend": self.target_spend, "chosen": chosen, "settings": [*map(asdict, self.settings)]}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the shares of the LLMs and the spend for each setting; the suffix of the file says its format.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        require_plots()
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.5 + 1.2 * max(4, len(self.settings)), 5), layout="constrained")
        shares, spend = figure.subplots(2, sharex=True)
        places = range(len(self.settings))
        below = [0.0] * len(self.settings)
        for name in self.settings[0].shares:
            heights = [setting.shares[name] for setting in self.settings]
            shares.bar(places, heights, bottom=below, label=name)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        shares.set_ylabel("share of queries")
        shares.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        colours = ["tab:green" if setting is self.chosen else "tab:gray" for setting in self.settings]
        spend.bar(places, [setting.spend for setting in self.settings], color=colours)
        spend.axhline(self.target_spend, color="black", linestyle="--", label="target")
        spend.set_ylabel("USD per 1,000 queries")
        spend.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        labels = [
            setting.objective if setting.max_price is None else f"{setting.objective}\n≤ {setting.max_price:g} USD"
            for setting in self.settings
        ]
        spend.set_xticks(places, labels)
        figure.savefig(path)


def calibrate(
    router: R1Router,
    queries: Sequence[str],
    target_spend: float,
    *,
    tokens_per_call: tuple[float, float] | None,
    price_per_call: Mapping[str, float] | None,
    max_prices: Sequence[float] | None,
    objectives: Sequence[Objective] | None,
) -> Calibration:
    """See `R1Router.calibrate`."""
    if not queries:
        raise InputError("queries", "is empty; pass a sample of the traffic")
    require_amount("target_spend", target_spend)
    ceilings = router.limits if not max_prices else replace(router.limits, max_price=max(max_prices))
    eligible, _ = ceilings.split(router.pool)
    costs = _costs(eligible, tokens_per_call, price_per_call)
    settings = []
    for objective, max_price in itertools.product(
        objectives or (None,), _prices(eligible) if max_prices is None else max_prices or (None,)
    ):
        decisions = router.route_batch(queries, objective=objective, max_price=max_price)
        chosen = Counter(decision.profile.name for decision in decisions)
        settings.append(
            Setting(
                objective=decisions[0].objective,
                max_price=max_price,
                shares={name: chosen[name] / len(decisions) for name in costs},
                spend=round(1000 * sum(costs[name] * count for name, count in chosen.items()) / len(decisions), 9),
            )
        )
    settings.sort(key=lambda setting: setting.spend)
    within = [setting for setting in settings if setting.spend <= target_spend]
    return Calibration(target_spend=target_spend, settings=tuple(settings), chosen=within[-1] if within else None)


def _prices(profiles: Sequence[LLMProfile]) -> list[float | None]:
    """Every ceiling that makes a difference; the last lets all of them in."""
    known = {profile.price for profile in profiles if profile.price is not None}
    return [*sorted(known), *([None] if any(profile.price is None for profile in profiles) else [])]


def _costs(
    profiles: Sequence[LLMProfile],
    tokens_per_call: tuple[float, float] | None,
    price_per_call: Mapping[str, float] | None,
) -> dict[str, float]:
    """US dollars per call of each LLM."""
    if (tokens_per_call is None) == (price_per_call is None):
        raise InputError("tokens_per_call", "pass either this or price_per_call")
    costs = {}
    for profile in profiles:
        name = profile.name
        if price_per_call is not None:
            if name not in price_per_call:
                raise InputError("price_per_call", f"lacks {name!r}")
            require_amount(f"price_per_call[{name!r}]", price_per_call[name])
            costs[name] = price_per_call[name]
        elif profile.price is None:
            raise InputError("tokens_per_call", f"{name!r} has no price; add one, or pass price_per_call")
        else:
            assert tokens_per_call is not None
            _require_tokens(tokens_per_call)
            # A price that is not known is taken to be the other one.
            prices = (profile.input_price, profile.output_price)
            costs[name] = sum(
                tokens * (profile.price if price is None else price) / 1e6
                for tokens, price in zip(tokens_per_call, prices, strict=True)
            )
    return costs


def _require_tokens(tokens_per_call: tuple[float, float]) -> None:
    if isinstance(tokens_per_call, str) or not isinstance(tokens_per_call, Sequence) or len(tokens_per_call) != 2:
        raise InputTypeError("tokens_per_call", f"expected (input, output) tokens, got {tokens_per_call!r}")
    for place, tokens in enumerate(tokens_per_call):
        require_amount(f"tokens_per_call[{place}]", tokens)


def require_plots() -> None:
    """Checks that plots can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("eval", "matplotlib") from error


def require_amount(argument: str, value: object) -> None:
    """Refuses what is no finite number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(argument, f"expected a number, got {value!r}")
    if not 0 <= value < math.inf:
        raise InputError(argument, f"expected 0 or more, got {value!r}")
