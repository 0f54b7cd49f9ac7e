"""The end of a stage: what it came to, the weights that stay, and what is cleared away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .folder import DONE, WEIGHTS, StageResult, figures_of, write_whole
from .processes import sharding
from .resuming import last_checkpoint
from .validation import best_step
from .weights import ADAPTER, copy_weights, name_base

if TYPE_CHECKING:
    from ..checkpoint import RankerCard
    from .recipe import Stage


def read_result(folder: Path) -> StageResult | None:
    """What a stage came to; None where it is not finished."""
    path = folder / DONE
    return StageResult(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def result_of(number: int, stage: Stage, state: Mapping[str, Any], *, seconds: float) -> StageResult:
    """What a stage came to, by the state that its trainer left.

    Args:
        number: Of the stage, from 0.
        stage: What the recipe says of it.
        state: Of its last checkpoint.
        seconds: How long it took.
    """
    figures, steps = figures_of(state), state["global_step"]
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


def finish(folder: Path, result: StageResult, tokenizer: Any, card: RankerCard) -> None:
    """Leaves the weights that the next stage begins with, then says that the stage is done, then clears away.

    In this order a kill at any moment loses nothing: what is not said to be done is done again. The weights stand with
    their ranker card, so that they load as a checkpoint does.
    """
    best, last = folder / f"best-{result.kept}", last_checkpoint(folder)
    if best.is_dir():
        copy_weights(best, folder / WEIGHTS)
    elif not (folder / WEIGHTS).is_dir():  # sharded weights were gathered there
        assert last is not None
        copy_weights(Path(last), folder / WEIGHTS)
    if (adapter := folder / WEIGHTS / ADAPTER).is_file():
        name_base(adapter, adapter, card)
    else:
        tokenizer.save_pretrained(folder / WEIGHTS)
    card.write(folder / WEIGHTS)
    write_whole(folder / DONE, json.dumps(asdict(result), indent=2) + "\n")
    clear_away(folder)


def clear_away(folder: Path) -> None:
    """Removes what a finished stage had for resuming alone."""
    for pattern in ("checkpoint-*", "best-*", "reference", "reference.part"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def lacks_weights(folder: Path) -> bool:
    """Whether weights that are spread over processes have still to be gathered, after the last step of a stage."""
    last = last_checkpoint(folder)
    gathered = (folder / WEIGHTS).is_dir() or (last is not None and any(Path(last).glob("*.safetensors")))
    return sharding() is not None and not gathered
