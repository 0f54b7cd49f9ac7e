"""What is held out where a recipe names no rows for validation: evenly, and of no source too much."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.errors import InputError
from r1_rerank.rows import Row
from r1_rerank.training import holding
from r1_rerank.training.holding import even_share, hold_some_out
from r1_rerank.training.run import Training
from r1_rerank.training.sources import Source, check_apart, hold_out


@pytest.fixture
def make_source(toy_rows: Callable[..., list[Row]]) -> Callable[[str, int], Source]:
    """A source of so many questions of its own."""
    return lambda name, count: Source(
        name=name, rows=tuple(replace(row, split="train") for row in toy_rows(count, split=name))
    )


def test_the_examples_hold() -> None:
    found = doctest.testmod(holding)
    assert (found.failed, found.attempted > 0) == (0, True)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 90))
def test_shares_are_even_and_no_more_than_are_wanted(sizes: list[int], total: int) -> None:
    each = even_share(sizes, total)
    taken = sum(min(size, each) for size in sizes)
    assert taken >= min(total, sum(sizes))
    assert sum(min(size, each - 1) for size in sizes) < total
    if min(sizes) * len(sizes) >= total:
        assert each <= -(-total // len(sizes))


@pytest.mark.parametrize("total", [1, 4, 9, 10])
def test_sources_that_are_large_enough_give_the_same_number(
    make_source: Callable[[str, int], Source], total: int
) -> None:
    """And the rows that they have always given, for trainings that are resumed."""
    passages = make_source("a", 30)
    shared = [make_source("b", 40), replace(make_source("b", 40), name="c")]
    sources = [passages, *shared]
    assert hold_some_out(sources, total, seed=3) == hold_out(sources, -(-total // 3), seed=3)


def test_larger_sources_stand_in_for_a_small_one(
    make_source: Callable[[str, int], Source], caplog: pytest.LogCaptureFixture
) -> None:
    train, held = hold_some_out([make_source("large", 300), make_source("small", 7)], 60)
    assert [len(source.rows) for source in held] == [58, 2]
    assert [len(source.rows) for source in train] == [242, 5]
    check_apart(train, held)
    assert not caplog.text


def test_too_few_rows_are_told(make_source: Callable[[str, int], Source], caplog: pytest.LogCaptureFixture) -> None:
    _, held = hold_some_out([make_source("some", 12), make_source("few", 3)], 60)
    assert [len(source.rows) for source in held] == [4, 1]
    assert "5 questions are held out for validation, not 60" in caplog.text
    # The one question of a source is needed for training.
    train, held = hold_some_out([make_source("one", 1), make_source("some", 12)], 4)
    assert [(source.name, len(source.rows)) for source in (*train, *held)] == [("one", 1), ("some", 8), ("some", 4)]
    with pytest.raises(InputError, match=r"data\.validation_limit: no source has 3 questions"):
        hold_some_out([make_source("one", 1), make_source("two", 2)], 4)
    _, (held_out,) = hold_some_out([make_source("some", 3)], 1)
    with pytest.raises(InputError, match=r"validation_limit: 1 is too many for these rows.* 'twin' has no row of 1"):
        hold_some_out([make_source("some", 3), replace(held_out, name="twin")], 1)


def test_all_that_is_held_out_is_ranked(
    make: Callable[..., Training], make_source: Callable[[str, int], Source], tmp_path: object
) -> None:
    from pathlib import Path

    from r1_rerank.rows import write_rows

    folder = Path(str(tmp_path))
    for name, count in (("large", 60), ("small", 6)):
        write_rows(make_source(name, count).rows, folder / f"{name}.jsonl")
    data = {"train": [{"rows": str(folder / f"{name}.jsonl")} for name in ("large", "small")], "validation_limit": 12}
    training = make(data=data)
    assert [len(source.rows) for source in training.inputs.validation] == [10, 2]
    assert training.validator is not None
    assert [len(evaluator.rows) for evaluator in training.validator.evaluators()] == [10, 2]
