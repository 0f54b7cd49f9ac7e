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
    model_validator,
)

from ..checkpoint import BaseModelCard, RankerCard
from ..errors import InputError
from ..rows import TaskName
from .parts import DataSettings, LoraSettings, NegativesSettings, RankerSettings, RowsSettings, faults_of
from .precision import Precision
from .stages import (
    BaseStage,
    Count,
    LabelStage,
    PolicyStage,
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
    "NegativesSettings",
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


class Recipe(Running):
    """A training from its first row to its last.

    Args:
        base: `embedded`, a hub name or a folder.
        start: A checkpoint to go on from; its base has to be this one.
        ranker: How the model is asked.
        data: Training and validation rows.
        lora: The adapter that is trained; None: all weights are.
        precision: `mixed`: what is trained in float32, computed in bfloat16 where the device does; `bfloat16`: whole
            weights in that too; `float32`: nothing else.
        threads: Of the CPU; None: torch decides.
        stages: In this order.
    """

    base: str = EMBEDDED
    start: str | None = None
    ranker: RankerSettings = RankerSettings()
    data: DataSettings
    lora: LoraSettings | None = LoraSettings()
    precision: Precision = "mixed"
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
            if not eliminates and isinstance(stage, LabelStage) and stage.direct:
                raise ValueError(f"{where}: a dranker is asked for nothing but whole orders: leave direct out")
            if isinstance(stage, PolicyStage):
                self._check_sampled(stage, where)
        if len({stage.name for stage in self.stages}) < len(self.stages):
            raise ValueError("two stages have the same name")
        return self

    def _check_sampled(self, stage: PolicyStage, where: str) -> None:
        if self.ranker.strategy != "iranker":
            return
        if self.ranker.drop > 1:
            raise ValueError(f"{where} judges one label a step, not {self.ranker.drop}: set ranker.drop to 1")
        if stage.vllm is not None and stage.method == "grpo" and not self.ranker.thinking:
            raise ValueError(f"{where}: an answer of one label is no text to generate: leave vllm out, or use rloo")

    def card(self, base: BaseModelCard, *, stages: int | None = None) -> RankerCard:
        """The ranker card of what is trained from this base.

        Args:
            base: The weights to begin with.
            stages: After so many of them; None: after all.

        Raises:
            InputError: Settings or templates that do not fit together.
        """
        both = any(isinstance(stage, LabelStage) and stage.direct for stage in self.stages[:stages])
        return self.ranker.card(base, also=("dranker",) if both else ())

    def over(
        self,
        *,
        folder: str | None = None,
        rows: str | None = None,
        tasks: Sequence[TaskName] = (),
        absent: Literal["refuse", "skip"] | None = None,
    ) -> Recipe:
        """The recipe over other data.

        Args:
            folder: In place of `data.folder`; None leaves it.
            rows: A file or task in place of all rows, of which some are held out; None leaves them. The split is that
                of the rows before, if they all name one. With them `absent` is `skip`: the phases were not written
                for them.
            tasks: In place of `data.tasks`; none named leaves them. Phases and stages for other tasks fall away.
            absent: In place of `data.absent`; None leaves it, but for rows.

        Raises:
            InputError: No stage is left.
        """
        changes: dict[str, Any] = {
            "folder": folder or self.data.folder,
            "tasks": tuple(tasks) or self.data.tasks,
            "absent": absent or self.data.absent,
        }
        if rows is not None:
            splits = {one.split for one in self.data.train}
            own = RowsSettings(rows=rows, split=splits.pop() if len(splits) == 1 else None)
            changes |= {"train": (own,), "validation": (), "absent": absent or "skip"}
        data = self.data.model_copy(update=changes)
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
        raise InputError("config", f"{name}: {faults_of(error)}") from error
