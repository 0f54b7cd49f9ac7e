"""The seam between ranking and whatever runs the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..documents import Fault, Usage
from ..errors import ContextOverflowError, EngineError
from ..prompts import Message
from ..strategies import ALPHABET

CAPABILITIES = frozenset({"constrain", "logprobs", "thinking", "reuse"})
"""`constrain`: answers are decoded over the live labels only. `logprobs`: their distribution is reported.
`thinking`: a thinking budget is kept. `reuse`: what two prompts of a session share is computed once."""


_GREEDY = 1e-3


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One question to the model.

    Args:
        messages: The prompt, ending with a user turn.
        labels: Live labels. The answer names `pick` of them; None leaves the model free to write anything.
        pick: Number of labels to answer, each once, in order.
        thinking_budget: Tokens to think before the answer is forced; 0 answers at once.
        max_answer_tokens: Limit for an answer that is not constrained.
        temperature: 0 is greedy.
        seed: For sampling; the same seed gives the same answer whatever stands in the same batch.
        session: Requests of one conversation carry the same name, so that an engine can keep its cache; the next
            window of a ranking carries it on.
        timeout: Seconds after which the answer is of no use: the engine then gives up with a `DeadlineError`.
    """

    messages: Sequence[Message]
    labels: tuple[str, ...] | None
    pick: int = 1
    thinking_budget: int = 0
    max_answer_tokens: int = 64
    temperature: float = 0.0
    seed: int | None = None
    session: str | None = None
    timeout: float | None = None

    @property
    def greedy(self) -> bool:
        """Only ever the best; so are temperatures too small to divide by."""
        return self.temperature <= _GREEDY


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the model answered, or why it did not.

    Args:
        text: The turn as written; without the thinking where the engine tells it apart.
        thinking: The reasoning, where the engine tells it apart.
        label_logprobs: Natural-log probabilities. For `pick` = 1 the whole distribution over the live labels,
            renormalised; for more, each answered label's at its own place. None where the engine cannot tell.
        usage: What the request cost.
        finish_reason: `stop`, or `length` where a token limit ended thinking or answer.
        error: Set where the request failed; then nothing else counts.
    """

    text: str = ""
    thinking: str = ""
    label_logprobs: dict[str, float] | None = None
    usage: Usage = Usage()
    finish_reason: str = "stop"
    error: EngineError | None = None


@dataclass(frozen=True)
class Probe:
    """What an engine's tokenizer and chat template can do.

    Args:
        append: The tokens of a conversation are a prefix of those of the same conversation a step later. False
            for chat templates that rewrite earlier turns: `append` form would gain nothing there.
        labels: The labels that are one token each inside an answer.
    """

    append: bool = True
    labels: tuple[str, ...] = tuple(ALPHABET)


@runtime_checkable
class Engine(Protocol):
    """Runs a model. Write your own with these members; `ScriptedEngine` is the shortest example.

    Seven more are used where an engine has them: `notes`, faults that every result is to tell, such as what a server
    refuses; `batch_size`, how many requests it runs together (a driver keeps that many queries under way; else 8);
    `context_tokens`, the longest prompt and answer together (else without limit); `count_many(prompts) ->
    list[int]`, token counts of several prompts at once (else `count_tokens` one by one); `known_tokens(request) ->
    int`, prompt tokens that would not be computed now (else a budget of tokens trusts that steps reuse what was there);
    `probe(turns, alphabet, thinking) -> Probe`, asked once with a conversation after one, two and three steps (else
    everything is possible); and `submit(request) -> Future[Completion]`, which engines have that schedule requests by
    themselves, so that queries need not wait for each other (else they advance in step, a `generate` for each round).
    Cancelling the future leaves nothing of the request behind.
    """

    name: str
    capabilities: frozenset[str]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Answers every request, in order. A failed request is a `Completion.error`, never an exception."""
        ...

    async def agenerate(self, request: GenerationRequest) -> Completion:
        """Answers one request; cancelling the task leaves nothing of it behind."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, chat template included."""
        ...

    def close(self) -> None:
        """Frees what the engine holds. Closing twice is fine."""
        ...


def batch_size(engine: Engine) -> int:
    """How many requests an engine runs together."""
    return max(1, int(getattr(engine, "batch_size", 8)))


def context_tokens(engine: Engine) -> int | None:
    """Longest prompt and answer together, None where it is not known."""
    return getattr(engine, "context_tokens", None)


def count_many(engine: Engine, prompts: Sequence[Sequence[Message]]) -> list[int]:
    """Tokens of several prompts, together where an engine can count so."""
    together = getattr(engine, "count_many", None)
    return [engine.count_tokens(prompt) for prompt in prompts] if together is None else list(together(prompts))


def notes_of(engine: Engine) -> tuple[Fault, ...]:
    """What every result should say about the engine."""
    return tuple(getattr(engine, "notes", ()))


def submit_of(engine: Engine) -> Callable[[GenerationRequest], Future[Completion]] | None:
    """How an engine starts a request without waiting for it, None where it cannot."""
    return getattr(engine, "submit", None)


def probe_engine(engine: Engine, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
    """What holds for an engine's tokenizer and chat template.

    Args:
        engine: Whom to ask.
        turns: A conversation after one, two and three steps.
        alphabet: Labels wanted.
        thinking: The model is to reason before each answer.
    """
    probe = getattr(engine, "probe", None)
    found: Probe = probe(turns, alphabet, thinking) if probe is not None else Probe(labels=tuple(alphabet))
    return found


def require_room(prompt: int, answer: int, context: int | None) -> None:
    """Refuses a prompt that, with its thinking and answer, is longer than the model's context."""
    if context is not None and prompt + answer > context:
        raise ContextOverflowError(
            f"the prompt of {prompt} tokens, with {answer} for the answer, is longer than the model's context of "
            f"{context}; pass fewer or shorter documents, or think less"
        )
