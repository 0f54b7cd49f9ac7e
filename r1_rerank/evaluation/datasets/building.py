"""Builds the tasks: rows into files that appear whole or not at all, each task with a card that accounts for them."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ...errors import DataError, InputError
from ...rows import Row
from ..systems import permuted
from .cards import CARD, README, FileCard, SourceCard, TaskCard
from .common import Dropped
from .leaks import LeakFilter, Leaks, content_key
from .recipes import RECIPES, Context, Part, Recipe, Variant
from .recommendation import Negatives
from .sources import Source

logger = logging.getLogger(__name__)

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build, and how.

    Args:
        tasks: Names, none for all. A task that is named and cannot be built is an error; otherwise it is skipped.
        seed: Decides on splits, negatives and orders.
        negatives: See `recommendation_lists`.
        limit: Keep only so many of the first rows of each file.
        fetch: Fetch packages that carry data.
        force: Write into a folder that is not empty; files of the tasks built are replaced, others stay.
        leaks: What to do with rows of train that stand in test.
    """

    tasks: tuple[str, ...] = ()
    seed: int = 0
    negatives: Negatives = "popularity"
    limit: int | None = None
    fetch: bool = False
    force: bool = False
    leaks: Leaks = "drop"

    def __post_init__(self) -> None:
        if unknown := [name for name in self.tasks if name not in RECIPES]:
            raise InputError("task", f"{unknown[0]!r} is unknown: the tasks are {', '.join(RECIPES)}")
        if self.limit is not None and self.limit < 1:
            raise InputError("limit", f"{self.limit} is too small: keep at least one row")


@dataclass(frozen=True, kw_only=True)
class Built:
    """What became of a build.

    Args:
        cards: Card of each task that was built.
        skipped: Task -> why it was not.
    """

    cards: dict[str, TaskCard] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def build(data: str | Path, out: str | Path, options: BuildOptions | None = None) -> Built:
    """Writes `<out>/<task>/{train,test}.jsonl`, `card.json` and `README.md` for each task.

    The same data and options give the same bytes.

    Args:
        data: Folder with a folder for each source.
        out: Folder to write, empty unless `force`.
        options: What to build (default: all).

    Raises:
        InputError: The data folder is missing, the output folder is not empty, or a row leaks and is to be refused.
        DataError: A file is of another shape, or the data of a task that was named is missing.
    """
    data, out, options = Path(data), Path(out), options or BuildOptions()
    if not data.is_dir():
        raise InputError("data", f"{data} is no folder")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not options.force)):
        raise InputError("out", f"{out} is no empty folder: pass another, or force to replace the tasks in it")
    context, built = Context(seed=options.seed, negatives=options.negatives), Built()
    for name in options.tasks or RECIPES:
        recipe = RECIPES[name]
        variant = next((each for each in recipe.variants if not each.missing(data)), recipe.variants[-1])
        if options.fetch:
            _fetch(variant, data)
        if variant.missing(data):
            reason = _wanted(recipe, data)
            if options.tasks:
                raise DataError(str(data), None, f"{name}: {reason}")
            logger.warning("%s is SKIPPED: %s", name, reason)
            built.skipped[name] = reason
            continue
        out.mkdir(parents=True, exist_ok=True)
        built.cards[name] = _Task(recipe, variant, data, context, options).write(out / name)
    return built


def _wanted(recipe: Recipe, data: Path) -> str:
    """What would have to be there: substitutes first, which are easier to get, then the paper's own data."""
    first, *others = (each.missing(data) for each in reversed(recipe.variants))
    needed = "; ".join(f"{source.name} is missing: {source.wanted}" for source in first)
    instead = ("; ".join(f"{source.name}: {source.wanted}" for source in each) for each in others)
    return "; or instead ".join((needed, *instead))


def _fetch(variant: Variant, data: Path) -> None:
    for part in (*variant.train, *variant.test):
        if part.source.package is not None and part.source.find(data) is None:
            part.source.package.fetch()


class _Task:
    """One task on its way into its folder."""

    def __init__(self, recipe: Recipe, variant: Variant, data: Path, context: Context, options: BuildOptions) -> None:
        self._recipe, self._variant, self._context, self._options = recipe, variant, context, options
        self._data = data
        self._sources: dict[str, list[SourceCard]] = {split: [] for split in SPLITS}
        self._notes = list(variant.notes)

    def write(self, folder: Path) -> TaskCard:
        staging = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            card = self._write(staging)
            folder.mkdir(exist_ok=True)
            # The card comes last: a folder with a card is complete.
            (folder / CARD).unlink(missing_ok=True)
            for split in SPLITS:
                if not (staging / f"{split}.jsonl").exists():
                    (folder / f"{split}.jsonl").unlink(missing_ok=True)
            for path in sorted(staging.iterdir(), key=lambda path: path.name == CARD):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return card

    def _write(self, staging: Path) -> TaskCard:
        test = list(islice(self._rows("test", self._variant.test), self._options.limit))
        leaked = Dropped()
        files = {}
        if self._variant.train:
            clean = LeakFilter(test, leaks=self._options.leaks, dropped=leaked)
            rows = islice(clean(self._rows("train", self._variant.train)), self._options.limit)
            files["train"] = _write_rows(rows, staging / "train.jsonl")
        files["test"] = _write_rows(test, staging / "test.jsonl")
        for split, file in files.items():
            if not file.rows:
                raise DataError(self._recipe.name, None, f"{split} has no rows: {self._counts(split)}")
        card = TaskCard(
            name=self._recipe.name,
            paper=self._recipe.paper,
            instead=self._variant.instead,
            files=files,
            sources={split: tuple(cards) for split, cards in self._sources.items() if cards},
            leaks=leaked.counts,
            notes=tuple(self._notes),
            seed=self._options.seed,
            negatives=self._options.negatives if self._recipe.name.startswith("rec-") else None,
            limit=self._options.limit,
        )
        (staging / README).write_text(card.to_markdown(), encoding="utf-8", newline="\n")
        (staging / CARD).write_text(card.to_json(), encoding="utf-8", newline="\n")
        return card

    def _rows(self, split: str, parts: Sequence[Part]) -> Iterator[Row]:
        for part in parts:
            folder = part.source.find(self._data)
            if folder is None:
                note = f"{split} is built without {part.source.name}: {part.source.wanted}"
                logger.warning("%s: %s", self._recipe.name, note)
                self._notes.append(note)
                continue
            yield from self._read(part, folder, split)

    def _read(self, part: Part, folder: Path, split: str) -> Iterator[Row]:
        dropped, count = Dropped(), 0
        try:
            for row in part.read(folder, self._context, split, dropped):
                count += 1
                yield _reordered(row, self._options.seed) if row.task == "routing" else row
        finally:
            self._sources[split].append(_source_card(part.source, count, dropped))

    def _counts(self, split: str) -> str:
        reasons = Counter[str]()
        for source in self._sources[split]:
            reasons.update(source.dropped)
        return ", ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "the files hold none"


def _source_card(source: Source, rows: int, dropped: Dropped) -> SourceCard:
    return SourceCard(
        name=source.name, licence=source.licence, home=source.home, read=rows, dropped=dict(dropped.counts)
    )


def _reordered(row: Row, seed: int) -> Row:
    """LLMs in random order: in that of the pool, the place alone would tell the cheap ones."""
    order = list(range(len(row.candidates)))
    random.Random(f"{row.id}/{seed}").shuffle(order)
    return permuted(row, order)


def _write_rows(rows: Iterable[Row], path: Path) -> FileCard:
    digest, size, count, candidates = hashlib.sha256(), 0, 0, list[int]()
    seen, questions, ids, repeated = set[bytes](), set[str](), set[str](), 0
    places = Counter[int]()
    with path.open("wb") as file:
        for row in rows:
            line = (row.to_json() + "\n").encode()
            file.write(line)
            digest.update(line)
            size += len(line)
            count += 1
            if row.id in ids:
                raise DataError(str(path), count, f"the id {row.id!r} stands twice")
            ids.add(row.id)
            candidates.append(len(row.candidates))
            places[next((place for place, value in enumerate(row.relevance) if value > 0), -1)] += 1
            key = hashlib.sha256(content_key(row).encode()).digest()
            repeated += key in seen
            seen.add(key)
            questions.add(row.query if row.query is not None else row.id)
    return FileCard(
        rows=count,
        questions=len(questions),
        candidates=(min(candidates, default=0), max(candidates, default=0)),
        duplicates=repeated,
        first_positive={str(place): places[place] for place in sorted(places)},
        bytes=size,
        sha256=digest.hexdigest(),
    )
