"""What adapters hold: a model that is loaded when first needed, and live objects that survive being copied."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import InputError
from ..options import OnError
from ..reranker import R1Reranker

T = TypeVar("T")

_loaded: dict[Pretrained, R1Reranker] = {}
_loading = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A reranker by name: loaded when first needed, once in this process for all who name the same.

    Args:
        model: See `R1Reranker.from_pretrained`, as the others.
        strategy: None: the model's own.
        thinking: None: the model's own.
        on_error: What an engine fault does.
    """

    model: str | None = None
    strategy: str | None = None
    thinking: int | None = None
    on_error: OnError = "partial"

    def load(self) -> R1Reranker:
        """The reranker; whoever asks while it is being loaded waits for it, and nobody else."""
        found = _loaded.get(self)
        if found is None:
            with _loading:
                found = _loaded.get(self)  # somebody else may have loaded it meanwhile
                if found is None:
                    found = _loaded[self] = R1Reranker.from_pretrained(
                        self.model, strategy=self.strategy, thinking=self.thinking, on_error=self.on_error
                    )
        return found

    async def aload(self) -> R1Reranker:
        """The reranker, loaded beside the event loop and not on it."""
        found = _loaded.get(self)
        return found if found is not None else await asyncio.to_thread(self.load)

    def unload(self) -> None:
        """Lets go of the reranker: it is freed once nobody uses it, and loaded again when somebody asks."""
        with _loading:
            _loaded.pop(self, None)


class Held(Generic[T]):
    """Holds a live object for an adapter: its copies share the object, its pickle comes back without.

    Args:
        value: The object.
        argument: Of the adapter, named where the object is missing.
    """

    def __init__(self, value: T | None, argument: str) -> None:
        self._value = value
        self._argument = argument

    def get(self) -> T:
        """The object.

        Raises:
            InputError: This came out of a pickle or a dict.
        """
        if self._value is None:
            raise InputError(self._argument, "was not serialised with the rest; build it, and pass it again")
        return self._value

    def __copy__(self) -> Held[T]:
        return self

    def __deepcopy__(self, memo: object) -> Held[T]:
        return self

    def __reduce__(self) -> tuple[type[Held[T]], tuple[None, str]]:
        return type(self), (None, self._argument)


class Given(Held[R1Reranker]):
    """A built reranker, with the methods of `Pretrained`."""

    def load(self) -> R1Reranker:
        """The reranker; see `get`."""
        return self.get()

    async def aload(self) -> R1Reranker:
        """The reranker; see `get`."""
        return self.get()
