"""Ranking strategies: pure generators that decide what to ask next.

A run yields a `Window`, is sent an `Answer`, and returns the order. It does no I/O and knows no model: the same
generator serves one query, a thousand, async, and training.

    run = IRanker().run(3)
    window = next(run)                                # which of three is worst?
    window = run.send(Answer(("B",)))                 # which of the other two?

Whoever drives a run may stop it at any time: `Window.standing` is the best order known so far.
"""

from __future__ import annotations

import random
import string
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from .errors import InputError, InputTypeError

StrategyName = Literal["iranker", "dranker"]
Ask = Literal["rank", "eliminate"]
Form = Literal["rewrite", "append"]

ALPHABET = string.ascii_uppercase + string.ascii_lowercase
"""Labels in the order in which they are given out; each is one token after `[` in most vocabularies."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the next prompt shows and asks.

    Args:
        number: Counts the windows of a run from 0. In `append` form all steps of a window are one conversation.
        ask: `rank` wants all live labels, best first; `eliminate` wants `pick` of them, worst first.
        pick: How many labels the answer shall name.
        candidates: Documents in the prompt, in shown order, as positions in the run.
        labels: Label of each candidate.
        removed: Labels answered so far in this conversation, a group for each step (`append` form only).
        standing: Best order of the whole run, should it end here.
    """

    number: int
    ask: Ask
    pick: int
    candidates: tuple[int, ...]
    labels: tuple[str, ...]
    removed: tuple[tuple[str, ...], ...]
    standing: tuple[int, ...]

    @property
    def live(self) -> dict[str, int]:
        """Label -> document of the candidates that may be named, in shown order."""
        gone = {label for group in self.removed for label in group}
        return {label: index for label, index in zip(self.labels, self.candidates, strict=True) if label not in gone}


@dataclass(frozen=True)
class Answer:
    """Labels that the model named, in order, and the distribution over the live labels where it is known."""

    labels: tuple[str, ...] = ()
    logprobs: Mapping[str, float] | None = None


Run = Generator[Window, Answer, tuple[int, ...]]
"""Yields windows, is sent answers, returns the order: a permutation of the documents, best first."""


@dataclass(frozen=True)
class _Part:
    """One window of a run, as the run sees it.

    Args:
        window: Its first question, for a direct ranking.
        head: Documents that stand before it.
        tail: Documents that fell before, best first.
        keep: How many of it go on.
        alphabet: Labels to give out.
        seed: See `run`.
    """

    window: Window
    head: tuple[int, ...]
    tail: tuple[int, ...]
    keep: int
    alphabet: Sequence[str]
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class _Windowed(ABC):
    """Windows for lists that one prompt cannot hold, from the tail of the list to its head.

    Args:
        window: Documents in a window.
        stride: Documents that leave each window for good; the others move up into the next.
        windows: `auto` uses windows only where the list does not fit into one prompt, `always` whenever it is
            longer than `window`.
    """

    window: int = 20
    stride: int = 10
    windows: Literal["auto", "always"] = "auto"

    def __post_init__(self) -> None:
        for argument in ("window", "stride"):
            _require_int(argument, getattr(self, argument))
        if self.window < 2:
            raise InputError("window", f"{self.window} is too small; a window holds at least 2 documents")
        if not 1 <= self.stride < self.window:
            raise InputError("stride", f"{self.stride} is not between 1 and window - 1 = {self.window - 1}")
        if self.windows not in ("auto", "always"):
            raise InputError("windows", f"{self.windows!r} is not one of auto, always")

    def run(
        self,
        count: int,
        *,
        capacity: int | None = None,
        alphabet: Sequence[str] = ALPHABET,
        seed: int | None = None,
    ) -> Run:
        """Starts a run.

        Args:
            count: Number of documents.
            capacity: How many documents one prompt can hold, at least 2; None: as many as there are labels.
            alphabet: Labels to give out.
            seed: Permute the labels of each window by this seed; None: in order.
        """
        capacity = len(alphabet) if capacity is None else min(capacity, len(alphabet))
        if capacity < 2:
            raise InputError("capacity", f"{capacity} is too small; a prompt must hold at least 2 documents")
        limit = capacity if self.windows == "auto" else min(self.window, capacity)
        size = count if count <= limit else min(self.window, capacity)
        # A window made smaller by its prompt keeps the proportion of those that move up.
        stride = max(1, size * self.stride // self.window)
        pool, fallen, number = list(range(count)), list[int](), 0
        while len(pool) > 1:
            final = len(pool) <= size
            shown = tuple(pool[-size:])
            window = Window(
                number=number,
                ask="rank",
                pick=len(shown),
                candidates=shown,
                labels=_labels(alphabet, len(shown), seed, number),
                removed=(),
                standing=(*pool, *reversed(fallen)),
            )
            head, keep = tuple(pool[: -len(shown)]), 1 if final else size - stride
            order = yield from self._order(_Part(window, head, tuple(reversed(fallen)), keep, alphabet, seed))
            keep = len(order) if final else size - stride
            pool = [*head, *order[:keep]]
            fallen += reversed(order[keep:])
            number += 1
            if final:
                break
        return (*pool, *reversed(fallen))

    @abstractmethod
    def _order(self, part: _Part) -> Run:
        """Orders one window, best first; only what falls behind place `part.keep` has to be in its final order."""


@dataclass(frozen=True, kw_only=True)
class DRanker(_Windowed):
    """Direct ranking: the model writes the whole order in one answer (windows slide over long lists)."""

    name: ClassVar[str] = "dranker"

    def _order(self, part: _Part) -> Run:
        answer = yield part.window
        live = part.window.live
        named = [live.pop(label) for label in answer.labels]
        return (*named, *live.values())  # whatever the answer left out follows in incoming order


@dataclass(frozen=True, kw_only=True)
class IRanker(_Windowed):
    """Iterative elimination: the model names the worst candidate until one is left.

    Args:
        form: `rewrite` writes a new prompt with the shorter list for every step; `append` goes on with the same
            conversation, so that query and candidates are computed once.
        drop: Candidates that fall in each step.
    """

    name: ClassVar[str] = "iranker"
    form: Form = "rewrite"
    drop: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in get_args(Form):
            raise InputError("form", f"{self.form!r} is not one of {', '.join(get_args(Form))}")
        _require_int("drop", self.drop)
        if self.drop < 1:
            raise InputError("drop", f"{self.drop} is too small; at least one candidate falls in each step")

    def _order(self, part: _Part) -> Run:
        fallen: list[int] = []
        window = part.window
        live = window.live
        while len(live) > part.keep:
            pick = min(self.drop, len(live) - part.keep)
            standing = (*part.head, *live.values(), *reversed(fallen), *part.tail)
            window = replace(window, ask="eliminate", pick=pick, standing=standing)
            worst = fallen_labels((yield window), list(live), pick)
            fallen += [live.pop(label) for label in worst]
            if self.form == "append":
                window = replace(window, removed=(*window.removed, worst))
            else:
                labels = _labels(part.alphabet, len(live), part.seed, window.number)
                window = replace(window, candidates=tuple(live.values()), labels=labels)
                live = window.live
        return (*live.values(), *reversed(fallen))


Strategy = IRanker | DRanker
STRATEGIES: Mapping[str, type[Strategy]] = {"iranker": IRanker, "dranker": DRanker}


def fallen_labels(answer: Answer, live: Sequence[str], pick: int) -> tuple[str, ...]:
    """What an elimination takes out: exactly `pick` live labels, worst first.

    Those that the answer names, then the most probable, then the last of the incoming order.
    """
    worst = list(answer.labels[:pick])
    if len(worst) == pick:
        return tuple(worst)
    rest = [label for label in reversed(live) if label not in worst]
    # Without a usable answer nothing is known: the last of the incoming order falls, and the order stays.
    if worst and answer.logprobs is not None:
        logprobs = answer.logprobs
        rest.sort(key=lambda label: -logprobs.get(label, float("-inf")))
    return tuple(worst + rest)[:pick]


def _labels(alphabet: Sequence[str], count: int, seed: int | None, number: int) -> tuple[str, ...]:
    labels = list(alphabet[:count])
    if seed is not None:
        random.Random(f"{seed}/{number}").shuffle(labels)
    return tuple(labels)


def survival_scores(order: Sequence[int], distributions: Sequence[Mapping[int, float]]) -> list[float]:
    """Scores of an elimination: the running minimum, down the ranking, of each document's survival probability.

    The survival probability of a document is the product, over the steps in which it was live, of one minus
    its probability to be eliminated there.

    Args:
        order: Documents, best first.
        distributions: For each step, document -> probability to be the worst.

    Returns:
        A score in [0, 1] for each place of `order`, never increasing.

    >>> survival_scores([0, 1], [{0: 0.25, 1: 0.75}])
    [0.75, 0.25]
    """
    survival = dict.fromkeys(order, 1.0)
    for distribution in distributions:
        for document, probability in distribution.items():
            survival[document] *= min(max(1.0 - probability, 0.0), 1.0)
    scores, lowest = [], 1.0
    for document in order:
        lowest = min(lowest, survival[document])
        scores.append(lowest)
    return scores


def _require_int(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(argument, f"expected an int, got {type(value).__name__}")
