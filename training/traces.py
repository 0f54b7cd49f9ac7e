"""What the trainers of TRL need and leave behind: on a model, and on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError


def require_trl() -> None:
    """Sees to it that TRL is there.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import datasets  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("train", error.name or "trl") from error


@contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """Takes back what a trainer leaves behind.

    On a model: wrapped forwards, and the copy of the adapter for the KL. In transformers: the settings of DeepSpeed, by
    which every model that is loaded later would be spread over all processes, though the first may load it alone.
    """
    from transformers.integrations import unset_hf_deepspeed_config

    modules = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    before = [{name: vars(module).get(name) for name in ("forward", "_original_forward")} for module in modules]
    adapters = set(getattr(model, "peft_config", {}))
    try:
        yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            for name, value in attributes.items():
                vars(module).pop(name, None)
                if value is not None:
                    setattr(module, name, value)
        for adapter in set(getattr(model, "peft_config", {})) - adapters:
            model.delete_adapter(adapter)
        unset_hf_deepspeed_config()  # the next trainer sets them again


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers and datasets: a library does not print."""
    import datasets
    from transformers.utils import logging

    models, data = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if models:
            logging.enable_progress_bar()
        if data:
            datasets.enable_progress_bars()


@contextmanager
def reference_weights(model: Any, folder: Path) -> Iterator[None]:
    """Has TRL measure the divergence of whole weights from what they are now: it would load them by the model's name.

    Args:
        model: An adapter needs no reference: TRL copies it.
        folder: For a copy of the weights; one that is there is taken, as when a stage goes on.
    """
    if hasattr(model, "peft_config"):
        yield
        return
    from accelerate import PartialState

    place, partial, state = folder / "reference", folder / "reference.part", PartialState()
    if state.is_main_process and not place.is_dir():
        model.save_pretrained(partial)
        partial.rename(place)
    state.wait_for_everyone()
    name, model.config._name_or_path = model.config._name_or_path, str(place)
    try:
        yield
    finally:
        model.config._name_or_path = name
