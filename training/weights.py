"""The weights that are trained: found, loaded with their adapter, and put back."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import EMBEDDED_HUB, EMBEDDED_SHA256, BaseModelCard, embedded_base, find_checkpoint
from ..engines.loading import load_model
from ..errors import CheckpointError, InputError
from .recipe import EMBEDDED

if TYPE_CHECKING:
    from .recipe import LoraSettings, Recipe

ADAPTER = "adapter_config.json"
"""File that makes a folder of weights an adapter."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that a training begins with.

    Args:
        base: What the ranker card calls the base.
        folder: The base.
        adapter: An adapter to go on with; None: a new one, or none.
        weights: Whole weights in place of the base's; None: the base's.
    """

    base: BaseModelCard
    folder: Path
    adapter: Path | None = None
    weights: Path | None = None

    def going_on(self, folder: Path) -> Start:
        """The same base with the weights that a stage left."""
        adapted = (folder / ADAPTER).is_file()
        return replace(self, adapter=folder if adapted else None, weights=None if adapted else folder)


def find_start(recipe: Recipe) -> Start:
    """Finds what a recipe begins with, without loading it.

    Raises:
        InputError: `start` has another base, or an adapter of another form than the recipe trains.
        CheckpointError: Weights that are missing or cannot be used.
    """
    base, folder = _find_base(recipe.base)
    start = Start(base=base, folder=folder)
    if recipe.start is None:
        return start
    found = find_checkpoint(None if recipe.start == EMBEDDED else recipe.start)
    if Path(found.model).resolve() != folder.resolve() and (found.adapter is not None or not _names(found.card, base)):
        detail = f"{recipe.start!r} was trained from {_base_name(found)}, not from {base.name}"
        raise InputError("start", f"{detail}: set base to that, or start from another checkpoint")
    if found.adapter is None:
        if recipe.lora is not None and Path(found.model).resolve() != folder.resolve():
            detail = f"{recipe.start!r} is whole weights, on which an adapter would need them as its base"
            raise InputError("start", f"{detail}: set base to them, or lora to null")
        return replace(start, weights=Path(found.model))
    if recipe.lora is None:
        detail = f"{recipe.start!r} is an adapter, and the recipe trains whole weights"
        raise InputError("start", f"{detail}: set lora, or make base the merged model (train --merge writes it)")
    _check_rank(found.adapter, recipe.lora, recipe.start)
    return replace(start, adapter=found.adapter)


def load_policy(start: Start, recipe: Recipe) -> tuple[Any, Any]:
    """The model to train, and its tokenizer.

    Under a launcher each process has a device of its own.

    Raises:
        CheckpointError: Weights that cannot be loaded.
    """
    from transformers import set_seed

    dtype = "bfloat16" if recipe.precision == "bfloat16" else "float32"
    model, tokenizer = load_model(str(start.weights or start.folder), None, _device(), dtype)
    if recipe.lora is None:
        model.requires_grad_(True)
        return model, tokenizer
    import peft

    if start.adapter is not None:
        return peft.PeftModel.from_pretrained(model, str(start.adapter), is_trainable=True), tokenizer
    lora = recipe.lora
    set_seed(recipe.seed)  # decides on the adapter's first weights
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config), tokenizer
    except ValueError as error:
        raise InputError("lora.targets", f"do not fit the model: {error}") from error


def save_policy(model: Any, folder: Path) -> None:
    """Writes the adapter, or all weights, as they are; `folder` appears whole or not at all."""
    part = folder.with_name(f".{folder.name}.part")
    _remove(part)
    adapted = hasattr(model, "peft_config")
    model.save_pretrained(part, **({"save_embedding_layers": False} if adapted else {}))
    _remove(folder)
    part.rename(folder)


def copy_weights(source: Path, folder: Path) -> None:
    """Takes the weights out of a folder that holds more, such as a trainer's checkpoint."""
    import shutil

    part = folder.with_name(f".{folder.name}.part")
    _remove(part)
    part.mkdir(parents=True)
    for pattern in ("*.safetensors", "*.safetensors.index.json", ADAPTER, "config.json", "generation_config.json"):
        for file in source.glob(pattern):
            shutil.copyfile(file, part / file.name)
    if not any(part.glob("*.safetensors")):
        raise CheckpointError(
            f"{source} has no *.safetensors weights: sharded training has to gather them "
            "(FSDP: state dict type FULL_STATE_DICT; DeepSpeed: zero3_save_16bit_model)"
        )
    _remove(folder)
    part.rename(folder)


def count_parameters(model: Any) -> tuple[int, int]:
    """How many are trained, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def _find_base(name: str) -> tuple[BaseModelCard, Path]:
    if name == EMBEDDED:
        folder, notes = embedded_base()
        # Weights from the hub are not those whose digest this is.
        return BaseModelCard(name=EMBEDDED_HUB, sha256=None if notes else EMBEDDED_SHA256), folder
    found = find_checkpoint(name)
    if found.adapter is not None:
        raise InputError("base", f"{name!r} is an adapter: name its base model here, and the adapter as start")
    folder = Path(found.model)
    local = Path(name).expanduser().is_dir()
    return BaseModelCard(name=str(folder.resolve()) if local else name, sha256=None), folder


def _device() -> str:
    import torch

    local = os.environ.get("LOCAL_RANK")
    return "auto" if local is None or not torch.cuda.is_available() else f"cuda:{local}"


def _check_rank(adapter: Path, lora: LoraSettings, name: str) -> None:
    import json

    r = json.loads((adapter / ADAPTER).read_text(encoding="utf-8")).get("r")
    if r != lora.r:
        raise InputError("lora.r", f"{lora.r}, but the adapter {name!r} has r = {r}: write that")


def _names(card: Any, base: BaseModelCard) -> bool:
    return card is not None and card.base.name == base.name


def _base_name(found: Any) -> str:
    return str(found.model if found.card is None else found.card.base.name)


def _remove(folder: Path) -> None:
    import shutil

    if folder.exists():
        shutil.rmtree(folder)
