"""The options that say which model ranks, how, and at what cost; shared by the commands that run one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ..budget import Budget
from ..errors import InputError
from ..rows import TaskName

if TYPE_CHECKING:
    from ..engines import EngineName
    from ..prompts import PromptTemplate
    from ..reranker import R1Reranker


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Arguments of `R1Reranker.from_pretrained`, as the command line gives them. None is the model's own choice."""

    model: str | None
    engine: str
    strategy: str | None
    think: int | None
    templates: dict[TaskName, PromptTemplate] = field(default_factory=dict)
    budget: Budget
    on_error: Literal["partial", "raise"]
    label_seed: int | None
    device: str
    dtype: str
    batch_size: int

    def check(self) -> None:
        """Finds what is wrong without loading anything.

        Raises:
            InputError: An unknown strategy or engine.
        """
        from ..engines import ENGINES
        from ..options import as_strategy

        if self.strategy is not None:
            as_strategy(self.strategy)
        if self.engine not in ENGINES:
            raise InputError("engine", f"{self.engine!r} is not one of {', '.join(ENGINES)}")

    def load(self) -> R1Reranker:
        """Loads the model."""
        from ..reranker import R1Reranker

        return R1Reranker.from_pretrained(
            self.model,
            engine=cast("EngineName", self.engine),
            strategy=self.strategy,
            thinking=self.think,
            templates=self.templates or None,
            budget=self.budget,
            on_error=self.on_error,
            label_seed=self.label_seed,
            device=self.device,
            dtype=self.dtype,
            batch_size=self.batch_size,
        )

    def identity(self) -> dict[str, Any]:
        """Everything here that changes results, as JSON values. The size of a batch does not."""
        return {
            "model": self.model or "embedded",
            "engine": self.engine,
            "strategy": self.strategy,
            "think": self.think,
            "template": {task: _digest(template) for task, template in sorted(self.templates.items())},
            "budget-calls": self.budget.calls,
            "budget-tokens": self.budget.tokens,
            "budget-thinking": self.budget.thinking_tokens,
            "budget-seconds": self.budget.seconds,
            "on-error": self.on_error,
            "label-seed": self.label_seed,
            "device": self.device,
            "dtype": self.dtype,
        }


def read_templates(paths: Sequence[Path]) -> dict[TaskName, PromptTemplate]:
    """Reads template files; each says itself which task it words.

    Raises:
        TemplateError: A file that is no template.
        InputError: Two files word the same task.
    """
    if not paths:
        return {}
    from ..prompts import PromptTemplate

    templates: dict[TaskName, PromptTemplate] = {}
    for path in paths:
        template = PromptTemplate.from_yaml(path)
        if template.task in templates:
            raise InputError("template", f"{path} is a second template for {template.task}; pass one for each task")
        templates[template.task] = template
    return templates


def _digest(template: PromptTemplate) -> str:
    return hashlib.sha256(json.dumps(template.to_dict(), sort_keys=True).encode()).hexdigest()[:16]
