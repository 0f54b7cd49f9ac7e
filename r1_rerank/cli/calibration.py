"""`r1-rerank route --calibrate`: which price ceiling spends a target best, over a sample of queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import InputError
from .console import FAILED, one_line, print_error
from .model_options import ModelOptions
from .results import Format
from .stdout import format_for, write_json

if TYPE_CHECKING:
    from ..integrations.router import Calibration, LLMProfile, R1Router
    from ..reranker import R1Reranker


def calibrate_option(*flags: str, **settings: Any) -> Any:
    """An option that says what a calibration goes by."""
    return typer.Option(*flags, rich_help_panel="Calibration", **settings)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a calibration goes by, as the command line gives it."""

    spend: float
    tokens_per_call: tuple[int, int]
    plot: Path | None

    @classmethod
    def of(
        cls,
        sample: str | None,
        *,
        spend: float | None,
        input_tokens: int | None,
        output_tokens: int | None,
        plot: Path | None,
        unused: dict[str, object],
    ) -> Target | None:
        """None where there is no sample to calibrate over.

        Args:
            sample: File of queries.
            spend: US dollars per thousand queries.
            input_tokens: Of a call, on average.
            output_tokens: Of a call, on average.
            plot: File to draw into.
            unused: Options that a calibration has no use for, by their arguments.

        Raises:
            InputError: Something is missing, or does not go together.
        """
        own = {"spend": spend, "input_tokens": input_tokens, "output_tokens": output_tokens}
        if sample is None:
            if given := [name for name, value in {**own, "plot": plot}.items() if value is not None]:
                raise InputError(_option(given[0]), "belongs to --calibrate FILE; pass both or neither")
            return None
        if missing := [name for name, value in own.items() if value is None]:
            raise InputError(_option(missing[0]), "is missing: --calibrate goes by it")
        if given := [name for name, value in unused.items() if value]:
            raise InputError(_option(given[0]), "stands beside --calibrate, which has no use for it; leave it out")
        assert spend is not None
        assert input_tokens is not None
        assert output_tokens is not None
        return cls(spend=spend, tokens_per_call=(input_tokens, output_tokens), plot=plot)

    def check(self, eligible: Sequence[LLMProfile]) -> None:
        """Finds what is wrong without loading anything.

        Raises:
            InputError: An LLM without a price, an amount that is none, or a folder that is not there.
            MissingExtraError: A plot is wanted, and nothing can draw it.
        """
        from ..integrations.routing_calibration import require_amount, require_plots

        require_amount("--spend", self.spend)
        if unpriced := [profile.name for profile in eligible if profile.price is None]:
            raise InputError("pool", f"{unpriced[0]!r} has no price; add one, or rule it out by --max-price or --tag")
        if self.plot is not None:
            require_plots()
            if not self.plot.parent.is_dir():
                raise InputError("--plot", f"the folder {self.plot.parent} does not exist; make it first")


def run_calibration(
    target: Target,
    queries: Sequence[str],
    options: ModelOptions,
    router: Callable[[R1Reranker], R1Router],
    output: Format | None,
) -> None:
    """Routes the sample under each setting, and prints what it would spend.

    Raises:
        Exit: Every setting spends more than the target.
    """
    with options.load() as reranker:
        calibration = router(reranker).calibrate(queries, target.spend, tokens_per_call=target.tokens_per_call)
    format = format_for(output)
    if format == "table":
        _print(calibration)
    elif format == "json":
        write_json(calibration.to_dict(), indent=2)
    else:
        for setting in calibration.to_dict()["settings"]:
            write_json(setting)
    if target.plot is not None:
        calibration.plot(target.plot)
    if calibration.chosen is None:
        cheapest = calibration.settings[0]
        print_error(f"--spend: even the cheapest setting spends ${cheapest.spend:.4g}, not ${target.spend:g}")
        raise typer.Exit(FAILED)


def _print(calibration: Calibration) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "max price", "spend", *calibration.settings[0].shares):
        table.add_column(Text(one_line(heading)), justify="right", overflow="fold")
    for setting in calibration.settings:
        ceiling = "none" if setting.max_price is None else f"{setting.max_price:g}"
        shares = (f"{share:.0%}" for share in setting.shares.values())
        table.add_row("→" if setting is calibration.chosen else "", ceiling, f"{setting.spend:.4g}", *shares)
    console = Console()
    console.print(table)
    objective = calibration.settings[0].objective
    console.print(
        f"objective {objective}; max price in USD per million tokens; spend in USD per 1,000 queries, "
        f"target {calibration.target_spend:g}; then each LLM's share of the queries",
        style="dim",
    )


def _option(argument: str) -> str:
    return f"--{argument.replace('_', '-')}"
