"""Drives queries over an engine: many at once, in step or each on its own, and one on an event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue

from .documents import RerankResult, Step
from .engines.base import Completion, Engine, GenerationRequest, batch_size, submit_of
from .errors import EngineError
from .query import Query
from .ranking import Ranking

logger = logging.getLogger(__name__)

Submit = Callable[[GenerationRequest], "Future[Completion]"]


@dataclass
class _Pool:
    """Passes under way, of as many queries as the engine has room for; whatever is done makes room for the next.

    Args:
        waiting: Number and query, made when there is room.
        room: Most passes under way. A query that starts several at once may go beyond it.
    """

    waiting: Iterator[tuple[int, Query]]
    room: int
    active: dict[Ranking, tuple[int, Query]] = field(default_factory=dict)

    def fill(self) -> Iterator[tuple[int, Query]]:
        """Starts what there is room for; gives back the queries in which there is nothing to do."""
        while len(self.active) < self.room and (following := next(self.waiting, None)) is not None:
            if self._start(following):
                yield following

    def retire(self, ranking: Ranking) -> Iterator[tuple[int, Query]]:
        """Takes a finished pass out and starts the next of its query; gives back the query once it is done."""
        numbered = self.active.pop(ranking)
        if self._start(numbered):
            yield numbered

    def _start(self, numbered: tuple[int, Query]) -> bool:
        """Starts what can begin of a query; tells whether the query is done."""
        for ranking in numbered[1].start():
            self.active[ranking] = numbered
        return numbered[1].done and all(query is not numbered[1] for _, query in self.active.values())


def drive(queries: Iterator[tuple[int, Query]], engine: Engine) -> Generator[tuple[int, Query]]:
    """Ranks many queries, each given back, with its number, as soon as it is done.

    Engines that schedule by themselves get the next request of a query as soon as the last one is answered. With
    the others all queries under way advance together.
    """
    pool = _Pool(queries, batch_size(engine))
    submit = submit_of(engine)
    return _in_step(pool, engine) if submit is None else _each_on_its_own(pool, submit)


def _in_step(pool: _Pool, engine: Engine) -> Generator[tuple[int, Query]]:
    while True:
        yield from pool.fill()
        if not pool.active:
            return
        requests = {ranking: ranking.request() for ranking in pool.active}
        asked = {ranking: request for ranking, request in requests.items() if request is not None}
        if asked:
            for ranking, completion in zip(asked, _generate(engine, list(asked.values())), strict=True):
                ranking.receive(completion)
        for ranking in [ranking for ranking in pool.active if ranking.done]:
            yield from pool.retire(ranking)


def _each_on_its_own(pool: _Pool, submit: Submit) -> Generator[tuple[int, Query]]:
    answered: SimpleQueue[Ranking] = SimpleQueue()
    under_way: dict[Ranking, Future[Completion]] = {}
    try:
        while True:
            yield from pool.fill()
            if not pool.active:
                return
            for ranking in [ranking for ranking in pool.active if ranking not in under_way]:
                request = ranking.request()
                if request is None:
                    yield from pool.retire(ranking)
                    continue
                under_way[ranking] = future = _submit(submit, request)
                future.add_done_callback(partial(_put, answered, ranking))
            if under_way:
                ranking = answered.get()
                ranking.receive(_answer(under_way.pop(ranking)))
                if ranking.done:
                    yield from pool.retire(ranking)
    finally:  # also where nobody wants the rest
        for future in under_way.values():
            future.cancel()


def _put(answered: SimpleQueue[Ranking], ranking: Ranking, _: object) -> None:
    answered.put(ranking)


class RerankStream:
    """Steps of one query as they are done.

    Whoever leaves early calls `aclose`, or holds the stream in `contextlib.aclosing`.

    Attributes:
        result: The ranking, once all steps are there.
    """

    def __init__(self, prepare: Callable[[], Query], engine: Engine) -> None:
        self.result: RerankResult | None = None
        self._steps = self._play(prepare, engine)

    def __aiter__(self) -> AsyncIterator[Step]:
        return self._steps

    async def aclose(self) -> None:
        """Gives up the rest; what is under way is cancelled."""
        await self._steps.aclose()

    # One generator and not two: an event loop that ends closes all at once, and neither could close the other.
    async def _play(self, prepare: Callable[[], Query], engine: Engine) -> AsyncGenerator[Step]:
        # Neither a prefilter nor counting the tokens of long documents belongs on the loop.
        query = await asyncio.to_thread(prepare)
        tasks: dict[asyncio.Task[Completion], Ranking] = {}

        async def ask(ranking: Ranking) -> None:
            request = await asyncio.to_thread(ranking.request) if query.counts_tokens else ranking.request()
            if request is not None:
                tasks[asyncio.create_task(_agenerate(engine, request))] = ranking

        try:
            while started := await asyncio.to_thread(query.start):
                for ranking in started:
                    await ask(ranking)
                while tasks:
                    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        ranking = tasks.pop(task)
                        step = ranking.receive(_outcome(task))
                        if step is not None:
                            yield step
                        await ask(ranking)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.result = query.result()
        if self.result.error is not None:
            raise self.result.error


def _generate(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """Asks the engine; one that breaks its promise not to raise fails its requests, not the caller."""
    try:
        completions = engine.generate(requests)
        if len(completions) != len(requests):
            raise EngineError(f"{len(completions)} completions for {len(requests)} requests")
    except Exception as error:
        logger.exception("engine %s raised", engine.name)
        return [_failed(error)] * len(requests)
    return list(map(_sound, completions))


async def _agenerate(engine: Engine, request: GenerationRequest) -> Completion:
    try:
        return _sound(await engine.agenerate(request))
    except Exception as error:
        logger.exception("engine %s raised", engine.name)
        return _failed(error)


def _outcome(task: asyncio.Task[Completion]) -> Completion:
    """The answer; an engine that cancels its own request, such as by ending its loop, does not cancel the caller."""
    return _failed(EngineError("the engine gave the request up")) if task.cancelled() else task.result()


def _submit(submit: Submit, request: GenerationRequest) -> Future[Completion]:
    try:
        return submit(request)
    except Exception as error:
        failed: Future[Completion] = Future()
        failed.set_exception(error)
        return failed


def _answer(future: Future[Completion]) -> Completion:
    try:
        return _sound(future.result())
    except Exception as error:
        logger.exception("an engine's request raised")
        return _failed(error)


def _sound(completion: Completion) -> Completion:
    """The completion, if it is one."""
    if isinstance(completion, Completion) and isinstance(completion.text, str):
        return completion
    return _failed(EngineError(f"the engine answered with {type(completion).__name__} and no text"))


def _failed(error: Exception) -> Completion:
    return Completion(
        error=error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}")
    )
