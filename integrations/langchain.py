"""A document compressor and a routing chat model for LangChain. Needs the extra `langchain`.

from langchain_classic.retrievers import ContextualCompressionRetriever
from r1_rerank.integrations.langchain import R1RerankCompressor

retriever = ContextualCompressionRetriever(base_compressor=R1RerankCompressor(top_n=5), base_retriever=retriever)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field  # noqa: TID253  LangChain's own classes are pydantic models
from pydantic.json_schema import SkipJsonSchema  # noqa: TID253

from ..documents import RerankResult
from ..errors import InputError, InputTypeError, MissingExtraError
from ..options import OnError
from ..reranker import R1Reranker
from .adapter import hit_metadata, report, source_of
from .loading import Given, Pretrained

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError("langchain", "langchain_core") from error

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from .langchain_router import R1RouterChatModel

__all__ = ["R1RerankCompressor", "R1RouterChatModel"]

OWN = -1
"""Stands for the compressor's own `top_n`, as in the hosted rerankers of LangChain."""


class R1RerankCompressor(BaseDocumentCompressor):
    """Puts retrieved documents in order with a reasoning language model, and keeps the best.

    Copies come back: class, id and metadata as they were, and `relevance_score` added. Without a built reranker the
    model is loaded by the first call, once for all compressors, copies and threads that name it.

    Each call is a run in LangChain's trace. Its output has status, faults and usage, so that an engine fault shows
    there even where the call goes on (`on_error="partial"`).

    Raises:
        ValidationError: A value that a field does not take, or a built reranker beside settings that it has already.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

    reranker: SkipJsonSchema[R1Reranker | None] = Field(
        default=None,
        exclude=True,
        repr=False,
        description="A built reranker, in place of `model`, `strategy`, `thinking` and `on_error`.",
    )
    model: str | Path | None = Field(default=None, description="Hub name or local folder; None: the embedded model.")
    strategy: Literal["dranker", "iranker"] | None = Field(
        default=None, description="How to rank; None: the model's own strategy."
    )
    thinking: int | None = Field(
        default=None, ge=0, description="Most tokens to think before each answer; None: the model's own number."
    )
    on_error: OnError | None = Field(
        default=None,
        description="What an engine fault does: `partial` (default) returns the best order so far, `raise` raises it.",
    )
    top_n: int | None = Field(default=3, ge=1, description="Number of documents to return, best first; None: all.")
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Leave out what scores lower; needs scores that are probabilities."
    )
    include_reasoning: bool = Field(
        default=False, description="Put the reasoning that placed a document into its metadata, as `rerank_reasoning`."
    )
    include_status: bool = Field(
        default=False, description="Put `rerank_status` and `rerank_faults` of the ranking into the metadata."
    )

    def model_post_init(self, context: Any, /) -> None:
        """Checks that the settings fit together; nothing is loaded."""
        self._source()

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Ranks the documents of one query.

        Args:
            documents: In the order of the retriever, best first.
            query: What is asked.
            callbacks: For the trace.

        Returns:
            The best `top_n`, best first.

        Raises:
            InputError: An argument that cannot be used.
            EngineError: The engine failed, under `on_error="raise"`.
        """
        given = {"query": query, "documents": documents}
        return _ranked(self._traced().invoke(given, _config(callbacks)))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Ranks the documents of one query on an event loop; see `compress_documents`."""
        given = {"query": query, "documents": documents}
        return _ranked(await self._traced().ainvoke(given, _config(callbacks)))

    def rerank(
        self, documents: Sequence[str | Document], query: str, *, top_n: int | None = OWN
    ) -> list[dict[str, Any]]:
        """Ranks texts or documents and tells their places only.

        Args:
            documents: In the order of an earlier stage, best first.
            query: What is asked.
            top_n: Number of places to return; None: all; -1: the compressor's own `top_n`.

        Returns:
            `{"index", "relevance_score"}`, best first; `index` is the place in `documents`.
        """
        return _places(self._rank(documents, query, top_n))

    async def arerank(
        self, documents: Sequence[str | Document], query: str, *, top_n: int | None = OWN
    ) -> list[dict[str, Any]]:
        """Ranks texts or documents on an event loop; see `rerank`."""
        return _places(await self._arank(documents, query, top_n))

    def as_runnable(self) -> Runnable[dict[str, Any], list[Document]]:
        """The compressor as a step of a chain: takes `{"query": ..., "documents": ...}`, gives the documents.

        {"query": RunnablePassthrough(), "documents": retriever} | compressor.as_runnable()
        """
        return self._traced() | RunnableLambda(_ranked)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.reranker)] = self.reranker  # a loaded model is shared
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if self.reranker is not None:
            raise InputTypeError("reranker", "a built reranker cannot be pickled; pass a model name instead")
        return super().__getstate__()

    def _source(self) -> Given | Pretrained:
        return source_of(
            self.reranker, model=self.model, strategy=self.strategy, thinking=self.thinking, on_error=self.on_error
        )

    def _traced(self) -> RunnableLambda[dict[str, Any], dict[str, Any]]:
        return RunnableLambda(self._compress, afunc=self._acompress, name=type(self).__name__)

    def _compress(self, given: dict[str, Any]) -> dict[str, Any]:
        return self._compressed(given["documents"], self._rank(given["documents"], given["query"], OWN))

    async def _acompress(self, given: dict[str, Any]) -> dict[str, Any]:
        return self._compressed(given["documents"], await self._arank(given["documents"], given["query"], OWN))

    def _rank(self, documents: Sequence[str | Document], query: str, top_n: int | None) -> RerankResult | None:
        if not (texts := _texts(documents)):
            return None
        return self._source().load().rerank(query, texts, **self._limits(top_n))

    async def _arank(self, documents: Sequence[str | Document], query: str, top_n: int | None) -> RerankResult | None:
        if not (texts := _texts(documents)):
            return None
        reranker = await self._source().aload()
        return await reranker.arerank(query, texts, **self._limits(top_n))

    def _limits(self, top_n: int | None) -> dict[str, Any]:
        if top_n is not None and top_n != OWN and top_n < 1:
            detail = f"{top_n} is too small; pass 1 or more, None for all, or -1 for the compressor's own"
            raise InputError("top_n", detail)
        return {"top_k": self.top_n if top_n == OWN else top_n, "score_threshold": self.score_threshold}

    def _compressed(self, documents: Sequence[Document], result: RerankResult | None) -> dict[str, Any]:
        if result is None:
            return {"documents": []}
        kept = []
        for hit in result:
            document = documents[hit.index]
            added = hit_metadata(result, hit.index, reasoning=self.include_reasoning, status=self.include_status)
            metadata = {**document.metadata, **added, "relevance_score": hit.score}
            kept.append(document.model_copy(update={"metadata": metadata}))
        return {"documents": kept, **report(result)}


def _config(callbacks: Callbacks | None) -> RunnableConfig:
    return {} if callbacks is None else {"callbacks": callbacks}


def _ranked(compressed: dict[str, Any]) -> list[Document]:
    documents: list[Document] = compressed["documents"]
    return documents


def _places(result: RerankResult | None) -> list[dict[str, Any]]:
    return [{"index": hit.index, "relevance_score": hit.score} for hit in result or ()]


def _texts(documents: Sequence[str | Document]) -> list[str]:
    """The texts in order: documents are told apart by position, so equal texts and equal ids are fine."""
    if isinstance(documents, str) or not isinstance(documents, Sequence):
        raise InputTypeError("documents", f"expected a list, got {type(documents).__name__}")
    texts = []
    for place, document in enumerate(documents):
        if not isinstance(document, str | Document):
            raise InputTypeError(f"documents[{place}]", f"expected a Document, got {type(document).__name__}")
        texts.append(document if isinstance(document, str) else document.page_content)
    return texts
