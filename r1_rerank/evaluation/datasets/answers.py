"""Question answering sets as passage ranking: SQuAD, WikiQA and InsuranceQA."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...prefilter import BM25_PARAMETERS
from ...rows import Candidate, Row
from .common import Dropped, import_extra, load_json, normalised, parquet_rows, shuffled, table
from .passages import Question

HARD, KEPT = 20, 60
"""Negatives of InsuranceQA: drawn from so many of the best by BM25 (the very first are often unlabelled answers), and
how many are kept, for lists that cannot take long ones."""


def read_squad(path: str | Path) -> Iterator[Question]:
    """Reads SQuAD v1.1 (Parquet: id, title, context, question, answers).

    The negatives of a question are the paragraphs of the same article without any of its answers, those first that
    share the most words with the question. Its id begins with the article, by which to split.

    Raises:
        DataError: The file is missing, truncated or of another shape.
    """
    path = Path(path)
    rows = [row for _, row in parquet_rows(path, ("id", "title", "context", "question", "answers"))]
    articles: dict[str, dict[str, tuple[str, frozenset[str]]]] = {}
    for number, row in enumerate(rows):
        answers = row["answers"]
        texts = answers.get("text") if isinstance(answers, Mapping) else None
        if not texts or not all(isinstance(row[name], str) for name in ("title", "context", "question")):
            raise DataError(str(path), None, f"row {number} has no title, context, question and answers")
        paragraphs = articles.setdefault(row["title"], {})
        name = f"{row['title']}-{len(paragraphs)}"
        paragraphs.setdefault(row["context"], (name, _words(row["context"])))
    for row in rows:
        paragraphs, asked = articles[row["title"]], _words(row["question"])
        others = [
            (-len(asked & words), place, (name, text))
            for place, (text, (name, words)) in enumerate(paragraphs.items())
            if text != row["context"] and not any(answer in text for answer in row["answers"]["text"])
        ]
        yield Question(
            id=f"{row['title']}/{row['id']}",
            query=row["question"].strip(),
            positive=(paragraphs[row["context"]][0], row["context"]),
            negatives=[passage for _, _, passage in sorted(others)],
        )


def read_wikiqa(
    path: str | Path, split: str = "test", *, seed: int = 0, fewest: int = 5, dropped: Dropped | None = None
) -> Iterator[Row]:
    """Reads WikiQA (`QuestionID Question DocumentID DocumentTitle SentenceID Sentence Label`) as lists of sentences.

    Args:
        path: File with labels.
        split: Name of the split.
        seed: Decides on the order of the candidates: sentences come in the order of their article.
        fewest: Candidates that a question must have.
        dropped: Counts questions that are left out, such as those with several answers.

    Raises:
        DataError: The file is missing, truncated or of another shape.
    """
    path, dropped = Path(path), Dropped() if dropped is None else dropped
    columns = ("QuestionID", "Question", "SentenceID", "Sentence", "Label")
    questions: dict[str, list[dict[str, str]]] = {}
    for number, cells in table(path, columns):
        if cells["Label"] not in ("0", "1"):
            raise DataError(str(path), number, f"Label: {cells['Label']!r} is not 0 or 1")
        questions.setdefault(cells["QuestionID"], []).append(cells)
    for id, sentences in questions.items():
        relevance = [float(cells["Label"]) for cells in sentences]
        if sum(relevance) != 1:
            dropped.add("a question with no or several answers")
        elif len(sentences) < fewest:
            dropped.add(f"a question with fewer than {fewest} sentences")
        else:
            candidates = [Candidate(id=cells["SentenceID"], text=cells["Sentence"]) for cells in sentences]
            yield Row(
                id=f"wikiqa-{id}",
                task="passage",
                query=sentences[0]["Question"],
                split=split,
                source="WikiQA",
                **shuffled(candidates, relevance, f"wikiqa/{seed}/{id}"),
            )


def read_insuranceqa(folder: str | Path, split: str = "train", *, seed: int = 0) -> Iterator[Question]:
    """Reads InsuranceQA (`answers.json.gz`, `<split>.json.gz`), its English texts.

    The negatives of a question are drawn, in random order, from the best by BM25 of the 200 that come with it.

    Raises:
        DataError: A file is missing, truncated or of another shape, or a question names an answer that is not there.
        MissingExtraError: bm25s is not installed.
    """
    bm25s = import_extra("bm25s")
    folder = Path(folder)
    answers = {id: _english(folder, id, entry) for id, entry in load_json(folder / "answers.json.gz", dict).items()}
    path = folder / f"{split}.json.gz"
    entries = load_json(path, dict)
    queries = {id: _english(path, id, entry) for id, entry in entries.items()}
    place = {id: number for number, id in enumerate(answers)}
    keys = {id: normalised(text) for id, text in answers.items()}
    # As the BM25 of the evaluation, but over whole collections: word weights come from all answers.
    index = bm25s.BM25(**BM25_PARAMETERS)
    index.index(bm25s.tokenize(list(answers.values()), show_progress=False), show_progress=False)
    words = bm25s.tokenize(list(queries.values()), show_progress=False, return_ids=False)
    for (id, entry), asked in zip(entries.items(), words, strict=True):
        right, wrong = _listed(path, id, entry, "answers", answers), _listed(path, id, entry, "negatives", answers)
        taken = {keys[name] for name in right}
        scores = index.get_scores(asked) if asked else [0.0] * len(answers)
        ranked = sorted(dict.fromkeys(wrong), key=lambda name: -scores[place[name]])[:KEPT]
        rng = random.Random(f"insuranceqa/{seed}/{id}")
        hard = ranked[:HARD]
        rng.shuffle(hard)
        positive = rng.choice(right)
        yield Question(
            id=f"{split}-{id}",
            query=queries[id],
            positive=(positive, answers[positive]),
            negatives=[(name, answers[name]) for name in hard + ranked[HARD:] if keys[name] not in taken],
        )


def _english(path: Path, id: str, entry: Any) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("en"), str) or not entry["en"].strip():
        raise DataError(str(path), None, f"entry {id!r} has no English text under en")
    return " ".join(entry["en"].split())


def _listed(path: Path, id: str, entry: Mapping[str, Any], key: str, known: Mapping[str, str]) -> list[str]:
    names = entry.get(key)
    if not isinstance(names, list) or not names:
        raise DataError(str(path), None, f"entry {id!r} has no {key}")
    if unknown := [name for name in names if name not in known]:
        raise DataError(str(path), None, f"entry {id!r}: no answer {unknown[0]!r} in answers.json.gz")
    return names


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))
