"""Rerank documents, recommendations and LLM pools with a reasoning language model.

from r1_rerank import R1Reranker

reranker = R1Reranker.from_pretrained()
for hit in reranker.rerank("what is a kv cache?", documents, top_k=5):
    print(hit.rank, hit.score, hit.text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .budget import Budget
    from .documents import Document, RankedDocument, RerankResult, Step, Usage
    from .engines.scripted import ScriptedEngine
    from .errors import R1RerankError
    from .prompts import PromptTemplate
    from .reranker import R1Reranker
    from .strategies import DRanker, IRanker
    from .tasks import PassageRanking, Recommendation, Routing

__version__ = "0.1.0"

_HOME = {
    "Budget": "budget",
    "DRanker": "strategies",
    "Document": "documents",
    "IRanker": "strategies",
    "PassageRanking": "tasks",
    "PromptTemplate": "prompts",
    "R1RerankError": "errors",
    "R1Reranker": "reranker",
    "RankedDocument": "documents",
    "Recommendation": "tasks",
    "RerankResult": "documents",
    "Routing": "tasks",
    "ScriptedEngine": "engines.scripted",
    "Step": "documents",
    "Usage": "documents",
}

__all__ = [
    "Budget",
    "DRanker",
    "Document",
    "IRanker",
    "PassageRanking",
    "PromptTemplate",
    "R1RerankError",
    "R1Reranker",
    "RankedDocument",
    "Recommendation",
    "RerankResult",
    "Routing",
    "ScriptedEngine",
    "Step",
    "Usage",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
