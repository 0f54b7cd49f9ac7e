"""The paper's experiments, as lists of systems and tasks."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ..errors import InputError
from ..rows import TaskName
from .reference import PAPER_TASKS
from .registry import BASE, Spec

ProtocolName = Literal["main", "direct-iterative", "rl", "zero-shot"]
SCENARIOS: Mapping[TaskName, tuple[str, ...]] = {
    "recommendation": PAPER_TASKS[:3],
    "routing": PAPER_TASKS[3:6],
    "passage": PAPER_TASKS[6:],
}
"""The nine tasks, by what is ranked."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An experiment.

    Args:
        systems: What is measured, besides the baselines.
        tasks: What it is measured on.
        pairs: Systems to be compared with each other.
        note: What it asks, in a sentence.
    """

    systems: tuple[Spec, ...]
    tasks: tuple[str, ...] = PAPER_TASKS
    pairs: tuple[tuple[str, str], ...] = ()
    note: str


def protocol(
    name: str,
    *,
    model: str | None = None,
    cold_start: Path | None = None,
    checkpoints: Path | None = None,
    built: Path | None = None,
    think: int | None = None,
) -> Protocol:
    """An experiment by name.

    Args:
        name: `main`: everything on nine tasks; `direct-iterative`: one answer against elimination, by the weights
            before training; `rl`: before training, after the cold start, and after all of it; `zero-shot`: each
            scenario by a model trained on the two others.
        model: The checkpoint; None: the embedded one.
        cold_start: For `rl`: the weights that the last stage without rewards left, `stages/…/weights` of a training;
            None leaves it out.
        checkpoints: For `zero-shot`: folder with the checkpoints `without-recommendation`, `without-routing` and
            `without-passage`.
        built: Folder of tasks to train on, for the commands in messages.
        think: Thinking tokens; None: as the card says.

    Raises:
        InputError: An unknown name, or a checkpoint is missing; the message has the command that makes it.
    """
    if name not in get_args(ProtocolName):
        raise InputError("protocol", f"{name!r} is not one of {', '.join(get_args(ProtocolName))}")
    if name == "zero-shot":
        return _zero_shot(checkpoints, built, think)
    if name == "direct-iterative":
        return Protocol(
            systems=(_llm("dranker", "direct", think, BASE), _llm("iranker", "iterative", think, BASE)),
            pairs=(("direct", "iterative"),),
            note="The same untrained weights with one answer (direct) and with elimination (iterative).",
        )
    if name == "rl":
        from ..checkpoint import CARD_NAME

        _require_trained(model, built)
        trained = _llm("iranker", "iranker with training", think, None)
        before = [_llm("iranker", "iranker without training", think, BASE)]
        if cold_start is not None:
            if not (cold_start / CARD_NAME).is_file():
                detail = f"{cold_start} holds no ranker: name the folder stages/…/weights of a training"
                raise InputError("cold_start", detail)
            before.append(_llm("iranker", "iranker after the cold start", think, str(cold_start)))
        return Protocol(
            systems=(*before, trained),
            pairs=tuple((one.name, trained.name) for one in before),
            note="The same model, prompts and form, before and after training.",
        )
    return Protocol(
        systems=(_llm("dranker", "dranker", think, None), _llm("iranker", "iranker", think, None)),
        pairs=(("dranker", "iranker"),),
        note="All systems on nine tasks.",
    )


def train_command(tasks: Sequence[TaskName], out: str, built: Path | None = None) -> str:
    """The command that trains a checkpoint on some scenarios; where no folder of tasks is known, R1_BUILT names it."""
    data = () if built is None else ("--data", str(built))
    named = (word for task in tasks for word in ("--task", task))
    return shlex.join(("r1-rerank", "train", *data, *named, "--out", out))


def _llm(kind: str, name: str, think: int | None, model: str | None) -> Spec:
    return Spec(kind=kind, name=name, think=think, model=model)


def _require_trained(model: str | None, built: Path | None) -> None:
    from ..checkpoint import find_checkpoint

    command = train_command(tuple(SCENARIOS), "CHECKPOINT", built)
    if model is not None and model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        raise InputError("model", f"the checkpoint {model} is missing; make it with: {command}")
    if find_checkpoint(model).card is None:
        raise InputError("model", f"{model} is not trained to rank; train with: {command}, then pass it as --model")


def _zero_shot(checkpoints: Path | None, built: Path | None, think: int | None) -> Protocol:
    systems: list[Spec] = []
    missing: list[str] = []
    for held_out, tasks in SCENARIOS.items():
        folder = (checkpoints or Path("CHECKPOINTS")) / f"without-{held_out}"
        if checkpoints is None or not folder.is_dir():
            others = [task for task in SCENARIOS if task != held_out]
            missing.append(train_command(others, str(folder), built))
        spec = _llm("iranker", "iranker zero-shot", think, str(folder))
        systems.append(replace(spec, tasks=tasks))
    if missing:
        raise InputError("checkpoints", f"{len(missing)} of 3 are missing; make them with: {' && '.join(missing)}")
    return Protocol(
        systems=tuple(systems), note="Each scenario ranked by a model that was trained on the two others alone."
    )
