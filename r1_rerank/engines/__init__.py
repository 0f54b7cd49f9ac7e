"""Engines: what runs the model. Each imports its framework only when it is built."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

from .base import Completion, Engine, GenerationRequest, Probe
from .scripted import ScriptedEngine
from .transformers import TransformersEngine

EngineName = Literal["transformers", "vllm", "openai"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


def engine_class(name: EngineName) -> type[Any]:
    """The engine of a name."""
    home = {"transformers": "TransformersEngine", "vllm": "VLLMEngine", "openai": "OpenAIEngine"}
    found: type[Any] = getattr(importlib.import_module(f".{name}", __name__), home[name])
    return found


__all__ = [
    "ENGINES",
    "Completion",
    "Engine",
    "EngineName",
    "GenerationRequest",
    "Probe",
    "ScriptedEngine",
    "TransformersEngine",
    "engine_class",
]
