"""Runs a recipe: rows and settings are checked, then its stages follow each other, each resumable."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint import RankerCard
from ..errors import InputError
from ..evaluation.systems import System
from ..rows import Row
from ..strategies import Ask
from .cards import data_card
from .folder import (
    DATA_CARD,
    DONE,
    LOG,
    RECIPE,
    WEIGHTS,
    StageResult,
    check_folder,
    differences,
    figures_of,
    is_over,
    last_state,
    seconds_of,
    stage_folder,
    write_whole,
)
from .inputs import Inputs
from .logs import RunLog
from .preflight import Estimate, check_answers, check_lengths, estimate
from .prompting import Prompts
from .questions import Questions
from .recipe import LabelStage, PolicyStage, RationaleStage, Recipe, Stage
from .resuming import last_checkpoint
from .validation import Validator, best_step
from .weights import ADAPTER, Start, copy_weights, count_parameters, find_start, load_policy

logger = logging.getLogger(__name__)


class Training:
    """A recipe over its data: nothing is loaded and nothing written before it is asked for.

    Args:
        recipe: What is done.
        out: Folder for everything.
    """

    def __init__(self, recipe: Recipe, out: str | os.PathLike[str]) -> None:
        self.recipe = recipe.over()
        self.inputs = Inputs(self.recipe)
        self.out = Path(out)

    @cached_property
    def start(self) -> Start:
        """Weights to begin with."""
        return find_start(self.recipe)

    @cached_property
    def card(self) -> RankerCard:
        """How the model is asked."""
        return self.recipe.ranker.card(self.start.base)

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

    def check(self, model: Any, tokenizer: Any) -> tuple[int, ...]:
        """Finds all that is wrong before the first step, and gives the tokens of each stage's longest prompt.

        Raises:
            InputError: Rows, phases, labels, answers, prompts, rewards or teachers that cannot be used.
            CheckpointError: A tokenizer that TRL would lose a part of answers with.
        """
        from .grpo import stage_rewards

        train, held = self.inputs.sources
        check_answers(model, tokenizer, self.questions, [row for source in (*train, *held) for row in source.rows[:1]])
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        for stage in self.recipe.stages:
            self.inputs.teacher(stage)
            if not isinstance(stage, LabelStage):
                Prompts(self.questions, tokenizer)
            if isinstance(stage, PolicyStage):
                ask: Ask = "rank" if self.card.strategy == "dranker" else "eliminate"
                stage_rewards(stage, ask=ask, questions=self.questions, limit=1)
        return tuple(
            check_lengths(stage, mixture, self.questions, tokenizer, context)
            for stage, mixture in zip(self.recipe.stages, self.inputs.mixtures, strict=True)
        )

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
            InputError: The folder is not empty, or holds a training by another recipe; whatever `check` finds.
        """
        if is_main():
            check_folder(self.out, resume=resume)
            if resume:
                self._check_same()
        results = [found for number in range(len(self.recipe.stages)) if (found := self._finished(number))]
        self._prepare()
        if len(results) < len(self.recipe.stages):
            start = self.start if not results else self.start.going_on(self._folder(len(results) - 1) / WEIGHTS)
            model, tokenizer = load_policy(start, self.recipe)
            self.check(model, tokenizer)
            if is_main():
                self._write_settings()
            for number in range(len(results), len(self.recipe.stages)):
                if model is None:
                    model, tokenizer = load_policy(start, self.recipe)
                results.append(self._run_stage(number, model, tokenizer, resume=resume))
                # What comes next begins with what was written, as it does when it is resumed.
                model, start = None, self.start.going_on(self._folder(number) / WEIGHTS)
        return tuple(results)

    def _prepare(self) -> None:
        """Everything that needs no model."""
        if self.recipe.threads is not None:
            import torch

            torch.set_num_threads(self.recipe.threads)
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
        if state is None or not is_over(state, stage.patience):
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
            state = last_state(folder)
        assert state is not None, "a trainer leaves a checkpoint at its last step"
        result = self._result(number, state, seconds=seconds_of(self.out / LOG, stage.name))
        if is_main():
            self._keep_weights(folder, result)
            if not (folder / WEIGHTS / ADAPTER).is_file():
                tokenizer.save_pretrained(folder / WEIGHTS)
            write_whole(folder / DONE, json.dumps(asdict(result), indent=2) + "\n")
        _wait()
        return result

    def _result(self, number: int, state: Mapping[str, Any], *, seconds: float) -> StageResult:
        stage = self.recipe.stages[number]
        figures = figures_of(state)
        steps = state["global_step"]
        kept = steps
        if figures and stage.keep == "best":
            kept = best_step({step: values["eval_mrr"] for step, values in figures.items()})
        return StageResult(
            number=number + 1,
            name=stage.name,
            method=stage.method,
            steps=steps,
            seconds=round(seconds, 1),
            before=figures.get(0, {}),
            after=figures.get(kept, {}),
            kept=kept,
        )

    def _keep_weights(self, folder: Path, result: StageResult) -> None:
        """Leaves the weights that the next stage begins with, and clears away what is only for resuming."""
        best, last = folder / f"best-{result.kept}", last_checkpoint(folder)
        if best.is_dir():
            copy_weights(best, folder / WEIGHTS)
        elif not (folder / WEIGHTS).is_dir():  # sharded weights were gathered there
            assert last is not None
            copy_weights(Path(last), folder / WEIGHTS)
        for pattern in ("checkpoint-*", "best-*", "reference", "reference.part"):
            for path in folder.glob(pattern):
                shutil.rmtree(path)

    def _finished(self, number: int) -> StageResult | None:
        path = self._folder(number) / DONE
        return StageResult(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def _folder(self, number: int) -> Path:
        return stage_folder(self.out, number, self.recipe.stages[number].name)

    def _write_settings(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / RECIPE, self.portable().to_yaml())
        cards = [data_card(mixture) for mixture in self.inputs.mixtures]
        write_whole(self.out / DATA_CARD, json.dumps(cards, ensure_ascii=False, indent=2) + "\n")

    def portable(self) -> Recipe:
        """The recipe without the place of its data on this machine."""
        data = self.recipe.data.model_copy(update={"folder": None})
        return self.recipe.model_copy(update={"data": data})

    def _check_same(self) -> None:
        path = self.out / RECIPE
        if not path.is_file():
            return
        import yaml

        old, new = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(self.portable().to_yaml())
        if changed := sorted(differences(old, new)):
            raise InputError(
                "resume",
                f"{self.out} holds a training by another recipe (it differs in {', '.join(changed[:5])}): "
                "pass the same, or another folder",
            )


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


def is_main() -> bool:
    """Whether this process writes: under a launcher only the first does."""
    return os.environ.get("RANK", "0") == "0"


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


def _wait() -> None:
    """All processes have come here before one goes on."""
    if "RANK" in os.environ:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
