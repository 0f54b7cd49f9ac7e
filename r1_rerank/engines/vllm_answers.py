"""What vLLM is asked for one answer: thinking, label after label, or free text. Pure: whoever owns vLLM asks."""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..documents import Usage
from ..errors import EngineError
from ..prompts import ANSWER_CLOSE, THINK_CLOSE, close_thinking, render_answer
from .base import Completion, GenerationRequest
from .tokenization import ChatTokenizer


@dataclass(frozen=True)
class Call:
    """One question to vLLM.

    Args:
        tokens: The prompt.
        sampling: Arguments of `vllm.SamplingParams`.
    """

    tokens: list[int]
    sampling: dict[str, Any]


class Written(Protocol):
    """What is read of a `vllm.CompletionOutput`."""

    token_ids: Any
    logprobs: Any
    finish_reason: str | None
    stop_reason: int | str | None


class Reply(Protocol):
    """What is read of a `vllm.RequestOutput`."""

    num_cached_tokens: int | None
    outputs: list[Any]


Answering = Generator[Call, Reply, Completion]
"""Yields calls, is sent what vLLM replied, returns the completion."""


@dataclass
class Answer:
    """An answer while it is written.

    Every call goes on where the one before ended, so that vLLM's prefix cache has all but the last few tokens.

    Args:
        request: What was asked.
        tokens: The prompt, and what was written behind it so far.
        tokenizer: The model's.
        computed: See `Usage.prompt_computed`.
        reused: Tokens of the request's prompt that were in the cache before it.
        unfed: Last of `tokens` that were sampled, but never fed forward.
    """

    request: GenerationRequest
    tokens: list[int]
    tokenizer: ChatTokenizer
    computed: int = 0
    reused: int | None = None
    unfed: int = 0
    thinking: list[int] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    logprobs: dict[str, float] = field(default_factory=dict)
    finish_reason: str = "stop"

    def write(self) -> Answering:
        """Asks for all that the request wants."""
        request = self.request
        sampled = 0
        if request.thinking_budget:
            yield from self._think()
        if request.labels is None:
            self.text = (yield from self._sample(ANSWER_CLOSE, request.max_answer_tokens))[0]
            sampled = len(self.text)
        else:
            sampled = yield from self._pick(list(request.labels))
        return Completion(
            text=self.tokenizer.answer_text(self.text) if request.labels is None else render_answer(self.labels),
            thinking=self.tokenizer.thinking_text(self.thinking),
            label_logprobs=self.logprobs or None,
            finish_reason=self.finish_reason,
            usage=Usage(
                calls=1,
                prompt_computed=self.computed,
                prompt_reused=self.reused or 0,
                generated=len(self.thinking) + sampled,
                thinking=len(self.thinking),
            ),
        )

    def _think(self) -> Generator[Call, Reply, None]:
        """Thinks up to the budget, then closes the thinking and opens the answer."""
        self.thinking, closed = yield from self._sample(THINK_CLOSE, self.request.thinking_budget)
        ended = bool(self.thinking) and self.thinking[-1] in self.tokenizer.stops
        forced = close_thinking(THINK_CLOSE if closed else "", constrain=self.request.labels is not None)
        self.tokens = [*self.tokens, *(self.thinking[:-1] if ended else self.thinking)]
        self.tokens += self.tokenizer.encode(forced)
        self.unfed = 0 if ended else 1

    def _sample(self, stop: str, limit: int) -> Generator[Call, Reply, tuple[list[int], bool]]:
        """Tokens up to the stop text, a token that ends the turn, or the limit; and whether it was the stop text."""
        request = self.request
        written = yield from self._ask(
            max_tokens=limit,
            stop=[stop],
            stop_token_ids=sorted(self.tokenizer.stops),
            # A tag may be a special token of the model: hidden from the text, it would not be found there.
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            temperature=0.0 if request.greedy else request.temperature,
            seed=request.seed,
        )
        if written.finish_reason == "length":
            self.finish_reason = "length"
        return list(written.token_ids), written.stop_reason == stop

    def _pick(self, live: list[str]) -> Generator[Call, Reply, int]:
        """Picks labels, each out of those still live; returns how many the model was asked for."""
        request = self.request
        draw = None if request.greedy else random.Random(request.seed)
        asked = 0
        while True:
            if len(live) > 1:
                asked += 1
                logprobs = yield from self._distribution(live)
            else:
                logprobs = {live[0]: 0.0}
            label = _choose(logprobs, request.temperature, draw)
            self.labels.append(label)
            if request.pick == 1:
                self.logprobs = logprobs
            else:
                self.logprobs[label] = logprobs[label]
            if len(self.labels) == request.pick:
                return asked
            live.remove(label)
            self.tokens = [*self.tokens, self.tokenizer.label_ids[label], *self.tokenizer.between]
            self.unfed = 1

    def _distribution(self, live: list[str]) -> Generator[Call, Reply, dict[str, float]]:
        """Log-probabilities of the live labels alone."""
        ids = {label: self.tokenizer.label_ids[label] for label in live}
        tokens = list(ids.values())
        written = yield from self._ask(
            max_tokens=1, temperature=0.0, allowed_token_ids=tokens, logprob_token_ids=tokens, detokenize=False
        )
        reported = written.logprobs[0]
        return _normalise({label: float(reported[token].logprob) for label, token in ids.items()})

    def _ask(self, **sampling: Any) -> Generator[Call, Reply, Written]:
        reply = yield Call(self.tokens, sampling)
        cached = reply.num_cached_tokens or 0
        if self.reused is None:
            self.reused = cached
        self.computed += len(self.tokens) - cached - self.unfed
        written: Written = reply.outputs[0]
        if written.finish_reason not in ("stop", "length"):  # as where the user puts vLLM to sleep
            raise EngineError(f"vLLM gave the request up: {written.finish_reason}")
        return written


def _normalise(logprobs: Mapping[str, float]) -> dict[str, float]:
    highest = max(logprobs.values())
    if not math.isfinite(highest):
        raise EngineError("the model reports no probability for any live label")
    total = highest + math.log(math.fsum(math.exp(value - highest) for value in logprobs.values()))
    return {label: value - total for label, value in logprobs.items()}


def _choose(logprobs: Mapping[str, float], temperature: float, draw: random.Random | None) -> str:
    """The most probable label, or one drawn: here rather than in vLLM, so that a batch cannot change it."""
    if draw is None:
        return max(logprobs, key=logprobs.__getitem__)
    highest = max(logprobs.values())
    weights = [math.exp((value - highest) / temperature) for value in logprobs.values()]
    return draw.choices(list(logprobs), weights)[0]
