"""How a reranker ranks every query: settled once, when it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .budget import NO_LIMIT, Budget
from .documents import Fault
from .engines.base import Engine, probe_engine
from .errors import CheckpointError, InputError, InputTypeError
from .prefilter import Prefilter
from .prompts import Message, PromptTemplate
from .rows import TaskName
from .strategies import ALPHABET, STRATEGIES, Answer, DRanker, IRanker, Strategy
from .tasks import PassageRanking
from .voting import Fusion

OnError = Literal["partial", "raise"]
"""What an engine fault does: end the query with the best order so far, or raise."""


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """How every query of a reranker is ranked.

    Args:
        strategy: DRanker or IRanker.
        templates: Wording of each task.
        budget: Limits for every query, where a call passes none.
        on_error: What an engine fault does.
        thinking: Tokens to think before each answer; 0 for none.
        constrain: Decode answers over the live labels, where the engine can.
        alphabet: Labels to give out.
        label_seed: Permute the labels by this seed; None: in order.
        temperature: 0 is greedy.
        seed: For sampling and for the shuffles of passes; None samples another way each time.
        passes: Rankings of each query, all but the first with documents and labels shuffled, that vote.
        fusion: How they vote.
        prefilter: Orders a long list first, and hands its head on.
        card: Where these options came from; see `RerankResult.card`.
        notes: Faults that hold for every result.
    """

    strategy: Strategy
    templates: Mapping[TaskName, PromptTemplate]
    budget: Budget = NO_LIMIT
    on_error: OnError = "partial"
    thinking: int = 0
    constrain: bool = True
    alphabet: tuple[str, ...] = tuple(ALPHABET)
    label_seed: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    passes: int = 1
    fusion: Fusion = "borda"
    prefilter: Prefilter | None = None
    card: str = "default"
    notes: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        require_whole("thinking", self.thinking, least=0)
        require_whole("passes", self.passes, least=1)
        _require_budget(self.budget)
        for name, value, known in (("on_error", self.on_error, OnError), ("fusion", self.fusion, Fusion)):
            if value not in get_args(known):
                raise InputError(name, f"{value!r} is not one of {', '.join(get_args(known))}")
        if not isinstance(self.constrain, bool):
            raise InputTypeError("constrain", f"expected True or False, got {type(self.constrain).__name__}")
        for name, seed in (("label_seed", self.label_seed), ("seed", self.seed)):
            if seed is not None:
                require_whole(name, seed, least=0)
        temperature = self.temperature
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
            raise InputError("temperature", f"expected 0 or more, got {temperature!r}")
        if self.prefilter is not None and not isinstance(self.prefilter, Prefilter):
            kind = type(self.prefilter).__name__
            raise InputTypeError("prefilter", f"expected an object with name, keep and order, got {kind}")
        if self.prefilter is not None:
            require_whole("prefilter.keep", self.prefilter.keep, least=2)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What one call may cost, and how much of its rankings comes back.

    Args:
        top_k: How many documents; None: all.
        score_threshold: Leave out what scores lower.
        budget: Limits for every query.
    """

    top_k: int | None = None
    score_threshold: float | None = None
    budget: Budget = NO_LIMIT

    def __post_init__(self) -> None:
        if self.top_k is not None:
            require_whole("top_k", self.top_k, least=1)
        _require_budget(self.budget)
        threshold = self.score_threshold
        if threshold is None:
            return
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise InputTypeError("score_threshold", f"expected a number, got {type(threshold).__name__}")
        if not 0 <= threshold <= 1:
            raise InputError("score_threshold", f"{threshold} is no score; pass a number from 0 to 1")


def as_strategy(strategy: str | Strategy) -> Strategy:
    """A strategy by name, or the one that was passed."""
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise InputError("strategy", f"{strategy!r} is not one of {', '.join(STRATEGIES)}")
        return STRATEGIES[strategy]()
    if not isinstance(strategy, IRanker | DRanker):
        raise InputTypeError("strategy", f"expected a name, IRanker or DRanker, got {type(strategy).__name__}")
    return strategy


def as_alphabet(alphabet: object) -> tuple[str, ...]:
    """Labels out of a str of letters."""
    if not isinstance(alphabet, str) or len(set(alphabet)) < max(2, len(alphabet)) or set(alphabet) - set(ALPHABET):
        raise InputError("alphabet", f"expected at least two different letters of A-Z and a-z, got {alphabet!r}")
    return tuple(alphabet)


def settle(engine: Engine, options: RankingOptions) -> RankingOptions:
    """Fits the options to what the engine's tokenizer and chat template can do, and notes what had to change."""
    probe = probe_engine(engine, _conversation(options), options.alphabet, options.thinking > 0)
    if len(probe.labels) < 2:
        raise CheckpointError("the model's tokenizer splits the labels; it cannot answer in one-letter labels")
    strategy, notes = options.strategy, options.notes
    if len(probe.labels) < len(options.alphabet):
        detail = f"only {len(probe.labels)} of {len(options.alphabet)} labels are one token of this model"
        notes = (*notes, Fault(None, "labels", detail))
    if isinstance(strategy, IRanker) and strategy.form == "append" and not probe.append:
        strategy = replace(strategy, form="rewrite")
        detail = "the chat template rewrites earlier turns: every step is a new prompt (form rewrite)"
        notes = (*notes, Fault(None, "form", detail))
    return replace(options, alphabet=probe.labels, strategy=strategy, notes=notes)


def _conversation(options: RankingOptions) -> list[list[Message]]:
    """The prompts of an elimination in `append` form after no, one and two steps."""
    task = PassageRanking("What is a probe?")
    run = IRanker(form="append").run(4)
    windows = [next(run)]
    for _ in range(2):
        windows.append(run.send(Answer(tuple(windows[-1].live)[:1])))
    texts = ["A device that measures.", "A small ship.", "A question.", "A sample."]
    template = options.templates[task.name]
    return [template.render(task, texts, window, thinking=options.thinking > 0) for window in windows]


def require_whole(argument: str, value: object, *, least: int) -> None:
    """Refuses what is no int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(argument, f"expected an int, got {type(value).__name__}")
    if value < least:
        raise InputError(argument, f"{value} is too small; pass {least} or more")


def _require_budget(budget: object) -> None:
    if not isinstance(budget, Budget):
        raise InputTypeError("budget", f"expected a Budget, got {type(budget).__name__}")
