"""Cheap first stages: they order a long list, and hand its head to the ranker.

from r1_rerank.prefilter import BM25Prefilter

reranker = R1Reranker.from_pretrained(prefilter=BM25Prefilter(keep=20))
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .errors import CheckpointError, InputError, InputTypeError, MissingExtraError

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


KEEP = 20
"""So many documents go on to the ranker, if nothing else is said: a window of it."""
BM25_PARAMETERS = {"k1": 1.5, "b": 0.75}


class BM25Index:
    """BM25 with k1 = 1.5 and b = 0.75 over words, without English stop words.

    Args:
        texts: Their words give the weights; each text counts once.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        bm25s = _import_bm25s()
        unique = list(dict.fromkeys(texts))
        self._places = {text: place for place, text in enumerate(unique)}
        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25(**BM25_PARAMETERS)
        words = self._words(unique) if unique else []
        # An index without a single word cannot be built, and then nothing can match.
        self._empty = not any(words)
        if not self._empty:
            self._index.index(words, show_progress=False)

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """Score of each text, 0 where it has no word of the query.

        Raises:
            KeyError: A text is not in the index.
        """
        places = [self._places[text] for text in texts]
        words = [] if self._empty else self._words([query])[0]
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return [0.0] * len(texts)
        found = self._index.get_scores(known)
        return [float(found[place]) for place in places]

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = self._tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
        return words


@dataclass(frozen=True)
class BM25Prefilter:
    """Words in common, weighed by BM25 with the statistics of the list itself.

    Args:
        keep: How many documents go on to the ranker.
    """

    keep: int = KEEP
    name: str = "bm25"

    def __post_init__(self) -> None:
        _check_keep(self.keep)
        _import_bm25s()  # what is missing shall be known before a model is loaded

    def order(self, query: str, texts: Sequence[str]) -> list[int]:
        """Every index of `texts` once, best first; equal scores in incoming order."""
        scores = BM25Index(texts).scores(query, texts)
        return sorted(range(len(texts)), key=lambda place: -scores[place])


class EmbeddingPrefilter:
    """Cosine similarity of sentence-transformers embeddings.

    Args:
        model: A `SentenceTransformer`, or its name or folder, loaded at once, from safetensors.
        keep: How many documents go on to the ranker.
        batch_size: Texts embedded together.

    Raises:
        CheckpointError: The model cannot be loaded.
        MissingExtraError: `sentence-transformers` is not installed.
    """

    def __init__(
        self, model: str | PathLike[str] | SentenceTransformer, keep: int = KEEP, *, batch_size: int = 32
    ) -> None:
        _check_keep(keep)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError("prefilter", "sentence-transformers") from error
        if isinstance(model, str | PathLike):
            name = fspath(model)
            try:
                model = SentenceTransformer(name, model_kwargs={"use_safetensors": True})
            except Exception as error:
                raise CheckpointError(f"embedding model {name!r} cannot be loaded: {error}") from error
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


def _import_bm25s() -> Any:
    try:
        import bm25s
    except ImportError as error:
        raise MissingExtraError("prefilter", "bm25s") from error
    return bm25s


def _check_keep(keep: object) -> None:
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise InputTypeError("keep", f"expected an int, got {type(keep).__name__}")
    if keep < 2:
        raise InputError("keep", f"{keep} is too small; hand at least 2 documents to the ranker")
