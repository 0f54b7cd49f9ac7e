"""The nine tasks of the R1-Ranker paper and two extra test sets: which data makes each, and in place of what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

from ...rows import OBJECTIVES, Objective, Row
from .answers import read_insuranceqa, read_squad, read_wikiqa
from .common import Dropped
from .judged import read_llmjudge, rerank_rows
from .llmrouter import read_llmrouter
from .msmarco import read_msmarco
from .passages import JudgedQuery, Question, graded_lists, question_lists
from .recommendation import Interactions, Negatives, read_lastfm, read_recbole, recommendation_lists
from .routerbench import read_routerbench
from .sources import (
    AMAZON_CDS,
    AMAZON_GAMES,
    DL20,
    GAMES_6K,
    INSURANCE,
    LASTFM,
    LLMROUTER,
    MOVIELENS_1M,
    MOVIELENS_100K,
    MSMARCO,
    ROUTERBENCH,
    SQUAD,
    WIKIQA,
    Source,
)

T = TypeVar("T")


@dataclass(kw_only=True)
class Context:
    """What the parts of one build share.

    Args:
        seed: See `recommendation_lists`, `graded_lists` and `question_lists`.
        negatives: See `recommendation_lists`.
    """

    seed: int = 0
    negatives: Negatives = "popularity"
    _made: dict[tuple[str, Path], Any] = field(default_factory=dict)

    def once(self, kind: str, folder: Path, make: Callable[[], T]) -> T:
        """What `make` gives, made only the first time: several tasks read the same files."""
        if (kind, folder) not in self._made:
            self._made[kind, folder] = make()
        return cast("T", self._made[kind, folder])


Read = Callable[[Path, Context, str, Dropped], Iterator[Row]]
"""Rows of a split, from the folder of a source."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one source; a part that is not needed may be missing."""

    source: Source
    read: Read
    needed: bool = True


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to make a task.

    Args:
        train: What the training file is made of, one after the other.
        test: The same for the test file.
        instead: What it puts in place of the paper's data; empty for the paper's own.
        notes: What whoever reads the figures must know.
    """

    train: tuple[Part, ...] = ()
    test: tuple[Part, ...] = ()
    instead: str = ""
    notes: tuple[str, ...] = ()

    def missing(self, data: Path) -> list[Source]:
        """Sources that it needs and that are not there."""
        return [
            part.source
            for part in dict.fromkeys((*self.train, *self.test))
            if part.needed and not part.source.find(data)
        ]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A task; the first variant whose data is there is built."""

    name: str
    paper: str
    variants: tuple[Variant, ...]


def _from_interactions(name: str, load: Callable[[Path, Dropped], Interactions], fewest: int = 1) -> Read:
    def read(folder: Path, context: Context, split: str, dropped: Dropped) -> Iterator[Row]:
        def make() -> tuple[Interactions, Dropped]:
            faults = Dropped()
            return load(folder, faults), faults

        data, faults = context.once(name, folder, make)
        for reason, count in faults.counts.items():
            dropped.add(reason, count)
        return recommendation_lists(
            data,
            split,
            source=name,
            seed=context.seed,
            negatives=context.negatives,
            fewest=fewest,
            dropped=dropped,
        )

    return read


def _recommendation(name: str, paper: Source, other: Source, other_read: Read, instead: str) -> Recipe:
    inter, item = paper.files
    own = Part(
        source=paper,
        read=_from_interactions(
            paper.name, lambda folder, faults: read_recbole(folder / inter, folder / item, dropped=faults)
        ),
    )
    substitute = Part(source=other, read=other_read)
    return Recipe(
        name=name,
        paper=paper.name,
        variants=(
            Variant(train=(own,), test=(own,)),
            Variant(train=(substitute,), test=(substitute,), instead=instead),
        ),
    )


def _atomic(source: Source) -> Read:
    inter, item = source.files
    return _from_interactions(
        source.name, lambda folder, faults: read_recbole(folder / inter, folder / item, dropped=faults)
    )


def _routing(objective: Objective) -> Recipe:
    def llmrouter(folder: Path, context: Context, split: str, dropped: Dropped) -> Iterator[Row]:
        return read_llmrouter(folder, split, objective, dropped=dropped)

    def routerbench(folder: Path, context: Context, split: str, dropped: Dropped) -> Iterator[Row]:
        return read_routerbench(folder, split, objective, dropped=dropped)

    own = Part(source=LLMROUTER, read=llmrouter)
    more = Part(source=ROUTERBENCH, read=routerbench, needed=False)
    instead = "LLMRouter (9 LLMs) and RouterBench (11 LLMs) in place of GraphRouter's 10 LLMs"
    notes = (
        "One cheap LLM is right in most rows: set the constant ranker beside every figure.",
        "RouterBench scores are 0 or 1 and ties go to the cheaper LLM: there, Performance and Balance hardly differ.",
        "In 7 to 12% of the rows several LLMs are equally good and equally cheap; only the first of the pool counts "
        "as relevant: read regret beside MRR.",
    )
    variant = Variant(train=(own, more), test=(own,), instead=instead, notes=notes)
    return Recipe(name=f"router-{objective}", paper="GraphRouter", variants=(variant,))


def _judged(folder: Path, context: Context) -> list[JudgedQuery]:
    passages, qrels, _ = (folder / name for name in DL20.files)
    return context.once("judged", folder, lambda: read_llmjudge(passages, qrels=qrels))


def _passages(k: int) -> Recipe:
    def msmarco(folder: Path, context: Context, split: str, dropped: Dropped) -> Iterator[Row]:
        return read_msmarco(folder, k, split, seed=context.seed, dropped=dropped)

    def asked(kind: str, load: Callable[[Path, Context], Iterator[Question]]) -> Read:
        def read(folder: Path, context: Context, split: str, dropped: Dropped) -> Iterator[Row]:
            questions = context.once(kind, folder, lambda: list(load(folder, context)))
            return question_lists(questions, k, split=split, source=kind, seed=context.seed, dropped=dropped)

        return read

    def dl20(folder: Path, context: Context, split: str, dropped: Dropped) -> Iterator[Row]:
        queries = _judged(folder, context)
        return graded_lists(queries, k, split=split, source=DL20.name, seed=context.seed, dropped=dropped)

    own = Part(source=MSMARCO, read=msmarco)
    squad = Part(source=SQUAD, read=asked(SQUAD.name, lambda folder, _: read_squad(folder / SQUAD.files[0])))
    insurance = Part(
        source=INSURANCE,
        read=asked(INSURANCE.name, lambda folder, context: read_insuranceqa(folder, seed=context.seed)),
        needed=False,
    )
    instead = "train on SQuAD (and InsuranceQA), test on TREC DL 2020 judgments, in place of MS MARCO v1.1"
    return Recipe(
        name=f"passage-{k}",
        paper=MSMARCO.name,
        variants=(
            Variant(train=(own,), test=(own,)),
            Variant(
                train=(squad, insurance),
                test=(Part(source=DL20, read=dl20),),
                instead=instead,
                notes=("Many lists of test share a query: intervals go by query.",),
            ),
        ),
    )


def _wikiqa(folder: Path, context: Context, split: str, dropped: Dropped) -> Iterator[Row]:
    return read_wikiqa(folder / WIKIQA.files[0], split, seed=context.seed, dropped=dropped)


def _dl20_run(folder: Path, context: Context, split: str, dropped: Dropped) -> Iterator[Row]:
    run = folder / DL20.files[2]
    return rerank_rows(_judged(folder, context), run, split=split, source=DL20.name, dropped=dropped)


def _only(name: str, part: Part, *notes: str) -> Recipe:
    return Recipe(name=name, paper="none, this is an extra test set", variants=(Variant(test=(part,), notes=notes),))


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in chain(
        (
            _recommendation(
                "rec-movie", MOVIELENS_1M, MOVIELENS_100K, _atomic(MOVIELENS_100K),
                "MovieLens-100K in place of MovieLens-1M",
            ),
            _recommendation(
                "rec-music", AMAZON_CDS, LASTFM,
                # An artist whom hardly anybody hears would give itself away.
                _from_interactions(LASTFM.name, lambda folder, faults: read_lastfm(folder, dropped=faults), fewest=5),
                "Last.FM artists by falling plays (there are no times) in place of Amazon CDs and Vinyl",
            ),
            _recommendation(
                "rec-game", AMAZON_GAMES, GAMES_6K, _atomic(GAMES_6K),
                "Amazon Video Games of 2018, as LLMRank selects them, in place of the paper's selection",
            ),
        ),
        map(_routing, OBJECTIVES),
        map(_passages, (5, 7, 9)),
        (
            _only("wikiqa", Part(source=WIKIQA, read=_wikiqa)),
            _only(
                "trec-dl20", Part(source=DL20, read=_dl20_run),
                "The first 20 judged passages of a BM25 run, in its order, with grades from 0 to 3.",
                "Not comparable with published figures, which rank the first 100, judged or not.",
            ),
        ),
    )
}  # fmt: skip
"""Name -> recipe, in the order of the paper."""
