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
_PATIENCE = 0.05
"""Seconds of waiting for the turn, after which deadlines are looked at again."""


def turn_of(llm: Any) -> threading.Lock:
    """Held by whoever talks to a `vllm.LLM`."""
    return _TURNS.setdefault(llm, threading.Lock())


@dataclass(eq=False)
class _Waiting:
    request: GenerationRequest
    future: Future[Completion]
    deadline: float


@dataclass(eq=False)
class _Running(_Waiting):
    answering: Answering
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
        self._arrived: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._waiting: list[_Waiting] = []
        self._running: dict[str, _Running] = {}
        self._numbers = itertools.count()
        self._time = SharedTime()
        self._thread = threading.Thread(target=self._work, name="r1-rerank-vllm", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """See `Runner`."""
        future: Future[Completion] = Future()
        deadline = float("inf") if request.timeout is None else time.monotonic() + request.timeout
        self._arrived.put(_Waiting(request, future, deadline))
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
                self._begin()
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
        for waiting in self._waiting:
            _settle(waiting.future, closed())

    def _take(self) -> bool:
        """Takes in what has arrived, waiting for it where there is nothing to do; False once the runner is closed."""
        if not self._running:
            self._pass_turn()
        idle = not self._running and not self._waiting
        while True:
            try:
                arrived = self._arrived.get(block=idle)
            except queue.Empty:
                return True
            if arrived is None:
                return False
            self._waiting.append(arrived)
            idle = False

    def _begin(self) -> None:
        """Begins what waits, unless another runner has requests under way: then what nobody waits for is let go."""
        if self._waiting and not self._has_turn:
            self._has_turn = self._turn.acquire(timeout=_PATIENCE)
        if self._has_turn:
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                self._open_answer(one)
            return
        for one in [one for one in self._waiting if one.future.cancelled() or time.monotonic() > one.deadline]:
            self._waiting.remove(one)
            _settle(one.future, _late(one.request))

    def _open_answer(self, waiting: _Waiting) -> None:
        try:
            answering = self._open(waiting.request)
            call = next(answering)
        except StopIteration as stop:  # one label alone is no question
            _settle(waiting.future, stop.value)
        except Exception as error:
            _settle(waiting.future, failed(error))
        else:
            running = _Running(waiting.request, waiting.future, waiting.deadline, answering, self._time.enter())
            self._ask(running, call)

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
