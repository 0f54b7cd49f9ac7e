"""A ranking run: queries through one model to one destination, checked before the model is loaded."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from .. import __version__
from ..documents import RerankResult
from ..errors import InputError
from .console import FAILED, note, print_error
from .model_options import ModelOptions
from .queries import Query
from .results import Format, open_writer, print_estimates
from .resume import Finished, drop_lines, is_empty, left_to_do, read_finished, write_settings

STDOUT = "-"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the ranked documents come back, and whether with their steps."""

    top_k: int | None
    score_threshold: float | None
    trace: bool

    def check(self, options: ModelOptions) -> None:
        """Finds a threshold that means nothing; the library finds the rest once the model is known.

        Raises:
            InputError: No score, or a strategy whose scores only tell the rank.
        """
        if self.score_threshold is None:
            return
        if not 0 <= self.score_threshold <= 1:
            raise InputError("score_threshold", f"{self.score_threshold:g} is no score; pass a number from 0 to 1")
        if options.strategy == "dranker":
            detail = "dranker's scores only tell the rank; pass --strategy iranker, or --top-k"
            raise InputError("score_threshold", detail)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where results go.

    Args:
        format: What they look like.
        path: File that takes them; None for standard output.
        resume: The file may hold results of an earlier run.
        resumable: A later run may go on with the file.
    """

    format: Format
    path: Path | None
    resume: bool
    resumable: bool

    @classmethod
    def checked(
        cls, format: Format | None, path: Path | None, *, resume: bool, dry_run: bool, from_file: bool
    ) -> Destination:
        """Settles the format, and finds out whether the file can be written.

        Args:
            format: As asked for; None for a table on a terminal and jsonl elsewhere.
            path: As asked for; `-` is standard output.
            resume: As asked for.
            dry_run: Nothing goes to the file.
            from_file: The queries have ids.

        Raises:
            InputError: The file cannot be written, or holds something; there is nothing to resume.
        """
        path = None if path is None or str(path) == STDOUT else path
        if format is None:
            format = "table" if sys.stdout.isatty() and (path is None or dry_run) else "jsonl"
        if path is not None:
            _check_file(path, resume=resume, format=format)
        regular = path is not None and (path.is_file() or not path.exists())
        resumable = regular and from_file and (format == "jsonl" or dry_run)
        if resume and not resumable:
            raise InputError("resume", "goes on with a file of results; pass --input, --output-file and --output jsonl")
        return cls(format=format, path=path, resume=resume, resumable=resumable)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Queries through one model to one destination.

    Args:
        options: Which model, and how it is asked.
        selection: What comes back.
        destination: Where it goes.
        task: What `--task` and `--objective` say, which decides how lines are read.
    """

    options: ModelOptions
    selection: Selection
    destination: Destination
    task: tuple[str, str | None]

    def estimate(self, queries: Sequence[Query]) -> None:
        """Prints what the queries would take at most."""
        left, _ = self._left(queries)
        estimates = []
        if left:
            with self.options.load() as reranker:
                estimates = [(query, reranker.estimate(query.task, query.documents)) for query in left]
        print_estimates(self.destination.format, estimates)

    def rank(self, queries: Sequence[Query]) -> None:
        """Ranks the queries and writes each result as soon as it is known.

        Raises:
            typer.Exit: A query failed.
        """
        left, finished = self._left(queries)
        statuses = Counter[str]()
        with self._results(left) as results:
            self._prepare_file(finished)
            try:
                self._write(results, left, statuses, many=len(queries) > 1)
            except KeyboardInterrupt:
                if self.destination.resumable:
                    note("interrupted; the same command with --resume goes on")
                raise
        if len(left) > 1 and set(statuses) != {"ok"}:
            note(f"{len(left)} queries: {', '.join(f'{count} {status}' for status, count in statuses.items())}")
        if statuses["failed"]:
            raise typer.Exit(FAILED)

    def settings(self) -> dict[str, Any]:
        """Everything that changes results, as JSON values."""
        return {
            "version": __version__,
            **self.options.identity(),
            "top-k": self.selection.top_k,
            "score-threshold": self.selection.score_threshold,
            "trace": self.selection.trace,
            "task": self.task[0],
            "objective": self.task[1],
        }

    def _left(self, queries: Sequence[Query]) -> tuple[list[Query], Finished]:
        finished = Finished()
        if self.destination.resume and self.destination.path is not None:
            finished = read_finished(self.destination.path, self.settings())
        left = left_to_do(queries, finished)
        if len(left) < len(queries):
            note(f"{len(queries) - len(left)} of {len(queries)} queries are done already")
        return left, finished

    @contextmanager
    def _results(self, queries: Sequence[Query]) -> Iterator[Iterator[tuple[int, RerankResult]]]:
        """Loads the model where there is something to rank."""
        if not queries:
            yield iter(())
            return
        with self.options.load() as reranker:
            yield reranker.rerank_iter(
                [query.task for query in queries],
                [query.documents for query in queries],
                top_k=self.selection.top_k,
                score_threshold=self.selection.score_threshold,
            )

    def _prepare_file(self, finished: Finished) -> None:
        path = self.destination.path
        if path is None or not self.destination.resumable:
            return
        drop_lines(path, finished.redo)
        if is_empty(path):
            write_settings(path, self.settings())

    def _write(
        self,
        results: Iterator[tuple[int, RerankResult]],
        queries: Sequence[Query],
        statuses: Counter[str],
        *,
        many: bool,
    ) -> None:
        to = self.destination
        with open_writer(to.format, to.path, trace=self.selection.trace, many=many) as writer:
            with self._progress(len(queries)) as advance:
                for number, result in results:
                    query = queries[number]
                    writer.write(number, query, result)
                    statuses[result.status] += 1
                    if result.error is not None:
                        print_error(f"query {query.id}: {result.error}" if many else str(result.error))
                    advance()
            writer.finish()

    @contextmanager
    def _progress(self, count: int) -> Iterator[Callable[[], None]]:
        """A bar for several queries, unless results appear one by one on the same terminal."""
        to = self.destination
        streaming = to.path is None and to.format != "json" and sys.stdout.isatty()
        if count < 2 or streaming or not sys.stderr.isatty():
            yield lambda: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("ranking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
            bar = progress.add_task("", total=count)
            yield lambda: progress.advance(bar)


def _check_file(path: Path, *, resume: bool, format: Format) -> None:
    if path.is_dir():
        raise InputError("output_file", f"{path} is a folder; pass a file")
    if not path.parent.is_dir():
        raise InputError("output_file", f"the folder {path.parent} does not exist; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError("output_file", f"{path} cannot be written; pass another file")
    if not resume and not is_empty(path):
        more = "--resume to go on with it, or " if format == "jsonl" else ""
        raise InputError("output_file", f"{path} is not empty; pass {more}another file")
