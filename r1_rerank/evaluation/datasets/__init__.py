"""Readers of public data sets: each gives labelled rows, and says what it left out."""

from .llmrouter import Dropped, read_llmrouter

__all__ = ["Dropped", "read_llmrouter"]
