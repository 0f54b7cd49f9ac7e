"""Engines: what runs the model. Each imports its framework only when it is built."""

from .base import Completion, Engine, GenerationRequest, Probe
from .scripted import ScriptedEngine
from .transformers import TransformersEngine

__all__ = [
    "Completion",
    "Engine",
    "GenerationRequest",
    "Probe",
    "ScriptedEngine",
    "TransformersEngine",
]
