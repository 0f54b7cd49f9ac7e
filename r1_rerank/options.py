"""How a reranker ranks every query: settled once, when it is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .documents import Fault
from .engines.base import Engine, probe_engine
from .errors import CheckpointError, InputError, InputTypeError
from .prompts import Message, PromptTemplate
from .rows import TaskName
from .strategies import ALPHABET, STRATEGIES, Answer, DRanker, IRanker, Strategy
from .tasks import PassageRanking


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
