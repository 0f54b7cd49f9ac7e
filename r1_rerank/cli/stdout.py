"""What `r1-rerank route` writes to standard output."""

from __future__ import annotations

import json
import sys

from .results import Format


def format_for(output: Format | None) -> Format:
    """The format that was asked for, or else what suits the reader: a person or a program."""
    return output or ("table" if sys.stdout.isatty() else "jsonl")


def write_json(value: object, indent: int | None = None) -> None:
    """Writes a value and a newline, as bytes, so that JSON is UTF-8 whatever the terminal speaks."""
    sys.stdout.buffer.write((json.dumps(value, ensure_ascii=False, indent=indent) + "\n").encode())
    sys.stdout.buffer.flush()
