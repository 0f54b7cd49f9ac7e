"""The stages of a recipe: what each is made of, and what it takes over from the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (  # noqa: TID253 - itself imported only where a recipe is read
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from ..evaluation.registry import Spec
from ..evaluation.retrieval import MINILM
from ..rows import TaskName
from .data import Phase

Loss = Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"]
"""What TRL's GRPO knows as `loss_type`."""
RewardName = Literal["elimination", "ranking", "mrr", "recall", "overlap", "format", "tag_count", "overlong"]
"""Rewards by name; `elimination` is by regret where the stage is `graded`."""


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A part of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TeacherSettings(Part):
    """A ranker to learn from, beside the labels.

    Args:
        system: As evaluations name it: `minilm`, `bm25`, `embedding:NAME`, `cross-encoder:NAME`.
        weight: Its share of the loss; the labels have the rest.
        temperature: Its scores are divided by this before their softmax.
        tasks: What it can judge; on other rows the labels have the whole loss.
    """

    system: str = "minilm"
    weight: Share = 0.5
    temperature: Positive = 0.05
    tasks: tuple[TaskName, ...] = Field(("passage",), min_length=1)

    @field_validator("system")
    @classmethod
    def _known(cls, value: str) -> str:
        if (spec := Spec.parse(value)).kind not in (known := ("bm25", MINILM, "embedding", "cross-encoder")):
            raise ValueError(f"{spec.kind} cannot teach: use one of {', '.join(known)}")
        return value


class Running(Part):
    """What stages take over from the recipe where they do not say otherwise.

    Args:
        seed: Of everything random that is not about data.
        save_every: Steps between two checkpoints to resume from.
        validate_every: Steps between two validations.
        patience: So many validations without a better MRR end a stage; None: none does.
        keep: What a stage ends with, and the next one begins with: the weights of its best validation (which may be
            those it began with), or its last.
        logging_every: Steps between two lines of the log.
        report_to: Where `transformers` reports to besides: wandb, tensorboard, trackio, none …
    """

    seed: int = Field(default=0, ge=0)
    save_every: Count = 100
    validate_every: Count = 200
    patience: Count | None = 5
    keep: Literal["best", "last"] = "best"
    logging_every: Count = 10
    report_to: str | tuple[str, ...] = "none"


class BaseStage(Running):
    """What all stages have.

    Args:
        name: Stands in folder names, logs and curves.
        examples: Rows that are seen, each drawn anew.
        phases: The curriculum, in this order.
        weights: Of sources, by name, in place of what `data.train` gives them: a stage may dwell on some.
        graded: Routing rows carry degrees of their objective, and eliminations are judged by regret.
        batch: Rows of an optimizer step, over all processes together.
        micro_batch: Sequences that a device takes at once; None: what suits the method.
        learning_rate: Its peak.
        schedule: How it falls after the warm-up.
        warmup: Share of the steps in which it rises, below 1.
        beta2: Of AdamW; the other is 0.9.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this length.
        max_prompt_tokens: Longest prompt; None: the model's context, less the answer.
        gradient_checkpointing: Computes activations twice, to save memory.
    """

    name: str = Field(min_length=1, pattern="^[A-Za-z0-9][A-Za-z0-9 _.-]*$")
    examples: Count
    phases: tuple[Phase, ...] = Field(default=(Phase(),), min_length=1)
    weights: Mapping[str, Positive] = {}
    graded: bool = False
    batch: Count = 16
    micro_batch: Count | None = None
    learning_rate: Positive
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: Positive = 1.0
    max_prompt_tokens: Count | None = None
    gradient_checkpointing: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps; the last one may be of fewer rows."""
        return math.ceil(self.examples / self.batch)


class LabelStage(BaseStage):
    """Learning from the exact distribution over the live labels, answering at once, nothing sampled.

    Args:
        method: `supervised`: cross-entropy to the positive and to a teacher; `expected`: the expected reward.
        teacher: For `supervised`.
        direct: For `supervised` with an IRanker: share of the rows that are asked for the whole order in one answer,
            so that the checkpoint serves as a DRanker too.
        on_policy: The states are those that the policy's own eliminations lead to; else the best one stays to the
            end, and the others fall at random, a teacher's worst rather.
        temperature: Of the policy where it plays for its states.
    """

    method: Literal["supervised", "expected"]
    teacher: TeacherSettings | None = None
    direct: Share = 0.0
    on_policy: bool = False
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _check(self) -> LabelStage:
        if self.teacher is not None and self.method != "supervised":
            raise ValueError("teacher needs method: supervised, rewards come from the labels alone")
        if self.direct and (self.method != "supervised" or self.on_policy):
            raise ValueError("direct needs method: supervised without on_policy, whole orders are not played")
        return self


class RationaleStage(BaseStage):
    """A cold start with thinking: short reasons made from the data, then the right answer (TRL's SFTTrainer).

    Args:
        max_completion_tokens: Longest reason and answer; None: what the ranker's thinking budget and an answer take.
    """

    method: Literal["sft"]
    max_completion_tokens: Count | None = None

    @property
    def sequences(self) -> int:
        """So many at once, at most."""
        return self.micro_batch or 8


class PolicyStage(BaseStage):
    """Sampled reinforcement learning (TRL's GRPOTrainer and RLOOTrainer). A row is one group.

    Args:
        on_policy: GRPO only. The policy plays each row's list down to a depth that row and step decide; its whole
            group answers that state. Else the states are the rows' own lists.
        eliminations: The examples are the sampled sub-lists of the paper, one for each length, not whole rows.
        group: Answers to each prompt.
        temperature: At which they are sampled.
        top_p: Sampled from the likeliest that have this probability together.
        kl: Weight of the divergence from the weights at the start of the stage (TRL's `beta`).
        loss: TRL's `loss_type` for GRPO; None: TRL's own.
        clip: How far an update may go from the policy that sampled (TRL's `epsilon`).
        iterations: Updates on the same samples (TRL's `num_iterations`).
        rewards: Weights by name; None: elimination or ranking, and with thinking format, tag count and overlong.
        max_completion_tokens: Longest answer with its thinking; None: what the ranker's thinking budget takes.
        vllm: Generation by vLLM, in the trainer's processes or on a server; None: by transformers.
        vllm_server: Address of the server, such as http://localhost:8000.
        vllm_memory: Share of a GPU's memory that `colocate` takes.
    """

    method: Literal["grpo", "rloo"]
    on_policy: bool = False
    eliminations: bool = False
    group: int = Field(default=8, ge=2)
    temperature: Positive = 1.0
    top_p: float = Field(default=1.0, gt=0, le=1)
    kl: float = Field(default=0.0, ge=0)
    loss: Loss | None = None
    clip: Positive = 0.2
    iterations: Count = 1
    rewards: dict[RewardName, float] | None = None
    max_completion_tokens: Count | None = None
    vllm: Literal["colocate", "server"] | None = None
    vllm_server: str | None = None
    vllm_memory: float = Field(default=0.3, gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> PolicyStage:
        if self.on_policy and self.method != "grpo":
            raise ValueError("on_policy needs method: grpo, TRL's RLOO cannot be given states")
        if self.on_policy and self.eliminations:
            raise ValueError("on_policy plays whole rows: drop eliminations")
        if self.loss is not None and self.method != "grpo":
            raise ValueError("loss needs method: grpo, TRL's RLOO has but its own")
        if self.vllm_server is not None and self.vllm != "server":
            raise ValueError("vllm_server needs vllm: server")
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps: several on the same samples, where there are `iterations`."""
        return super().steps * self.iterations

    @property
    def sequences(self) -> int:
        """So many at once, at most."""
        return self.micro_batch or 16


Stage = LabelStage | RationaleStage | PolicyStage
