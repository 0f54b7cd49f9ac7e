"""Sampled reinforcement learning over TRL: GRPO, with states that the policy plays to itself, and RLOO.

Run on several GPUs or machines by `accelerate launch --config_file … -m r1_rerank.training.grpo --config recipe.yaml
--out OUT`, which takes the arguments of `r1-rerank train`.

TRL has no PPO any more. Of the paper's PPO settings the actor's learning rate, the KL coefficient, the batch, the
lengths, the temperature and the number of steps have a counterpart in a stage; GAE and the critic have none: a group
of answers to one prompt takes the place of the critic's baseline.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..prompts import FIRST_LABEL, render_answer
from ..rows import Row
from ..strategies import Ask
from .arguments import training_arguments
from .callbacks import add_callbacks
from .folder import WEIGHTS
from .generation import completion_tokens, generation_arguments, require_vllm
from .processes import sharding
from .prompting import Prompts
from .questions import Questions
from .resuming import last_checkpoint
from .rewards import (
    Completion,
    Reward,
    elimination_regret_reward,
    elimination_reward,
    format_reward,
    mrr_reward,
    overlap_reward,
    overlong_reward,
    ranking_reward,
    recall_reward,
    tag_count_reward,
)
from .rollouts import Rollouts
from .traces import as_it_was, reference_weights, require_trl, without_bars
from .weights import gather_weights

if TYPE_CHECKING:
    from .recipe import PolicyStage, RewardName

_RECALL = 5
"""How far down the recall reward looks."""


def train_policy(
    model: Any,
    tokenizer: Any,
    *,
    mixture: Sequence[Row],
    questions: Questions,
    stage: PolicyStage,
    folder: str | os.PathLike[str],
    callbacks: Sequence[Any] = (),
    resume: bool = False,
) -> None:
    """Trains a policy in place on sampled answers.

    Where the weights are sharded over processes, they are written whole to `weights` in the folder at the end.

    Args:
        model: As it is at the start of the stage, also when resuming; with or without an adapter, on its device.
        tokenizer: Its tokenizer.
        mixture: The rows, in the order in which they are seen.
        questions: Whose card asks.
        stage: What the recipe says of this stage.
        folder: For checkpoints.
        callbacks: `transformers.TrainerCallback`s.
        resume: Goes on from the last checkpoint in the folder, if there is one.

    Raises:
        InputError: Settings that do not fit together.
        CheckpointError: A tokenizer that cannot be trained with.
        MissingExtraError: TRL is not installed.
    """
    require_trl()
    with as_it_was(model), without_bars():
        trainer = policy_trainer(
            model, tokenizer, mixture=mixture, questions=questions, stage=stage, folder=folder, callbacks=callbacks
        )
        last = last_checkpoint(folder) if resume else None
        if last is not None and hasattr(model, "peft_config"):
            # Beside a copy of the adapter, the one for the KL, transformers would load the copy alone.
            model.load_adapter(last, model.active_adapter, is_trainable=True)
        trainer.train(resume_from_checkpoint=last)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            gather_weights(trainer, Path(folder) / WEIGHTS)


def policy_trainer(
    model: Any,
    tokenizer: Any,
    *,
    mixture: Sequence[Row],
    questions: Questions,
    stage: PolicyStage,
    folder: str | os.PathLike[str],
    callbacks: Sequence[Any] = (),
) -> Any:
    """The trainer of `train_policy`, ready to run."""
    require_trl()
    import trl

    check_stage(stage, mixture=mixture, questions=questions, model=model, tokenizer=tokenizer)
    prompts = Prompts(questions, tokenizer)
    chooses, played = _chooses(questions), _is_played(stage, questions)
    dataset = prompts.dataset(mixture)
    most = max(map(len, dataset["labels"]))
    longest = 1 if chooses else completion_tokens(stage, prompts, most)
    rewards = stage_rewards(stage, ask=_asked(questions), questions=questions, limit=longest)
    # TRL's own generation ends where the label is written; a rollout closes the answer itself.
    functions = [_closing(reward) if chooses and not played else reward for reward, _ in rewards.values()]
    arguments = {
        **_arguments(stage, str(folder), model),
        "max_completion_length": longest,
        "reward_weights": [weight for _, weight in rewards.values()],
        **generation_arguments(stage, prompts, most if chooses else 0, longest=longest, played=played),
    }
    common = {
        "model": model,
        "reward_funcs": functions,
        "train_dataset": _whole_batches(dataset, stage.batch),
        "processing_class": tokenizer,
    }
    reference = reference_weights(model, Path(folder)) if stage.kl else nullcontext()
    if stage.method == "rloo":
        with reference:
            trainer = trl.RLOOTrainer(**common, args=trl.RLOOConfig(**arguments))
        add_callbacks(trainer, callbacks)
        return trainer
    if stage.loss is not None:
        arguments["loss_type"] = stage.loss
    rollouts = None
    if played:
        rollouts = Rollouts(
            mixture,
            {prompt: number for number, prompt in enumerate(dataset["prompt"])},
            prompts,
            on_policy=stage.on_policy,
            temperature=stage.temperature,
            top_p=stage.top_p,
            seed=stage.seed,
        )
    with reference, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'")
        trainer = trl.GRPOTrainer(**common, args=trl.GRPOConfig(**arguments), rollout_func=rollouts)
    add_callbacks(trainer, callbacks)
    return trainer


def check_stage(
    stage: PolicyStage, *, mixture: Sequence[Row], questions: Questions, model: Any, tokenizer: Any
) -> None:
    """Finds what `train_policy` would refuse, before anything is trained.

    Raises:
        InputError: Settings that do not fit together, or not the processes that there are.
        CheckpointError: A tokenizer that cannot be trained with.
    """
    if questions.card.drop > 1 and questions.card.strategy == "iranker":
        raise InputError("ranker.drop", f"sampled training judges one label a step, not {questions.card.drop}: set 1")
    prompts = Prompts(questions, tokenizer)
    prompts.require_plain(questions.first(mixture[0]))
    if _chooses(questions):
        prompts.require_labels()
    stage_rewards(stage, ask=_asked(questions), questions=questions, limit=1)
    played = _is_played(stage, questions)
    if stage.vllm is not None:
        if _chooses(questions) and played:
            raise InputError("vllm", "an answer of one label is no text to generate: leave vllm out, or use rloo")
        require_vllm()
    if played and sharding() == "FSDP":
        raise InputError(
            "accelerate",
            "answers at once and on-policy states need whole weights in each process: use DDP or ZeRO-3, or for FSDP "
            "a ranker that thinks without on_policy",
        )
    training_arguments(stage, "", model)


def _asked(questions: Questions) -> Ask:
    return "rank" if questions.card.strategy == "dranker" else "eliminate"


def _chooses(questions: Questions) -> bool:
    """Whether an answer is a label, in one token."""
    return questions.card.strategy == "iranker" and not questions.thinking


def _is_played(stage: PolicyStage, questions: Questions) -> bool:
    """Whether a rollout answers, not TRL's own generation."""
    return stage.method == "grpo" and (stage.on_policy or _chooses(questions))


def stage_rewards(
    stage: PolicyStage, *, ask: Ask, questions: Questions, limit: int
) -> dict[RewardName, tuple[Reward, float]]:
    """The rewards of a stage with their weights, by name.

    Args:
        stage: Names them, or leaves them to what the question asks.
        ask: What is asked.
        questions: With thinking, its form and length are judged too.
        limit: Most tokens of an answer.

    Raises:
        InputError: A reward that cannot judge what is asked.
    """
    known: dict[RewardName, Callable[[], Reward]] = {
        "elimination": lambda: elimination_regret_reward if stage.graded else elimination_reward,
        "ranking": lambda: ranking_reward,
        "mrr": lambda: mrr_reward,
        "recall": lambda: recall_reward(_RECALL),
        "overlap": overlap_reward,
        "format": lambda: format_reward,
        "tag_count": lambda: tag_count_reward,
        "overlong": lambda: overlong_reward(limit, max(1, limit // 5)),
    }
    judges: tuple[RewardName, ...] = ("elimination",) if ask == "eliminate" else ("ranking", "mrr", "recall", "overlap")
    of_form: tuple[RewardName, ...] = ("format", "tag_count", "overlong")
    default = {judges[0]: 1.0} | (dict.fromkeys(of_form, 1.0) if questions.thinking else {})
    weights: Mapping[RewardName, float] = default if stage.rewards is None else stage.rewards
    allowed = (*judges, *(of_form if questions.thinking else ()))
    if unfit := [name for name in weights if name not in allowed]:
        raise InputError("rewards", f"{', '.join(unfit)} cannot judge this ranker's answers: use {', '.join(allowed)}")
    if not any(name in judges for name in weights):
        raise InputError("rewards", f"none judges the answer itself: add {' or '.join(judges)}")
    return {name: (known[name](), weight) for name, weight in weights.items()}


def _arguments(stage: PolicyStage, folder: str, model: Any) -> dict[str, Any]:
    arguments = training_arguments(stage, folder, model)
    # A batch counts rows, TRL counts answers.
    answers = arguments["per_device_train_batch_size"] * stage.group
    most = min(stage.sequences, answers)
    micro = max(size for size in range(1, most + 1) if answers % size == 0)
    return {
        **arguments,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": answers // micro,
        # A checkpoint between two updates on the same samples would lose them.
        "save_steps": -(-stage.save_every // stage.iterations) * stage.iterations,
        "shuffle_dataset": False,  # the mixture has its own order
        "ddp_find_unused_parameters": False,
        "num_generations": stage.group,
        "num_iterations": stage.iterations,
        "temperature": stage.temperature,
        "top_p": stage.top_p,
        "beta": stage.kl,
        "epsilon": stage.clip,
    }


def _whole_batches(dataset: Any, batch: int) -> Any:
    """The data set filled up from its beginning: TRL leaves out a batch that is not whole."""
    from datasets import concatenate_datasets

    missing = -len(dataset) % batch
    if not missing:
        return dataset
    return concatenate_datasets([dataset, dataset.select([number % len(dataset) for number in range(missing)])])


def _closing(reward: Reward) -> Reward:
    """The reward of answers that end with their label."""
    tail = render_answer([""]).removeprefix(FIRST_LABEL)

    @wraps(reward)
    def closed(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        return reward(completions=[f"{text}{tail}" for text in completions], **columns)

    return closed


def main(arguments: Sequence[str] | None = None) -> None:
    """`r1-rerank train`, for `accelerate launch -m`."""
    from ..cli import app

    app(["train", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    main()
