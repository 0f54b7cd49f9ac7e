"""How a reranker ranks every query: settled once, when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .documents import Fault
from .prompts import PromptTemplate
from .rows import TaskName
from .strategies import ALPHABET, Strategy


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """How every query of a reranker is ranked.

    Args:
        strategy: DRanker or IRanker.
        templates: Wording of each task.
        thinking: Tokens to think before each answer; 0 for none.
        constrain: Decode answers over the live labels, where the engine can.
        alphabet: Labels to give out.
        label_seed: Permute the labels by this seed; None: in order.
        temperature: 0 is greedy.
        card: Where these options came from; see `RerankResult.card`.
        notes: Faults that hold for every result.
    """

    strategy: Strategy
    templates: Mapping[TaskName, PromptTemplate]
    thinking: int = 0
    constrain: bool = True
    alphabet: tuple[str, ...] = tuple(ALPHABET)
    label_seed: int | None = None
    temperature: float = 0.0
    card: str = "default"
    notes: tuple[Fault, ...] = ()
