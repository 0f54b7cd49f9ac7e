"""Routing in LlamaIndex to the tool that answers a query. Import from `llama_index`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..documents import Document, RankedDocument, RerankResult
from ..errors import InputError, MissingExtraError
from ..options import OnError
from ..reranker import R1Reranker
from ..tasks import Routing, Task
from .adapter import source_of

try:
    from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
    from llama_index.core.prompts.mixin import PromptDictType
    from llama_index.core.schema import QueryBundle
    from llama_index.core.tools.types import ToolMetadata
except ModuleNotFoundError as error:
    raise MissingExtraError("llama-index", error.name or "llama_index") from error


class R1RouterSelector(BaseSelector):
    """Chooses among tools by their descriptions, for `RouterQueryEngine`.

    The reason of a selection is what the model thought of it; where it did not think, its rank and score. Where the
    ranking is not the model's own, the reason says so.

    Args:
        reranker: A built one, in place of `model`, `strategy`, `thinking` and `on_error`.
        model: A hub name or a local folder; None: the embedded model.
        strategy: `iranker` or `dranker`; None: the model's own.
        thinking: Most tokens to think before each answer; None: the model's own number.
        on_error: What an engine fault does: `partial` (default) selects by the best order so far, `raise` raises it.
        top_n: How many tools are chosen; with more than one, `RouterQueryEngine` combines their answers.
        task: Makes the task of a query, and with it the words in which the model is asked.

    Raises:
        InputError: An argument that cannot be used.
    """

    def __init__(
        self,
        reranker: R1Reranker | None = None,
        *,
        model: str | os.PathLike[str] | None = None,
        strategy: str | None = None,
        thinking: int | None = None,
        on_error: OnError | None = None,
        top_n: int = 1,
        task: Callable[[str], Task] = Routing,
    ) -> None:
        if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1:
            raise InputError("top_n", f"expected 1 or more, got {top_n!r}")
        self._source = source_of(reranker, model=model, strategy=strategy, thinking=thinking, on_error=on_error)
        self._top_n = top_n
        self._task = task

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        """None of the framework's prompts are used."""

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        if len(choices) < 2:
            return _only(choices)
        reranker = self._source.load()
        return _selected(reranker.rerank(self._task(query.query_str), _documents(choices), top_k=self._top_n))

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        if len(choices) < 2:
            return _only(choices)
        reranker = await self._source.aload()
        return _selected(await reranker.arerank(self._task(query.query_str), _documents(choices), top_k=self._top_n))


def _documents(choices: Sequence[ToolMetadata]) -> list[Document]:
    return [Document(choice.description or "", title=choice.name) for choice in choices]


def _only(choices: Sequence[ToolMetadata]) -> SelectorResult:
    if not choices:
        raise InputError("choices", "is empty: there is nothing to select")
    return SelectorResult(selections=[SingleSelection(index=0, reason="the only choice")])


def _selected(result: RerankResult) -> SelectorResult:
    return SelectorResult(selections=[SingleSelection(index=hit.index, reason=_reason(result, hit)) for hit in result])


def _reason(result: RerankResult, hit: RankedDocument) -> str:
    """Thinking of the step in which a choice fell; for a survivor, of the last step that showed it."""
    shown = [step for step in result.steps if hit.index in step.shown]
    fell = [step for step in shown if step.ask == "eliminate" and hit.index in step.picked]
    thinking = (fell or shown)[-1].thinking.strip() if shown else ""
    reason = thinking or f"rank {hit.rank}, score {hit.score:.2f}"
    if result.status in ("partial", "fallback"):
        reason += f" ({result.status}: {result.faults[-1].detail})"
    return reason
