"""What commands write to standard output: bytes, so that it is UTF-8 whatever the terminal speaks."""

from __future__ import annotations

import json
import sys

from .results import Format


def format_for(output: Format | None) -> Format:
    """The format that was asked for, or else what suits the reader: a person or a program."""
    return output or ("table" if sys.stdout.isatty() else "jsonl")


def write_json(value: object, indent: int | None = None) -> None:
    """Writes a value as JSON, and a newline."""
    write_text(json.dumps(value, ensure_ascii=False, indent=indent))


def write_text(text: str) -> None:
    """Writes a text that ends with one newline."""
    sys.stdout.buffer.write(f"{text.rstrip()}\n".encode())
    sys.stdout.buffer.flush()
