"""TREC run and judgment files: read a run as a system, write what was evaluated, and ask ir-measures about it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from urllib.parse import quote, unquote

from ..errors import DataError, InputError, MissingExtraError
from ..rows import Row
from .baselines import digest
from .rowsets import BadRows
from .systems import FunctionSystem

Run = Mapping[str, Mapping[str, float]]
"""Scores by query and document."""


def read_run(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Reads a TREC run: `query Q0 document rank score tag` a line; ids are taken as they stand.

    Raises:
        DataError: The file cannot be read, is empty, or a line of it is none of a run; a document stands twice.
    """
    name, run = os.fspath(path), defaultdict[str, dict[str, float]](dict)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(name, None, f"is not UTF-8: {error.reason}") from error
    except OSError as error:
        raise DataError(name, None, f"cannot be read: {error.strerror}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 6:
            raise DataError(name, number, f"{len(fields)} fields; a run has query, Q0, document, rank, score and tag")
        try:
            score = float(fields[4])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise DataError(name, number, f"{fields[4]!r} is no score: scores are finite numbers")
        query, document = fields[0], fields[2]
        if document in run[query]:
            raise DataError(name, number, f"document {document!r} stands twice for query {query!r}")
        run[query][document] = score
    if not run:
        raise DataError(name, None, "holds no run: it is empty")
    return dict(run)


def run_system(
    path: str | os.PathLike[str], rows: Sequence[Row], *, name: str | None = None, bad_rows: BadRows = "refuse"
) -> tuple[FunctionSystem, list[Row], dict[str, int]]:
    """A TREC run as a system; its queries are the ids of rows, its documents those of candidates.

    Ids may be written as `write_run` writes them, or as they are: what finds more of the rows is meant.

    Args:
        path: The run.
        rows: What is to be evaluated.
        name: What reports call it.
        bad_rows: With `skip`, rows without a query in the run are left out, candidates without a score share the
            last place, unknown queries and documents are ignored, and all of it is counted.

    Returns:
        The system, the rows that it ranks, and how much did not fit.

    Raises:
        DataError: Something does not fit and is not to be skipped, or no query does.
    """
    known = {row.id: {candidate.id for candidate in row.candidates} for row in rows}
    run, source = _for_rows(read_run(path), known), os.fspath(path)
    covered = [row for row in rows if row.id in run]
    if not covered:
        detail = f"no query of it is the id of a row, such as {rows[0].id!r}; it has {next(iter(run))!r}"
        raise DataError(source, None, f"{detail}: is it a run of another set?")
    missing = [row.id for row in rows if row.id not in run]
    queries = [query for query in run if query not in known]
    documents = [(query, document) for query in known if query in run for document in run[query].keys() - known[query]]
    unscored = [(row.id, candidate) for row in covered for candidate in known[row.id] - run[row.id].keys()]
    faults: dict[str, tuple[int, Sequence[object]]] = {
        "row without a query in the run": (len(missing), missing),
        "query of the run that is no row": (len(queries), queries),
        "document of the run that is no candidate": (len(documents), documents),
        "candidate without a score in the run": (len(unscored), unscored),
    }
    found = {reason: count for reason, (count, _) in faults.items() if count}
    if found and bad_rows == "refuse":
        shown = "; ".join(
            f"{count} x {reason}, such as {min(map(str, faults[reason][1]))}" for reason, count in found.items()
        )
        raise DataError(source, None, f"{shown}; mend the run, or leave it out (r1-rerank eval: --bad-rows skip)")

    def ranker(row: Row) -> list[float]:
        scores = run[row.id]
        last = min(scores.values()) - 1.0
        return [scores.get(candidate.id, last) for candidate in row.candidates]

    settings = {"kind": "run", "sha256": _digest(run), "rows": digest(covered)}
    return FunctionSystem(ranker, name or Path(path).stem, settings), covered, found


def write_run(path: str | os.PathLike[str], scores: Run, tag: str) -> None:
    """Writes scores as a TREC run, best first, ties in the order given. Blanks in ids are written as in addresses."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for query, documents in scores.items():
            ranked = sorted(documents.items(), key=lambda item: -item[1])
            for rank, (document, score) in enumerate(ranked, start=1):
                file.write(f"{_field(query)} Q0 {_field(document)} {rank} {score!r} {_field(tag)}\n")


def write_qrels(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Writes the relevance of every candidate as TREC judgments: whole numbers, those between are rounded up."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            for candidate, value in zip(row.candidates, row.relevance, strict=True):
                file.write(f"{_field(row.id)} 0 {_field(candidate.id)} {math.ceil(value)}\n")


def ir_measures_values(rows: Sequence[Row], run: Run, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metrics of a run as ir-measures takes them, for whoever wants to check ours against it.

    It knows no ties (trec_eval breaks them by document id) and whole relevances only: negative ones are passed
    as 0, on which its nDCG would otherwise never return, and those between whole numbers are rounded up.

    Args:
        rows: With the judgments.
        run: Scores by row id and candidate id.
        metrics: Names as in an evaluation: `mrr`, `ndcg@10`, `hit@1`, `map`.

    Returns:
        For each metric, the value of each row.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError("eval", "ir_measures") from error
    names = {_ir_measure(metric): metric for metric in metrics}
    qrels = {
        row.id: {
            candidate.id: max(0, math.ceil(value))
            for candidate, value in zip(row.candidates, row.relevance, strict=True)
        }
        for row in rows
    }
    kept = {row.id: dict(run[row.id]) for row in rows if row.id in run}
    values: dict[str, dict[str, float]] = {metric: {} for metric in metrics}
    measures = [ir_measures.parse_measure(name) for name in names]
    for found in ir_measures.iter_calc(measures, qrels, kept):
        values[names[str(found.measure)]][found.query_id] = float(found.value)
    return values


def _ir_measure(metric: str) -> str:
    kind, at, cutoff = metric.partition("@")
    try:
        return {"mrr": "RR", "ndcg": "nDCG", "hit": "Success", "map": "AP"}[kind] + at + cutoff
    except KeyError:
        raise InputError("metrics", f"ir-measures has no {metric!r}") from None


def _field(name: str) -> str:
    """A name without blanks, which separate the fields of these files."""
    if not name:
        raise InputError("id", "is empty: a TREC file cannot name it")
    return re.sub(r"[\s%]", lambda blank: quote(blank[0]), name)


def _for_rows(run: dict[str, dict[str, float]], known: Mapping[str, Set[str]]) -> dict[str, dict[str, float]]:
    """The run with the ids of the rows, whichever way they are written."""
    if not any("%" in name for query, documents in run.items() for name in (query, *documents)):
        return run
    decoded: dict[str, dict[str, float]] = {}
    for query, documents in run.items():
        decoded.setdefault(unquote(query), {}).update({unquote(name): score for name, score in documents.items()})

    def found(ids: Run) -> int:
        return sum(len(ids[query].keys() & names) for query, names in known.items() if query in ids)

    return run if found(run) > found(decoded) else decoded


def _digest(run: Run) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]
