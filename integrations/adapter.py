"""What adapters have in common: where their reranker comes from, and what a ranking says of itself."""

from __future__ import annotations

import os
from typing import Any, get_args

from ..documents import RerankResult
from ..errors import InputError, InputTypeError
from ..options import OnError, as_strategy, require_whole
from ..reranker import R1Reranker
from .loading import Given, Pretrained


def source_of(
    reranker: R1Reranker | None,
    *,
    model: str | os.PathLike[str] | None = None,
    strategy: str | None = None,
    thinking: int | None = None,
    on_error: OnError | None = None,
) -> Given | Pretrained:
    """The built reranker that an adapter was given, or the model that it names. Nothing is loaded yet.

    Raises:
        InputTypeError: Not a reranker, not a name.
        InputError: A setting that no reranker takes, or a built reranker beside settings that it has already.
    """
    if reranker is None:
        if strategy is not None:
            as_strategy(strategy)
        if thinking is not None:
            require_whole("thinking", thinking, least=0)
        if on_error is not None and on_error not in get_args(OnError):
            raise InputError("on_error", f"{on_error!r} is not one of {', '.join(get_args(OnError))}")
        if model is not None and not isinstance(model, str | os.PathLike):
            raise InputTypeError("model", f"expected a name or folder, got {type(model).__name__}; see reranker")
        return Pretrained(
            model=None if model is None else os.fspath(model),
            strategy=strategy,
            thinking=thinking,
            on_error=on_error or "partial",
        )
    if not isinstance(reranker, R1Reranker):
        raise InputTypeError("reranker", f"expected an R1Reranker, got {type(reranker).__name__}; see model")
    settings = {"model": model, "strategy": strategy, "thinking": thinking, "on_error": on_error}
    for name, value in settings.items():
        if value is not None:
            raise InputError(name, "is settled in the reranker already; pass one or the other")
    return Given(reranker, "reranker")


def report(result: RerankResult) -> dict[str, Any]:
    """How a ranking went, for a trace, JSON-ready."""
    record = result.to_dict()
    return {name: record[name] for name in ("status", "score_kind", "malformed", "faults", "usage")}


def hit_metadata(result: RerankResult, index: int, *, reasoning: bool, status: bool) -> dict[str, Any]:
    """What a ranking says of one document, for its metadata, JSON-ready.

    Args:
        result: The ranking.
        index: Place of the document in the input.
        reasoning: Add `rerank_reasoning`: what the model thought in the steps whose answer named the document, for
            the best of an elimination in the last step that showed it.
        status: Add `rerank_status` and `rerank_faults` of the whole ranking.
    """
    added: dict[str, Any] = {}
    if reasoning:
        thoughts = [step.thinking for step in result.steps if index in step.picked and step.thinking]
        if not thoughts:  # the best of an elimination is never named: why the last rival fell
            thoughts = [step.thinking for step in result.steps if index in step.shown and step.thinking][-1:]
        added["rerank_reasoning"] = "\n\n".join(thoughts)
    if status:
        added |= {"rerank_status": result.status, "rerank_faults": result.to_dict()["faults"]}
    return added
