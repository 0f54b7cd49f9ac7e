"""What a batch of requests writes: thinking up to a budget, labels out of those still live, or free text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..documents import Usage
from ..errors import EngineError
from ..prompts import ANSWER_CLOSE, THINK_CLOSE, close_thinking, render_answer
from .base import Completion, GenerationRequest
from .kv_cache import Batch
from .prefixes import Prefix
from .queueing import Deadline
from .tokenization import ChatTokenizer

if TYPE_CHECKING:
    import torch

PIECE = 2048
"""Prompt tokens fed at a time: between two pieces a cancelled batch ends."""
_TAIL = 8
"""Tokens in which a closing tag is looked for; it takes at most about five."""


class CancelledError(EngineError):
    """Nobody waits for any answer of a batch."""


@dataclass
class Job:
    """A request on its way through the model.

    Args:
        request: What was asked.
        tokens: Its prompt.
        deadline: Until when the answer is of use.
        generator: For sampling; None is greedy.
        prefix: What a cache knew of the prompt.
        extra: Tokens of a prefix, shared with others, that were computed in this request's name.
        shared: How many of them it then took from the cache.
        computed: Other prompt tokens computed.
        thinking: Tokens sampled while thinking.
        answer: Tokens sampled for an answer that is not constrained.
        labels: Labels picked.
        logprobs: See `Completion.label_logprobs`.
        finish_reason: See `Completion`.
        given_up: The answer was no longer of use before it was complete.
    """

    request: GenerationRequest
    tokens: list[int]
    deadline: Deadline
    generator: torch.Generator | None = None
    prefix: Prefix | None = None
    extra: int = 0
    shared: int = 0
    computed: int = 0
    thinking: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    logprobs: dict[str, float] = field(default_factory=dict)
    finish_reason: str = "stop"
    given_up: bool = False

    @property
    def known(self) -> int:
        """Prompt tokens that a cache holds."""
        return len(self.prefix.tokens) if self.prefix else 0

    @property
    def to_compute(self) -> int:
        """Prompt tokens that have to be computed."""
        return len(self.tokens) - self.known

    def completion(self, tokenizer: ChatTokenizer, seconds: float) -> Completion:
        """The answer, once it is written."""
        free = self.request.labels is None
        return Completion(
            text=tokenizer.answer_text(self.answer) if free else render_answer(self.labels),
            thinking=tokenizer.thinking_text(self.thinking),
            label_logprobs=self.logprobs or None,
            finish_reason=self.finish_reason,
            usage=Usage(
                calls=1,
                prompt_computed=self.computed + self.extra,
                prompt_reused=self.known - self.shared,
                generated=len(self.thinking) + len(self.answer) + len(self.labels),
                thinking=len(self.thinking),
                seconds=seconds,
            ),
        )


def run(batch: Batch, jobs: Sequence[Job], tokenizer: ChatTokenizer) -> None:
    """Computes the prompts and lets every row write its thinking and its answer."""
    for start in range(0, max(job.to_compute for job in jobs), PIECE):
        _give_up(jobs, range(len(jobs)))
        pieces = [job.tokens[job.known :][start : start + PIECE] for job in jobs]
        batch.feed(pieces)
        for job, piece in zip(jobs, pieces, strict=True):
            job.computed += len(piece)
    if any(job.request.thinking_budget for job in jobs):
        _think(batch, jobs, tokenizer)
    if any(job.request.labels is not None for job in jobs):
        _pick(batch, jobs, tokenizer)
    if any(job.request.labels is None for job in jobs):
        limits = [job.request.max_answer_tokens if job.request.labels is None else 0 for job in jobs]
        _write(batch, jobs, [job.answer for job in jobs], limits, ANSWER_CLOSE, tokenizer)


def _give_up(jobs: Sequence[Job], unfinished: Iterable[int]) -> None:
    """Marks the unfinished rows for which nobody waits any more; ends the batch where that is all of it."""
    for row in unfinished:
        jobs[row].given_up = jobs[row].given_up or jobs[row].deadline.passed()
    if all(job.given_up for job in jobs):
        raise CancelledError


def _think(batch: Batch, jobs: Sequence[Job], tokenizer: ChatTokenizer) -> None:
    """Lets every row think up to its budget, then closes the thinking and opens the answer."""
    limits = [job.request.thinking_budget for job in jobs]
    pending = _write(batch, jobs, [job.thinking for job in jobs], limits, THINK_CLOSE, tokenizer)
    rows = []
    for job, tail in zip(jobs, pending, strict=True):
        forced = []
        if job.request.thinking_budget:
            closed = THINK_CLOSE in tokenizer.decode(job.thinking[-_TAIL:])
            constrain = job.request.labels is not None
            forced = tokenizer.encode(close_thinking(THINK_CLOSE if closed else "", constrain=constrain))
            job.computed += len(forced)
        rows.append([*tail, *forced])
    batch.feed(rows)


def _write(
    batch: Batch,
    jobs: Sequence[Job],
    written: Sequence[list[int]],
    limits: Sequence[int],
    stop: str,
    tokenizer: ChatTokenizer,
) -> list[list[int]]:
    """Samples into `written` until the stop text, a token that ends the turn, or the limit of each row.

    Returns:
        For each row the tokens that were sampled but not yet fed.
    """
    pending: list[list[int]] = [[] for _ in jobs]
    active = {row for row, limit in enumerate(limits) if limit > 0 and not jobs[row].given_up}
    while active:
        for row in sorted(active):
            tokens = written[row]
            token = _sample(batch.logits(row), jobs[row])
            tokens.append(token)
            ended = token in tokenizer.stops
            pending[row] = [] if ended else [token]
            if ended or stop in tokenizer.decode(tokens[-_TAIL:]):
                active.discard(row)
            elif jobs[row].deadline.passed():
                jobs[row].given_up = True
                active.discard(row)
            elif len(tokens) >= limits[row]:
                jobs[row].finish_reason = "length"
                active.discard(row)
        if active:
            batch.feed([pending[row] if row in active else [] for row in range(len(jobs))])
            for row in active:
                pending[row] = []
    return pending


def _pick(batch: Batch, jobs: Sequence[Job], tokenizer: ChatTokenizer) -> None:
    """Picks labels for every constrained row, each out of those still live."""
    import torch

    left = {row: list(job.request.labels) for row, job in enumerate(jobs) if job.request.labels is not None}
    while left:
        _give_up(jobs, left)
        left = {row: live for row, live in left.items() if not jobs[row].given_up}
        rows: list[list[int]] = [[] for _ in jobs]
        for row, live in list(left.items()):
            job = jobs[row]
            logits = batch.logits(row, [tokenizer.label_ids[label] for label in live])
            logprobs = torch.log_softmax(logits, dim=0)
            choice = _sample(logits, job)
            if job.request.pick == 1:
                job.logprobs = dict(zip(live, logprobs.tolist(), strict=True))
            else:
                job.logprobs[live[choice]] = float(logprobs[choice])
            label = live.pop(choice)
            job.labels.append(label)
            if len(job.labels) == job.request.pick:
                del left[row]
            else:
                rows[row] = [tokenizer.label_ids[label], *tokenizer.between]
                job.computed += len(tokenizer.between)
        if left:
            batch.feed(rows)


def _sample(logits: torch.Tensor, job: Job) -> int:
    import torch

    if job.generator is None:  # greedy
        return int(logits.argmax())
    probabilities = torch.softmax(logits.cpu() / job.request.temperature, dim=0)
    return int(torch.multinomial(probabilities, 1, generator=job.generator))
