"""The folder of a training: what stands where, what a stage came to, and whether it may be written to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .logs import read_log
from .processes import SEEN
from .resuming import last_checkpoint
from .validation import Validation, in_vain

RECIPE, LOG, STAGES, DATA_CARD = "recipe.yaml", "log.jsonl", "stages", "data.json"
DONE, WEIGHTS = "done.json", "weights"
"""Files and folders of a training, and of each of its stages."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a finished stage came to.

    Args:
        number: From 1.
        name: Of the stage.
        method: Of the stage.
        steps: Optimizer steps that were done.
        seconds: How long they and the validations took.
        before: Figures of the validation before the first step; empty without validation.
        after: Those of the weights that it ended with.
        kept: Step of these.
    """

    number: int
    name: str
    method: str
    steps: int
    seconds: float
    before: Mapping[str, float]
    after: Mapping[str, float]
    kept: int


def stage_folder(out: Path, number: int, name: str) -> Path:
    """Folder of a stage, counted from 0."""
    return out / STAGES / f"{number + 1}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}"


def read_validation(out: Path, result: StageResult, *, before: bool = False) -> Validation | None:
    """The ranked rows of a stage's validation, before its first step or of the weights that it ended with."""
    step = 0 if before else result.kept
    folder = stage_folder(out, result.number - 1, result.name) / "validation" / str(step)
    return Validation.read(folder) if folder.is_dir() else None


def check_folder(out: Path, *, resume: bool) -> None:
    """Refuses a folder that holds something else, or a training that is not to be resumed."""
    if out.exists() and not out.is_dir():
        raise InputError("out", f"{out} is a file; pass a folder")
    if not out.is_dir() or all(path.name == SEEN for path in out.iterdir()):
        return
    if not (out / RECIPE).is_file():
        raise InputError("out", f"{out} is not empty and holds no training; pass another folder")
    if not resume:
        raise InputError("out", f"{out} holds a training; pass --resume to go on with it, or another folder")


def last_state(folder: Path) -> dict[str, Any] | None:
    """The state in which a trainer left its last checkpoint; None where there is none."""
    last = last_checkpoint(folder)
    if last is None:
        return None
    state: dict[str, Any] = json.loads((Path(last) / "trainer_state.json").read_text(encoding="utf-8"))
    return state


def figures_of(state: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """What validations came to, by step, as a trainer's state has it."""
    return {
        line["step"]: {name: value for name, value in line.items() if name.startswith("eval_")}
        for line in state["log_history"]
        if "eval_mrr" in line
    }


def is_over(state: Mapping[str, Any], patience: int | None) -> bool:
    """Whether a trainer that left this state would not go on."""
    scores = {step: values["eval_mrr"] for step, values in figures_of(state).items()}
    return state["global_step"] >= state["max_steps"] or (bool(scores) and in_vain(scores, patience))


def seconds_of(log: Path, stage: str) -> float:
    """How long a stage has taken."""
    return max((line["seconds"] for line in read_log(log) if line["stage"] == stage), default=0.0)


def differences(old: object, new: object, key: str = "") -> list[str]:
    """Keys of the values that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for name in {*old, *new}
            for found in differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for number, pair in pairs for found in differences(*pair, f"{key}[{number}]")]
    return [] if old == new else [key]


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
