"""The embedded weights, loaded once for all tests that run a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from r1_rerank.engines import TransformersEngine


@pytest.fixture(scope="session")
def weights() -> str:
    """Folder of the embedded base model."""
    from r1_rerank.checkpoint import embedded_base

    return str(embedded_base()[0])


@pytest.fixture(scope="session")
def engine(weights: str) -> TransformersEngine:
    """The embedded weights in float32, where rounding is small enough to compare numbers."""
    from r1_rerank.engines import TransformersEngine

    return TransformersEngine(weights, dtype="float32")
