"""One pass over one query: windows become requests, completions become answers, and at the end there is an order.

Pure: whoever owns the engine asks for `request`, runs it anywhere, and hands the completion to `receive`.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .budget import Ledger
from .documents import Document, Fault, ScoreKind, Status, Step, Usage
from .engines.base import Completion, Engine, GenerationRequest
from .engines.checking import usable_distribution
from .errors import ContextOverflowError, DeadlineError, EngineError
from .fitting import ANSWER_TOKENS_PER_LABEL, TURN_TOKENS, count_text, fit
from .options import RankingOptions
from .parsing import parse
from .prompts import NEXT_LABEL, Message, close_thinking, open_turn
from .strategies import Answer, Window, fallen_labels, survival_scores
from .tasks import Task

_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a pass came to.

    Args:
        order: Documents, best first.
        scores: Score of each place of `order`, never increasing.
        score_kind: See `ScoreKind`.
        status: See `Status`.
        steps: One for each question to the model.
        usage: Sum over the steps.
        faults: Everything that went wrong or was adapted.
        malformed: Number of answers that were not well-formed.
        error: What ended it early, if the engine did.
    """

    order: tuple[int, ...]
    scores: tuple[float, ...]
    score_kind: ScoreKind
    status: Status
    steps: tuple[Step, ...]
    usage: Usage
    faults: tuple[Fault, ...]
    malformed: int
    error: EngineError | None


class Ranking:
    """The state of one pass.

    Args:
        task: What is ranked.
        documents: The documents of the query.
        shown: Which of them are ranked, at least two, in the order in which the model sees them.
        options: How.
        engine: Asked for capabilities and token counts only.
        ledger: What the query may still cost.
        run: Number of the pass, from 1.
    """

    def __init__(
        self,
        task: Task,
        documents: Sequence[Document],
        shown: Sequence[int],
        options: RankingOptions,
        engine: Engine,
        ledger: Ledger,
        run: int = 1,
    ) -> None:
        self._task = task
        self._shown = shown
        self._number = run
        self._options = options
        self._engine = engine
        self._ledger = ledger
        self._template = options.templates[task.name]
        self._constrains = options.constrain and "constrain" in engine.capabilities
        self._exact = self._constrains and "logprobs" in engine.capabilities
        self._reuses = "reuse" in engine.capabilities
        self._session = next(_numbers)
        self._steps: list[Step] = []
        self._faults: list[Fault] = []
        self._malformed = 0
        self._usable = 0
        self._stopped = False
        self._usage = Usage()
        self.error: EngineError | None = None
        # Strategies count the documents in shown order, everybody else in that of the query.
        self._texts: Sequence[str] = [task.candidate_text(documents[index]) for index in shown]
        self._standing: Sequence[int] = range(len(shown))
        self._window: Window | None = None
        self._messages: list[Message] = []
        capacity = None
        try:
            fitted = fit(task, self._texts, options, engine)
        except ContextOverflowError as error:
            self.error = error
        except Exception as error:
            self.error = _uncounted(error)
        else:
            self._texts, capacity = fitted.texts, fitted.capacity
            self._faults += [replace(note, run=run) for note in fitted.notes]
        self._run = options.strategy.run(
            len(shown), capacity=capacity, alphabet=options.alphabet, seed=options.label_seed
        )
        if self.error is None:
            self._advance(None)
        else:
            self._stop("context" if isinstance(self.error, ContextOverflowError) else "engine", str(self.error))

    @property
    def done(self) -> bool:
        """Nothing is left to ask."""
        return self._window is None

    @property
    def stopped(self) -> bool:
        """A budget or the engine ended it early."""
        return self._stopped

    def request(self) -> GenerationRequest | None:
        """The next question, or None where the ranking is done, also because a budget is used up."""
        if self._window is None:
            return None
        request = self._question(self._window)
        try:
            next_call = 0 if self._ledger.budget.tokens is None else self._new_tokens(request)
        except Exception as error:
            self.error = _uncounted(error)
            self._stop("engine", str(self.error))
            return None
        if (reason := self._ledger.exceeded(next_call)) is not None:
            self._stop("budget", reason)
            return None
        return request

    def receive(self, completion: Completion) -> Step | None:
        """Takes the answer to the last request; None where the engine failed and the run ends."""
        window = self._window
        assert window is not None, "receive follows a request"
        # Whatever an engine counts, it was asked once.
        usage = replace(completion.usage, calls=max(1, completion.usage.calls))
        self._usage += usage
        self._ledger.spent += usage
        if window.removed and not usage.prompt_reused:
            self._reuses = False  # the engine had no room to keep the conversation
        number = len(self._steps) + 1
        if isinstance(completion.error, DeadlineError) and self._ledger.budget.seconds is not None:
            self._stop("budget", self._ledger.budget.deadline_passed(), number)
            return None
        if completion.error is not None:
            self.error = completion.error
            self._stop("engine", str(completion.error), number)
            return None
        live = window.live
        parsed = parse(completion.text, tuple(live), self._pick(window))
        faults = list(parsed.faults)
        logprobs, odd = None, None
        if self._exact and window.ask == "eliminate":
            logprobs, odd = usable_distribution(completion.label_logprobs, live)
            if logprobs is None and window.pick > 1:
                faults.append(("too_few", f"1 label, {window.pick} wanted, and no probabilities for the others"))
        noted = faults if odd is None else [*faults, odd]
        self._faults += [Fault(number, kind, detail, self._number) for kind, detail in noted]
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
            shown=self._indices(live.values()),
            picked=self._indices(live[label] for label in named),
            thinking=completion.thinking or parsed.thinking,
            answer=completion.text,
            logprobs=None
            if logprobs is None
            else {self._shown[live[label]]: value for label, value in logprobs.items()},
            usage=usage,
            standing=self._indices(self._standing),
            run=self._number,
        )
        self._steps.append(step)
        return step

    def outcome(self) -> Outcome:
        """The ranking as it stands."""
        order = self._indices(self._standing)
        scores, kind = self._scores(order)
        return Outcome(
            order=order,
            scores=tuple(scores),
            score_kind=kind,
            status=self._status(),
            steps=tuple(self._steps),
            usage=self._usage,
            faults=tuple(self._faults),
            malformed=self._malformed,
            error=self.error,
        )

    def estimate(self) -> Usage:
        """What the whole run would cost at most, found by playing it without the model. Uses the ranking up.

        Raises:
            ContextOverflowError: No prompt fits into the model's context.
        """
        if self.error is not None:
            raise self.error
        usage = Usage()
        before = 0
        while (window := self._window) is not None:
            request = self._question(window)
            total = self._engine.count_tokens(request.messages)
            forced = self._forced_tokens(request)
            reused = before if window.removed and "reuse" in self._engine.capabilities else 0
            # Without thinking the opening of the answer stays in the conversation.
            before = total + (0 if request.thinking_budget else forced)
            answer = request.pick if self._constrains else request.max_answer_tokens
            usage += Usage(
                calls=1,
                prompt_computed=total + forced - reused,
                prompt_reused=reused,
                generated=request.thinking_budget + answer,
                thinking=request.thinking_budget,
            )
            # The most is computed when the shortest fall first.
            shortest = sorted(window.live, key=lambda label: len(self._texts[window.live[label]]))
            self._advance(Answer(tuple(shortest[: window.pick])))
        return usage

    def _forced_tokens(self, request: GenerationRequest) -> int:
        """Tokens that the engine writes into the model's turn."""
        constrain = self._constrains
        opening = open_turn("", thinking=request.thinking_budget > 0, constrain=constrain)
        closing = close_thinking("", constrain=constrain) if request.thinking_budget else ""
        forced = sum(count_text(self._engine, text) for text in (opening, closing) if text)
        if constrain and request.pick > 1:
            separator = count_text(self._engine, f"A{NEXT_LABEL}") - count_text(self._engine, "A")
            forced += separator * (request.pick - 1)
        return forced

    def _question(self, window: Window) -> GenerationRequest:
        options = self._options
        thinking = self._ledger.thinking_left(options.thinking)
        pick = self._pick(window)
        return GenerationRequest(
            messages=self._messages,
            labels=tuple(window.live) if options.constrain else None,
            pick=pick,
            thinking_budget=thinking,
            max_answer_tokens=ANSWER_TOKENS_PER_LABEL * (pick + 1),
            temperature=options.temperature,
            seed=self._seed(),
            session=self._conversation(window),
            timeout=self._ledger.seconds_left(),
        )

    def _conversation(self, window: Window) -> str:
        """What names the requests that go on from each other: a new window takes the place of the last one.

        Not in a pool, which stands before the query: there the next query begins with the same windows.
        """
        return f"{self._session}/{window.number if self._task.name == 'routing' else 0}"

    def _seed(self) -> int | None:
        """Another seed for each step of each pass, the same for the same step of the same pass."""
        if self._options.seed is None:
            return None
        return zlib.crc32(f"{self._options.seed}/{self._number}/{len(self._steps)}".encode())

    def _indices(self, places: Iterable[int]) -> tuple[int, ...]:
        return tuple(self._shown[place] for place in places)

    def _pick(self, window: Window) -> int:
        """Labels that the answer has to name: one distribution tells as many as are wanted."""
        return 1 if self._exact and window.ask == "eliminate" else window.pick

    def _new_tokens(self, request: GenerationRequest) -> int:
        """Upper bound of what a call computes: prompt beyond the conversation so far, thinking and answer."""
        removed = () if self._window is None else self._window.removed
        known_tokens = getattr(self._engine, "known_tokens", None)
        if removed and self._reuses and known_tokens is None:
            total = TURN_TOKENS + ANSWER_TOKENS_PER_LABEL * len(removed[-1])
        else:
            total = self._engine.count_tokens(request.messages)
            total -= known_tokens(request) if removed and known_tokens is not None else 0
        return total + request.thinking_budget + ANSWER_TOKENS_PER_LABEL * (request.pick + 1)

    def _advance(self, answer: Answer | None) -> None:
        try:
            self._window = next(self._run) if answer is None else self._run.send(answer)
            self._standing = self._window.standing
        except StopIteration as stop:
            self._window, self._standing = None, stop.value
            return
        if self._window.removed:
            self._messages = self._template.extend(self._messages, self._window)
        else:
            thinking = self._options.thinking > 0
            self._messages = self._template.render(self._task, self._texts, self._window, thinking=thinking)

    def _stop(self, kind: str, detail: str, step: int | None = None) -> None:
        self._faults.append(Fault(step, kind, detail, self._number))
        self._window = None
        self._stopped = True
        self._run.close()

    def _status(self) -> Status:
        if (self._stopped or self._steps) and not self._usable:
            return "fallback"
        if self._stopped:
            return "partial"
        return "repaired" if self._malformed else "ok"

    def _scores(self, order: Sequence[int]) -> tuple[list[float], ScoreKind]:
        distributions = [step.logprobs for step in self._steps if step.logprobs is not None]
        if not distributions or len(distributions) < len(self._steps):
            return [1.0 - place / len(order) for place in range(len(order))], "rank"
        probabilities = [
            {document: math.exp(value) for document, value in logprobs.items()} for logprobs in distributions
        ]
        return survival_scores(order, probabilities), "logprob"


def _uncounted(error: Exception) -> EngineError:
    """What becomes of an engine that cannot count: it costs its query, not the whole batch."""
    return EngineError(f"{type(error).__name__}: {error}")
