"""What a recipe trains on: its rows, those held out, the examples of each stage, and teachers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, InputError, MissingExtraError
from ..evaluation.registry import Builder, Spec
from ..evaluation.rowsets import RowSet, choose
from ..evaluation.systems import System
from ..rows import Row
from .adapting import adapted
from .data import Mixture, Source, check_apart, elimination_rows, hard_negatives, pool_of, read_sources
from .holding import hold_some_out
from .mining import EasyNegatives, Miner
from .recipe import LabelStage, NegativesSettings, PolicyStage, Recipe, RowsSettings, Stage

if TYPE_CHECKING:
    from ..reranker import R1Reranker

logger = logging.getLogger(__name__)


class Inputs:
    """The data of a recipe, read when it is asked for.

    Args:
        recipe: Says which.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._negatives: dict[str, tuple[NegativesSettings, str]] = {}
        self._names = set[str]()
        self._teachers: dict[str, System] = {}

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
            train, held = hold_some_out(train, data.validation_limit, seed=data.seed)
        else:
            held = self._read("validation", data.validation, "dev") if data.validation_limit else ()
            check_apart(train, held)
        # Only now: what is held out is no negative either.
        return tuple(self._mined(source) for source in train), held

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as its rows allow it: one that names them is taken at its word, see `adapted` for any other."""
        return self._recipe if self._recipe.data.absent == "refuse" else adapted(self._recipe, *self.sources)

    @cached_property
    def mixtures(self) -> tuple[Mixture, ...]:
        """The examples of each stage.

        Raises:
            InputError: A phase that no row fits, or rows that cannot be trained on.
        """
        return tuple(self._mixture(number, stage) for number, stage in enumerate(self.recipe.stages))

    @cached_property
    def validation(self) -> tuple[Source, ...]:
        """The held-out rows as they are ranked."""
        data, (_, held) = self.recipe.data, self.sources
        if data.validation_phase is None or not held:
            return held
        phase = data.validation_phase
        fitting = [replace(source, rows=tuple(filter(phase.fits, source.rows))) for source in held]
        fitting = [source for source in fitting if source.rows]
        lenders = {source.name: EasyNegatives(source.rows) for source in fitting}
        if not fitting or phase.lacks_lenders(lenders.values()):
            detail = "of easy negatives: there are no two held-out passage questions" if fitting else "no row fits it"
            raise InputError("data.validation_phase", f"{detail}: change it, or hold out other rows")
        cut = []
        for source in fitting:
            own = phase if lenders[source.name].several else replace(phase, easy=0.0)
            try:  # each row once
                rows = Mixture([source], count=len(source.rows), phases=(own,), seed=data.seed, any_split=True)
            except InputError as error:
                raise InputError("data.validation_phase", str(error).partition(": ")[2]) from error
            cut.append(replace(source, rows=tuple(rows)))
        return tuple(cut)

    def _read(self, what: str, settings: Sequence[RowsSettings], split: str) -> tuple[Source, ...]:
        data, found, absent = self._recipe.data, list[Source](), list[DataError | InputError]()
        for number, one in enumerate(settings):
            argument = f"data.{what}[{number}].rows"
            try:
                path = _find_rows(one.rows, data.folder, argument)
            except (DataError, InputError) as error:
                if data.absent == "refuse":
                    raise
                absent.append(error)
                continue
            for source in read_sources(path, split=one.split or split, weight=one.weight):
                self._names.add(source.name)
                rows = [row for row in source.rows if data.tasks is None or row.task in data.tasks]
                if rows:
                    found.append(replace(source, rows=tuple(choose(rows, one.limit, data.seed))))
                    if one.negatives is not None:
                        self._negatives[source.name] = one.negatives, argument.replace(".rows", ".negatives")
        if absent and not found:
            raise absent[0]
        for missing in absent:
            logger.warning("left out: %s", missing)
        if settings and not found:
            raise InputError("task", f"no row of data.{what} is of {', '.join(data.tasks or ())}")
        return tuple(found)

    def _mined(self, source: Source) -> Source:
        """The source, its passage rows with hard negatives where the recipe wants them: see `NegativesSettings`."""
        if source.name not in self._negatives:
            return source
        settings, argument = self._negatives[source.name]
        passages = [row for row in source.rows if row.task == "passage"]
        if not passages:
            raise InputError(argument, f"source {source.name!r} has no passage rows: leave it out")
        others = (row for row in source.rows if row.task != "passage")
        with self._miner(settings) as by:
            mined = hard_negatives(
                passages,
                pool_of(passages),
                by=by,
                count=settings.count,
                depth=settings.depth,
                seed=self._recipe.data.seed,
            )
            return replace(source, rows=(*mined, *others))

    @contextmanager
    def _miner(self, settings: NegativesSettings) -> Iterator[Miner | R1Reranker]:
        if settings.by == "bm25":
            yield "bm25"
            return
        from .validation import policy_reranker
        from .weights import find_start, load_policy

        start = find_start(self._recipe)
        model, tokenizer = load_policy(start, self._recipe)
        card, mixed = self._recipe.card(start.base), self._recipe.precision == "mixed"
        logger.info("mining negatives by the weights that the training starts from")
        with policy_reranker(model, tokenizer, card, mixed=mixed) as reranker, reranker:
            yield reranker

    def _mixture(self, number: int, stage: Stage) -> Mixture:
        sources, seed = self.sources[0], self._recipe.data.seed
        if strange := [name for name in stage.weights if name not in self._names]:
            detail = f"{strange[0]!r} is no source: these are {', '.join(sorted(self._names))}"
            if self._recipe.data.absent == "refuse":
                raise InputError(f"stages[{number}].weights", detail)
            logger.warning("left out: a weight of stage %r: %s", stage.name, detail)
        sources = tuple(replace(one, weight=stage.weights.get(one.name, one.weight)) for one in sources)
        if isinstance(stage, PolicyStage) and stage.eliminations:
            sources = tuple(replace(one, rows=elimination_rows(one.rows, seed=seed)) for one in sources)
        try:
            return Mixture(
                sources,
                count=stage.examples,
                phases=stage.phases,
                seed=seed + number,
                graded_routing=stage.graded,
                ungraded="refuse" if self._recipe.data.absent == "refuse" else "keep",
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
        name = stage.teacher.system
        if name not in self._teachers:
            rows = tuple(self._taught(name))
            builder = Builder(llm=_no_model, train=lambda _: rows)
            self._teachers[name] = builder.build(Spec.parse(name), RowSet(name="train", rows=rows)).system
        return self._teachers[name]

    def _taught(self, teacher: str) -> Iterator[Row]:
        """The rows that a teacher's statistics are taken from."""
        for source in self.sources[0]:
            yield from source.rows
        if Spec.parse(teacher).kind != "bm25":
            return
        # It judges no text that it has not seen, and phases cut candidates.
        for stage, mixture in zip(self.recipe.stages, self.mixtures, strict=True):
            if isinstance(stage, LabelStage) and stage.teacher is not None and stage.teacher.system == teacher:
                yield from mixture

    def try_teacher(self, stage: Stage, mixture: Mixture) -> None:
        """Has the teacher of a stage judge one row, so that a model that cannot be loaded is known at once.

        Raises:
            InputError: It could not.
            MissingExtraError: It needs an extra that is not installed.
        """
        if not isinstance(stage, LabelStage) or stage.teacher is None:
            return
        row = next((row for row in mixture if row.task in stage.teacher.tasks), None)
        try:
            teacher = self.teacher(stage)
            assert teacher is not None
            outcomes = [outcome for _, outcome in teacher.rank_iter([] if row is None else [row])]
        except MissingExtraError:
            raise
        except Exception as error:
            detail = f"{stage.teacher.system} cannot be used: {' '.join(str(error).split())}"
            raise InputError(f"stage {stage.name!r}: teacher.system", detail) from error
        if failed := [outcome.error for outcome in outcomes if outcome.scores is None]:
            raise InputError(f"stage {stage.name!r}: teacher.system", f"{stage.teacher.system} failed: {failed[0]}")


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
