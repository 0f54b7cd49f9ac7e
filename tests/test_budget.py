"""A budget names the limit that the next call would break; documents that must share a context do so fairly."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank import Budget, Usage
from r1_rerank.budget import NO_LIMIT, fair_cap, shorten
from r1_rerank.errors import InputError, InputTypeError

SPENT = Usage(calls=3, prompt_computed=700, prompt_reused=5000, generated=200, thinking=150)


# Limits


@pytest.mark.parametrize(
    ("budget", "seconds", "next_call", "reason"),
    [
        (Budget(calls=4), 0.0, 0, None),
        (Budget(calls=3), 0.0, 0, "the budget of 3 calls is used up"),
        # Reused tokens cost nothing.
        (Budget(tokens=1000), 0.0, 100, None),
        (Budget(tokens=1000), 0.0, 101, "the next call would take 1001 tokens, the budget is 1000"),
        (Budget(thinking_tokens=151), 0.0, 0, None),
        (Budget(thinking_tokens=150), 0.0, 0, "the budget of 150 thinking tokens is used up"),
        (Budget(seconds=1.5), 1.4, 0, None),
        (Budget(seconds=1.5), 1.5, 0, "the deadline of 1.5 s has passed"),
        (Budget(seconds=math.inf), 1e9, 0, None),
        (NO_LIMIT, 1e9, 10**9, None),
    ],
)
def test_the_limit_that_one_more_call_would_break(
    budget: Budget, seconds: float, next_call: int, reason: str | None
) -> None:
    assert budget.exceeded(SPENT, seconds, next_call) == reason


def test_the_last_thinking_is_cut_to_what_is_left() -> None:
    assert NO_LIMIT.thinking_left(512, SPENT) == 512
    assert Budget(thinking_tokens=1000).thinking_left(512, SPENT) == 512
    assert Budget(thinking_tokens=200).thinking_left(512, SPENT) == 50
    assert Budget(thinking_tokens=100).thinking_left(512, SPENT) == 0
    assert Budget(thinking_tokens=200).thinking_left(0, SPENT) == 0


@pytest.mark.parametrize("limit", ["calls", "tokens", "thinking_tokens", "seconds"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, InputError), (-1, InputError), (True, InputTypeError), ("3", InputTypeError)]
)
def test_a_limit_that_cannot_be_used_is_named(limit: str, value: Any, error: type[InputError]) -> None:
    with pytest.raises(error) as caught:
        Budget(**{limit: value})
    assert caught.value.argument == f"budget.{limit}"


def test_only_seconds_come_in_fractions() -> None:
    assert Budget(seconds=0.5).seconds == 0.5
    calls: Any = 1.5
    with pytest.raises(InputTypeError, match=r"^budget\.calls: expected a number, got float$"):
        Budget(calls=calls)
    with pytest.raises(InputError, match=r"^budget\.seconds: nan allows nothing"):
        Budget(seconds=math.nan)


# Sharing a context


@pytest.mark.parametrize(
    ("lengths", "total", "cap"),
    [
        ([10, 100, 300], 210, 100),
        ([10, 100, 300], 209, 99),
        ([300, 10, 300], 110, 50),
        ([10, 20], 100, 20),
        ([10, 20], 30, 20),
        ([5, 5, 5], 14, 4),
        ([5, 5, 5], 0, 0),
        ([5, 5, 5], -7, 0),
        ([], 100, 0),
    ],
)
def test_a_fair_cap_by_hand(lengths: list[int], total: int, cap: int) -> None:
    assert fair_cap(lengths, total) == cap


@given(lengths=st.lists(st.integers(0, 500), min_size=1, max_size=30), total=st.integers(-10, 5000))
def test_a_fair_cap_fits_and_could_not_be_larger(lengths: list[int], total: int) -> None:
    def together(cap: int) -> int:
        return sum(min(length, cap) for length in lengths)

    cap = fair_cap(lengths, total)
    assert together(cap) <= max(total, 0)
    assert cap == max(lengths) or together(cap + 1) > total


def words(text: str) -> int:
    return len(text.split())


@given(text=st.text(alphabet="ab 日\n\t"), limit=st.integers(0, 40))
def test_the_longest_run_of_leading_words_is_kept(text: str, limit: int) -> None:
    kept = shorten(text, limit, words).split()
    assert kept == text.split()[:limit]
    kept = shorten(text, limit, len).split()
    if len(kept) > 1:
        assert kept == text.split()[: len(kept)]
    assert len(" ".join(kept)) <= limit


def test_text_without_spaces_is_cut_within_its_first_word() -> None:
    assert shorten("キャッシュは鍵と値を保存します。", 5, len) == "キャッシュ"
    assert shorten("https://example.org/a/very/long/path and more", 8, len) == "https://"


@pytest.mark.parametrize("text", ["", " \n "])
def test_there_may_be_nothing_to_keep(text: str) -> None:
    assert shorten(text, 10, words) == ""
    assert shorten("some words", 0, len) == ""
