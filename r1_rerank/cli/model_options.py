"""The options that say which model ranks, how, and at what cost; shared by the commands that run one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ..budget import Budget
from ..errors import InputError
from ..rows import TaskName

if TYPE_CHECKING:
    from ..engines import EngineName
    from ..prefilter import Prefilter
    from ..prompts import PromptTemplate
    from ..reranker import R1Reranker
    from ..strategies import Strategy


def _model(*flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, rich_help_panel="Model", **settings)


ModelName = Annotated[
    str | None, _model(metavar="NAME", help="Hub name, or folder of a model or adapter (default: embedded).")
]
Engine = Annotated[str, _model(metavar="NAME", help="What runs the model: transformers, vllm or openai.")]
EngineOption = Annotated[
    list[str] | None,
    _model(metavar="KEY=VALUE", help="An option of the engine, such as base_url=http://localhost:8000/v1."),
]
Think = Annotated[
    int | None, _model(min=0, metavar="N", help="Tokens to think before an answer (default: the model's).")
]
Passes = Annotated[int, _model(min=1, metavar="N", help="Rankings of each query, shuffled, that vote.")]
Templates = Annotated[list[Path] | None, _model(metavar="FILE", help="YAML with your own wording; once for each task.")]
LabelSeed = Annotated[int | None, _model(metavar="N", help="Permute the labels by this seed.")]
Device = Annotated[str | None, _model(metavar="NAME", help="auto, cuda, cuda:1, mps or cpu (default: auto).")]
Dtype = Annotated[str | None, _model(metavar="NAME", help="auto, float32, bfloat16 or float16 (default: auto).")]
BatchSize = Annotated[
    int | None, _model(min=1, metavar="N", help="Queries under way together (default: the engine's).")
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Arguments of `R1Reranker.from_pretrained`, as the command line gives them. None is the model's own choice."""

    model: str | None
    engine: str
    strategy: str | Strategy | None
    think: int | None
    templates: dict[TaskName, PromptTemplate] = field(default_factory=dict)
    budget: Budget
    on_error: Literal["partial", "raise"]
    label_seed: int | None
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    passes: int = 1
    prefilter: Prefilter | None = None

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
            passes=self.passes,
            prefilter=self.prefilter,
            **self.engine_options,
        )

    def identity(self) -> dict[str, Any]:
        """Everything here that changes results, as JSON values."""
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
            **{
                name.replace("_", "-"): value
                for name, value in sorted(self.engine_options.items())
                if name not in _NO_MATTER
            },
            "passes": self.passes,
            "prefilter": None if self.prefilter is None else [self.prefilter.name, self.prefilter.keep],
        }


_NO_MATTER = ("api_key", "base_url", "batch_size", "cache_gib", "concurrency", "hf_token", "max_retries", "timeout")
"""Engine options that leave results as they are, or hold what no file should."""


def read_engine_options(
    pairs: Sequence[str], *, device: str | None, dtype: str | None, batch_size: int | None
) -> dict[str, Any]:
    """Options of an engine, by the names of its arguments.

    Args:
        pairs: `key=value` each, the value as YAML spells it: 2, true, auto.
        device: See `TransformersEngine`, as the others; None leaves it to the engine.
        dtype: None leaves it to the engine.
        batch_size: None leaves it to the engine.

    Raises:
        InputError: No `=`, no YAML, or an option that stands twice.
    """
    import yaml

    named = {"device": device, "dtype": dtype, "batch_size": batch_size}
    options = {name: value for name, value in named.items() if value is not None}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise InputError("engine-option", f"{pair!r} is not KEY=VALUE, such as tensor_parallel_size=2")
        if name in options:
            raise InputError("engine-option", f"{name} is there twice; pass it once")
        try:
            options[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError("engine-option", f"the value of {name} is no YAML; quote it") from error
    return options


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
