"""Engines: what runs the model. Each imports its framework only when it is built."""

from __future__ import annotations

from typing import Any, Literal, get_args

from .base import Completion, Engine, GenerationRequest, Probe
from .openai import OpenAIEngine
from .scripted import ScriptedEngine
from .transformers import TransformersEngine
from .vllm import VLLMEngine

EngineName = Literal["transformers", "vllm", "openai"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


def engine_class(name: EngineName) -> type[Any]:
    """The engine of a name."""
    return {"transformers": TransformersEngine, "vllm": VLLMEngine, "openai": OpenAIEngine}[name]


__all__ = [
    "ENGINES",
    "Completion",
    "Engine",
    "EngineName",
    "GenerationRequest",
    "OpenAIEngine",
    "Probe",
    "ScriptedEngine",
    "TransformersEngine",
    "VLLMEngine",
    "engine_class",
]
