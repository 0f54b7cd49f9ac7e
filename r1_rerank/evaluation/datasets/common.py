"""What all readers share: files read with errors that name the line, and the count of what is left out."""

from __future__ import annotations

import gzip
import json
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import DataError, MissingExtraError
from ...rows import Candidate

if TYPE_CHECKING:
    from types import ModuleType

T = TypeVar("T")


@dataclass
class Dropped:
    """How many rows a reader left out, by reason."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, count: int = 1) -> None:
        """Counts a row, or several."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count


def normalised(text: str) -> str:
    """Text by which duplicates are found: letter case and white space do not count."""
    return " ".join(text.casefold().split())


def shuffled(candidates: Sequence[Candidate], relevance: Sequence[float], seed: str) -> dict[str, Any]:
    """The `candidates` and `relevance` of a row in random order, so that a position says nothing."""
    order = list(range(len(candidates)))
    random.Random(seed).shuffle(order)
    return {
        "candidates": tuple(candidates[place] for place in order),
        "relevance": tuple(float(relevance[place]) for place in order),
    }


def held_out(groups: Iterable[str], share: float, seed: int) -> set[str]:
    """The groups, such as users or articles, that go to the test split: no group stands in both."""
    ordered = sorted(set(groups))
    return set(random.Random(f"split/{seed}").sample(ordered, round(share * len(ordered))))


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank; `.gz` files are unpacked on the way.

    Raises:
        DataError: The file is missing, empty, truncated or not UTF-8.
    """
    found, number = False, 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    found = True
                    yield number, text
    except UnicodeDecodeError as error:
        raise DataError(str(path), number, f"not UTF-8: {error.reason} at byte {error.start}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    if not found:
        raise DataError(str(path), None, "is empty (truncated?)")


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line of a JSON Lines file."""
    for number, line in text_lines(path):
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise DataError(str(path), number, f"is not JSON (truncated?): {error}") from error


def load_json(path: Path, kind: type[T]) -> T:
    """A file that holds one JSON value of a kind; `.gz` files are unpacked."""
    try:
        packed = path.read_bytes()
        content = json.loads(gzip.decompress(packed) if path.suffix == ".gz" else packed.decode("utf-8"))
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise DataError(str(path), getattr(error, "lineno", None), f"is not JSON (truncated?): {error}") from error
    if not isinstance(content, kind):
        raise DataError(str(path), None, f"expected a JSON {kind.__name__}, got a {type(content).__name__}")
    return content


def table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of each line of a tab-separated file with a header, quotes taken as they stand.

    Raises:
        DataError: The header lacks one of `columns`, or a line has another number of cells.
    """
    header: list[str] = []
    for number, line in text_lines(path):
        cells = line.split("\t")
        if not header:
            header = cells
            if missing := [column for column in columns if column not in header]:
                raise DataError(str(path), number, f"the header lacks {', '.join(missing)}")
        elif len(cells) != len(header):
            raise DataError(str(path), number, f"{len(cells)} cells for {len(header)} columns (truncated?)")
        else:
            yield number, dict(zip(header, cells, strict=True))


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 0) and values of each row of a Parquet file, read in batches.

    Raises:
        DataError: The file is missing, truncated, or lacks one of `columns`.
        MissingExtraError: pyarrow is not installed.
    """
    parquet = import_extra("pyarrow.parquet")
    pyarrow = import_extra("pyarrow")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            if missing := [column for column in columns if column not in file.schema_arrow.names]:
                raise DataError(str(path), None, f"lacks the column {', '.join(missing)}")
            for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if not number:
        raise DataError(str(path), None, "holds no rows")


def hub_rows(name: str, config: str, split: str, instead: str) -> Iterator[tuple[int, Any]]:
    """Number (from 0) and values of each row of a data set on the hub, as they arrive.

    Args:
        name: Of the data set.
        config: Of its configuration.
        split: Which rows.
        instead: What to pass where the hub cannot be reached.

    Raises:
        DataError: The hub cannot be reached, or has no such data set.
        MissingExtraError: datasets is not installed.
    """
    try:
        yield from enumerate(import_extra("datasets").load_dataset(name, config, split=split, streaming=True))
    except ImportError:
        raise
    except Exception as error:  # every layer below the hub has errors of its own
        detail = f"neither a local path nor to be had from the hub ({error}): pass {instead} instead"
        raise DataError(name, None, detail) from error


def number_of(path: Path, line: int | None, name: str, text: object) -> float:
    """A number from a file; an empty cell is not a number (NaN).

    Raises:
        DataError: Anything else.
    """
    if text is None or text == "":
        return float("nan")
    try:
        return float(text)  # type: ignore[arg-type]  # whatever has no float is the error below
    except (TypeError, ValueError) as error:
        raise DataError(str(path), line, f"{name}: {text!r} is not a number") from error


def finite_number_of(path: Path, line: int | None, name: str, text: object) -> float:
    """A number from a file, where nothing can be done without one.

    Raises:
        DataError: Anything else, also an empty cell, NaN or infinity.
    """
    number = number_of(path, line, name, text)
    if not math.isfinite(number):
        raise DataError(str(path), line, f"{name}: {text!r} is not a finite number")
    return number


def import_extra(module: str) -> ModuleType:
    """A module of the `eval` extra.

    Raises:
        MissingExtraError: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError("eval", module.partition(".")[0]) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or f"{error} (truncated?)"
    return DataError(str(path), None, f"cannot be read: {reason}")
