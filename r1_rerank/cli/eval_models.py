"""The LLM that a system of an evaluation names: how it is loaded, and what changes its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..evaluation.registry import BASE, Spec
from ..evaluation.systems import Settings
from ..prefilter import KEEP, BM25Prefilter, EmbeddingPrefilter, Prefilter
from .model_options import ModelOptions

if TYPE_CHECKING:
    from ..reranker import R1Reranker


def llm_of(options: ModelOptions, spec: Spec) -> tuple[Callable[[], R1Reranker], Settings]:
    """What loads the LLM, and its settings; nothing is loaded yet.

    Args:
        options: What the command line says about models.
        spec: What the system says.

    Raises:
        InputError: There is no such model, or a server is asked for the weights under a checkpoint.
        CheckpointError: Weights that cannot be used.
    """
    strategy = None if spec.kind == "model" else spec.kind
    think = options.think if spec.think is None else spec.think
    named = options.model if spec.model is None else spec.model
    base = named == BASE
    if base and options.engine == "openai":
        detail = "model=base, as of a protocol: a server ranks with the weights that it has; serve those, and name the"
        raise InputError("system", f"{detail} system yourself, such as {spec.kind}:model=NAME")
    model = options.model if base else named
    chosen = replace(options, model=None if model == BASE else model, strategy=strategy, think=think)
    first_stage = _first_stage(spec)

    def load() -> R1Reranker:
        ready = replace(chosen, prefilter=None if first_stage is None else first_stage())
        return (_of_base(ready, strategy) if base else ready).load()

    settings: dict[str, object] = {
        **chosen.identity(),
        "prefilter": None if spec.prefilter is None else [spec.prefilter, spec.keep or KEEP],
    }
    if options.engine == "openai":  # the weights are a server's, and so is their name
        return load, settings
    from ..checkpoint import find_checkpoint

    found = find_checkpoint(chosen.model)
    settings |= {
        "base": base,
        "weights": [_fingerprint(folder) for folder in (found.model, found.adapter) if folder is not None],
        "card": None if found.card is None else found.card.model_dump(mode="json"),
    }
    return load, settings


def _of_base(options: ModelOptions, strategy: str | None) -> ModelOptions:
    """The weights from which a checkpoint was trained, asked with the checkpoint's prompts and in its form."""
    from ..checkpoint import EMBEDDED_HUB, embedded_base, find_checkpoint

    found = find_checkpoint(options.model)
    card, base = found.card, found.model
    if card is None:
        return replace(options, model=str(base))
    if found.adapter is None and options.model is not None:
        base = embedded_base()[0] if card.base.name == EMBEDDED_HUB else Path(card.base.name)
    return replace(
        options,
        model=str(base),
        strategy=card.ranking_strategy(strategy),
        think=card.thinking.budget if options.think is None else options.think,
        templates=card.prompt_templates() | options.templates,
    )


def _first_stage(spec: Spec) -> Callable[[], Prefilter] | None:
    """What loads the prefilter; whether it can be loaded is known before."""
    if spec.prefilter is None:
        return None
    keep = spec.keep or KEEP
    if spec.prefilter == "bm25":
        ready = BM25Prefilter(keep)
        return lambda: ready
    from ..evaluation.retrieval import MINILM, embedder

    model = embedder(MINILM, None)
    return lambda: EmbeddingPrefilter(model(), keep)


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
