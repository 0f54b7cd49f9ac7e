"""Training data: a mixture of labelled rows, by weights and by a curriculum; every example has one list of its own.

    sources = read_sources("built/passage-5", weight=2.0) + read_sources("built/rec-game")
    easy_first = [Phase(candidates=(2, 2), easy=1.0, words=(12, 24)), Phase(share=3.0, candidates=(3, 9))]
    mixture = Mixture(sources, count=4000, phases=easy_first, seed=0)
    question = Questions(card).first(mixture[0])

Example number i of a mixture follows from the sources, the settings and i: a run that is resumed sees what it would
have seen.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args, overload

from ..errors import InputError, InputTypeError
from ..evaluation.datasets.cases import elimination_cases
from ..evaluation.measures import rewards
from ..evaluation.systems import permuted
from ..rows import Row, TaskName
from ..strategies import ALPHABET
from .cards import data_card
from .mining import EasyNegatives, hard_negatives, pool_of
from .sources import Source, check_apart, check_sources, hold_out, read_sources

__all__ = [
    "Mixture",
    "Phase",
    "Source",
    "check_apart",
    "check_sources",
    "data_card",
    "elimination_rows",
    "hard_negatives",
    "hold_out",
    "pool_of",
    "read_sources",
]


def _check_bounds(name: str, bounds: object, least: int) -> tuple[int, int]:
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise InputTypeError(name, f"{bounds!r}: pass two whole numbers, the least and the most")
    low, high = bounds
    if any(isinstance(bound, bool) or not isinstance(bound, int) for bound in (low, high)):
        raise InputTypeError(name, f"{bounds!r}: pass two whole numbers, the least and the most")
    if not least <= low <= high:
        raise InputError(name, f"{low} to {high}: the least is {least}, and the first number is not above the second")
    return low, high


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a curriculum.

    Args:
        share: Of the examples, relative to the other phases.
        candidates: Shortest and longest list: its length is drawn between them, from rows that have so many; a
            routing row shows as many as it may. None: whole rows, with all their relevant candidates.
        words: Candidates of passage rows are cut to so many words, a number drawn between these two for each list.
        uneven: The number is drawn for each candidate, so that the lists have long and short ones side by side.
        history: Histories of recommendation rows are cut to their last so many, drawn likewise.
        easy: Share of the negatives of passage rows that give way to candidates of other questions of their data set.
        tasks: Only these; None for all.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - where a recipe is read

    share: float = 1.0
    candidates: tuple[int, int] | None = (2, 52)
    words: tuple[int, int] | None = None
    uneven: bool = False
    history: tuple[int, int] | None = None
    easy: float = 0.0
    tasks: tuple[TaskName, ...] | None = None

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise InputError("share", f"{self.share} is no share: pass a number above 0, or leave the phase out")
        if not 0 <= self.easy <= 1:
            raise InputError("easy", f"{self.easy} is no share: pass a number from 0 to 1")
        for name, least in (("candidates", 2), ("words", 1), ("history", 1)):
            if (bounds := getattr(self, name)) is not None:
                object.__setattr__(self, name, _check_bounds(name, bounds, least))
        if self.candidates is not None and self.candidates[1] > len(ALPHABET):
            raise InputError("candidates", f"{self.candidates[1]} at most: a question shows up to {len(ALPHABET)}")
        if self.uneven and self.words is None:
            raise InputError("uneven", "there is nothing to cut: say how many words, such as words: [24, 96]")
        if self.tasks is not None:
            object.__setattr__(self, "tasks", tuple(self.tasks))
            unknown = [task for task in self.tasks if task not in get_args(TaskName)]
            if unknown or not self.tasks:
                found = f"{unknown[0]!r} is no task" if unknown else "is empty"
                raise InputError("tasks", f"{found}: use {', '.join(get_args(TaskName))}, or leave it out for all")

    def fits(self, row: Row) -> bool:
        """Whether it takes a row."""
        if self.tasks is not None and row.task not in self.tasks:
            return False
        return self.candidates is None or longest_list(row) >= self.candidates[0]

    def lacks_lenders(self, lenders: Iterable[EasyNegatives]) -> bool:
        """Whether it wants easy negatives of passage rows, none of which could lend one to another."""
        if not self.easy or (self.tasks is not None and "passage" not in self.tasks):
            return False
        of_passages = [one for one in lenders if one.passages]
        return bool(of_passages) and not any(one.several for one in of_passages)


class Mixture(Sequence[Row]):
    """Examples drawn from sources: rows with one list each, in random order, under an id of their own.

    A list holds one relevant candidate, drawn where there are several, and others that are not. The rows of a source
    come in random order, each once before any comes again, whatever the phase; but a row whose turn comes in a phase
    that it does not fit is passed over, and its next turn is in the next round.

    Args:
        sources: What to draw from, by weight.
        count: Number of examples.
        phases: The curriculum, one after the other.
        seed: Decides on everything that is drawn.
        graded_routing: The relevance of routing rows is what their objective gives each LLM, scaled to 0 to 1 within
            the list, for rewards by regret; otherwise the best LLM alone is relevant.
        ungraded: What becomes of routing rows without effects or prices where routing is graded: they are refused, or
            keep their label.
        any_split: Rows may belong to another split than `train`.

    Raises:
        InputError: A source that cannot be used (see `check_sources`), a phase that no row fits, or rows that lack
            what a setting needs.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        *,
        count: int,
        phases: Sequence[Phase] = (Phase(),),
        seed: int = 0,
        graded_routing: bool = False,
        ungraded: Literal["refuse", "keep"] = "refuse",
        any_split: bool = False,
    ) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError("count", f"{count!r} is no number of examples: pass at least 1")
        if not phases:
            raise InputError("phases", "is empty: pass at least one, or leave it out")
        self.sources = check_sources(sources, any_split=any_split)
        self.phases = tuple(phases)
        self._count = count
        self.seed = seed
        self.graded_routing = graded_routing
        self._strangers = [EasyNegatives(source.rows) for source in self.sources]
        if graded_routing and ungraded == "refuse":
            self._check_routing()
        self._plan = list(self._deal())

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self._draw(number) for number in range(self._count)[place]]
        return self._draw(range(self._count)[place])

    def phase_of(self, place: int) -> int:
        """Number, from 0, of the phase that an example belongs to."""
        return self._plan[place][0]

    def source_of(self, place: int) -> Source:
        """Where an example comes from."""
        return self.sources[self._plan[place][1]]

    def _check_routing(self) -> None:
        for source in self.sources:
            for row in source.rows:
                if lacks_grades(row):
                    detail = f"row {row.id!r} of source {source.name!r} has no effects or no prices"
                    raise InputError("graded_routing", f"{detail}: leave it off, or pass rows that have both")

    def _deal(self) -> Iterator[tuple[int, int, int]]:
        """Phase, source and row of each example."""
        decks = [_deck(len(source.rows), f"{self.seed}/{source.name}") for source in self.sources]
        total = sum(phase.share for phase in self.phases)
        ends = [round(self._count * part / total) for part in itertools.accumulate(p.share for p in self.phases)]
        for number, (phase, start, end) in enumerate(zip(self.phases, [0, *ends], ends, strict=False)):
            fitting = [[phase.fits(row) for row in source.rows] for source in self.sources]
            usable = [place for place, fits in enumerate(fitting) if any(fits)]
            self._check_phase(number, phase, usable)
            weights = [self.sources[place].weight for place in usable]
            draw = random.Random(f"{self.seed}/phase/{number}")
            for source in draw.choices(usable, weights, k=end - start):
                yield number, source, next(row for row in decks[source] if fitting[source][row])

    def _check_phase(self, number: int, phase: Phase, usable: Sequence[int]) -> None:
        where = f"phases[{number}]"
        if not usable:
            longest = max(longest_list(row) for source in self.sources for row in source.rows)
            tasks = sorted({row.task for source in self.sources for row in source.rows})
            found = f"the rows are of {', '.join(tasks)}, and the longest list has {longest} candidates"
            raise InputError(where, f"no row fits it: {found}; pass other rows or another phase")
        if phase.candidates is None:
            rows = (row for place in usable for row in self.sources[place].rows if phase.fits(row))
            if long := next((row for row in rows if len(row.candidates) > len(ALPHABET)), None):
                detail = f"row {long.id!r} has {len(long.candidates)}, a question shows up to {len(ALPHABET)}"
                raise InputError(f"{where}.candidates", f"{detail}: say how many, such as [2, {len(ALPHABET)}]")
        if phase.lacks_lenders(self._strangers[place] for place in usable):
            raise InputError(f"{where}.easy", "no source has passage rows of two questions: leave it at 0")

    def _draw(self, number: int) -> Row:
        phase_number, source, place = self._plan[number]
        phase, row = self.phases[phase_number], self.sources[source].rows[place]
        rng = random.Random(f"{self.seed}/{number}")
        row = _listed(row, phase.candidates, rng)
        if row.task == "passage":
            if phase.easy:
                row = self._strangers[source].mixed_in(row, phase.easy, rng)
            if phase.words is not None:
                row = _cut_words(row, phase.words, rng, uneven=phase.uneven)
        elif row.task == "recommendation" and phase.history is not None:
            row = replace(row, history=(row.history or ())[-rng.randint(*phase.history) :])
        elif row.task == "routing" and self.graded_routing and not lacks_grades(row):
            row = _graded(row)
        return replace(row, id=f"{row.id}#{number}")


def elimination_rows(rows: Iterable[Row], *, seed: int = 0) -> tuple[Row, ...]:
    """The paper's elimination data: of each row its positive among k others, for every k.

    To be trained on as they are, with `Phase(candidates=None)`.

    Args:
        rows: With one relevant candidate each.
        seed: Decides which others are drawn, and on the order.

    Raises:
        InputError: A row has no relevant candidate, or several.
    """
    return tuple(case for row in rows for case in elimination_cases(row, seed=seed))


def _deck(size: int, seed: str) -> Iterator[int]:
    """Numbers below `size` without end, in random order, each once before any comes again."""
    for turn in itertools.count():
        yield from random.Random(f"{seed}/{turn}").sample(range(size), size)


def longest_list(row: Row) -> int:
    """Candidates of the longest list with one relevant candidate."""
    return 1 + sum(value <= 0 for value in row.relevance)


def lacks_grades(row: Row) -> bool:
    """Whether a routing row does not tell how good each LLM is for its objective."""
    return row.task == "routing" and (row.effects is None or row.prices is None)


def _listed(row: Row, candidates: tuple[int, int] | None, rng: random.Random) -> Row:
    if candidates is None:
        return permuted(row, rng.sample(range(len(row.candidates)), len(row.candidates)))
    shortest, longest = candidates[0], min(candidates[1], longest_list(row))
    size = longest if row.task == "routing" else rng.randint(shortest, longest)
    positives = [place for place, value in enumerate(row.relevance) if value > 0]
    negatives = [place for place, value in enumerate(row.relevance) if value <= 0]
    places = [rng.choice(positives), *rng.sample(negatives, size - 1)]
    rng.shuffle(places)
    return permuted(row, places)


def _cut_words(row: Row, bounds: tuple[int, int], rng: random.Random, *, uneven: bool) -> Row:
    every = rng.randint(*bounds)
    counts = [rng.randint(*bounds) if uneven else every for _ in row.candidates]

    def cut(text: str, count: int) -> str:
        words = text.split(None, count)
        return text if len(words) <= count else text[: -len(words[count])].rstrip()

    pairs = zip(row.candidates, counts, strict=True)
    return replace(row, candidates=tuple(replace(one, text=cut(one.text, count)) for one, count in pairs))


def _graded(row: Row) -> Row:
    gains = rewards(row)
    least, most = min(gains), max(gains)
    if least == most:  # nothing to choose from: the label stays
        return row
    return replace(row, relevance=tuple((gain - least) / (most - least) for gain in gains))
