"""Checks of engines: whether it is one, whether it takes what it is given, whether its probabilities can be used."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import InputError, InputTypeError
from .base import CAPABILITIES, Engine

_MEMBERS = ("name", "capabilities", "generate", "agenerate", "count_tokens", "close")


def check_engine(engine: Engine) -> Engine:
    """Refuses what is no engine.

    Raises:
        InputError: It lacks a member, or claims capabilities that there are not.
    """
    if isinstance(engine, str):
        raise InputTypeError("engine", "expected an engine object, got a str; from_pretrained builds one by name")
    if missing := [member for member in _MEMBERS if not hasattr(engine, member)]:
        raise InputTypeError(
            "engine",
            f"{type(engine).__name__} is no engine: it lacks {', '.join(missing)}; "
            "wrap a model in TransformersEngine, VLLMEngine or OpenAIEngine",
        )
    if isinstance(engine.capabilities, str) or not set(engine.capabilities) <= CAPABILITIES:
        raise InputError("engine", f"its capabilities are not a set of {', '.join(sorted(CAPABILITIES))}")
    return engine


def check_engine_options(kind: type[Any], options: Mapping[str, object]) -> None:
    """Refuses options that an engine does not take, and values that it can tell to be wrong without a model.

    Args:
        kind: The class of the engine.
        options: What it would be built with, beside the model.

    Raises:
        InputError: One that it does not take, or a value that it cannot use.
    """
    takes = inspect.signature(kind).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in takes.values()):
        known = [name for name in takes if name not in ("model", "adapter", "tokenizer")]
        if unknown := [name for name in options if name not in known]:
            raise InputTypeError(unknown[0], f"{kind.__name__} takes no such option; it takes {', '.join(known)}")
    check = getattr(kind, "check_options", None)
    if check is not None:
        check(**options)


def usable_distribution(
    logprobs: Mapping[str, float] | None, live: Collection[str]
) -> tuple[dict[str, float] | None, tuple[str, str] | None]:
    """An engine's label probabilities, if they can be used, and what is odd about them: a kind of fault, and why."""
    if logprobs is None:
        return None, ("no_logprobs", "the engine reported no label probabilities")
    # A little above 0 is rounding; more, or a label that is not live, is a mistake of the engine.
    numbers = [float(value) for value in logprobs.values() if isinstance(value, int | float)]
    if set(logprobs) != set(live) or len(numbers) < len(live) or not all(value <= 1e-3 for value in numbers):
        return None, ("bad_logprobs", "the engine reported probabilities that are not those of the live labels")
    odd = None
    if len(logprobs) > 2 and len(set(logprobs.values())) == 1:
        odd = ("flat", "all labels are equally probable: the model may not expect a label there")
    return {label: min(float(value), 0.0) for label, value in logprobs.items()}, odd
