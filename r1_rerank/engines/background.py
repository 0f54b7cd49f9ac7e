"""An event loop in a thread of its own, for engines whose client or scheduler is asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import DeadlineError
from .base import Completion, GenerationRequest

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines on one loop, whichever thread or loop they are asked for from.

    Connections and schedulers belong to the loop on which they were made: one loop of their own lets them serve
    synchronous callers, and callers on any loop.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end; works inside a running loop too."""
        return self.submit(work).result()

    def close(self) -> None:
        """Cancels what still runs and ends the thread."""
        if self._loop.is_closed():
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def within(request: GenerationRequest, work: Coroutine[Any, Any, Completion]) -> Completion:
    """The answer, or a `DeadlineError` once the request's timeout has passed."""
    try:
        async with asyncio.timeout(request.timeout) as limit:
            return await work
    except TimeoutError:
        if not limit.expired():
            raise
        return Completion(error=DeadlineError(f"no answer within {request.timeout:g} s"))
