"""The tokenizer of a vLLM server, asked through its `/tokenize`; what it said is remembered for a while."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence

from ..errors import EngineError
from ..prompts import Message
from .openai_replies import Body, estimate_tokens
from .openai_server import Server

_REMEMBERED = 2**19
"""Tokens of prompts and texts that are remembered: about 20 MB, and long enough to count a prompt and then send it."""
_COUNT_SECONDS = 3.0
"""Longest wait for a count, which takes milliseconds: nobody's deadline is to pass over it."""
_PAUSE = 10
"""How many times as long as a count was waited for in vain nobody is asked again."""


class RemoteTokenizer:
    """Tokens of prompts and texts.

    Args:
        server: Whom to ask.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._tokens: OrderedDict[object, list[int]] = OrderedDict()
        self._remembered = 0
        self._ask_again = 0.0
        """When counts may be asked for again."""

    async def render(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a prompt, chat template included, ready for the model's turn."""
        return await self._ids(_key(messages), _rendering(messages))

    async def encode(self, text: str) -> list[int]:
        """Tokens of a text as it stands."""
        return await self._ids(text, {"prompt": text, "add_special_tokens": False})

    async def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt; an estimate where the server does not tell them at once.

        It is asked once and for a few seconds at most. Where that is in vain, it is left alone for ten times as long
        as it took, so that a server that hangs takes little time from whoever counts much.
        """
        key, asked = _key(messages), time.monotonic()
        if key in self._tokens or asked >= self._ask_again:
            try:
                async with asyncio.timeout(min(_COUNT_SECONDS, self._server.timeout)):
                    return len(await self._ids(key, _rendering(messages), once=True))
            except (EngineError, TimeoutError):
                failed = time.monotonic()
                self._ask_again = failed + _PAUSE * (failed - asked)
        return estimate_tokens(messages)

    async def _ids(self, key: object, body: Body, *, once: bool = False) -> list[int]:
        known = self._tokens.get(key)
        if known is None:
            known = (await self._server.beside("/tokenize", body, once=once)).get("tokens")
            if not isinstance(known, list):
                raise EngineError("the server's /tokenize answered without tokens")
            self._remembered += len(known) - len(self._tokens.get(key, ()))  # another request may have been faster
            self._tokens[key] = known
        self._tokens.move_to_end(key)
        while self._remembered > _REMEMBERED:
            self._remembered -= len(self._tokens.popitem(last=False)[1])
        return list(known)


def _key(messages: Sequence[Message]) -> object:
    return tuple((turn["role"], turn["content"]) for turn in messages)


def _rendering(messages: Sequence[Message]) -> Body:
    return {"messages": list(messages), "add_generation_prompt": True}
