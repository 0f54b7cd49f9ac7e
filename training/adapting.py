"""A recipe over other rows than it was written for: what does not fit them gives way, and is told."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InputError
from .data import Phase, Source, lacks_grades, longest_list
from .mining import EasyNegatives

if TYPE_CHECKING:
    from .recipe import Recipe

logger = logging.getLogger(__name__)


def adapted(recipe: Recipe, train: Sequence[Source], held: Sequence[Source]) -> Recipe:
    """The recipe with phases that its rows fit.

    A phase for other tasks falls away, and with its last phase a stage; lists may be as short as the rows are; and
    there are no easy negatives where none can be lent.

    Args:
        recipe: What is asked for.
        train: Rows to train on.
        held: Rows for validation.

    Raises:
        InputError: No stage is left.
    """
    lenders, stages = [EasyNegatives(source.rows) for source in train], []
    for stage in recipe.stages:
        named = [(phase, f"stage {stage.name!r}, phase {number}") for number, phase in enumerate(stage.phases, start=1)]
        fitting = [_fitting(phase, train, lenders, where) for phase, where in named]
        if not any(fitting):
            _tell_left_out(f"stage {stage.name!r}", stage.phases, train)
            continue
        for (phase, where), found in zip(named, fitting, strict=True):
            if found is None:
                _tell_left_out(where, [phase], train)
        stages.append(stage.model_copy(update={"phases": tuple(phase for phase in fitting if phase is not None)}))
    if not stages:
        raise InputError("data", f"the rows are of {_tasks(train)}, and no stage of the recipe is for that")
    data, where = recipe.data, "data.validation_phase"
    if (wanted := data.validation_phase) is not None and held:
        cut = _fitting(wanted, held, [EasyNegatives(source.rows) for source in held], where)
        if cut is None:
            _tell_left_out(where, [wanted], held)
        data = data.model_copy(update={"validation_phase": cut})
    if any(stage.graded for stage in stages):
        _tell_ungraded(train)
    return recipe.model_copy(update={"data": data, "stages": tuple(stages)})


def _fitting(phase: Phase, sources: Sequence[Source], lenders: Sequence[EasyNegatives], where: str) -> Phase | None:
    """The phase as the rows allow it; None where they are of other tasks."""
    rows = [row for source in sources for row in source.rows if phase.tasks is None or row.task in phase.tasks]
    if not rows:
        return None
    if phase.candidates is not None and not any(phase.fits(row) for row in rows):
        shortest, longest = max(2, *map(longest_list, rows)), phase.candidates[1]
        logger.warning("%s: lists of %d, not of %d at least: no row has more", where, shortest, phase.candidates[0])
        phase = replace(phase, candidates=(shortest, longest))
    fits = [any(map(phase.fits, source.rows)) for source in sources]
    if phase.lacks_lenders(itertools.compress(lenders, fits)):
        logger.warning("%s: no easy negatives: there are no two questions with passages of one data set", where)
        phase = replace(phase, easy=0.0)
    return phase


def _tell_left_out(what: str, phases: Sequence[Phase], sources: Sequence[Source]) -> None:
    wanted = ", ".join(sorted({task for phase in phases for task in phase.tasks or ()}))
    logger.warning("left out: %s, which is for %s: the rows are of %s", what, wanted, _tasks(sources))


def _tell_ungraded(sources: Sequence[Source]) -> None:
    routing = [row for source in sources for row in source.rows if row.task == "routing"]
    if ungraded := sum(map(lacks_grades, routing)):
        logger.warning(
            "%d of %d routing rows tell no effects or no prices: they are not graded, the best LLM alone is relevant",
            ungraded,
            len(routing),
        )


def _tasks(sources: Sequence[Source]) -> str:
    return ", ".join(sorted({row.task for source in sources for row in source.rows}))
