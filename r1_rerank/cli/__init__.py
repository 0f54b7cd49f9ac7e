"""The command line: `r1-rerank rerank`, `route`, `eval`, `train`, `data` and `doctor`. One file a command."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from .console import Program
from .data import data
from .doctor import doctor
from .eval import evaluate
from .rerank import rerank
from .route import route
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(cls=Program, name="r1-rerank", no_args_is_help=True, add_completion=False)
app.command()(rerank)
app.command()(route)
app.command("eval")(evaluate)
app.command()(train)
app.command()(doctor)
app.add_typer(data, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"r1-rerank {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Rerank documents, recommendations and LLM pools with a reasoning language model."""


def main() -> None:
    """Runs the command line; the entry of the `r1-rerank` script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A table may hold signs that the terminal has no code for; JSON is written as UTF-8 bytes anyway.
        sys.stdout.reconfigure(errors="replace")
    app()
