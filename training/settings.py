"""What a training was begun with: written into its folder, and compared with what it is to go on with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..evaluation.baselines import digest
from ..evaluation.registry import Spec
from .cards import data_card
from .folder import DATA_CARD, RECIPE, differences, write_whole
from .inputs import Inputs
from .places import without_folders
from .recipe import LabelStage, Recipe, RowsSettings, Stage, read_recipe


def portable(recipe: Recipe) -> Recipe:
    """A recipe without the place of its data on this machine."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": None})})


def published(recipe: Recipe) -> Recipe:
    """A recipe that tells of rows, weights and teachers on this machine their names, but not where they lie."""

    def named(settings: Sequence[RowsSettings]) -> tuple[RowsSettings, ...]:
        return tuple(one.model_copy(update={"rows": without_folders(one.rows)}) for one in settings)

    def taught(stage: Stage) -> Stage:
        if not isinstance(stage, LabelStage) or stage.teacher is None:
            return stage
        system, target = stage.teacher.system, Spec.parse(stage.teacher.system).target
        if target is not None:
            system = system.replace(target, without_folders(target))
        return stage.model_copy(update={"teacher": stage.teacher.model_copy(update={"system": system})})

    data = portable(recipe).data
    return recipe.model_copy(
        update={
            "base": without_folders(recipe.base),
            "start": None if recipe.start is None else without_folders(recipe.start),
            "data": data.model_copy(update={"train": named(data.train), "validation": named(data.validation)}),
            "stages": tuple(map(taught, recipe.stages)),
        }
    )


def _as_run(recipe: Recipe) -> Recipe:
    """A recipe with every word that the model is asked in: what is built in may be worded otherwise one day."""
    templates = {template.task: template.to_dict() for template in recipe.ranker.wordings()}
    return portable(recipe).model_copy(update={"ranker": recipe.ranker.model_copy(update={"templates": templates})})


def write_settings(out: Path, recipe: Recipe, inputs: Inputs) -> None:
    """Writes recipe and data cards where they are not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / RECIPE).is_file():
        write_whole(out / RECIPE, _as_run(recipe).to_yaml())
    if not (out / DATA_CARD).is_file():
        write_whole(out / DATA_CARD, json.dumps(_cards(inputs), ensure_ascii=False, indent=2) + "\n")


def check_recipe(out: Path, recipe: Recipe) -> None:
    """Refuses to go on by another recipe.

    Raises:
        InputError: It differs; the message says where.
    """
    path = out / RECIPE
    if not path.is_file():
        return
    # Read as a recipe: one that was written before a setting was there has its default.
    old, new = (_as_run(one).model_dump(mode="json") for one in (read_recipe(path), recipe))
    # What is there is compared by itself, see `check_data`.
    if changed := sorted(name for name in differences(old, new) if name != "data.absent"):
        raise InputError(
            "resume",
            f"{out} holds a training by another recipe (it differs in {', '.join(changed[:5])}): "
            "pass the same and the same data, or another folder",
        )


def check_data(out: Path, recipe: Recipe, inputs: Inputs) -> None:
    """Refuses to go on with other rows.

    Raises:
        InputError: They are not those that the training was begun with; names stage and source.
    """
    path = out / DATA_CARD
    if not path.is_file():
        return
    old, new = json.loads(path.read_text(encoding="utf-8")), _cards(inputs)
    for stage, before, now in zip(recipe.stages, old["stages"], new["stages"], strict=True):
        _compare(f"stage {stage.name!r}", before["sources"], now["sources"], out)
        if before["digest"] != now["digest"]:
            detail = f"stage {stage.name!r}: its examples are drawn otherwise than when {out} was begun"
            raise InputError("resume", f"{detail}: go on with the version of r1-rerank that began it")
    _compare("validation", old["validation"], new["validation"], out)


def _compare(where: str, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]], out: Path) -> None:
    before, now = ({source["name"]: source["digest"] for source in sources} for sources in (old, new))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            detail = f"{where}: source {name!r} has not the rows that {out} was begun with"
            raise InputError("resume", f"{detail}: pass the same data, or another folder")


def _cards(inputs: Inputs) -> dict[str, list[dict[str, Any]]]:
    held = [
        {"name": source.name, "rows": len(source.rows), "digest": digest(source.rows)} for source in inputs.validation
    ]
    return {"stages": [data_card(mixture) for mixture in inputs.mixtures], "validation": held}
