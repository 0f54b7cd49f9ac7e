"""What happens beside the steps of a training: its log, validations, the best weights kept, an early end."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback  # noqa: TID253 - itself imported only where a model is trained

from .logs import RunLog
from .processes import as_first
from .validation import Validator, best_step, in_vain
from .weights import save_policy

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_TOLD = ("loss", "reward", "accuracy", "kl", "frac_reward_zero_std")
"""Of what a trainer logs, what a user sees passing."""


class LogCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Writes down what a trainer logs.

    Args:
        log: Takes the lines.
    """

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Goes on where the trainer does."""
        if state.is_world_process_zero:
            self._log.open(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: object,
    ) -> None:
        """Writes a line."""
        if not state.is_world_process_zero or not logs:
            return
        self._log.write(state.global_step, logs)
        told = [f"{name} {logs[name]:.4g}" for name in _TOLD if name in logs]
        if told:
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, ", ".join(told))


class ValidationCallback(TrainerCallback):  # type: ignore[misc]
    """Validates before the first step, every so many steps and at the last, and keeps the best weights.

    Every process of a training does the same, so that all of them end together.

    Args:
        validator: Ranks held-out rows.
        tokenizer: Of the model that is trained.
        folder: Of the stage: takes weights in `best-STEP`, and records in `validation/STEP`.
        log: Takes the figures where nothing else does.
        every: Steps between two validations.
        patience: So many validations without a gain end the training; None: none does.

    Attributes:
        report: Takes the figures of a validation, as `Trainer.log` does; None: they go into state and log alone.
    """

    def __init__(
        self,
        validator: Validator,
        tokenizer: Any,
        *,
        folder: Path,
        log: RunLog,
        every: int,
        patience: int | None,
    ) -> None:
        self.report: Callable[[dict[str, float]], None] | None = None
        self._validator = validator
        self._tokenizer = tokenizer
        self._folder = folder
        self._log = log
        self._every = every
        self._patience = patience
        self._scores: dict[int, float] = {}

    @property
    def best(self) -> int | None:
        """Step of the best validation, the first of several; None before there was one."""
        return best_step(self._scores) if self._scores else None

    @property
    def best_weights(self) -> Path | None:
        """Where they are."""
        return None if self.best is None else self._weights(self.best)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any
    ) -> None:
        """Validates what the training starts with; one that goes on remembers its validations."""
        self._scores = {line["step"]: line["eval_mrr"] for line in state.log_history if "eval_mrr" in line}
        if not self._scores and not self._is_sharded(found["model"]):
            self._validate(state, control, found["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **found: Any) -> None:
        """Validates where it is time to."""
        step = state.global_step
        if not self._scores or (step % self._every and step < state.max_steps):
            return
        if step not in self._scores:
            self._validate(state, control, found["model"])
        if in_vain(self._scores, self._patience):
            logger.info("no better validation than at step %d: the stage ends at step %d", self.best, step)
            control.should_training_stop = True
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Drops weights that are no longer the best: a run that goes on from here does not need them."""
        if state.is_world_process_zero:
            for folder in self._folder.glob(self._weights("*").name):
                if folder != self.best_weights:
                    shutil.rmtree(folder)

    def _weights(self, step: int | str) -> Path:
        return self._folder / f"best-{step}"

    def _validate(self, state: TrainerState, control: TrainerControl, model: Any) -> None:
        validation = self._validator.check(model, self._tokenizer)
        metrics, step = as_first(validation.metrics()), state.global_step
        self._scores[step] = metrics["eval_mrr"]
        if state.is_world_process_zero:
            validation.write(self._folder / "validation" / str(step))
            if self.best == step:
                save_policy(model, self._weights(step))
            low, high = metrics["eval_mrr_low"], metrics["eval_mrr_high"]
            logger.info("step %d: MRR %.3f [%.3f, %.3f] on held-out rows", step, metrics["eval_mrr"], low, high)
        if self.report is not None:
            due = control.should_log
            self.report(metrics)
            control.should_log = due  # the trainer takes this for its own line of the step
        else:
            state.log_history.append({**metrics, "step": step})
            if state.is_world_process_zero:
                self._log.write(step, metrics)

    @staticmethod
    def _is_sharded(model: Any) -> bool:
        # A part of the weights cannot rank.
        sharded = any(
            hasattr(parameter, "ds_id") or type(parameter).__name__ in ("DTensor", "FlatParameter")
            for parameter in model.parameters()
        )
        if sharded:
            logger.warning("weights are spread over the processes: there is no validation while training")
        return sharded


def add_callbacks(trainer: Any, callbacks: Sequence[TrainerCallback]) -> None:
    """Gives callbacks to a trainer, in place of its own that prints, and to them its way to report."""
    from transformers import PrinterCallback, Trainer

    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
        if isinstance(callback, ValidationCallback):
            # Not the trainer's own: TRL's adds to a line what it has gathered for the next one of its own.
            callback.report = partial(Trainer.log, trainer)
