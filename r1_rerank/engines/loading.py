"""Loading a model with transformers: device, number format, adapter, and errors in our own words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, InputError, OutOfMemoryError
from .adapters import adapter_shapes, check_loaded

if TYPE_CHECKING:
    import torch


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no chatter of transformers while a model loads: a library does not print."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_model(name: str, adapter: str | PathLike[str] | None, device: str, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer on their device; see `TransformersEngine` for the arguments and errors."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = choose_device(device)
    number_format = choose_dtype(dtype, where)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                name, dtype=number_format, use_safetensors=True, trust_remote_code=False
            )
            if adapter is not None:
                from peft import PeftModel

                shapes = adapter_shapes(Path(adapter))
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error of ours
                    adapted = PeftModel.from_pretrained(model, str(adapter))
                check_loaded(adapted, Path(adapter), shapes)
                model = adapted.merge_and_unload()
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        what = f"model {name!r}" if adapter is None else f"adapter {str(adapter)!r} of model {name!r}"
        raise CheckpointError(f"{what} cannot be loaded: {error}") from error
    try:
        return model.to(where), tokenizer
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"model {name!r} does not fit into the memory of {where}: {error}") from error
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise InputError("device", f"{device!r} cannot be used: {error}") from error


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA, MPS or CPU, whichever is there first."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError("device", f"{device!r} is not auto, cuda, cuda:0, mps or cpu") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device", f"{device!r}: this torch finds no CUDA device; pass auto or cpu")
    return found


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it."""
    import torch

    formats = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype in formats:
        return formats[dtype]
    if dtype != "auto":
        raise InputError("dtype", f"{dtype!r} is not auto, {', '.join(formats)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    # Without instructions for it bfloat16 is emulated, and slower than float32.
    supported = any(flag for name, flag in torch.cpu.get_capabilities().items() if "bf16" in name)
    return torch.bfloat16 if supported else torch.float32
