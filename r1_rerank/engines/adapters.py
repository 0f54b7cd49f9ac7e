"""LoRA adapters in a folder: their settings and shapes, and whether they fit a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

_LORA = ".lora_"
"""What stands between a layer and the part of its adapter, in the name of a weight."""


def check_adapter(adapter: Path, model: Path) -> None:
    """Compares an adapter with the weights of its model, where they are a folder; only headers are read.

    Raises:
        CheckpointError: No adapter, or not one of this model.
    """
    config = adapter_config(adapter)
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise unusable(adapter, f"it is no LoRA adapter but {config.get('peft_type')!r}")
    shapes = adapter_shapes(adapter)
    base = _shapes(model) if model.is_dir() else {}
    modules = {_module(name) for name in shapes}
    # Weights may be named otherwise in the file than in the model: then it shows when they are loaded.
    if not any(f"{module}.weight" in base for module in modules):
        return
    for name, shape in shapes.items():
        module, part = _module(name), name.partition(_LORA)[2]
        weight = base.get(f"{module}.weight")
        if weight is None:
            if any(other.startswith(f"{module}.") for other in base):
                continue  # quantised: packed under other names
            raise unusable(adapter, f"it adapts {module}, which the model {str(model)!r} does not have")
        if part == "A.weight":
            found, wanted = shape[1], weight[1]
        elif part == "B.weight":
            found, wanted = shape[0], weight[0]
        else:
            continue
        if found != wanted:
            raise unusable(
                adapter, f"it was made for another model than {str(model)!r}: {module} has {wanted}, not {found}"
            )


def check_loaded(adapted: Any, adapter: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses an adapter that PEFT has loaded in part: names that it does not know it passes over.

    Args:
        adapted: The model with it.
        adapter: Where it lies.
        shapes: Its weights.

    Raises:
        CheckpointError: The adapter has weights for which the model has no layer, or lacks some.
    """
    from peft import get_peft_model_state_dict

    wanted = {name for name in get_peft_model_state_dict(adapted, save_embedding_layers=False) if _comparable(name)}
    found = {name for name in shapes if _comparable(name)}
    for name in sorted(found - wanted):
        raise unusable(adapter, f"it adapts {_module(name)}, which the model does not have")
    for name in sorted(wanted - found):
        raise unusable(adapter, f"it has no weights for {_module(name)}, which its settings name")


def adapter_shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of an adapter.

    Raises:
        CheckpointError: There are none, or pickled ones.
    """
    if shapes := _shapes(adapter):
        return shapes
    raise unusable(adapter, "it has no *.safetensors weights (pickled ones are not loaded)")


def _comparable(name: str) -> bool:
    # PEFT gives the experts of a mixture other names than older files do.
    return _LORA in name and ".experts." not in name


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.").partition(_LORA)[0]


def weights_folder(model: str, revision: str | None = None) -> Path:
    """Where the weights of a folder or hub name lie; the name itself where they were not downloaded."""
    from huggingface_hub import snapshot_download

    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(
            snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=["*.safetensors"])
        )
    except (OSError, ValueError):  # not there, or no name
        return Path(model)


def unusable(adapter: str | Path, reason: str) -> CheckpointError:
    """The error for an adapter."""
    return CheckpointError(f"adapter {str(adapter)!r} cannot be used: {reason}")


def adapter_config(adapter: Path) -> dict[str, Any]:
    """The settings of an adapter.

    Raises:
        CheckpointError: There are none.
    """
    path = adapter / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(adapter, f"{path.name} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise unusable(adapter, f"{path.name} is no object")
    return config


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every weight in a folder's safetensors files; only their headers are read."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    return shapes
