"""Trains on `LabelObjective` with the trainer of transformers: its schedule, checkpoints, resuming and reports."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from ..engines.tokenization import ChatTokenizer
from ..engines.transformers import TransformersEngine
from ..errors import InputError
from ..evaluation.systems import System
from ..rows import Row
from .arguments import training_arguments
from .callbacks import add_callbacks
from .label_objective import LabelObjective, Teacher
from .questions import Questions
from .resuming import last_checkpoint
from .rewards import elimination_regret_reward, elimination_reward
from .traces import as_it_was, without_bars

if TYPE_CHECKING:
    from .recipe import LabelStage


def train_labels(
    model: Any,
    tokenizer: Any,
    *,
    mixture: Sequence[Row],
    questions: Questions,
    stage: LabelStage,
    folder: str | PathLike[str],
    teacher: System | None = None,
    callbacks: Sequence[Any] = (),
    resume: bool = False,
) -> None:
    """Trains a model in place, on one device or with the same weights on several.

    Args:
        model: With or without an adapter, on its device.
        tokenizer: Its tokenizer.
        mixture: The rows, in the order in which they are seen.
        questions: Whose card asks; without thinking.
        stage: What the recipe says of this stage.
        folder: For checkpoints.
        teacher: The system that `stage.teacher` names.
        callbacks: `transformers.TrainerCallback`s.
        resume: Goes on from the last checkpoint in the folder, if there is one.

    Raises:
        InputError: Settings that this way of training cannot serve.
    """
    if questions.thinking:
        raise InputError("ranker.thinking", f"{stage.method} weighs answers without reasons: set 0, or use grpo")
    if (stage.teacher is None) != (teacher is None):
        raise InputError("teacher", "pass the system that the stage names, and none where it names none")
    objective = LabelObjective(
        questions,
        ChatTokenizer(tokenizer),
        method=stage.method,
        reward=elimination_regret_reward if stage.graded else elimination_reward,
        teacher=None
        if teacher is None or stage.teacher is None
        else Teacher(
            system=teacher,
            weight=stage.teacher.weight,
            temperature=stage.teacher.temperature,
            tasks=stage.teacher.tasks,
        ),
        direct=stage.direct,
        on_policy=stage.on_policy,
        temperature=stage.temperature,
        sequences=stage.micro_batch,
        seed=stage.seed,
    )
    with as_it_was(model), without_bars():
        trainer = _trainer(model, tokenizer, objective, mixture, stage, fspath(folder))
        add_callbacks(trainer, callbacks)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder) if resume else None)


def _trainer(
    model: Any, tokenizer: Any, objective: LabelObjective, mixture: Sequence[Row], stage: LabelStage, folder: str
) -> Any:
    import torch
    from transformers import Trainer, TrainingArguments

    engine = TransformersEngine(model, tokenizer) if stage.on_policy else None

    class LabelTrainer(Trainer):  # type: ignore[misc]  # transformers is not followed
        """Propagates the parts of a batch's loss one by one, so that only one of them is in memory."""

        def training_step(self, model: Any, inputs: Sequence[Row], num_items_in_batch: Any = None) -> Any:
            self.model.eval()
            with self.compute_loss_context_manager():
                laid_out = objective.lay_out(inputs, engine)
            self.model.train()
            total = 0.0
            # Not the model as data parallelism wraps it: processes have different numbers of parts.
            for part in objective.losses(self.model, laid_out):
                self.accelerator.backward(part)
                total += float(part.detach())
            if self.accelerator.num_processes > 1:
                for parameter in self.model.parameters():
                    if parameter.requires_grad:
                        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                        parameter.grad = self.accelerator.reduce(mine, reduction="mean")
            return torch.tensor(total, device=self.args.device)

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            super().log({**logs, **objective.metrics()} if "loss" in logs else logs, *args, **kwargs)

    arguments = TrainingArguments(
        **training_arguments(stage, folder, model),
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # the mixture has its own order
    )
    if arguments.parallel_mode.value == "not_distributed":
        detail = "one process cannot train on several devices: use accelerate launch, or set CUDA_VISIBLE_DEVICES"
        raise InputError("accelerate", detail)
    trainer = LabelTrainer(model=model, args=arguments, train_dataset=mixture, data_collator=list)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError("accelerate", f"{stage.method} needs whole weights in each process: use DDP, or grpo")
    return trainer
