"""Elimination the way of the paper's released code: every step sends the whole remaining list again, in lock-step."""

from __future__ import annotations

from collections.abc import Sequence

from r1_rerank import PassageRanking, PromptTemplate, Usage
from r1_rerank.engines import Engine, GenerationRequest
from r1_rerank.parsing import parse
from r1_rerank.strategies import ALPHABET, Window


def eliminate_in_lockstep(engine: Engine, lists: Sequence[tuple[str, Sequence[str]]], *, thinking: int = 0) -> Usage:
    """Ranks several queries together, all for as many steps as the longest list takes.

    A query whose list has come down to one candidate goes on being asked, as there. Lists longer than the alphabet
    use letters again: only the cost counts here.
    """
    template = PromptTemplate.builtin("passage")
    live = [list(range(len(documents))) for _, documents in lists]
    usage = Usage()
    for _ in range(max(map(len, live)) - 1):
        requests = []
        for (query, documents), left in zip(lists, live, strict=True):
            labels = tuple(ALPHABET[place % len(ALPHABET)] for place in range(len(left)))
            window = Window(
                number=0, ask="eliminate", pick=1, candidates=tuple(left), labels=labels, removed=(), standing=()
            )
            messages = template.render(PassageRanking(query), documents, window, thinking=thinking > 0)
            # Of a single label the model would not be asked: nothing is left to choose.
            asked = tuple(dict.fromkeys(labels)) if len(left) > 1 else tuple(ALPHABET[:2])
            requests.append(GenerationRequest(messages=messages, labels=asked, thinking_budget=thinking))
        for left, request, completion in zip(live, requests, engine.generate(requests), strict=True):
            assert completion.error is None, completion.error
            usage += completion.usage
            if len(left) > 1:
                labels = request.labels or ()
                left.pop(labels.index(parse(completion.text, labels).labels[0]))
    return usage
