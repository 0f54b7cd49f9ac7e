"""The weights that are trained: found, loaded with their adapter, and put back."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import EMBEDDED_HUB, EMBEDDED_SHA256, BaseModelCard, embedded_base, find_checkpoint
from ..engines.loading import choose_device, load_model
from ..errors import CheckpointError, InputError
from .folder import write_whole
from .precision import mark_precision, weights_format
from .processes import sharding
from .recipe import EMBEDDED

if TYPE_CHECKING:
    from ..checkpoint import RankerCard
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
    _check_adapter(found.adapter, recipe.lora, recipe.start)
    return replace(start, adapter=found.adapter)


def load_policy(start: Start, recipe: Recipe) -> tuple[Any, Any]:
    """The model to train, and its tokenizer.

    Under a launcher each process has a device of its own.

    Raises:
        InputError: An adapter that does not fit the model, or reaches other layers than the recipe says.
        CheckpointError: Weights that cannot be loaded.
    """
    where, lora = _device(), recipe.lora
    # FSDP spreads weights of one format alone.
    adapted = lora is not None and sharding() is None
    dtype = weights_format(recipe.precision, choose_device(where), adapted=adapted)
    model, tokenizer = load_model(str(start.weights or start.folder), None, where, dtype)
    if lora is None:
        model.requires_grad_(True)
    elif start.adapter is None:
        model = _with_new_adapter(model, lora, recipe.seed)
    else:
        model = _with_adapter(model, start.adapter, lora, start.folder)
    mark_precision(model, recipe.precision)
    return model, tokenizer


def _with_adapter(model: Any, adapter: Path, lora: LoraSettings, base: Path) -> Any:
    import peft
    import torch
    from peft.tuners.lora import LoraLayer

    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    linear -= {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
    config = peft.PeftConfig.from_pretrained(str(adapter))
    config.lora_dropout = lora.dropout
    # The name of the base is that of the hub, where PEFT would look for it, in vain or not, at every checkpoint.
    config.base_model_name_or_path = str(base)
    adapted = peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=True, config=config)
    if lora.targets == "all-linear":
        reached = {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}
        if missing := sorted({name.rpartition(".")[2] for name in linear - reached}):
            detail = f"all-linear, but the adapter {str(adapter)!r} does not reach {', '.join(missing)}"
            raise InputError("lora.targets", f"{detail}: name the layers that it does")
    return adapted


def _with_new_adapter(model: Any, lora: LoraSettings, seed: int) -> Any:
    import peft
    from transformers import set_seed

    set_seed(seed)  # decides on the adapter's first weights
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
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


def name_base(source: Path, target: Path, card: RankerCard) -> None:
    """Writes an adapter's settings with the base's name, not the folder on this machine that it was loaded from."""
    config = json.loads(source.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": card.base.name, "inference_mode": True}
    # Whole or not at all: where source and target are one file, half of it could not be mended.
    write_whole(target, json.dumps(config, indent=2, sort_keys=True) + "\n")


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


def gather_weights(trainer: Any, folder: Path) -> None:
    """Writes the weights that a trainer has spread over processes; `folder` appears whole or not at all."""
    part, main = folder.with_name(f".{folder.name}.part"), trainer.is_world_process_zero()
    if main:
        _remove(part)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(part))
    trainer.accelerator.wait_for_everyone()
    if main:
        _remove(folder)
        part.rename(folder)
    trainer.accelerator.wait_for_everyone()


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


def _check_adapter(adapter: Path, lora: LoraSettings, name: str) -> None:
    """Refuses settings that the adapter does not have; whether it reaches all layers only the model tells."""
    import json

    config = json.loads((adapter / ADAPTER).read_text(encoding="utf-8"))
    for setting, key, wanted in (("r", "r", lora.r), ("alpha", "lora_alpha", lora.alpha)):
        if (found := config.get(key)) != wanted:
            raise InputError(f"lora.{setting}", f"{wanted:g}, but the adapter {name!r} has {key} = {found}: write that")
    targets = config.get("target_modules")
    if lora.targets != "all-linear" and (isinstance(targets, str) or set(targets or ()) != set(lora.targets)):
        told = targets if isinstance(targets, str) else ", ".join(sorted(targets or ()))
        detail = f"{', '.join(lora.targets)}, but the adapter {name!r} reaches {told}"
        raise InputError("lora.targets", f"{detail}: write that")


def _names(card: Any, base: BaseModelCard) -> bool:
    return card is not None and card.base.name == base.name


def _base_name(found: Any) -> str:
    return str(found.model if found.card is None else found.card.base.name)


def _remove(folder: Path) -> None:
    import shutil

    if folder.exists():
        shutil.rmtree(folder)
