"""Recipes: everything that a training is made of, as YAML.

    base: embedded
    ranker: {strategy: iranker, form: append}
    data: {train: [{rows: passage-5}, {rows: rec-movie, weight: 0.5}]}
    lora: {r: 16}
    stages:
      - {name: cold start, method: supervised, examples: 4000, learning_rate: 1e-3}
      - {name: elimination, method: expected, examples: 2000, on_policy: true, learning_rate: 2e-4}

Each stage goes on from the weights of the one before it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (  # noqa: TID253 - itself imported only where a recipe is read
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..checkpoint import BaseModelCard, LabelsCard, RankerCard, ThinkingCard, WindowCard
from ..errors import InputError
from ..prompts import PromptTemplate
from ..rows import TaskName
from ..strategies import ALPHABET
from .data import Phase
from .stages import (
    BaseStage,
    Count,
    LabelStage,
    Part,
    PolicyStage,
    Positive,
    RationaleStage,
    RewardName,
    Running,
    Stage,
    TeacherSettings,
)

__all__ = [
    "EMBEDDED",
    "BaseStage",
    "DataSettings",
    "LabelStage",
    "LoraSettings",
    "PolicyStage",
    "RankerSettings",
    "RationaleStage",
    "Recipe",
    "RewardName",
    "RowsSettings",
    "Running",
    "Stage",
    "TeacherSettings",
    "builtin_recipes",
    "read_recipe",
]

EMBEDDED = "embedded"
"""As `base`: the weights that the package brings."""


class RankerSettings(Part):
    """How the model is asked, in training and after it: see `RankerCard`.

    Args:
        thinking: Most tokens that it reasons before an answer; 0: it answers at once.
        alphabet: The labels, in the order in which they are given out.
        templates: Wording of a task: `builtin`, a YAML file, or the template itself. Others are built in.
    """

    strategy: Literal["iranker", "dranker"] = "iranker"
    form: Literal["rewrite", "append"] = "append"
    thinking: int = Field(default=0, ge=0)
    drop: int = Field(default=1, ge=1)
    window: int = Field(default=20, ge=2)
    stride: int = Field(default=10, ge=1)
    alphabet: str = ALPHABET
    templates: dict[TaskName, Literal["builtin"] | dict[str, Any]] = Field(default_factory=dict)

    @field_validator("templates", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        """Takes files into the recipe, so that the recipe as run needs none."""
        if not isinstance(value, Mapping):
            return value
        folder = Path((info.context or {}).get("folder", "."))
        return {
            task: PromptTemplate.from_yaml(folder / template).to_dict()
            if isinstance(template, str) and template != "builtin"
            else template
            for task, template in value.items()
        }

    def card(self, base: BaseModelCard) -> RankerCard:
        """The ranker card of what is trained from this base.

        Raises:
            InputError: Settings or templates that do not fit together.
        """
        templates: dict[TaskName, Any] = {task: self.templates.get(task, "builtin") for task in get_args(TaskName)}
        try:
            wordings = [
                PromptTemplate.builtin(task) if value == "builtin" else PromptTemplate.from_dict(value, source=task)
                for task, value in templates.items()
            ]
            return RankerCard(
                format=1,
                base=base,
                strategy=self.strategy,
                form=self.form,
                thinking=ThinkingCard(mode="free" if self.thinking else "none", budget=self.thinking),
                labels=LabelsCard(alphabet=self.alphabet, close=wordings[0].candidate.count("{label}") > 1),
                drop=self.drop,
                window=WindowCard(size=self.window, stride=self.stride),
                templates=templates,
            )
        except ValidationError as error:
            raise InputError("ranker", _faults(error)) from error


class RowsSettings(Part):
    """Rows of a source.

    Args:
        rows: A file, a task of the data folder, or a folder of tasks; `.` is the data folder itself.
        split: Which file of a task; None: `train`, for validation `dev`.
        weight: Share of the examples, relative to the other sources.
        limit: Only so many of its rows, over as many queries as it has; None: all.
    """

    rows: str
    split: str | None = None
    weight: Positive = 1.0
    limit: Count | None = None


class DataSettings(Part):
    """What is trained on, and what is never.

    Args:
        folder: Where tasks are looked up by name; None: only files and folders are named.
        tasks: Only rows of these; None: all.
        train: Sources of training rows.
        validation: Sources of held-out rows. None named: some queries of each training source are held out.
        validation_limit: How many rows are ranked at a validation; 0: no validation.
        validation_phase: Cuts held-out rows as a phase cuts training rows, which costs less; None: whole rows.
        seed: Decides on rows, lists, orders and what is held out.
    """

    folder: str | None = None
    tasks: tuple[TaskName, ...] | None = Field(default=None, min_length=1)
    train: tuple[RowsSettings, ...] = Field(min_length=1)
    validation: tuple[RowsSettings, ...] = ()
    validation_limit: int = Field(default=60, ge=0)
    validation_phase: Phase | None = None
    seed: int = Field(default=0, ge=0)


class LoraSettings(Part):
    """A LoRA adapter: see `peft.LoraConfig`."""

    r: Count = 16
    alpha: Positive = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class Recipe(Running):
    """A training from its first row to its last.

    Args:
        base: `embedded`, a hub name or a folder.
        start: A checkpoint to go on from; its base has to be this one.
        ranker: How the model is asked.
        data: Training and validation rows.
        lora: The adapter that is trained; None: all weights are.
        threads: Of the CPU; None: torch decides.
        stages: In this order.
    """

    base: str = EMBEDDED
    start: str | None = None
    ranker: RankerSettings = RankerSettings()
    data: DataSettings
    lora: LoraSettings | None = LoraSettings()
    threads: Count | None = None
    stages: tuple[Annotated[Stage, Field(discriminator="method")], ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, value: object) -> object:
        if not isinstance(value, Mapping) or not isinstance(value.get("stages"), list | tuple):
            return value
        shared = {key: value[key] for key in Running.model_fields if key in value}
        return {
            **value,
            "stages": [{**shared, **stage} if isinstance(stage, Mapping) else stage for stage in value["stages"]],
        }

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        thinks, eliminates = self.ranker.thinking > 0, self.ranker.strategy == "iranker"
        for stage in self.stages:
            where = f"stage {stage.name!r}: {stage.method}"
            if isinstance(stage, LabelStage) and thinks:
                raise ValueError(f"{where} answers at once: set ranker.thinking to 0, or use grpo, rloo or sft")
            if isinstance(stage, RationaleStage) and not thinks:
                raise ValueError(f"{where} teaches reasons: set ranker.thinking, or use supervised")
            on_policy = isinstance(stage, LabelStage | PolicyStage) and stage.on_policy
            if not eliminates and (on_policy or stage.method == "expected"):
                raise ValueError(f"{where} needs eliminations: set ranker.strategy to iranker, or on_policy to false")
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError("two stages have the same name")
        return self

    def over(self, *, folder: str | None = None, tasks: Sequence[TaskName] = ()) -> Recipe:
        """The recipe over other data.

        Args:
            folder: In place of `data.folder`; None leaves it.
            tasks: In place of `data.tasks`; none named leaves them. Phases and stages for other tasks fall away.

        Raises:
            InputError: No stage is left.
        """
        data = self.data.model_copy(
            update={"folder": folder or self.data.folder, "tasks": tuple(tasks) or self.data.tasks}
        )
        wanted = set(data.tasks or get_args(TaskName))
        stages = []
        for stage in self.stages:
            phases = tuple(phase for phase in stage.phases if phase.tasks is None or wanted & set(phase.tasks))
            if phases:
                stages.append(stage.model_copy(update={"phases": phases}))
        if not stages:
            raise InputError("task", f"no stage of the recipe is for {', '.join(sorted(wanted))}")
        return self.model_copy(update={"data": data, "stages": tuple(stages)})

    def to_yaml(self) -> str:
        """The recipe with every setting spelled out, as `read_recipe` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def builtin_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    folder = resources.files(__package__) / "recipes"
    names = (entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    return tuple(sorted(name.removesuffix(".yaml") for name in names if not name.startswith(_NOT_OURS)))


_NOT_OURS = ("accelerate-", "verl-")
"""Files beside the recipes that other programs read."""


def read_recipe(source: str | os.PathLike[str]) -> Recipe:
    """Reads a recipe.

    Args:
        source: A YAML file, or the name of one that comes with the package.

    Raises:
        InputError: No such recipe, or one that cannot be used; the message names the key.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if name in builtin_recipes():
        text, folder = (resources.files(__package__) / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"), Path()
    else:
        if path.suffix not in (".yaml", ".yml"):
            known = ", ".join(builtin_recipes())
            raise InputError("config", f"{name!r} is neither a YAML file nor one of {known}")
        try:
            text, folder = path.read_text(encoding="utf-8"), path.parent
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("config", f"{name} cannot be read: {error}") from error
    try:
        return Recipe.model_validate(yaml.safe_load(text), context={"folder": folder})
    except yaml.YAMLError as error:
        raise InputError("config", f"{name} is no YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise InputError("config", f"{name}: {_faults(error)}") from error


def _faults(error: ValidationError) -> str:
    faults = error.errors()
    # A list with a bad member is also reported as too short.
    inner = {fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]))}
    told = [_told(fault["loc"], fault["type"], fault["msg"]) for fault in faults if fault["loc"] not in inner]
    return "; ".join(told)


def _told(place: tuple[int | str, ...], kind: str, message: str) -> str:
    # Behind the number of a stage stands its method, which is no key.
    keys = [str(key) for number, key in enumerate(place) if (number, place[0]) != (2, "stages")]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        message = "there is no such key"
    return f"{'.'.join(keys) or 'recipe'}: {message.removeprefix('Value error, ')}"
