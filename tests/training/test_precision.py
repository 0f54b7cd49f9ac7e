"""The numbers of a training: said once for all stages, and by nobody else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1_rerank.checkpoint import BaseModelCard
from r1_rerank.training.grpo import policy_trainer
from r1_rerank.training.precision import computes_bfloat16, computes_mixed, mark_precision, precision_of
from r1_rerank.training.questions import Questions
from r1_rerank.training.recipe import PolicyStage, RankerSettings
from r1_rerank.training.run import Training
from r1_rerank.training.weights import load_policy


def formats(model: Any) -> tuple[set[str], set[str]]:
    """Of what is trained, and of what is not."""
    found: tuple[set[str], set[str]] = (set(), set())
    for parameter in model.parameters():
        found[not parameter.requires_grad].add(str(parameter.dtype).removeprefix("torch."))
    return found


@pytest.mark.parametrize("precision", ["mixed", "bfloat16", "float32"])
def test_what_is_only_read_is_no_finer_than_it_is_computed(make: Callable[..., Training], precision: str) -> None:
    import torch

    coarse = computes_bfloat16(torch.device("cpu"))
    base = "bfloat16" if precision == "bfloat16" or (precision == "mixed" and coarse) else "float32"
    training = make(precision=precision)
    model, _ = load_policy(training.start, training.recipe)
    assert formats(model) == ({"float32"}, {base})
    assert precision_of(model) == precision
    assert computes_mixed(model) is (precision == "mixed" and coarse)
    whole = make(precision=precision, lora=None)
    model, _ = load_policy(whole.start, whole.recipe)
    assert formats(model) == ({"bfloat16" if precision == "bfloat16" else "float32"}, set())
    assert precision_of(model) == precision


def test_weights_that_are_spread_are_of_one_format(
    make: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    training = make(precision="mixed")
    assert formats(load_policy(training.start, training.recipe)[0]) == ({"float32"}, {"float32"})


def test_a_model_of_ones_own_is_trained_as_its_weights_are(make_model: Callable[..., Any], tokenizer: Any) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model = make_model(tokenizer)
    assert precision_of(model) == "float32"
    assert precision_of(model.to(torch.bfloat16)) == "bfloat16"
    assert precision_of(get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))) == "mixed"


@pytest.mark.parametrize("precision", ["mixed", "bfloat16"])
def test_all_methods_train_in_it(make: Callable[..., Training], precision: str) -> None:
    stage = {"examples": 4, "batch": 2, "learning_rate": 1e-2, "phases": [{"candidates": [2, 3]}]}
    stages = [
        {**stage, "name": "a", "method": "supervised"},
        {**stage, "name": "b", "method": "expected", "on_policy": True},
        {**stage, "name": "c", "method": "grpo", "on_policy": True, "group": 2},
    ]
    assert [one.steps for one in make(precision=precision, stages=stages).run()] == [2, 2, 2]


@pytest.mark.parametrize("said", ["bf16", "fp16"])
def test_the_launchers_file_does_not_overrule_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., Any],
    make_row: Callable[..., Any],
    tokenizer: Any,
    tmp_path: Path,
    said: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", said)
    model = make_model(tokenizer)
    mark_precision(model, "float32")
    trainer = policy_trainer(
        model,
        tokenizer,
        mixture=[make_row(0), make_row(1)],
        questions=Questions(RankerSettings().card(BaseModelCard(name="toy", sha256=None))),
        stage=PolicyStage(name="toy", method="grpo", examples=2, batch=2, group=2, learning_rate=1e-3),
        folder=tmp_path,
    )
    assert trainer.accelerator.mixed_precision == "no"
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"
