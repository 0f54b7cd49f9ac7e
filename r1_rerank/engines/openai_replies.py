"""Reads what OpenAI-compatible servers send back; they leave out, and add, what they like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..documents import Usage
from ..errors import EngineError
from ..prompts import Message

Body = dict[str, Any]
"""JSON of a request or of a reply."""

_BYTES_PER_TOKEN = 3
_TURN_TOKENS = 8
"""What a chat template puts around a turn, about."""
_GIVEN_UP = ("abort", "cancelled", "error", "insufficient_system_resource")
"""Why servers say that an answer ends in the middle, beside the reasons that OpenAI knows."""
_UNKNOWN = -9999.0
"""Written for a log-probability that is not known, or that is no number in JSON."""


def first_choice(reply: Body) -> Body:
    """The first choice of a reply.

    Raises:
        EngineError: There is none, or it was never written to its end.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EngineError("the server answered without choices")
    finish = choices[0].get("finish_reason")
    if finish == "content_filter":
        raise EngineError("the server's content filter stopped the answer")
    if finish in _GIVEN_UP:
        raise EngineError(f"the server gave the request up: {finish}")
    return choices[0]


def usage_of(reply: Body) -> Usage:
    """What the server counted; where it does not tell what came from a cache, all of the prompt was computed."""
    usage = mapping(reply.get("usage"))
    prompt = _count(usage.get("prompt_tokens"))
    reused = min(prompt, _count(mapping(usage.get("prompt_tokens_details")).get("cached_tokens")))
    return Usage(
        prompt_computed=prompt - reused,
        prompt_reused=reused,
        generated=_count(usage.get("completion_tokens")),
        thinking=_count(mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")),
    )


def mapping(value: object) -> Mapping[str, Any]:
    """The value, where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def renormalise(logprobs: Mapping[str, object], live: Sequence[str]) -> dict[str, float] | None:
    """The distribution over the live labels, None unless a log-probability is known for each."""
    known = {
        label: float(value)
        for label in live
        if isinstance(value := logprobs.get(label), int | float) and _UNKNOWN < value < math.inf
    }
    if len(known) < len(live):
        return None
    highest = max(known.values())
    total = highest + math.log(sum(math.exp(value - highest) for value in known.values()))
    return {label: value - total for label, value in known.items()}


def estimate_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a prompt by its bytes, rather too many: only the model's own tokenizer knows."""
    return sum(_TURN_TOKENS + -(-len(turn["content"].encode()) // _BYTES_PER_TOKEN) for turn in messages)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
