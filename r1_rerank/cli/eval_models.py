"""The LLM that a system of an evaluation names: how it is loaded, and what changes its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..evaluation.registry import BASE, Spec
from ..evaluation.systems import Settings
from .model_options import ModelOptions

if TYPE_CHECKING:
    from ..engines import EngineName
    from ..prefilter import Prefilter
    from ..reranker import R1Reranker


def llm_of(options: ModelOptions, spec: Spec) -> tuple[Callable[[], R1Reranker], Settings]:
    """What loads the LLM, and its settings; nothing is loaded yet.

    Args:
        options: What the command line says about models.
        spec: What the system says.

    Raises:
        InputError: There is no such model.
        CheckpointError: Weights that cannot be used.
    """
    strategy = None if spec.kind == "model" else spec.kind
    think = options.think if spec.think is None else spec.think
    named = options.model if spec.model is None else spec.model
    base = named == BASE
    model = options.model if base else named
    chosen = replace(
        options,
        model=None if model == BASE else model,
        strategy=strategy,
        think=think,
        prefilter=_prefilter(spec),
    )
    if options.engine == "openai":  # the weights are a server's, and so is their name
        return chosen.load, chosen.identity()
    from ..checkpoint import find_checkpoint

    found = find_checkpoint(chosen.model)
    settings = {
        **chosen.identity(),
        "base": base,
        "weights": [_fingerprint(folder) for folder in (found.model, found.adapter) if folder is not None],
        "card": None if found.card is None else found.card.model_dump(mode="json"),
    }
    return (lambda: _load_base(chosen)) if base else chosen.load, settings


def _load_base(options: ModelOptions) -> R1Reranker:
    """The weights from which a checkpoint was trained, asked with the checkpoint's prompts and in its form."""
    from ..checkpoint import EMBEDDED_HUB, embedded_base, find_checkpoint
    from ..reranker import R1Reranker

    found = find_checkpoint(options.model)
    card, base = found.card, found.model
    if card is not None and found.adapter is None and options.model is not None:
        base = embedded_base()[0] if card.base.name == EMBEDDED_HUB else Path(card.base.name)
    think = options.think
    if think is None and card is not None:
        think = card.thinking.budget
    return R1Reranker.from_pretrained(
        base,
        engine=cast("EngineName", options.engine),
        strategy=options.strategy if card is None else card.ranking_strategy(options.strategy),
        thinking=think,
        templates=(card.prompt_templates() if card is not None else {}) | options.templates or None,
        budget=options.budget,
        on_error=options.on_error,
        label_seed=options.label_seed,
        passes=options.passes,
        prefilter=options.prefilter,
        **options.engine_options,
    )


def _prefilter(spec: Spec) -> Prefilter | None:
    """What orders the candidates first."""
    if spec.prefilter is None:
        return None
    from ..evaluation.retrieval import MINILM, embedder
    from ..prefilter import KEEP, BM25Prefilter, EmbeddingPrefilter

    keep = spec.keep or KEEP
    return BM25Prefilter(keep) if spec.prefilter == "bm25" else EmbeddingPrefilter(embedder(MINILM, None)(), keep)


def _fingerprint(folder: Path | str) -> str:
    """Stands for the files of a folder, by size and time: other weights under the same name are other settings.

    What is written about them is not.
    """
    content = hashlib.sha256()
    for path in sorted(Path(folder).glob("*")):
        if path.is_file() and path.suffix != ".md":
            state = path.stat()
            content.update(f"{path.name}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return content.hexdigest()[:16]
