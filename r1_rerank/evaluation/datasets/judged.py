"""Judged collections: BEIR folders, TREC runs and judgments, NovelEval, and the file of the LLMJudge challenge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

from ...errors import DataError, InputError
from ...rows import Candidate, Row
from ..trec import read_run
from .common import Dropped, finite_number_of, json_lines, normalised, text_lines
from .passages import JudgedQuery

Qrels = Mapping[str, Mapping[str, float]]
"""Grade by query and document."""
Unknown = Literal["refuse", "drop"]


def read_qrels(path: str | Path) -> dict[str, dict[str, float]]:
    """Reads judgments: `query 0 document grade` a line (TREC), or `query document grade` under a header (BEIR).

    Raises:
        DataError: The file is missing, empty or truncated, or a line has another shape.
    """
    path, qrels, width = Path(path), dict[str, dict[str, float]](), 0
    for number, line in text_lines(path):
        cells = line.split()
        if number == 1 and cells[:2] == ["query-id", "corpus-id"]:
            continue
        if len(cells) not in (3, 4):
            raise DataError(str(path), number, f"{len(cells)} fields: judgments have query, (0,) document and grade")
        # A line of four that lost its grade would else be read as one of three.
        width = width or len(cells)
        if len(cells) != width:
            raise DataError(str(path), number, f"{len(cells)} fields, where the lines before have {width} (truncated?)")
        query, document, grade = cells[0], cells[-2], finite_number_of(path, number, "grade", cells[-1])
        if document in qrels.setdefault(query, {}):
            raise DataError(str(path), number, f"document {document!r} is judged twice for query {query!r}")
        qrels[query][document] = grade
    return qrels


def read_beir(
    folder: str | Path,
    split: str = "test",
    *,
    run: str | Path | None = None,
    top: int = 20,
    unknown: Unknown = "refuse",
    source: str | None = None,
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """Reads a BEIR folder: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`.

    Args:
        folder: Folder of the files; of the corpus only what is needed is kept.
        split: Which judgments.
        run: A TREC run that says which documents are the candidates; without one, the judged documents are.
        top: How many of the run, from its best.
        unknown: What to do with a judged or retrieved document or query that is not in the collection.
        source: Name of the data set (default: that of the folder).
        dropped: Counts what is left out.

    Raises:
        DataError: A file is missing, truncated or of another shape, or names an unknown document.
    """
    folder = Path(folder)
    qrels = read_qrels(folder / "qrels" / f"{split}.tsv")
    ranked = _read_run(run)
    wanted = {document for judged in (*qrels.values(), *ranked.values()) for document in judged}
    texts = _beir_texts(folder / "corpus.jsonl", wanted)
    queries = _beir_texts(folder / "queries.jsonl")
    yield from judged_rows(
        queries,
        texts,
        qrels,
        ranked if run else None,
        top=top,
        unknown=unknown,
        split=split,
        source=source or folder.name,
        dropped=dropped,
    )


def read_trec(
    queries: str | Path,
    corpus: str | Path,
    qrels: str | Path,
    *,
    run: str | Path | None = None,
    top: int = 20,
    unknown: Unknown = "refuse",
    split: str = "test",
    source: str = "TREC",
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """Reads a collection of TSV files, as NovelEval has them: `query text`, `document text`, and TREC judgments.

    Args:
        queries: Id and text of each query.
        corpus: Id and text of each document.
        qrels: Judgments.
        run: A TREC run that says which documents are the candidates; without one, the judged documents are.
        top: How many of the run, from its best.
        unknown: What to do with a judged or retrieved document or query that is not in the collection.
        split: Name of the split.
        source: Name of the data set.
        dropped: Counts what is left out.

    Raises:
        DataError: A file is missing, truncated or of another shape, or names an unknown document.
    """
    ranked = _read_run(run) if run else None
    texts, asked = _pairs(Path(corpus)), _pairs(Path(queries))
    yield from judged_rows(
        asked, texts, read_qrels(qrels), ranked, top=top, unknown=unknown, split=split, source=source, dropped=dropped
    )


def read_llmjudge(path: str | Path, *, qrels: str | Path | None = None) -> list[JudgedQuery]:
    """Reads judged passages with their texts, `[query id, [{paragraph_id, text, paragraph_data: {judgments}}]]` a line.

    Args:
        path: JSON Lines, may be packed as `.gz`.
        qrels: Judgments that the file must agree with.

    Raises:
        DataError: The file is missing, truncated, of another shape, or disagrees with the judgments.
    """
    path = Path(path)
    texts: dict[str, str] = {}
    passages: dict[str, dict[str, tuple[str, float]]] = {}
    for number, line in json_lines(path):
        try:
            query, entries = str(line[0]), line[1]
            for entry in entries:
                for judgment in entry["paragraph_data"]["judgments"]:
                    texts[query] = judgment["titleQuery"]
                    grade = finite_number_of(path, number, "relevance", judgment["relevance"])
                    passages.setdefault(query, {})[entry["paragraph_id"]] = (entry["text"], grade)
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(str(path), number, f"is no judged passage: {error!r}") from error
    if qrels is not None:
        found = {query: {id: grade for id, (_, grade) in judged.items()} for query, judged in passages.items()}
        if differing := [query for query, judged in read_qrels(qrels).items() if found.get(query) != judged]:
            raise DataError(str(path), None, f"query {differing[0]!r} is judged otherwise in {Path(qrels).name}")
    return [
        JudgedQuery(id=id, query=texts[id], passages=[(name, text, grade) for name, (text, grade) in judged.items()])
        for id, judged in passages.items()
    ]


def rerank_rows(
    queries: Sequence[JudgedQuery],
    run: str | Path,
    *,
    top: int = 20,
    split: str = "test",
    source: str = "TREC",
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """The first judged documents of a run, in its order, with their grades; what was not judged is passed over."""
    ranked = _read_run(run)
    judged = {query.id: {id: grade for id, _, grade in query.passages} for query in queries}
    condensed = {id: {name: score for name, score in ranked.get(id, {}).items() if name in judged[id]} for id in judged}
    texts = {id: text for query in queries for id, text, _ in query.passages}
    for row in judged_rows(
        {query.id: query.query for query in queries}, texts, judged, condensed, top=top, unknown="drop", split=split,
        source=source, dropped=dropped,
    ):  # fmt: skip
        if len(row.candidates) == top:
            yield row
        elif dropped is not None:
            dropped.add(f"a query with fewer than {top} judged documents in the run")


def judged_rows(
    queries: Mapping[str, str],
    texts: Mapping[str, str],
    qrels: Qrels,
    run: Qrels | None,
    *,
    top: int,
    unknown: Unknown,
    split: str,
    source: str,
    dropped: Dropped | None,
) -> Iterator[Row]:
    """A row for each judged query: the best of the run, or the judged documents, with their grades (0: not judged).

    Of documents with the same text the first counts, with its own grade.
    """
    if unknown not in ("refuse", "drop"):
        raise InputError("unknown", f"{unknown!r} is not one of refuse, drop")
    dropped = Dropped() if dropped is None else dropped
    for query, judged in qrels.items():
        if query not in queries:
            _unknown("query", query, source, unknown, dropped)
            continue
        for document in (document for document in judged if document not in texts):
            _unknown("document", document, source, unknown, dropped)
        names = list(judged) if run is None else sorted(run.get(query, {}), key=lambda name: -run[query][name])
        known = [name for name in names if name in texts]
        for document in (name for name in names if name not in texts and name not in judged):
            _unknown("document", document, source, unknown, dropped)
        seen: dict[str, str] = {}
        for name in known:
            seen.setdefault(normalised(texts[name]), name)
        unique = [name for name in known if seen[normalised(texts[name])] == name]
        dropped.add("a candidate with the text of an earlier one", len(known) - len(unique))
        chosen = unique[: None if run is None else top]
        grades = [max(0.0, judged.get(name, 0.0)) for name in chosen]
        if not any(grades):
            dropped.add("a query without a relevant candidate")
        elif len(set(grades)) == 1:
            dropped.add("a query whose candidates are all alike (pass a run)")
        else:
            yield Row(
                id=f"{source}-{query}",
                task="passage",
                query=queries[query],
                candidates=tuple(Candidate(id=name, text=texts[name]) for name in chosen),
                relevance=tuple(grades),
                split=split,
                source=source,
            )


def _unknown(kind: str, name: str, source: str, unknown: Unknown, dropped: Dropped) -> None:
    if unknown == "refuse":
        raise DataError(source, None, f"the judgments or the run name a {kind} {name!r} that the collection lacks")
    dropped.add(f"an unknown {kind} in the judgments or the run")


def _read_run(path: str | Path | None) -> dict[str, dict[str, float]]:
    return {} if path is None else read_run(path)


def _beir_texts(path: Path, wanted: Set[str] | None = None) -> dict[str, str]:
    """Text of each entry, behind its title where it has one; only of those wanted, None for all."""
    texts: dict[str, str] = {}
    for number, entry in json_lines(path):
        id = _field(path, number, entry, "_id")
        if wanted is not None and id not in wanted:
            continue
        if id in texts:
            raise DataError(str(path), number, f"the id {id!r} stands twice")
        title, text = entry.get("title") or "", _field(path, number, entry, "text")
        texts[id] = f"{title}. {text}" if title else text
    return texts


def _pairs(path: Path) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for number, line in text_lines(path):
        id, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise DataError(str(path), number, "is not an id, a tab and a text (truncated?)")
        if id in pairs:
            raise DataError(str(path), number, f"the id {id!r} stands twice")
        pairs[id] = text
    return pairs


def _field(path: Path, number: int, entry: Any, name: str) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry.get(name), str):
        raise DataError(str(path), number, f"has no {name}")
    return str(entry[name])
