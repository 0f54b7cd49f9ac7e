"""A reranker for query engines, a selector among tools, and an LLM that is a pool of LLMs. Needs extra `llama-index`.

from r1_rerank.integrations.llama_index import R1RerankPostprocessor

engine = index.as_query_engine(similarity_top_k=20, node_postprocessors=[R1RerankPostprocessor(top_n=3)])
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from ..documents import Document, RerankResult
from ..errors import InputError, MissingExtraError
from ..options import OnError
from ..reranker import R1Reranker
from .adapter import hit_metadata, report, source_of
from .loading import Given, Pretrained

try:
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # re-exported silently
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
except ModuleNotFoundError as error:
    raise MissingExtraError("llama-index", error.name or "llama_index") from error

from .llama_index_router import R1RouterLLM
from .llama_index_selector import R1RouterSelector

__all__ = ["R1RerankPostprocessor", "R1RouterLLM", "R1RouterSelector"]

dispatcher = get_dispatcher(__name__)

StrategyName = Literal["dranker", "iranker"]


class R1RerankPostprocessor(BaseNodePostprocessor):
    """Puts retrieved nodes in order with a reasoning language model, and keeps the best.

    The nodes come back with new scores, in new `NodeWithScore`s; nothing that was passed in is changed. Without a
    built reranker the model is loaded by the first query, once for all postprocessors, copies and threads that name it.

    Dicts, JSON and pickles hold the settings. A built reranker has to be given again:
    `R1RerankPostprocessor.from_dict(data, reranker=reranker)`.

    Events tell how the ranking went, so an engine that failed shows even where the query goes on
    (`on_error="partial"`): status, faults and usage stand in the tags of `ReRankEndEvent` under `r1_rerank`, and in the
    callback's payload under `EventPayload.ADDITIONAL_KWARGS`.

    Args:
        reranker: A built one, in place of `model`, `strategy`, `thinking` and `on_error`.
        model: See the field, as the others.
        strategy: See the field.
        thinking: See the field.
        on_error: See the field.
        top_n: See the field.
        metadata_mode: See the field.
        score_threshold: See the field.
        keep_retrieval_score: See the field.
        include_reasoning: See the field.
        include_steps: See the field.
        include_status: See the field.
        reranker_given: See the field.
        callback_manager: Query engines set their own.

    Raises:
        InputError: An argument that cannot be used.
        ValidationError: A value that a field does not take.
    """

    model: str | None = Field(default=None, description="A hub name or a local folder; None: the embedded model.")
    strategy: StrategyName | None = Field(default=None, description="How to rank; None: the model's own strategy.")
    thinking: int | None = Field(
        default=None, ge=0, description="Most tokens to think before each answer; None: the model's own number."
    )
    on_error: OnError | None = Field(
        default=None,
        description="What an engine fault does: `partial` (default) returns the best order so far, `raise` raises it.",
    )
    top_n: int = Field(default=10, ge=1, description="How many nodes come back.")
    metadata_mode: MetadataMode = Field(default=MetadataMode.EMBED, description="Which metadata the model reads.")
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Leave out what scores lower; see R1Reranker.rerank."
    )
    keep_retrieval_score: bool = Field(
        default=False, description="Put the incoming score into the metadata, as `retrieval_score`."
    )
    include_reasoning: bool = Field(
        default=False, description="Put what the model thought of a node into its metadata, as `rerank_reasoning`."
    )
    include_steps: bool = Field(
        default=False, description="Put the steps that showed a node into its metadata, as `rerank_steps`."
    )
    include_status: bool = Field(
        default=False, description="Put `rerank_status` and `rerank_faults` of the ranking into the metadata."
    )
    reranker_given: bool = Field(
        default=False, description="Whether a built reranker is used: it is not serialised, and has to be given again."
    )
    _given: Given = PrivateAttr()

    def __init__(
        self,
        reranker: R1Reranker | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        strategy: StrategyName | None = None,
        thinking: int | None = None,
        on_error: OnError | None = None,
        top_n: int = 10,
        metadata_mode: MetadataMode = MetadataMode.EMBED,
        score_threshold: float | None = None,
        keep_retrieval_score: bool = False,
        include_reasoning: bool = False,
        include_steps: bool = False,
        include_status: bool = False,
        reranker_given: bool = False,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        source = source_of(reranker, model=model, strategy=strategy, thinking=thinking, on_error=on_error)
        fields: dict[str, Any] = {
            "model": None if model is None else os.fspath(model),
            "strategy": strategy,
            "thinking": thinking,
            "on_error": on_error,
            "top_n": top_n,
            "metadata_mode": metadata_mode,
            "score_threshold": score_threshold,
            "keep_retrieval_score": keep_retrieval_score,
            "include_reasoning": include_reasoning,
            "include_steps": include_steps,
            "include_status": include_status,
            "reranker_given": reranker_given or reranker is not None,
            "callback_manager": callback_manager or CallbackManager(),
        }
        super().__init__(**fields)
        self._given = source if isinstance(source, Given) else Given(None, "reranker")

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised form."""
        return "R1RerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _require_query(query_bundle)
        with self._traced(nodes, query) as outcome:
            if nodes:
                reranker = self._source().load()
                result = reranker.rerank(query.query_str, self._documents(nodes), **self._limits())
                self._settle(outcome, nodes, result)
        return outcome.nodes

    @dispatcher.span  # the base class puts a span only around the method above
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _require_query(query_bundle)
        with self._traced(nodes, query) as outcome:
            if nodes:
                reranker = await self._source().aload()
                result = await reranker.arerank(query.query_str, self._documents(nodes), **self._limits())
                self._settle(outcome, nodes, result)
        return outcome.nodes

    def _source(self) -> Given | Pretrained:
        if self.reranker_given:
            return self._given
        return Pretrained(
            model=self.model, strategy=self.strategy, thinking=self.thinking, on_error=self.on_error or "partial"
        )

    def _limits(self) -> dict[str, Any]:
        return {"top_k": self.top_n, "score_threshold": self.score_threshold}

    def _documents(self, nodes: Sequence[NodeWithScore]) -> list[Document]:
        # Without ids: a node is known by its position, so equal texts and equal ids are fine.
        return [Document(scored.node.get_content(metadata_mode=self.metadata_mode)) for scored in nodes]

    @contextmanager
    def _traced(self, nodes: list[NodeWithScore], query: QueryBundle) -> Iterator[_Outcome]:
        """Tells the framework's event handlers and callbacks what happens inside."""
        model_name = self._given.get().engine.name if self.reranker_given else self.model or "r1-rerank embedded"
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=self.top_n, model_name=model_name))
        outcome = _Outcome()
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: model_name,
            EventPayload.QUERY_STR: query.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield outcome
            event.on_end({EventPayload.NODES: outcome.nodes, EventPayload.ADDITIONAL_KWARGS: outcome.report})
        dispatcher.event(ReRankEndEvent(nodes=outcome.nodes, tags={"r1_rerank": outcome.report}))

    def _settle(self, outcome: _Outcome, nodes: Sequence[NodeWithScore], result: RerankResult) -> None:
        outcome.report = report(result)
        steps = result.to_dict(trace=True)["steps"] if self.include_steps else []
        for hit in result:
            scored = nodes[hit.index]
            added = hit_metadata(result, hit.index, reasoning=self.include_reasoning, status=self.include_status)
            if self.include_steps:
                added["rerank_steps"] = [deepcopy(step) for step in steps if hit.index in step["shown"]]
            if self.keep_retrieval_score:
                added["retrieval_score"] = None if scored.score is None else float(scored.score)
            node = _with_metadata(scored.node, added) if added else scored.node
            outcome.nodes.append(scored.model_copy(update={"node": node, "score": hit.score}))


@dataclass
class _Outcome:
    nodes: list[NodeWithScore] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)


def _with_metadata(node: BaseNode, added: Mapping[str, Any]) -> BaseNode:
    """A copy with more metadata, for programs and people: neither the answering LLM nor an embedding shall read it."""
    return node.model_copy(
        update={
            "metadata": {**node.metadata, **added},
            "excluded_embed_metadata_keys": list(dict.fromkeys([*node.excluded_embed_metadata_keys, *added])),
            "excluded_llm_metadata_keys": list(dict.fromkeys([*node.excluded_llm_metadata_keys, *added])),
        }
    )


def _require_query(query_bundle: QueryBundle | None) -> QueryBundle:
    if query_bundle is None:
        raise InputError("query_bundle", "is missing: there is nothing to rerank by")
    return query_bundle
