"""A ranker component for Haystack. Needs the extra `haystack`.

from r1_rerank.integrations.haystack import R1Ranker

pipeline.add_component("ranker", R1Ranker(top_k=5))
pipeline.connect("retriever.documents", "ranker.documents")
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from dataclasses import replace
from typing import Any

from ..documents import RerankResult
from ..errors import InputError, InputTypeError, MissingExtraError
from ..options import OnError
from ..reranker import R1Reranker
from .adapter import hit_metadata, report, source_of
from .loading import Pretrained

try:
    import haystack  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError("haystack", "haystack") from error

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.core.errors import SerializationError
from haystack.tracing.tracer import tracer

logger = logging.getLogger(__name__)

_registering = threading.Lock()


@component
class R1Ranker:
    """Ranks documents for a query with a reasoning language model.

    As Haystack's own rankers do, it keeps one document of each id, and hands the documents on unranked where the
    query is empty. A document without text counts as an empty one.

    The model is loaded when the pipeline warms up, once for all components, copies and threads that name it. Haystack
    loads a saved pipeline only where it trusts its modules: `Pipeline.load(file, allowed_modules=["r1_rerank"])`.

    Args:
        model: A hub name or a local folder; None: the embedded model.
        reranker: A built reranker, in place of `strategy`, `thinking`, `on_error` and a name. It cannot be saved.
        strategy: `iranker` or `dranker`; None: the model's own.
        thinking: Most tokens to think before each answer; None: the model's own number.
        on_error: What an engine fault does: `partial` (default) returns the best order so far, `raise` raises it.
        top_k: How many documents come back; None: all.
        score_threshold: Leave out documents that score lower; needs scores that are probabilities.
        include_reasoning: Put the reasoning that placed a document into its meta, as `rerank_reasoning`.
        include_status: Put `rerank_status` and `rerank_faults` of the ranking into the meta.

    Raises:
        InputError: An argument that cannot be used.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        reranker: R1Reranker | None = None,
        strategy: str | None = None,
        thinking: int | None = None,
        on_error: OnError | None = None,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        include_reasoning: bool = False,
        include_status: bool = False,
    ) -> None:
        _require_positive(top_k)
        self._source = source_of(reranker, model=model, strategy=strategy, thinking=thinking, on_error=on_error)
        self.model = None if model is None else os.fspath(model)
        self.strategy = strategy
        self.thinking = thinking
        self.on_error = on_error
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.include_reasoning = include_reasoning
        self.include_status = include_status

    def warm_up(self) -> None:
        """Loads the model."""
        self._load()

    async def warm_up_async(self) -> None:
        """Loads the model beside the event loop."""
        await self._aload()

    def close(self) -> None:
        """Lets go of the model: it is freed once no other component and no ranking uses it.

        Whoever needs it next loads it again.
        """
        with _registering:
            _users.discard(self)
            used = any(other._source == self._source for other in _users)
        if isinstance(self._source, Pretrained) and not used:  # a built one is its builder's
            self._source.unload()

    def to_dict(self) -> dict[str, Any]:
        """The component as plain values.

        Raises:
            SerializationError: It was given a built reranker.
        """
        if not isinstance(self._source, Pretrained):
            raise SerializationError("R1Ranker: a built reranker cannot be saved; pass a model name instead")
        return default_to_dict(
            self,
            model=self.model,
            strategy=self.strategy,
            thinking=self.thinking,
            on_error=self.on_error,
            top_k=self.top_k,
            score_threshold=self.score_threshold,
            include_reasoning=self.include_reasoning,
            include_status=self.include_status,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> R1Ranker:
        """The component that `to_dict` wrote."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """Ranks the documents.

        Args:
            query: What is asked.
            documents: In the order of an earlier stage, best first.
            top_k: In place of the component's.
            score_threshold: In place of the component's.

        Returns:
            `documents`: copies with new scores, best first. `meta`: status, faults and usage of the ranking.

        Raises:
            InputError: An argument that cannot be used.
            EngineError: The engine failed, under `on_error="raise"`.
        """
        kept, limits = self._prepare(documents, top_k, score_threshold)
        if not kept or not _asks(query):
            return _unranked(kept)
        return self._finish(kept, self._load().rerank(query, _texts(kept), **limits))

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """Ranks the documents on an event loop; see `run`."""
        kept, limits = self._prepare(documents, top_k, score_threshold)
        if not kept or not _asks(query):
            return _unranked(kept)
        reranker = await self._aload()
        return self._finish(kept, await reranker.arerank(query, _texts(kept), **limits))

    def _load(self) -> R1Reranker:
        with _registering:
            _users.add(self)
        return self._source.load()

    async def _aload(self) -> R1Reranker:
        with _registering:
            _users.add(self)
        return await self._source.aload()

    def _prepare(
        self, documents: list[Document], top_k: int | None, score_threshold: float | None
    ) -> tuple[list[Document], dict[str, Any]]:
        _require_positive(top_k)
        limits = {
            "top_k": self.top_k if top_k is None else top_k,
            "score_threshold": self.score_threshold if score_threshold is None else score_threshold,
        }
        return _unique(documents), limits

    def _finish(self, documents: list[Document], result: RerankResult) -> dict[str, Any]:
        span = tracer.current_span()
        if span is not None:
            span.set_tags({"r1_rerank.status": result.status, "r1_rerank.faults": [f.detail for f in result.faults]})
        ranked = []
        for hit in result:
            document = documents[hit.index]
            added = hit_metadata(result, hit.index, reasoning=self.include_reasoning, status=self.include_status)
            ranked.append(replace(document, score=hit.score, meta={**document.meta, **added}))
        return {"documents": ranked, "meta": report(result)}


_users: weakref.WeakSet[R1Ranker] = weakref.WeakSet()
"""Components that work with their model, and were not closed since."""


def _texts(documents: list[Document]) -> list[str]:
    return [document.content or "" for document in documents]


def _asks(query: object) -> bool:
    """As Haystack's own rankers see it: None is an empty query too."""
    return isinstance(query, str) and bool(query.strip())


def _unique(documents: list[Document]) -> list[Document]:
    """One document of each id, the best scored, in the place of the first."""
    if not isinstance(documents, list | tuple):
        raise InputTypeError("documents", f"expected a list, got {type(documents).__name__}")
    kept: dict[str, Document] = {}
    for place, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InputTypeError(f"documents[{place}]", f"expected a Document, got {type(document).__name__}")
        known = kept.get(document.id)
        if known is None or _score(document) > _score(known):
            kept[document.id] = document
    return list(kept.values())


def _score(document: Document) -> float:
    return float("-inf") if document.score is None else document.score


def _unranked(documents: list[Document]) -> dict[str, Any]:
    if documents:
        logger.warning("the query is empty: the documents are returned as they came")
    return {"documents": documents, "meta": {}}


def _require_positive(top_k: int | None) -> None:
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InputError("top_k", f"expected 1 or more, or None for all, got {top_k!r}")
