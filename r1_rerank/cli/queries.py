"""What is to be ranked: one query from the command line, or a JSON Lines file with a query a line."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..documents import Document, as_documents
from ..errors import DataError, InputError, InputTypeError
from ..rows import Objective, TaskName
from ..tasks import PassageRanking, Recommendation, Routing, Task

STDIN = "-"

_LINE_KEYS = ("id", "query", "history", "objective", "documents")
_DOCUMENT_KEYS = ("id", "text", "title", "price")


@dataclass(frozen=True)
class Query:
    """A task and what is ranked for it; `id` is None for the query of the command line."""

    id: str | None
    task: Task
    documents: tuple[Document, ...]


def from_arguments(
    words: Sequence[str], history: Sequence[str], task: TaskName, objective: Objective | None
) -> list[Query]:
    """The query of the command line.

    Args:
        words: The positional arguments: the query (unless there is a history), then the documents.
        history: Items of a recommendation, oldest first.
        task: What `--task` says.
        objective: What `--objective` says.

    Raises:
        InputError: Something is missing, or does not go together.
    """
    query, texts = (None, words) if history or task == "recommendation" else (next(iter(words), None), words[1:])
    if query is None and not history and task != "recommendation":
        raise InputError("query", "pass a query and documents, or --input FILE")
    built = _task(task, query, list(history) or None, objective)
    if not texts:
        raise InputError("documents", "pass at least one, or --input FILE")
    for name, values in (("query", [*history, query or ""]), ("documents", texts)):
        require_encodable(name, values)
    return [Query(None, built, as_documents(texts))]


def read_queries(source: str, task: TaskName, objective: Objective | None) -> tuple[list[Query], list[str]]:
    """Reads a file of queries; a line without an id gets a digest of its content for one.

    Args:
        source: Path of a JSON Lines file, or `-` for standard input.
        task: What `--task` says; a line with a history is a recommendation anyway.
        objective: For routing lines that name none.

    Returns:
        The queries, and the keys in the file that are not used.

    Raises:
        DataError: The file cannot be read, a line is no query, or an id stands twice.
    """
    queries: list[Query] = []
    unused: dict[str, None] = {}
    lines: dict[str, int] = {}
    copies: Counter[str] = Counter()
    for number, line in read_lines(source):
        try:
            record = parse_record(line)
            query = _query(record, task, objective)
        except (InputError, UnicodeDecodeError) as error:
            # Only the last line of a file can lack its newline.
            torn = "" if line.endswith(b"\n") else " (the last line has no newline: it may have been cut off)"
            raise DataError(source, number, f"{reason_of(error)}{torn}") from error
        unused.update(dict.fromkeys(_unused(record)))
        if query.id is None:
            # Equal lines have equal results, so it does not matter which of them comes first.
            digest = _digest(query)
            copies[digest] += 1
            query = replace(query, id=digest if copies[digest] == 1 else f"{digest}-{copies[digest]}")
        assert query.id is not None
        first = lines.setdefault(query.id, number)
        if first != number:
            detail = f"id {query.id!r} is also that of line {first}; make ids unique or leave them out"
            raise DataError(source, number, detail)
        queries.append(query)
    return queries, list(unused)


def read_lines(source: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers, as bytes so that one that is not UTF-8 is known by its own."""
    try:
        if source == STDIN:
            yield from _numbered(sys.stdin.buffer)
        else:
            with open(source, "rb") as file:
                yield from _numbered(file)
    except OSError as error:
        raise DataError(source, None, f"cannot be read: {error.strerror}") from error


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # the mark that some editors write
        if line.strip():
            yield number, line


def parse_record(line: bytes) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        InputError: The line is none.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError("line", f"is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputTypeError("line", f"expected a JSON object, got {_kind(record)}")
    require_encodable("line", [json.dumps(record, ensure_ascii=False)])
    return record


def _query(record: dict[str, Any], task: TaskName, objective: Objective | None) -> Query:
    id, query, history, own, documents = (record.get(key) for key in _LINE_KEYS)
    if id is not None and not isinstance(id, str):
        raise InputTypeError("id", f"expected a string, got {_kind(id)}; write it in quotes")
    if history is not None and not isinstance(history, list):
        raise InputTypeError("history", f"expected a list of strings, got {_kind(history)}")
    built = _task(task, query, history, own if own is not None else objective)
    if documents is None:
        raise InputError("documents", "is missing; pass a list, which may be empty")
    if not isinstance(documents, list):
        raise InputTypeError("documents", f"expected a list, got {_kind(documents)}")
    return Query(id, built, as_documents([_document(place, value) for place, value in enumerate(documents)]))


def _document(place: int, value: object) -> Document:
    where = f"documents[{place}]"
    if isinstance(value, str):
        return Document(value)
    if not isinstance(value, dict):
        raise InputTypeError(where, f"expected a string or an object with text, got {_kind(value)}")
    if value.get("text") is None:
        raise InputError(f"{where}.text", "is missing; pass the text to rank, which may be empty")
    try:
        return Document(value["text"], id=value.get("id"), title=value.get("title"), price=value.get("price"))
    except InputError as error:
        name = error.argument.removeprefix("Document.")
        raise InputError(f"{where}.{name}", str(error).removeprefix(f"{error.argument}: ")) from error


def _task(task: TaskName, query: str | None, history: list[str] | None, objective: Objective | None) -> Task:
    if objective is not None and task != "routing":
        raise InputError("objective", "is for routing alone; pass --task routing, or leave it out")
    if query is not None and history is not None:
        raise InputError("history", "stands beside a query; pass one of the two")
    if history is not None:
        if task == "routing":
            raise InputError("history", "routing takes none; pass a query, or another --task")
        return Recommendation(history)
    if task == "recommendation":
        raise InputError("history", "is missing; a recommendation needs the items chosen so far, oldest first")
    if query is None:
        raise InputError("query", "is missing; pass a query, or a history for a recommendation")
    if task == "routing":
        return Routing(query, objective or "performance")
    return PassageRanking(query)


def _digest(query: Query) -> str:
    """Stands for a query's id: the same task and documents have the same."""
    content = {
        "task": query.task.name,
        **query.task.fields(),
        "documents": [[getattr(document, key) for key in _DOCUMENT_KEYS] for document in query.documents],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _unused(record: dict[str, Any]) -> list[str]:
    inner = (f"documents[].{key}" for value in record["documents"] if isinstance(value, dict) for key in value)
    known = {*_LINE_KEYS, *(f"documents[].{key}" for key in _DOCUMENT_KEYS)}
    return [key for key in (*record, *inner) if key not in known]


def require_encodable(argument: str, values: Iterable[str]) -> None:
    """Refuses text that no file and no tokenizer takes."""
    for value in values:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # Half a surrogate pair, from JSON or from bytes of the shell: no file or tokenizer takes it.
            detail = f"{value[error.start]!r} is no character that UTF-8 can write; repair the text"
            raise InputError(argument, detail) from error


def reason_of(error: InputError | UnicodeDecodeError) -> str:
    """What is wrong with a line, in words."""
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8: {error.reason} at byte {error.start}"
    return str(error).removeprefix("line: ")


def _kind(value: object) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), f"the number {value}")
