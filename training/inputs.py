"""What a recipe trains on: its rows, those held out, the examples of each stage, and teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DataError, InputError
from ..evaluation.registry import Builder, Spec
from ..evaluation.rowsets import RowSet, choose
from ..evaluation.systems import System
from ..rows import Row
from .data import Mixture, Source, check_apart, elimination_rows, hold_out, read_sources
from .recipe import LabelStage, PolicyStage, Recipe, RowsSettings, Stage


class Inputs:
    """The data of a recipe, read when it is asked for.

    Args:
        recipe: Says which.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    @cached_property
    def sources(self) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
        """Rows to train on, and held-out rows.

        Raises:
            InputError: Rows that are missing or of no use, or validation rows that are trained on.
            DataError: A file that cannot be read.
        """
        data = self._recipe.data
        train = self._read("train", data.train, "train")
        if data.validation_limit and not data.validation:
            return hold_out(train, -(-data.validation_limit // len(train)), seed=data.seed)
        held = self._read("validation", data.validation, "dev") if data.validation_limit else ()
        check_apart(train, held)
        return train, held

    @cached_property
    def mixtures(self) -> tuple[Mixture, ...]:
        """The examples of each stage.

        Raises:
            InputError: A phase that no row fits, or rows that cannot be trained on.
        """
        return tuple(self._mixture(number, stage) for number, stage in enumerate(self._recipe.stages))

    @cached_property
    def validation(self) -> tuple[Source, ...]:
        """The held-out rows as they are ranked."""
        data, (_, held) = self._recipe.data, self.sources
        if data.validation_phase is None or not held:
            return held
        try:
            cut = Mixture(
                held, count=data.validation_limit, phases=(data.validation_phase,), seed=data.seed, any_split=True
            )
        except InputError as error:
            raise InputError("data.validation_phase", str(error).partition(": ")[2]) from error
        rows: dict[str, list[Row]] = {source.name: [] for source in held}
        for place, row in enumerate(cut):
            rows[cut.source_of(place).name].append(row)
        return tuple(replace(source, rows=tuple(rows[source.name])) for source in held if rows[source.name])

    def _read(self, what: str, settings: Sequence[RowsSettings], split: str) -> tuple[Source, ...]:
        data, found = self._recipe.data, list[Source]()
        for number, one in enumerate(settings):
            path = _find_rows(one.rows, data.folder, f"data.{what}[{number}].rows")
            for source in read_sources(path, split=one.split or split, weight=one.weight):
                rows = [row for row in source.rows if data.tasks is None or row.task in data.tasks]
                if rows:
                    found.append(replace(source, rows=tuple(choose(rows, one.limit, data.seed))))
        if settings and not found:
            raise InputError("task", f"no row of data.{what} is of {', '.join(data.tasks or ())}")
        return tuple(found)

    def _mixture(self, number: int, stage: Stage) -> Mixture:
        sources, seed = self.sources[0], self._recipe.data.seed
        if isinstance(stage, PolicyStage) and stage.eliminations:
            sources = tuple(replace(one, rows=elimination_rows(one.rows, seed=seed)) for one in sources)
        try:
            return Mixture(
                sources,
                count=stage.examples,
                phases=stage.phases,
                seed=seed + number,
                graded_routing=stage.graded,
                any_split=any(one.split not in (None, "train") for one in self._recipe.data.train),
            )
        except InputError as error:
            if error.argument.startswith(("phases", "graded")):
                raise InputError(f"stages[{number}].{error.argument}", str(error).partition(": ")[2]) from error
            raise

    def teacher(self, stage: Stage) -> System | None:
        """The ranker that a stage learns from; a model of its own is loaded when it is asked."""
        if not isinstance(stage, LabelStage) or stage.teacher is None:
            return None
        rows = tuple(row for source in self.sources[0] for row in source.rows)
        builder = Builder(llm=_no_model, train=lambda _: rows)
        return builder.build(Spec.parse(stage.teacher.system), RowSet(name="train", rows=rows)).system


def _find_rows(name: str, folder: str | None, argument: str) -> Path:
    places = [Path(name).expanduser()]
    if folder is not None:
        places.insert(0, Path(folder).expanduser() / name)
    for place in places:
        if place.exists():
            return place
    if folder is None:
        detail = f"{name!r} is no file or folder here, and no data folder was named: pass --data BUILT, the folder "
        raise InputError("data", f"{detail}that r1-rerank data build wrote")
    raise DataError(str(places[0]), None, f"does not exist ({argument}); make it with r1-rerank data build")


def _no_model(spec: Spec) -> tuple[Any, Mapping[str, object]]:
    raise InputError("teacher", f"{spec.name} cannot teach: use minilm, bm25, embedding:NAME or cross-encoder:NAME")
