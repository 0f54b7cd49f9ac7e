"""What vLLM is asked for one answer, call after call, and what is counted, told by replies that it could give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from r1_rerank.engines.base import Completion, GenerationRequest
from r1_rerank.engines.tokenization import ChatTokenizer
from r1_rerank.engines.vllm_answers import Answer, Call
from r1_rerank.errors import EngineError

PROMPT = list(range(100, 140))


@pytest.fixture(scope="module")
def chat(weights: str) -> ChatTokenizer:
    return ChatTokenizer(AutoTokenizer.from_pretrained(weights))


def reply(
    tokens: list[int],
    *,
    cached: int = 0,
    finish: str | None = "length",
    stop: int | str | None = None,
    **logprobs: float,
) -> Any:
    """A `vllm.RequestOutput`; log-probabilities are those of its only token."""
    reported = [{int(token[1:]): SimpleNamespace(logprob=value) for token, value in logprobs.items()}]
    output = SimpleNamespace(token_ids=tokens, logprobs=reported, finish_reason=finish, stop_reason=stop)
    return SimpleNamespace(num_cached_tokens=cached, outputs=[output])


def play(chat: ChatTokenizer, replies: list[Any], **request: Any) -> tuple[Completion, list[Call]]:
    """The completion, and what vLLM was asked on the way."""
    answering = Answer(GenerationRequest(messages=[], **request), PROMPT, chat).write()
    calls: list[Call] = []
    given: Any = None
    for following in [*replies, None]:
        try:
            calls.append(answering.send(given))
        except StopIteration as stop:
            assert following is None, "it asked for less than there is"
            completion: Completion = stop.value
            return completion, calls
        given = following
    raise AssertionError("it asked for more than there is")


def scores(chat: ChatTokenizer, **logprobs: float) -> dict[str, float]:
    return {f"t{chat.label_ids[label]}": value for label, value in logprobs.items()}


@pytest.mark.parametrize("ending", ["closed", "ended", "cut"])
def test_a_label_is_asked_for_behind_the_thinking_however_it_ended(chat: ChatTokenizer, ending: str) -> None:
    thought = chat.encode("The moon does it.")
    (end,) = chat.stops
    written, finish, stop, kept, forced = {
        "closed": (chat.encode("The moon does it.</think>"), "stop", "</think>", None, "\n<answer>["),
        "ended": ([*thought, end], "stop", end, thought, "\n</think>\n<answer>["),
        "cut": (thought, "length", None, thought, "\n</think>\n<answer>["),
    }[ending]
    completion, calls = play(
        chat,
        [
            reply(written, cached=16, finish=finish, stop=stop),
            reply([1], cached=32, **scores(chat, A=-1.0, B=-2.0)),
        ],
        labels=("A", "B"),
        thinking_budget=len(written),
    )
    assert calls[0].tokens == PROMPT
    assert calls[0].sampling["max_tokens"] == len(written)
    assert calls[1].tokens == [*PROMPT, *(written if kept is None else kept), *chat.encode(forced)]
    assert completion.text == "<answer>[A]</answer>"
    assert completion.thinking == "The moon does it."
    assert completion.finish_reason == ("length" if ending == "cut" else "stop")
    usage = completion.usage
    # The last token sampled was never fed forward, unless it ended the turn and was taken out.
    unfed = 0 if ending == "ended" else 1
    assert usage.prompt_computed == (len(PROMPT) - 16) + (len(calls[1].tokens) - 32 - unfed)
    assert (usage.prompt_reused, usage.thinking, usage.generated) == (16, len(written), len(written) + 1)


def test_each_label_is_asked_for_behind_those_before(chat: ChatTokenizer) -> None:
    ids = chat.label_ids
    completion, calls = play(
        chat,
        [
            reply([1], cached=0, **scores(chat, A=-3.0, B=-1.0, C=-2.0)),
            reply([1], cached=32, **scores(chat, A=-2.0, C=-1.0)),
        ],
        labels=("A", "B", "C"),
        pick=3,
    )
    assert completion.text == "<answer>[B] > [C] > [A]</answer>"
    assert [call.sampling["allowed_token_ids"] for call in calls] == [
        [ids["A"], ids["B"], ids["C"]],
        [ids["A"], ids["C"]],
    ]
    assert calls[1].tokens == [*PROMPT, ids["B"], *chat.between]
    usage = completion.usage
    # The last label needs no call: one alone is left.
    assert (usage.prompt_computed, usage.generated) == (len(PROMPT) + len(chat.between) + len(PROMPT) - 32, 2)


def test_free_text_ends_where_vllm_says(chat: ChatTokenizer) -> None:
    completion, (call,) = play(
        chat,
        [reply(chat.encode("[B] is worst</answer>"), finish="stop", stop="</answer>")],
        labels=None,
        max_answer_tokens=9,
    )
    assert (completion.text, completion.finish_reason) == ("[B] is worst</answer>", "stop")
    assert (call.sampling["stop"], call.sampling["max_tokens"]) == (["</answer>"], 9)
    assert set(call.sampling["stop_token_ids"]) == chat.stops


@pytest.mark.parametrize("finish", ["abort", "error", None])
@pytest.mark.parametrize(
    "wanted", [{"labels": ("A", "B")}, {"labels": ("A", "B"), "thinking_budget": 8}, {"labels": None}]
)
def test_a_request_that_vllm_gave_up_is_no_answer(
    chat: ChatTokenizer, finish: str | None, wanted: dict[str, Any]
) -> None:
    given_up = reply([], finish=finish)
    with pytest.raises(EngineError, match=f"gave the request up.*{finish}"):
        play(chat, [given_up, given_up], **wanted)
