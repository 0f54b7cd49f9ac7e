"""Runs a recipe: rows and settings are checked, then its stages follow each other, each resumable."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint import RankerCard
from ..evaluation.systems import System
from ..rows import Row
from .estimates import Estimate, estimate
from .finishing import clear_away, finish, lacks_weights, read_result, result_of
from .folder import LOG, WEIGHTS, StageResult, check_folder, is_over, last_state, seconds_of, stage_folder
from .inputs import Inputs
from .logs import RunLog
from .preflight import check_answers, check_label_stage, check_lengths, share_alike
from .processes import check_shared, is_main, wait
from .questions import Questions
from .recipe import LabelStage, RationaleStage, Recipe, Stage
from .settings import check_data, check_recipe, write_settings
from .validation import Validator
from .weights import Start, count_parameters, find_start, load_policy

logger = logging.getLogger(__name__)


class Training:
    """A recipe over its data: nothing is loaded and nothing written before it is asked for.

    Args:
        recipe: What is done.
        out: Folder for everything.
    """

    def __init__(self, recipe: Recipe, out: str | os.PathLike[str]) -> None:
        asked = recipe.over()
        self.inputs = Inputs(asked)
        self._threads = asked.threads
        self.out = Path(out)

    @property
    def recipe(self) -> Recipe:
        """What is done, as the rows allow it."""
        return self.inputs.recipe

    @cached_property
    def start(self) -> Start:
        """Weights to begin with."""
        return find_start(self.recipe)

    @cached_property
    def card(self) -> RankerCard:
        """How the model is asked."""
        return self.recipe.card(self.start.base)

    @cached_property
    def questions(self) -> Questions:
        """What it is asked."""
        return Questions(self.card)

    @cached_property
    def validator(self) -> Validator | None:
        """Ranks held-out rows; None where the recipe wants no validation."""
        data, held = self.recipe.data, self.inputs.validation
        if not held:
            return None
        mixed = self.recipe.precision == "mixed"
        return Validator(held, self.card, limit=data.validation_limit, seed=data.seed, mixed=mixed)

    def check(self, model: Any, tokenizer: Any, *, done: int = 0) -> tuple[int, ...]:
        """Finds all that is wrong before the first step, and gives the tokens of each stage's longest prompt.

        Args:
            model: What is trained.
            tokenizer: Its tokenizer.
            done: So many stages are over, and their teachers have no more to say.

        Raises:
            InputError: Rows, phases, labels, answers, prompts, rewards, teachers or processes that cannot be used.
            CheckpointError: A tokenizer that TRL would lose a part of answers with.
        """
        check_answers(model, tokenizer, self.questions, self._examples())
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        longest = list[int]()
        for stage, mixture in zip(self.recipe.stages, self.inputs.mixtures, strict=True):
            if len(longest) >= done:
                self.inputs.try_teacher(stage, mixture)
            _check_stage(model, tokenizer, stage, mixture, self.questions)
            longest.append(check_lengths(stage, mixture, self.questions, tokenizer, context))
            alike = share_alike(stage, mixture, self.questions)
            logger.info("%s: every answer has the same reward in %.0f%% of first questions", stage.name, 100 * alike)
        return tuple(longest)

    def _examples(self) -> list[Row]:
        """The first example of each task, as it is drawn."""
        tasks = {row.task for source in self.inputs.sources[0] for row in source.rows}
        found: dict[str, Row] = {}
        for row in (row for mixture in self.inputs.mixtures for row in mixture):
            found.setdefault(row.task, row)
            if len(found) == len(tasks):
                break
        return list(found.values())

    def dry_run(self) -> Preview:
        """Loads the model, checks everything, and times a few steps."""
        check_folder(self.out, resume=True)
        self._prepare()
        model, tokenizer = load_policy(self.start, self.recipe)
        longest = self.check(model, tokenizer)
        trained, parameters = count_parameters(model)
        row = self.inputs.mixtures[0][0]
        return Preview(
            prompt=_rendered(self.questions, row, tokenizer),
            row=row,
            trained=trained,
            parameters=parameters,
            estimates=tuple(
                estimate(stage, mixture, self.questions, model, tokenizer, longest=most)
                for stage, mixture, most in zip(self.recipe.stages, self.inputs.mixtures, longest, strict=True)
            ),
        )

    def run(self, *, resume: bool = False) -> tuple[StageResult, ...]:
        """Runs all stages; `outputs.write_outputs` makes a checkpoint of the last one.

        Args:
            resume: Go on with what is in the folder: finished stages are skipped, an unfinished one goes on from its
                last checkpoint.

        Raises:
            InputError: The folder is not empty, or holds a training by another recipe or with other rows; whatever
                `check` finds.
        """
        if is_main():
            check_folder(self.out, resume=resume)
        check_shared(self.out)
        self._prepare()
        if is_main():
            check_recipe(self.out, self.recipe)
        folders = [self._folder(number) for number in range(len(self.recipe.stages))]
        results = [found for folder in folders if (found := read_result(folder))]
        if is_main():
            check_data(self.out, self.recipe, self.inputs)
            for folder in folders[: len(results)]:
                clear_away(folder)  # what a kill left of it
        if len(results) < len(self.recipe.stages):
            start = self.start if not results else self.start.going_on(self._folder(len(results) - 1) / WEIGHTS)
            model, tokenizer = load_policy(start, self.recipe)
            self.check(model, tokenizer, done=len(results))
            if is_main():
                write_settings(self.out, self.recipe, self.inputs)
            for number in range(len(results), len(self.recipe.stages)):
                if model is None:
                    model, tokenizer = load_policy(start, self.recipe)
                results.append(self._run_stage(number, model, tokenizer, resume=resume))
                # What comes next begins with what was written, as it does when it is resumed.
                model, start = None, self.start.going_on(self._folder(number) / WEIGHTS)
        return tuple(results)

    def _prepare(self) -> None:
        """Everything that needs no model."""
        if self._threads is not None:
            import torch

            torch.set_num_threads(self._threads)
        _require_trainers(self.recipe.stages)
        _ = self.inputs.sources, self.inputs.mixtures, self.card, self.validator

    def _run_stage(self, number: int, model: Any, tokenizer: Any, *, resume: bool) -> StageResult:
        from .callbacks import LogCallback, ValidationCallback

        stage, folder = self.recipe.stages[number], self._folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        log = RunLog(self.out / LOG, stage.name)
        callbacks: list[Any] = [LogCallback(log)]
        validation = None
        if self.validator is not None:
            validation = ValidationCallback(
                self.validator,
                tokenizer,
                folder=folder,
                log=log,
                every=stage.validate_every,
                patience=stage.patience,
            )
            callbacks.append(validation)
        state = last_state(folder) if resume else None
        if state is None or not is_over(state, stage.patience) or lacks_weights(folder):
            logger.info("stage %d of %d: %s", number + 1, len(self.recipe.stages), stage.name)
            _train(
                model,
                tokenizer,
                stage,
                mixture=self.inputs.mixtures[number],
                questions=self.questions,
                folder=folder,
                callbacks=callbacks,
                resume=resume,
                teacher=self.inputs.teacher(stage),
            )
        wait()  # until all are out of the folder
        if is_main():
            state = last_state(folder)
            assert state is not None, "a trainer leaves a checkpoint at its last step"
            seconds = seconds_of(self.out / LOG, stage.name)
            finish(
                folder,
                result_of(number, stage, state, seconds=seconds),
                tokenizer,
                self.recipe.card(self.start.base, stages=number + 1),
            )
        wait()
        result = read_result(folder)
        assert result is not None, "the first process has written it"
        return result

    def _folder(self, number: int) -> Path:
        return stage_folder(self.out, number, self.recipe.stages[number].name)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a dry run shows.

    Args:
        prompt: Of the first example, as the model reads it.
        row: That example.
        trained: Parameters that are trained.
        parameters: All parameters.
        estimates: One for each stage.
    """

    prompt: str
    row: Row
    trained: int
    parameters: int
    estimates: tuple[Estimate, ...]


def _check_stage(model: Any, tokenizer: Any, stage: Stage, mixture: Sequence[Row], questions: Questions) -> None:
    """Finds what a stage's trainer would refuse."""
    if isinstance(stage, LabelStage):
        check_label_stage(stage, model)
    elif isinstance(stage, RationaleStage):
        from .sft import check_stage as check_rationales

        check_rationales(stage, mixture=mixture, questions=questions, model=model, tokenizer=tokenizer)
    else:
        from .grpo import check_stage as check_policy

        check_policy(stage, mixture=mixture, questions=questions, model=model, tokenizer=tokenizer)


def _train(model: Any, tokenizer: Any, stage: Stage, *, teacher: System | None, **arguments: Any) -> None:
    if isinstance(stage, LabelStage):
        from .label_trainer import train_labels

        train_labels(model, tokenizer, stage=stage, teacher=teacher, **arguments)
    elif isinstance(stage, RationaleStage):
        from .sft import train_rationales

        train_rationales(model, tokenizer, stage=stage, **arguments)
    else:
        from .grpo import train_policy

        train_policy(model, tokenizer, stage=stage, **arguments)


def _require_trainers(stages: Sequence[Stage]) -> None:
    import importlib

    from ..errors import MissingExtraError

    needed = ["matplotlib"]
    if not all(isinstance(stage, LabelStage) for stage in stages):
        needed += ["trl", "datasets"]
    for name in needed:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError("train", name) from error


def _rendered(questions: Questions, row: Row, tokenizer: Any) -> str:
    from ..engines.tokenization import ChatTokenizer
    from .columns import columns_of

    prompt: str = columns_of(questions.first(row), ChatTokenizer(tokenizer), thinking=questions.thinking)["prompt"]
    return prompt
