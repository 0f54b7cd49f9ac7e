"""One query on its way: windows become requests, completions become answers, and at the end there is a result.

Pure: whoever owns the engine asks for `request`, runs it anywhere, and hands the completion to `receive`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from .budget import Budget, fair_cap, shorten
from .documents import Document, Fault, RankedDocument, RerankResult, ScoreKind, Status, Step, Usage
from .engines.base import Completion, Engine, GenerationRequest
from .errors import ContextOverflowError, EngineError
from .parsing import parse
from .prompts import NEXT_LABEL, Message, PromptTemplate, close_thinking, open_turn, quote
from .rows import TaskName
from .strategies import ALPHABET, Answer, IRanker, Strategy, Window, fallen_labels, survival_scores
from .tasks import Task

OnError = Literal["partial", "raise"]

ANSWER_TOKENS_PER_LABEL = 8
"""Room for one label and its separator in an answer that is not constrained."""
TURN_TOKENS = 30
"""Most tokens that a further step adds to a conversation."""
SMALLEST_WINDOW = 4
"""Documents that one prompt must hold; longer documents are shortened so far."""
SHORTEST_DOCUMENT = 8
"""Tokens below which a shortened document is no document any more."""

_numbers = itertools.count()


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
    card: str = "default"
    notes: tuple[Fault, ...] = field(default=())


class Ranking:
    """The state of one query.

    Args:
        task: What is ranked.
        documents: At least two.
        options: How.
        engine: Asked for capabilities and token counts only.
        budget: What it may cost.
    """

    def __init__(
        self,
        task: Task,
        documents: Sequence[Document],
        options: RankingOptions,
        engine: Engine,
        budget: Budget,
    ) -> None:
        self._task = task
        self._documents = documents
        self._options = options
        self._engine = engine
        self._budget = budget
        self._template = options.templates[task.name]
        self._exact = options.constrain and {"constrain", "logprobs"} <= engine.capabilities
        self._started = time.monotonic()
        self._session = next(_numbers)
        self._steps: list[Step] = []
        self._faults: list[Fault] = list(options.notes)
        self._malformed = 0
        self._usable = 0
        self._stopped = False
        self._usage = Usage()
        self.error: EngineError | None = None
        self._texts = [task.candidate_text(document) for document in documents]
        self._order: tuple[int, ...] = tuple(range(len(documents)))
        self._window: Window | None = None
        self._messages: list[Message] = []
        capacity = None
        try:
            self._texts, capacity = self._fit(self._texts)
        except ContextOverflowError as error:
            self.error = error
        self._run = options.strategy.run(
            len(documents), capacity=capacity, alphabet=options.alphabet, seed=options.label_seed
        )
        if self.error is None:
            self._advance(None)
        else:
            self._stop("context", str(self.error))

    @property
    def done(self) -> bool:
        """Nothing is left to ask."""
        return self._window is None

    def request(self) -> GenerationRequest | None:
        """The next question, or None where the ranking is done, also because a budget is used up."""
        if self._window is None:
            return None
        request = self._question(self._window)
        next_call = 0
        if self._budget.tokens is not None:
            next_call = self._new_tokens(request)
        reason = self._budget.exceeded(self._usage, time.monotonic() - self._started, next_call)
        if reason is not None:
            self._stop("budget", reason)
            return None
        return request

    def receive(self, completion: Completion) -> Step | None:
        """Takes the answer to the last request; None where the engine failed and the run ends."""
        window = self._window
        assert window is not None, "receive follows a request"
        self._usage += completion.usage
        number = len(self._steps) + 1
        if completion.error is not None:
            self.error = completion.error
            self._stop("engine", str(completion.error), number)
            return None
        live = window.live
        parsed = parse(completion.text, tuple(live), self._pick(window))
        faults = list(parsed.faults)
        logprobs = completion.label_logprobs if self._exact and window.ask == "eliminate" else None
        if logprobs is not None and len(logprobs) > 1 and len(set(logprobs.values())) == 1:
            faults.append(("flat", "all labels are equally probable: the model was not asked where a label belongs"))
        self._faults += [Fault(number, kind, detail) for kind, detail in faults]
        self._malformed += bool(faults)
        self._usable += bool(parsed.labels)
        answer = Answer(parsed.labels, logprobs)
        named = parsed.labels
        if window.ask == "eliminate":
            named = fallen_labels(answer, list(live), window.pick)
        self._advance(answer)
        step = Step(
            number=number,
            ask=window.ask,
            shown=tuple(live.values()),
            picked=tuple(live[label] for label in named),
            thinking=completion.thinking or parsed.thinking,
            answer=completion.text,
            logprobs=None if logprobs is None else {live[label]: value for label, value in logprobs.items()},
            usage=completion.usage,
            standing=self._order,
        )
        self._steps.append(step)
        return step

    def result(self, *, top_k: int | None = None, score_threshold: float | None = None) -> RerankResult:
        """The ranking as it stands."""
        scores, kind = self._scores()
        hits = [
            RankedDocument(rank, index, score, self._documents[index])
            for rank, (index, score) in enumerate(zip(self._order, scores, strict=True), start=1)
        ][:top_k]
        faults = self._faults
        if score_threshold is not None:
            if kind == "logprob":
                hits = [hit for hit in hits if hit.score >= score_threshold]
            else:
                detail = "no label probabilities came back, so no score was held against the threshold"
                faults = [*faults, Fault(None, "threshold_skipped", detail)]
        return RerankResult(
            query=str(self._task),
            ranking=tuple(hits),
            status=self._status(),
            score_kind=kind,
            steps=tuple(self._steps),
            usage=self._usage,
            faults=tuple(faults),
            malformed=self._malformed,
            card=self._options.card,
        )

    def estimate(self) -> Usage:
        """What the whole run would cost at most, found by playing it without the model. Uses the ranking up."""
        usage = Usage()
        before = 0
        while (window := self._window) is not None:
            request = self._question(window)
            total = self._engine.count_tokens(request.messages)
            forced = self._forced_tokens(request)
            reused = before if window.removed and "reuse" in self._engine.capabilities else 0
            # Without thinking the opening of the answer stays in the conversation.
            before = total + (0 if request.thinking_budget else forced)
            answer = request.pick if request.labels is not None else request.max_answer_tokens
            usage += Usage(
                calls=1,
                prompt_computed=total + forced - reused,
                prompt_reused=reused,
                generated=request.thinking_budget + answer,
                thinking=request.thinking_budget,
            )
            self._advance(Answer(tuple(reversed(window.live))[: window.pick]))
        return usage

    def _forced_tokens(self, request: GenerationRequest) -> int:
        """Tokens that the engine writes into the model's turn."""
        constrain = request.labels is not None
        opening = open_turn("", thinking=request.thinking_budget > 0, constrain=constrain)
        closing = close_thinking("", constrain=constrain) if request.thinking_budget else ""
        forced = sum(self._count_text(text) for text in (opening, closing) if text)
        if constrain and request.pick > 1:
            separator = self._count_text(f"A{NEXT_LABEL}") - self._count_text("A")
            forced += separator * (request.pick - 1)
        return forced

    def _question(self, window: Window) -> GenerationRequest:
        options = self._options
        thinking = self._budget.thinking_left(options.thinking, self._usage)
        pick = self._pick(window)
        return GenerationRequest(
            messages=self._messages,
            labels=tuple(window.live) if options.constrain else None,
            pick=pick,
            thinking_budget=thinking,
            max_answer_tokens=ANSWER_TOKENS_PER_LABEL * (pick + 1),
            temperature=options.temperature,
            seed=options.label_seed,
            session=f"{self._session}/{window.number}",
        )

    def _pick(self, window: Window) -> int:
        """Labels that the answer has to name: one distribution tells as many as are wanted."""
        return 1 if self._exact and window.ask == "eliminate" else window.pick

    def _new_tokens(self, request: GenerationRequest) -> int:
        """Upper bound of what a call computes: prompt beyond the conversation so far, thinking and answer."""
        total = self._engine.count_tokens(request.messages)
        window = self._window
        if window is not None and window.removed and "reuse" in self._engine.capabilities:
            total = TURN_TOKENS + ANSWER_TOKENS_PER_LABEL * len(window.removed[-1])
        return total + request.thinking_budget + ANSWER_TOKENS_PER_LABEL * (request.pick + 1)

    def _advance(self, answer: Answer | None) -> None:
        try:
            self._window = next(self._run) if answer is None else self._run.send(answer)
            self._order = self._window.standing
        except StopIteration as stop:
            self._window, self._order = None, stop.value
            return
        if self._window.removed:
            self._messages = self._template.extend(self._messages, self._window)
        else:
            thinking = self._options.thinking > 0
            self._messages = self._template.render(self._task, self._texts, self._window, thinking=thinking)

    def _stop(self, kind: str, detail: str, step: int | None = None) -> None:
        self._faults.append(Fault(step, kind, detail))
        self._window = None
        self._stopped = True
        self._run.close()

    def _status(self) -> Status:
        if (self._stopped or self._steps) and not self._usable:
            return "fallback"
        if self._stopped:
            return "partial"
        return "repaired" if self._malformed else "ok"

    def _scores(self) -> tuple[list[float], ScoreKind]:
        distributions = [step.logprobs for step in self._steps if step.logprobs is not None]
        if not distributions or len(distributions) < len(self._steps):
            count = len(self._order)
            return [1.0 - place / count for place in range(count)], "rank"
        probabilities = [
            {document: math.exp(value) for document, value in logprobs.items()} for logprobs in distributions
        ]
        return survival_scores(self._order, probabilities), "logprob"

    def _fit(self, texts: list[str]) -> tuple[list[str], int | None]:
        """Makes the prompts fit into the context: windows first, shorter documents where that is not enough.

        Returns:
            The texts, and how many of them one prompt can hold (None: no limit but the labels).
        """
        context = self._engine.context_tokens
        if context is None:
            return texts, None
        strategy, alphabet = self._options.strategy, len(self._options.alphabet)
        most = len(texts) if len(texts) <= alphabet else min(strategy.window, alphabet)
        turns = TURN_TOKENS * most if isinstance(strategy, IRanker) and strategy.form == "append" else 0
        room = context - self._options.thinking - ANSWER_TOKENS_PER_LABEL * (most + 1) - turns
        frame = self._prompt_tokens([""] * most)
        # A token is at least one byte, so short lists need no counting.
        if frame + sum(len(quote(text).encode()) for text in texts) <= room:
            return texts, None
        if len(texts) == most and self._prompt_tokens(texts) <= room:
            return texts, None
        lengths = [self._count_text(quote(text)) for text in texts]
        room -= frame
        holds = _largest_window(lengths, room, min(strategy.window, most))
        smallest = min(SMALLEST_WINDOW, len(texts))
        if holds < smallest:
            holds = smallest
            cap = fair_cap(sorted(lengths)[-holds:], room)
            if cap < SHORTEST_DOCUMENT:
                raise ContextOverflowError(
                    f"the query leaves no room for documents in the model's context of {context} tokens: pass a "
                    "shorter query, think less, or take a model with a longer context"
                )
            cut = [index for index, length in enumerate(lengths) if length > cap]
            texts = [
                shorten(quote(text), cap, self._count_text) if index in cut else text
                for index, text in enumerate(texts)
            ]
            shown = ", ".join(map(str, cut[:10])) + (", …" if len(cut) > 10 else "")
            self._faults.append(
                Fault(None, "shortened", f"{len(cut)} documents cut to {cap} tokens to fit the context: {shown}")
            )
        if holds < most:
            detail = f"{most} documents do not fit into a context of {context} tokens: windows of {holds}"
            self._faults.append(Fault(None, "windowed", detail))
        return texts, max(holds, 2)

    def _prompt_tokens(self, texts: Sequence[str]) -> int:
        # The window that a run would show first, whatever the capacity turns out to be.
        run = self._options.strategy.run(len(texts), alphabet=self._options.alphabet)
        window = replace(next(run), standing=())
        run.close()
        thinking = self._options.thinking > 0
        return self._engine.count_tokens(self._template.render(self._task, texts, window, thinking=thinking))

    def _count_text(self, text: str) -> int:
        return self._engine.count_tokens([{"role": "user", "content": text}]) - self._empty_message

    @property
    def _empty_message(self) -> int:
        return self._engine.count_tokens([{"role": "user", "content": ""}])


def _largest_window(lengths: Sequence[int], room: int, most: int) -> int:
    """How many documents fit whichever they are: the longest ones decide."""
    total = 0
    for held, length in enumerate(sorted(lengths, reverse=True)[:most]):
        total += length
        if total > room:
            return held
    return most
