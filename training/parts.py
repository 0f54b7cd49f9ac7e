"""The parts of a recipe that are no stages: how the model is asked, its data, and its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

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
from ..strategies import ALPHABET, Form, StrategyName
from .data import Phase
from .stages import Count, Part, Positive


class RankerSettings(Part):
    """How the model is asked, in training and after it: see `RankerCard`.

    Args:
        thinking: Most tokens that it reasons before an answer; 0: it answers at once.
        alphabet: The labels, in the order in which they are given out.
        templates: Wording of a task: `builtin`, a YAML file, or the keys that differ from the one built in.
    """

    strategy: StrategyName = "iranker"
    form: Form = "append"
    thinking: int = Field(default=0, ge=0)
    drop: int = Field(default=1, ge=1)
    window: int = Field(default=20, ge=2)
    stride: int = Field(default=10, ge=1)
    alphabet: str = ALPHABET
    templates: dict[TaskName, Literal["builtin"] | dict[str, Any]] = Field(default_factory=dict)

    @field_validator("templates", mode="before")
    @classmethod
    def _read(cls, value: object, info: ValidationInfo) -> object:
        """Takes files and built-in keys into the recipe, so that the recipe as run needs neither."""
        if not isinstance(value, Mapping):
            return value
        folder = Path((info.context or {}).get("folder", "."))

        def whole(task: Any, template: object) -> object:
            if isinstance(template, str) and template != "builtin":
                return PromptTemplate.from_yaml(folder / template).to_dict()
            if isinstance(template, Mapping) and task in get_args(TaskName):
                return _merged(PromptTemplate.builtin(task).to_dict(), template)
            return template

        return {task: whole(task, template) for task, template in value.items()}

    def wordings(self) -> tuple[PromptTemplate, ...]:
        """The template of each task.

        Raises:
            TemplateError: One that cannot be used.
        """
        own: dict[TaskName, Any] = {task: self.templates.get(task, "builtin") for task in get_args(TaskName)}
        return tuple(
            PromptTemplate.builtin(task) if value == "builtin" else PromptTemplate.from_dict(value, source=task)
            for task, value in own.items()
        )

    def card(self, base: BaseModelCard, *, also: tuple[StrategyName, ...] = ()) -> RankerCard:
        """The ranker card of what is trained from this base, and in these strategies beside its own.

        Raises:
            InputError: Settings or templates that do not fit together.
        """
        try:
            wordings = self.wordings()
            closing = {template.candidate.count("{label}") > 1 for template in wordings}
            if len(closing) > 1:
                told = ", ".join(f"{one.task}: {one.candidate.count('{label}') > 1}" for one in wordings)
                detail = f"templates disagree on labels.close, a second {{label}} behind each candidate ({told})"
                raise InputError("ranker", f"{detail}: word all three alike")
            return RankerCard(
                format=1,
                base=base,
                strategy=self.strategy,
                also=also,
                form=self.form,
                thinking=ThinkingCard(mode="free" if self.thinking else "none", budget=self.thinking),
                labels=LabelsCard(alphabet=self.alphabet, close=closing.pop()),
                drop=self.drop,
                window=WindowCard(size=self.window, stride=self.stride),
                # Word for word: what is built in may be worded otherwise one day.
                templates={template.task: template.to_dict() for template in wordings},
            )
        except ValidationError as error:
            raise InputError("ranker", faults_of(error)) from error


def _merged(usual: Mapping[str, Any], own: Mapping[Any, Any]) -> dict[Any, Any]:
    """What is usual, with what is one's own in its place; the objectives of a template likewise."""
    both = {
        key: _merged(usual[key], value) if isinstance(value, Mapping) and isinstance(usual.get(key), Mapping) else value
        for key, value in own.items()
    }
    return {**usual, **both}


class NegativesSettings(Part):
    """Hard negatives in place of a passage row's own, mined once, before the first stage.

    Rows of recommendation keep their own: what is likeliest beside a user's choice may be a choice yet to come, and the
    words of titles tell BM25 of sequels, not of tastes. In Python `hard_negatives` mines for them too.

    Args:
        by: What ranks the passages of all training rows of the source: BM25, or the weights that the training begins
            with, asked as `ranker` says. These rank the best of BM25, once more whenever the training is resumed: go
            on with it on the same kind of device, as another one rounds otherwise, may find others, and a training
            does not go on with other rows.
        count: So many of the best that are not relevant become a row's negatives.
        depth: How many of the best of BM25 the policy ranks.
    """

    by: Literal["bm25", "policy"] = "bm25"
    count: Count = 8
    depth: Count = 20

    @model_validator(mode="after")
    def _check(self) -> NegativesSettings:
        if self.by == "policy" and self.depth < self.count:
            raise ValueError(f"depth is {self.depth}, less than count, {self.count}: the policy needs some to choose")
        return self


class RowsSettings(Part):
    """Rows of a source.

    Args:
        rows: A file, a task of the data folder, or a folder of tasks; `.` is the data folder itself.
        split: Which file of a task; None: `train`, for validation `dev`.
        weight: Share of the examples, relative to the other sources.
        limit: Only so many of its rows, over as many queries as it has; None: all.
        negatives: Other negatives for its passage rows; None: their own.
    """

    rows: str
    split: str | None = None
    weight: Positive = 1.0
    limit: Count | None = None
    negatives: NegativesSettings | None = None


class DataSettings(Part):
    """What is trained on, and what is never.

    Args:
        folder: Where tasks are looked up by name; None: only files and folders are named.
        tasks: Only rows of these; None: all.
        train: Sources of training rows.
        validation: Sources of held-out rows. None named: some queries of the training sources are held out, evenly,
            but of none more than one in three.
        validation_limit: How many rows are ranked at a validation; 0: no validation.
        validation_phase: Cuts held-out rows as a phase cuts training rows, which costs less; None: whole rows.
        seed: Decides on rows, lists, orders and what is held out.
        absent: `skip`: what is not there is left out, as long as something is, and with it what stages want of it:
            phases for other tasks, longer lists, and grades of routing rows that have none.
    """

    folder: str | None = None
    tasks: tuple[TaskName, ...] | None = Field(default=None, min_length=1)
    train: tuple[RowsSettings, ...] = Field(min_length=1)
    validation: tuple[RowsSettings, ...] = ()
    validation_limit: int = Field(default=60, ge=0)
    validation_phase: Phase | None = None
    seed: int = Field(default=0, ge=0)
    absent: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        if any(one.negatives is not None for one in self.validation):
            raise ValueError("validation rows are ranked as they are: negatives are for train")
        return self


class LoraSettings(Part):
    """A LoRA adapter: see `peft.LoraConfig`."""

    r: Count = 16
    alpha: Positive = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


def faults_of(error: ValidationError) -> str:
    """What pydantic found, by key."""
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
