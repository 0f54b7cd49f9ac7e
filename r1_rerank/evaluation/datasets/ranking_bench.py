"""Ranking-bench, the published data of the R1-Ranker paper: finished prompts with candidates and answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ...errors import DataError, InputError
from ...rows import OBJECTIVES, Candidate, Row
from .common import Dropped, hub_rows, json_lines, parquet_rows

HUB = "ulab-ai/Ranking-bench"
COLUMNS = ("task_name", "problem", "candidates", "gt")

_QUERY = re.compile(
    r"query:\s*(.*?)\s*(?:and (?:candidate passages|LLM c[ao]ndidates)\b|\n\s*\n?The LLM names\b)", re.S
)
_HISTORY = re.compile(r"in order:\s*\[(.*?)\]\s*Now there are", re.S)
_ITEM = re.compile(r"""(?:^|,\s*)['"]\d+\. (.*?)['"](?=\s*,\s*['"]\d+\. |\s*$)""", re.S)
_PASSAGE = re.compile(r"^(passage \d+):[ \t]*", re.M)
_PROFILE = re.compile(r"^\s*# ([^:\n]+): (.+)$", re.M)
# Where the passages of a prompt end and its instructions begin again.
_END = re.compile(r"\n\s*Please think step by step")


def read_ranking_bench(
    source: str | Path = HUB,
    config: Literal["direct", "iterative"] = "direct",
    split: str = "test",
    *,
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """Reads Ranking-bench (task_name, problem, candidates, gt) from the hub, a folder, or a file.

    The query or history is cut out of the published prompt, which is the only place where it stands.

    Args:
        source: Name on the hub; a folder with `<config>/<split>*` or `<config>_<split>*`; or a `.parquet` or `.jsonl`
            file.
        config: `direct` has whole lists, `iterative` elimination cases.
        split: Which split.
        dropped: Counts rows whose prompt cannot be understood, or whose answer is no candidate or several.

    Raises:
        DataError: The hub cannot be reached, or a file is missing, truncated or of another shape.
        MissingExtraError: datasets or pyarrow is not installed.
    """
    if config not in ("direct", "iterative"):
        raise InputError("config", f"{config!r} is not one of direct, iterative")
    dropped = Dropped() if dropped is None else dropped
    for where, number, record in _records(source, config, split):
        if missing := [name for name in COLUMNS if not isinstance(record, Mapping) or name not in record]:
            raise DataError(where, None, f"row {number} lacks {', '.join(missing)}")
        row = _row(record, f"ranking-bench-{config}-{split}-{number}", split, dropped)
        if row is not None:
            yield row


def _records(source: str | Path, config: str, split: str) -> Iterator[tuple[str, int, Any]]:
    path = Path(source)
    if path.exists():
        patterns = (f"{config}/{split}*", f"{config}[-_]{split}*")
        paths = [path] if path.is_file() else sorted(found for each in patterns for found in path.glob(each))
        if not paths:
            raise DataError(str(path), None, f"holds no {config}/{split}*.parquet or .jsonl")
        number = 0
        for each in paths:
            rows = parquet_rows(each, COLUMNS) if each.suffix == ".parquet" else json_lines(each)
            for _, record in rows:
                yield str(each), number, record
                number += 1
        return
    instead = "a folder or a .parquet or .jsonl file of the same columns"
    for number, record in hub_rows(str(source), config, split, instead):
        yield str(source), number, record


def _row(record: Mapping[str, Any], id: str, split: str, dropped: Dropped) -> Row | None:
    family, _, kind = str(record["task_name"]).partition("-")
    problem, answer, listed = record["problem"], record["gt"], record["candidates"]
    texts = list(listed.values()) if isinstance(listed, Mapping) else listed
    if not isinstance(problem, str) or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        dropped.add("a prompt or candidates that are no text")
        return None
    common: dict[str, Any] = {"id": id, "split": split, "source": "Ranking-bench"}
    names = texts
    if family == "Rec":
        history = _HISTORY.search(problem)
        common |= {"task": "recommendation", "history": tuple(_ITEM.findall(history[1])) if history else ()}
        understood = bool(common["history"])
    elif family in ("Router", "Passage"):
        query = _QUERY.search(problem)
        understood = query is not None and bool(query[1])
        common |= {"task": "routing" if family == "Router" else "passage", "query": query[1] if query else ""}
    else:
        dropped.add("an unknown task_name")
        return None
    if family == "Passage":
        shown = _passages(problem)
        names = list(shown)
        understood = understood and len(names) == len(texts)
        if set(texts) <= shown.keys():  # candidates given by name
            names, texts = texts, [shown[text] for text in texts]
    elif family == "Router":
        if kind.lower() not in OBJECTIVES:
            dropped.add("an unknown task_name")
            return None
        common["objective"] = kind.lower()
        profiles = dict(_PROFILE.findall(problem))
        texts = [profiles.get(name, name).strip() for name in names]
    if not understood:
        dropped.add("a prompt of another wording")
        return None
    if names.count(answer) != 1:
        dropped.add("the answer is not exactly one of the candidates")
        return None
    ids = names if len(set(names)) == len(names) else [str(place) for place in range(len(names))]
    return Row(
        **common,
        candidates=tuple(Candidate(id=name, text=text) for name, text in zip(ids, texts, strict=True)),
        relevance=tuple(float(name == answer) for name in names),
    )


def _passages(problem: str) -> dict[str, str]:
    """Name -> text of the passages, in the order of the prompt."""
    starts = list(_PASSAGE.finditer(problem))
    if not starts:
        return {}
    end = _END.search(problem, starts[-1].end())
    stops = [start.start() for start in starts[1:]] + [end.start() if end else len(problem)]
    return {start[1]: problem[start.end() : stop].strip() for start, stop in zip(starts, stops, strict=True)}
