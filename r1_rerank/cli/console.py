"""What every command shares: errors become one line and an exit code here, and notes go to stderr."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ..errors import InputError, R1RerankError

FAILED, USAGE = 1, 2
"""Exit codes: something failed while running; the command cannot be run as it was given."""

_OPTIONS = {
    "budget.calls": "--budget-calls",
    "budget.seconds": "--budget-seconds",
    "budget.thinking_tokens": "--budget-thinking",
    "budget.tokens": "--budget-tokens",
    "metrics": "--metric",
    "templates": "--template",
    "thinking": "--think",
} | {
    name: f"--{name.replace('_', '-')}"
    for name in (
        *("batch_size", "device", "dtype", "engine", "history", "input", "label_seed", "model", "objective"),
        *("config", "merge", "push"),
        *("engine-option", "log", "max_price", "min_context", "passes", "pool", "prefilter"),
        *("against", "checkpoints", "cold_start", "data", "leaks", "limit", "negatives", "out", "protocol", "shuffles"),
        *("split", "system", "train"),
        *("on_error", "output", "output_file", "resume", "score_threshold", "strategy", "task", "template", "top_k"),
    )
}
"""How the command line spells the library's arguments."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Program(TyperGroup):
    """The command group; every error leaves it as `error: <argument>: <what is wrong and how to mend it>`."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command and exits: 0 fine, 1 failed, 2 wrong usage, 130 interrupted."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            with _library_notes():
                code = run()
        except Exception as error:
            _exit_with(error, _engine_options(sys.argv[1:] if args is None else args))
        sys.exit(code if isinstance(code, int) else 0)


def note(message: str) -> None:
    """Tells the user something that is not a result."""
    typer.echo(f"note: {message}", err=True)


def print_error(message: str) -> None:
    """Tells the user what went wrong."""
    typer.echo(f"error: {message}", err=True)


def one_line(text: str) -> str:
    """Text that cannot break a table or steer the terminal."""
    return _CONTROL.sub("", " ".join(text.split()))


def _engine_options(words: Sequence[str]) -> set[str]:
    """Names of what a command line hands on to the engine; no table can list them, as a user may invent some."""
    flag = _OPTIONS["engine-option"]
    pairs = [word.removeprefix(f"{flag}=") for word in words if word.startswith(f"{flag}=")]
    pairs += [word for before, word in pairwise(words) if before == flag]
    return {pair.partition("=")[0].strip().replace("-", "_") for pair in pairs}


def _exit_with(error: Exception, engine_options: Collection[str]) -> NoReturn:
    # What Typer raises for wrong usage has no public base class that all its versions share.
    usage = getattr(error, "format_message", None)
    if usage is not None:
        message = _usage_message(error, usage())
        if message:  # empty where the help was printed instead
            print_error(message)
        sys.exit(USAGE)
    if isinstance(error, InputError):
        name, bracket, place = error.argument.partition("[")
        detail = str(error).removeprefix(f"{error.argument}: ")
        told = f"{_OPTIONS['engine-option']} {name}" if name in engine_options else _OPTIONS.get(name, name)
        print_error(f"{told}{bracket}{place}: {detail}")
        sys.exit(USAGE)
    if isinstance(error, R1RerankError | OSError):
        print_error(str(error))
        sys.exit(FAILED)
    if os.environ.get("R1_RERANK_TRACEBACK"):
        raise error
    print_error(f"{type(error).__name__}: {error} (unexpected: set R1_RERANK_TRACEBACK=1 to see where)")
    sys.exit(FAILED)


def _usage_message(error: Exception, fallback: str) -> str:
    """Names the option first, where the error belongs to one."""
    options = getattr(getattr(error, "param", None), "opts", ())
    detail = getattr(error, "message", "").removeprefix("Value error, ")
    return f"{max(options, key=len)}: {detail}" if options and detail else fallback


@contextmanager
def _library_notes() -> Iterator[None]:
    """Shows what the library logs: warnings, and the conversion of weights, which takes a while."""
    library, checkpoint = logging.getLogger("r1_rerank"), logging.getLogger("r1_rerank.checkpoint")
    handler, level = _NoteHandler(), checkpoint.level
    library.addHandler(handler)
    checkpoint.setLevel(logging.INFO)
    try:
        yield
    finally:
        checkpoint.setLevel(level)
        library.removeHandler(handler)


class _NoteHandler(logging.Handler):
    """Prints the message alone: a traceback that was logged with it helps no user."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())
