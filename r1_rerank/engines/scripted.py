"""An engine that answers from a script: for tests, documentation, and as the shortest example of an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from ..documents import Usage
from ..errors import EngineClosedError, EngineError, InputTypeError
from ..prompts import Message
from .base import Completion, GenerationRequest, Probe


class ScriptedEngine:
    """Plays back answers and records what it was asked. Runs no model.

    Args:
        script: Answers in order (an exception among them is a failed request), or a function of the request.
        capabilities: What it claims to be able to; see `engines.base.CAPABILITIES`.
        context_tokens: Longest prompt it claims to take, in words; None for no limit.
        batch_size: Requests that it takes at once.

    Attributes:
        requests: Every request so far, in order.

    >>> engine = ScriptedEngine(["<answer>[B]</answer>"])
    >>> engine.generate([GenerationRequest(messages=[], labels=("A", "B"))])[0].text
    '<answer>[B]</answer>'
    """

    name = "scripted"

    def __init__(
        self,
        script: Sequence[str | Exception] | Callable[[GenerationRequest], str | Completion],
        *,
        capabilities: frozenset[str] = frozenset(),
        context_tokens: int | None = None,
        batch_size: int = 8,
    ) -> None:
        if isinstance(script, str) or not (callable(script) or isinstance(script, Sequence)):
            raise InputTypeError("script", f"expected a list of answers or a function, got {type(script).__name__}")
        self.capabilities = frozenset(capabilities)
        self.context_tokens = context_tokens
        self.batch_size = batch_size
        self.requests: list[GenerationRequest] = []
        self._script = script
        self._closed = False
        self._lock = threading.Lock()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Answers in the order of the script."""
        with self._lock:
            return [self._answer(request) for request in requests]

    async def agenerate(self, request: GenerationRequest) -> Completion:
        """Answers one request."""
        await asyncio.sleep(0)  # as a real engine does: others run, and a cancelled task ends here
        return self.generate([request])[0]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Words of the messages."""
        return sum(len(message["content"].split()) for message in messages)

    def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """Everything is possible in a script."""
        return Probe(append=True, labels=tuple(alphabet))

    def close(self) -> None:
        """Refuses further requests."""
        self._closed = True

    def _answer(self, request: GenerationRequest) -> Completion:
        if self._closed:
            return Completion(error=EngineClosedError("the engine was closed"))
        position = len(self.requests)
        self.requests.append(request)
        if callable(self._script):
            answer: str | Exception | Completion = self._script(request)
        elif position < len(self._script):
            answer = self._script[position]
        else:
            answer = EngineError(f"the script has {len(self._script)} answers, one more was asked for")
        if isinstance(answer, Completion):
            return answer
        if isinstance(answer, Exception):
            return Completion(error=answer if isinstance(answer, EngineError) else EngineError(str(answer)))
        return Completion(text=answer, usage=Usage(calls=1))
