"""Cheap first stages: they order a long list, and hand its head to the ranker.

from r1_rerank.prefilter import BM25Prefilter

reranker = R1Reranker.from_pretrained(prefilter=BM25Prefilter(keep=20))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .errors import InputError, InputTypeError, MissingExtraError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@runtime_checkable
class Prefilter(Protocol):
    """Orders texts without the ranker."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    @property
    def keep(self) -> int:
        """How many documents go on to the ranker; the others follow them in the prefilter's order."""
        ...

    def order(self, query: str, texts: Sequence[str]) -> Sequence[int]:
        """Every index of `texts` once, best first."""
        ...


@dataclass(frozen=True)
class BM25Prefilter:
    """Words in common, weighed by BM25 (k1 = 1.5, b = 0.75) with the statistics of the list itself.

    Args:
        keep: How many documents go on to the ranker.
    """

    keep: int = 20
    name: str = "bm25"

    def __post_init__(self) -> None:
        _check_keep(self.keep)

    def order(self, query: str, texts: Sequence[str]) -> list[int]:
        """Every index of `texts` once, best first; equal scores in incoming order."""
        try:
            import bm25s
        except ImportError as error:
            raise MissingExtraError("prefilter", "bm25s") from error
        quiet = {"show_progress": False, "return_ids": False, "stopwords": None}
        words = bm25s.tokenize(list(texts), **quiet)
        asked = bm25s.tokenize([query], **quiet)[0]
        index = bm25s.BM25(k1=1.5, b=0.75)
        if not any(words) or not asked:  # nothing to match by
            return list(range(len(texts)))
        index.index(words, show_progress=False)
        scores = index.get_scores(asked)
        return sorted(range(len(texts)), key=lambda place: -float(scores[place]))


class EmbeddingPrefilter:
    """Cosine similarity of sentence-transformers embeddings.

    Args:
        model: A `SentenceTransformer`, or its name or folder, loaded at once.
        keep: How many documents go on to the ranker.
        batch_size: Texts embedded together.
    """

    def __init__(
        self, model: str | PathLike[str] | SentenceTransformer, keep: int = 20, *, batch_size: int = 32
    ) -> None:
        _check_keep(keep)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError("prefilter", "sentence-transformers") from error
        if isinstance(model, str | PathLike):
            model = SentenceTransformer(fspath(model))
        if not isinstance(model, SentenceTransformer):
            raise InputTypeError("model", f"expected a SentenceTransformer or its name, got {type(model).__name__}")
        self.name = "embedding"
        self.keep = keep
        self._model = model
        self._batch_size = batch_size

    def order(self, query: str, texts: Sequence[str]) -> list[int]:
        """Every index of `texts` once, best first; equal scores in incoming order."""
        vectors = self._model.encode(
            [query, *texts], batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        scores = vectors[1:] @ vectors[0]
        return sorted(range(len(texts)), key=lambda place: -float(scores[place]))


def _check_keep(keep: object) -> None:
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise InputTypeError("keep", f"expected an int, got {type(keep).__name__}")
    if keep < 2:
        raise InputError("keep", f"{keep} is too small; hand at least 2 documents to the ranker")
