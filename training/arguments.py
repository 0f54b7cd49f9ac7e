"""What a stage's settings are called by the trainers of transformers and TRL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .precision import computes_mixed, overrule_launcher

if TYPE_CHECKING:
    from .recipe import BaseStage


def training_arguments(stage: BaseStage, folder: str, model: Any) -> dict[str, Any]:
    """Arguments of `TrainingArguments` and its kin, but for how a batch is cut into micro-batches.

    Args:
        stage: What the recipe says.
        folder: For checkpoints.
        model: On its device; says how it is computed, see `precision_of`.

    Raises:
        InputError: A batch that the processes cannot share.
    """
    from accelerate import PartialState

    device = next(model.parameters()).device
    processes = PartialState(cpu=device.type == "cpu").num_processes
    if stage.batch % processes:
        raise InputError("batch", f"{stage.batch} rows cannot be shared by {processes} processes")
    overrule_launcher(model)
    return {
        "output_dir": folder,
        "per_device_train_batch_size": stage.batch // processes,
        "max_steps": stage.steps,
        "learning_rate": stage.learning_rate,
        # What transformers calls constant has no warm-up.
        "lr_scheduler_type": "constant_with_warmup" if stage.schedule == "constant" else stage.schedule,
        "warmup_steps": stage.warmup,  # below 1 it is a share
        "adam_beta2": stage.beta2,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "gradient_checkpointing": stage.gradient_checkpointing,
        "logging_steps": stage.logging_every,
        "save_steps": stage.save_every,
        "save_total_limit": 2,
        "report_to": stage.report_to if isinstance(stage.report_to, str) else list(stage.report_to),
        "seed": stage.seed,
        "use_cpu": device.type == "cpu",
        "bf16": computes_mixed(model),
        "disable_tqdm": True,
    }
