"""The cold start of a policy that thinks: reasons made from the data, then the right answer, by TRL's SFTTrainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..rows import Row
from .arguments import training_arguments
from .callbacks import add_callbacks
from .folder import WEIGHTS
from .generation import completion_tokens
from .preflight import most_candidates
from .prompting import Prompts
from .questions import Questions
from .rationales import Rationale, rationale
from .resuming import last_checkpoint
from .traces import as_it_was, require_trl, without_bars
from .weights import gather_weights

if TYPE_CHECKING:
    from datasets import Dataset

    from .recipe import RationaleStage


def check_stage(
    stage: RationaleStage, *, mixture: Sequence[Row], questions: Questions, model: Any, tokenizer: Any
) -> None:
    """Finds what `train_rationales` would refuse, before anything is trained.

    Raises:
        InputError: A ranker that does not think, or a batch that the processes cannot share.
        CheckpointError: A tokenizer that cannot be trained with.
    """
    if not questions.thinking:
        raise InputError("ranker.thinking", "is 0, and reasons come before an answer: set it, or use supervised")
    Prompts(questions, tokenizer)
    training_arguments(stage, "", model)


def train_rationales(
    model: Any,
    tokenizer: Any,
    *,
    mixture: Sequence[Row],
    questions: Questions,
    stage: RationaleStage,
    folder: str | os.PathLike[str],
    callbacks: Sequence[Any] = (),
    resume: bool = False,
) -> None:
    """Trains a policy in place to give a short reason and the right answer.

    Where the weights are sharded over processes, they are written whole to `weights` in the folder at the end.

    Args:
        model: With or without an adapter, on its device.
        tokenizer: Its tokenizer.
        mixture: The rows, in the order in which they are seen.
        questions: Whose card asks; with thinking.
        stage: What the recipe says of this stage.
        folder: For checkpoints.
        callbacks: `transformers.TrainerCallback`s.
        resume: Goes on from the last checkpoint in the folder, if there is one.

    Raises:
        InputError: A ranker that does not think, or answers for which there is no room.
        CheckpointError: A tokenizer that cannot be trained with.
        MissingExtraError: TRL is not installed.
    """
    require_trl()
    import trl

    check_stage(stage, mixture=mixture, questions=questions, model=model, tokenizer=tokenizer)
    prompts = Prompts(questions, tokenizer)
    longest = completion_tokens(stage, prompts, most_candidates(mixture))
    arguments = training_arguments(stage, str(folder), model)
    rows = arguments["per_device_train_batch_size"]
    micro = max(size for size in range(1, min(stage.sequences, rows) + 1) if rows % size == 0)
    settings = trl.SFTConfig(
        **{
            **arguments,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": rows // micro,
            "max_steps": -(-len(mixture) // stage.batch),
        },
        max_length=None,
        completion_only_loss=True,
        ddp_find_unused_parameters=False,
        train_sampling_strategy="sequential",  # the mixture has its own order
    )
    with as_it_was(model), without_bars():
        trainer = trl.SFTTrainer(
            model=model,
            args=settings,
            train_dataset=rationale_dataset(mixture, prompts, limit=longest, seed=stage.seed),
            processing_class=tokenizer,
        )
        add_callbacks(trainer, callbacks)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder) if resume else None)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            gather_weights(trainer, Path(folder) / WEIGHTS)


def rationale_dataset(mixture: Sequence[Row], prompts: Prompts, *, limit: int, seed: int = 0) -> Dataset:
    """Prompts with reasons and answers as tokens; only those of reason and answer count in the loss.

    Args:
        mixture: The rows.
        prompts: Writes questions out.
        limit: Most tokens of reason and answer: a longer reason loses its first sentences.
        seed: Decides which question of each row is asked.
    """
    from datasets import Dataset

    records = []
    for row in mixture:
        prompt, completion = rationale_tokens(row, prompts, limit=limit, seed=seed)
        mask = [0] * len(prompt) + [1] * len(completion)
        records.append({"input_ids": [*prompt, *completion], "completion_mask": mask})
    return Dataset.from_list(records)


def rationale_tokens(row: Row, prompts: Prompts, *, limit: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Tokens of the one question that is asked about a row, and of reason and answer: see `rationale_dataset`."""
    made = rationale(row, prompts.questions, seed=seed)
    return prompts.tokens(made.question), _completion(made, prompts, limit)


def _completion(made: Rationale, prompts: Prompts, limit: int) -> list[int]:
    for sentences in range(len(made.thinking), -1, -1):
        tokens = [*prompts.chat.encode(made.text(sentences)), *prompts.end]
        if len(tokens) <= limit:
            return tokens
    raise InputError(
        "max_completion_tokens", f"the answer alone to row {made.question.row!r} takes {len(tokens)} tokens: allow more"
    )
