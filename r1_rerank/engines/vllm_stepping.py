"""Steps a `vllm.LLM` that a program already has."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from ..errors import DeadlineError
from .base import Completion, GenerationRequest
from .vllm_answers import Answering, Call
from .vllm_runners import Open, SharedTime, arguments, closed, failed, timed

logger = logging.getLogger(__name__)

_TURNS: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
"""For each `vllm.LLM` its turn: a step returns the answers of all requests, so that only one runner may have some."""


def turn_of(llm: Any) -> threading.Lock:
    """Held by whoever talks to a `vllm.LLM`."""
    return _TURNS.setdefault(llm, threading.Lock())


@dataclass
class _Running:
    request: GenerationRequest
    answering: Answering
    future: Future[Completion]
    deadline: float
    entered: float


class StepRunner:
    """Steps a `vllm.LLM` from a thread of its own, as long as there are requests.

    Args:
        llm: The `vllm.LLM`.
        open_answer: Begins an answer.
        lora: A `LoRARequest`, or None.
    """

    def __init__(self, llm: Any, open_answer: Open, lora: Any) -> None:
        self._engine = llm.llm_engine
        self._turn = turn_of(llm)
        self._has_turn = False
        self._open = open_answer
        self._lora = lora
        self._arrived: queue.SimpleQueue[tuple[GenerationRequest, Future[Completion], float] | None] = (
            queue.SimpleQueue()
        )
        self._running: dict[str, _Running] = {}
        self._numbers = itertools.count()
        self._time = SharedTime()
        self._thread = threading.Thread(target=self._work, name="r1-rerank-vllm", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """See `Runner`."""
        future: Future[Completion] = Future()
        self._arrived.put((request, future, time.monotonic()))
        return future

    def blocks(self) -> bool:
        """See `Runner`."""
        return False

    def close(self) -> None:
        """See `Runner`; waits for the step under way."""
        self._arrived.put(None)
        self._thread.join()

    def _work(self) -> None:
        while self._take():
            try:
                for number in list(self._running):
                    self._check(number)
                if not self._running:
                    continue
                replies = self._engine.step()
            except Exception as error:  # vLLM itself fails, not one request
                logger.exception("vLLM failed with %d requests under way", len(self._running))
                self._end(failed(error))
                continue
            for reply in replies:
                if reply.request_id in self._running:
                    self._advance(reply.request_id, reply)
        self._end(closed())
        self._pass_turn()

    def _take(self) -> bool:
        """Begins what has arrived, waiting for it where nothing runs; False once the runner is closed."""
        while True:
            if not self._running:
                self._pass_turn()
            try:
                entry = self._arrived.get(block=not self._running)
            except queue.Empty:
                return True
            if entry is None:
                return False
            request, future, arrived = entry
            deadline = float("inf") if request.timeout is None else arrived + request.timeout
            if not self._take_turn(deadline):
                _settle(future, _late(request))
                continue
            try:
                answering = self._open(request)
                call = next(answering)
            except StopIteration as stop:  # one label alone is no question
                _settle(future, stop.value)
                continue
            except Exception as error:
                _settle(future, failed(error))
                continue
            running = _Running(request, answering, future, deadline, self._time.enter())
            self._ask(running, call)

    def _take_turn(self, deadline: float) -> bool:
        """Waits until no other runner has requests under way; False once it is too late."""
        if not self._has_turn:
            left = max(0.0, deadline - time.monotonic())
            self._has_turn = self._turn.acquire(timeout=min(left, threading.TIMEOUT_MAX))
        return self._has_turn

    def _pass_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turn.release()

    def _ask(self, running: _Running, call: Call) -> None:
        number = f"r1-rerank-{id(self):x}-{next(self._numbers)}"
        self._running[number] = running
        try:
            self._engine.add_request(number, *arguments(call), lora_request=self._lora)
        except Exception as error:
            self._finish(number, failed(error))

    def _advance(self, number: str, reply: Any) -> None:
        running = self._running[number]
        try:
            call = running.answering.send(reply)
        except StopIteration as stop:
            self._finish(number, stop.value)
        except Exception as error:
            self._finish(number, failed(error))
        else:
            del self._running[number]
            self._ask(running, call)

    def _check(self, number: str) -> None:
        """Takes out what nobody waits for any more."""
        running = self._running[number]
        late = time.monotonic() > running.deadline
        if late or running.future.cancelled():
            self._engine.abort_request([number])
            self._finish(number, _late(running.request))

    def _end(self, completion: Completion) -> None:
        """Takes everything out with one and the same answer."""
        numbers = list(self._running)
        with suppress(Exception):  # nothing can be taken out of an engine that has died
            self._engine.abort_request(numbers)
        for number in numbers:
            self._finish(number, completion)

    def _finish(self, number: str, completion: Completion) -> None:
        running = self._running.pop(number)
        _settle(running.future, timed(completion, self._time.leave(running.entered)))


def _late(request: GenerationRequest) -> Completion:
    return Completion(error=DeadlineError(f"no answer within {request.timeout or 0:g} s"))


def _settle(future: Future[Completion], completion: Completion) -> None:
    if future.set_running_or_notify_cancel():
        future.set_result(completion)
