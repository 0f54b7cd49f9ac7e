"""How a reranker ranks every query: settled once, when it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from .budget import Budget
from .documents import Fault
from .engines.base import Engine, probe_engine
from .errors import CheckpointError, InputError, InputTypeError
from .prompts import Message, PromptTemplate, default_templates
from .rows import TaskName
from .strategies import ALPHABET, STRATEGIES, Answer, DRanker, IRanker, Strategy
from .tasks import PassageRanking

OnError = Literal["partial", "raise"]
"""What an engine fault does: end the query with the best order so far, or raise."""


@dataclass(frozen=True, kw_only=True)
class RankingOptions:
    """How every query of a reranker is ranked.

    Args:
        strategy: DRanker or IRanker.
        templates: Wording of each task.
        thinking: Tokens to think before each answer; 0 for none.
        constrain: Decode answers over the live labels, where the engine can.
        alphabet: Labels to give out.
        label_seed: Permute the labels by this seed; None: in order.
        temperature: 0 is greedy.
        seed: For sampling; None: another one each time.
        card: Where these options came from; see `RerankResult.card`.
        notes: Faults that hold for every result.
    """

    strategy: Strategy
    templates: Mapping[TaskName, PromptTemplate]
    thinking: int = 0
    constrain: bool = True
    alphabet: tuple[str, ...] = tuple(ALPHABET)
    label_seed: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    card: str = "default"
    notes: tuple[Fault, ...] = ()


def as_strategy(strategy: str | Strategy) -> Strategy:
    """A strategy by name, or the one that was passed."""
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise InputError("strategy", f"{strategy!r} is not one of {', '.join(STRATEGIES)}")
        return STRATEGIES[strategy]()
    if not isinstance(strategy, IRanker | DRanker):
        raise InputTypeError("strategy", f"expected a name, IRanker or DRanker, got {type(strategy).__name__}")
    return strategy


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


def check_options(
    strategy: object,
    thinking: object,
    templates: Mapping[TaskName, PromptTemplate] | None,
    budget: object,
    on_error: object,
    constrain: object,
    label_seed: object,
    temperature: object,
    seed: object,
) -> None:
    """Finds what can be known to be wrong before anything is loaded."""
    as_strategy(strategy)  # type: ignore[arg-type]  # that is what is to be found out
    require_whole("thinking", thinking, least=0)
    default_templates(templates)
    if not isinstance(budget, Budget):
        raise InputTypeError("budget", f"expected a Budget, got {type(budget).__name__}")
    if on_error not in get_args(OnError):
        raise InputError("on_error", f"{on_error!r} is not one of {', '.join(get_args(OnError))}")
    if not isinstance(constrain, bool):
        raise InputTypeError("constrain", f"expected True or False, got {type(constrain).__name__}")
    for name, value in (("label_seed", label_seed), ("seed", seed)):
        if value is not None:
            require_whole(name, value, least=0)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
        raise InputError("temperature", f"expected 0 or more, got {temperature!r}")


def require_whole(argument: str, value: object, *, least: int) -> None:
    """Refuses what is no int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(argument, f"expected an int, got {type(value).__name__}")
    if value < least:
        raise InputError(argument, f"{value} is too small; pass {least} or more")
