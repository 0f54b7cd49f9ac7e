"""A strategy asks, is answered, and returns a permutation: the perfect one if the answers are perfect."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank import DRanker, IRanker
from r1_rerank.errors import InputError, InputTypeError
from r1_rerank.strategies import ALPHABET, Answer, Strategy, Window, fallen_labels, survival_scores

Responder = Callable[[Window], Answer]


def oracle(relevance: Sequence[float]) -> Responder:
    """Knows how relevant each document is, and answers rightly whatever is asked."""

    def answer(window: Window) -> Answer:
        best_first = sorted(window.live, key=lambda label: -relevance[window.live[label]])
        return Answer(tuple(best_first if window.ask == "rank" else reversed(best_first))[: window.pick])

    return answer


def silent(window: Window) -> Answer:
    """Never says anything that could be used."""
    return Answer()


def play(strategy: Strategy, count: int, responder: Responder, **options: Any) -> tuple[list[Window], tuple[int, ...]]:
    """Every window of a run, and the order it returns."""
    run, windows = strategy.run(count, **options), []
    try:
        window = next(run)
        while True:
            windows.append(window)
            window = run.send(responder(window))
    except StopIteration as stop:
        return windows, stop.value


def shuffled(count: int, seed: int) -> list[int]:
    relevance = list(range(count))
    random.Random(seed).shuffle(relevance)
    return relevance


def best_first(relevance: Sequence[float]) -> list[int]:
    return sorted(range(len(relevance)), key=lambda index: -relevance[index])


# Worked examples


def test_three_documents_eliminated_with_a_new_prompt_for_each_step() -> None:
    windows, order = play(IRanker(form="rewrite"), 3, oracle([2, 1, 3]))
    shared: dict[str, Any] = {"number": 0, "ask": "eliminate", "pick": 1, "removed": ()}
    assert windows == [
        Window(candidates=(0, 1, 2), labels=("A", "B", "C"), standing=(0, 1, 2), **shared),
        Window(candidates=(0, 2), labels=("A", "B"), standing=(0, 2, 1), **shared),
    ]
    assert order == (2, 0, 1)


def test_three_documents_eliminated_in_one_conversation() -> None:
    windows, order = play(IRanker(form="append"), 3, oracle([2, 1, 3]))
    shared: dict[str, Any] = {"number": 0, "ask": "eliminate", "pick": 1}
    shown: dict[str, Any] = {"candidates": (0, 1, 2), "labels": ("A", "B", "C")}
    assert windows == [
        Window(removed=(), standing=(0, 1, 2), **shown, **shared),
        Window(removed=(("B",),), standing=(0, 2, 1), **shown, **shared),
    ]
    assert windows[1].live == {"A": 0, "C": 2}
    assert order == (2, 0, 1)


def test_three_documents_ranked_at_once() -> None:
    (window,), order = play(DRanker(), 3, oracle([2, 1, 3]))
    assert (window.ask, window.pick, window.candidates, window.labels) == ("rank", 3, (0, 1, 2), ("A", "B", "C"))
    assert order == (2, 0, 1)


@pytest.mark.parametrize("form", ["rewrite", "append"])
def test_several_fall_in_each_step(form: Any) -> None:
    windows, order = play(IRanker(form=form, drop=3), 8, oracle(range(8)))
    assert [window.pick for window in windows] == [3, 3, 1]
    assert [tuple(window.live.values()) for window in windows] == [tuple(range(8)), tuple(range(3, 8)), (6, 7)]
    assert windows[1].standing == (3, 4, 5, 6, 7, 2, 1, 0)
    assert order == (7, 6, 5, 4, 3, 2, 1, 0)


@pytest.mark.parametrize("strategy", [IRanker(), IRanker(form="append"), IRanker(drop=4), DRanker()])
def test_sixty_documents_in_windows_of_twenty_from_the_tail(strategy: Strategy) -> None:
    # The last of the incoming order are the best, so they have to climb the whole list.
    windows, order = play(strategy, 60, oracle(range(60)))
    shown = {window.number: sorted(window.live.values()) for window in reversed(windows)}  # the first of each number
    top = list(range(50, 60))
    assert shown == {
        0: [*range(40, 50), *top],
        1: [*range(30, 40), *top],
        2: [*range(20, 30), *top],
        3: [*range(10, 20), *top],
        4: [*range(10), *top],
    }
    # Those that fall take the worst ranks that are free, the first of them the very last.
    fallen = [range(10), range(10, 20), range(20, 30), range(30, 40), range(40, 50)]
    assert order == (*reversed(top), *(index for group in fallen for index in reversed(group)))


def test_survivors_of_an_elimination_move_up_in_their_incoming_order() -> None:
    windows, _ = play(IRanker(), 60, oracle([-abs(index - 45) for index in range(60)]))
    (second, *_) = [window for window in windows if window.number == 1]
    assert second.candidates == (*range(30, 40), *range(40, 50))
    assert second.standing[-10:] == (50, 51, 52, 53, 54, 55, 56, 57, 58, 59)


def test_survivors_of_a_ranking_move_up_in_the_answered_order() -> None:
    windows, _ = play(DRanker(), 60, oracle(range(60)))
    assert windows[1].candidates == (*range(30, 40), *range(59, 49, -1))
    assert windows[1].standing == (*range(40), *range(59, 39, -1))


def test_a_list_that_fits_into_one_prompt_needs_no_windows() -> None:
    assert play(DRanker(), 52, silent)[0][0].candidates == tuple(range(52))
    assert play(DRanker(windows="always"), 52, silent)[0][0].candidates == tuple(range(32, 52))
    assert play(DRanker(windows="always"), 20, silent)[0][0].candidates == tuple(range(20))


def test_a_prompt_that_holds_less_gets_smaller_windows_in_the_same_proportion() -> None:
    windows, _ = play(DRanker(window=20, stride=10), 20, silent, capacity=8)
    assert [len(window.candidates) for window in windows] == [8, 8, 8, 8]
    assert [window.candidates[0] for window in windows] == [12, 8, 4, 0]
    windows, order = play(IRanker(window=20, stride=1), 5, oracle(range(5)), capacity=2)
    assert order[0] == 4
    assert {len(window.live) for window in windows} == {2}


# What perfect answers give


@given(relevance=st.permutations(range(30)), drop=st.integers(1, 5), form=st.sampled_from(["rewrite", "append"]))
def test_perfect_answers_give_the_perfect_order(relevance: list[int], drop: int, form: Any) -> None:
    perfect = best_first(relevance)
    windows, order = play(IRanker(drop=drop, form=form), 30, oracle(relevance))
    assert list(order) == perfect
    assert len(windows) == -(-29 // drop)
    windows, order = play(DRanker(), 30, oracle(relevance))
    assert list(order) == perfect
    assert len(windows) == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("strategy", "calls"),
    [
        (IRanker(), 999),
        (IRanker(form="append"), 999),
        # 98 windows drop 10 each, four times 2 and one 2 left over; the last one drops 19.
        (IRanker(drop=3), 98 * 4 + 7),
        (DRanker(), 99),
    ],
)
def test_the_top_10_of_1000_documents_come_out_right(strategy: Strategy, calls: int, seed: int) -> None:
    relevance = shuffled(1000, seed)
    windows, order = play(strategy, 1000, oracle(relevance))
    assert list(order[:10]) == best_first(relevance)[:10]
    assert sorted(order) == list(range(1000))
    assert len(windows) == calls
    assert max(len(window.candidates) for window in windows) == 20


@pytest.mark.parametrize("strategy", [IRanker(), IRanker(drop=3), IRanker(form="append"), DRanker()])
@pytest.mark.parametrize("count", [2, 5, 60])
def test_answers_without_a_label_leave_the_incoming_order(strategy: Strategy, count: int) -> None:
    windows, order = play(strategy, count, silent)
    assert order == tuple(range(count))
    assert all(window.standing == order for window in windows)


@pytest.mark.parametrize("strategy", [IRanker(), DRanker()])
@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_asked_about_less_than_two_documents(strategy: Strategy, count: int) -> None:
    assert play(strategy, count, silent) == ([], tuple(range(count)))


def test_what_a_ranking_left_out_follows_in_incoming_order() -> None:
    _, order = play(DRanker(), 5, lambda window: Answer(("D", "B")))
    assert order == (3, 1, 0, 2, 4)


# Whatever is answered

strategies = st.builds(
    lambda make, window, stride, windows: make(window=window, stride=min(stride, window - 1), windows=windows),
    st.sampled_from([DRanker, IRanker, lambda **options: IRanker(form="append", **options)])
    | st.integers(1, 5).map(lambda drop: lambda **options: IRanker(drop=drop, **options)),
    st.integers(2, 22),
    st.integers(1, 20),
    st.sampled_from(["auto", "always"]),
)


@given(
    strategy=strategies,
    count=st.integers(0, 70),
    capacity=st.none() | st.integers(2, 60),
    seed=st.none() | st.integers(0, 9),
    answers=st.randoms(use_true_random=False),
)
def test_a_run_can_end_anywhere_and_nothing_is_lost(
    strategy: Strategy, count: int, capacity: int | None, seed: int | None, answers: random.Random
) -> None:
    everything = list(range(count))

    def anything(window: Window) -> Answer:
        assert sorted(window.standing) == everything
        assert len(set(window.labels)) == len(window.labels) == len(window.candidates) <= min(capacity or 52, 52)
        assert 1 <= window.pick <= len(window.live)
        return Answer(tuple(answers.sample(sorted(window.live), answers.randint(0, window.pick))))

    windows, order = play(strategy, count, anything, capacity=capacity, seed=seed)
    assert sorted(order) == everything
    assert windows or count < 2


# Labels


@pytest.mark.parametrize("strategy", [IRanker(), IRanker(form="append"), DRanker(window=5, stride=2, windows="always")])
def test_labels_can_be_permuted_by_seed(strategy: Strategy) -> None:
    def labels(seed: int | None) -> list[tuple[str, ...]]:
        return [window.labels for window in play(strategy, 12, silent, seed=seed)[0]]

    assert labels(7) == labels(7)
    assert labels(7) != labels(8)
    assert labels(7) != labels(None)
    for permuted, plain in zip(labels(7), labels(None), strict=True):
        assert plain == tuple(ALPHABET[: len(plain)])
        assert sorted(permuted) == sorted(plain)


def test_permuted_labels_do_not_change_what_perfect_answers_give() -> None:
    relevance = shuffled(40, 0)
    for seed in range(3):
        assert list(play(IRanker(), 40, oracle(relevance), seed=seed)[1]) == best_first(relevance)


def test_a_shorter_alphabet_makes_windows() -> None:
    windows, order = play(DRanker(), 12, oracle(range(12)), alphabet="XYZUVW")
    assert windows[0].labels == ("X", "Y", "Z", "U", "V", "W")
    assert order[:3] == (11, 10, 9)


# What falls


@pytest.mark.parametrize(
    ("answer", "pick", "fallen"),
    [
        (Answer(("B",)), 1, ("B",)),
        (Answer(("B", "A")), 2, ("B", "A")),
        # One distribution tells as many as are wanted, worst first.
        (Answer(("B",), {"A": -3.0, "B": -0.2, "C": -2.0, "D": -4.0}), 3, ("B", "C", "A")),
        # Without one, the last of the incoming order fall with it.
        (Answer(("B",)), 3, ("B", "D", "C")),
        # Nothing usable was answered: what the distribution says is not trusted, and the order stays.
        (Answer(()), 2, ("D", "C")),
        (Answer((), {"A": -0.1, "B": -3.0, "C": -3.0, "D": -3.0}), 2, ("D", "C")),
    ],
)
def test_as_many_fall_as_were_asked_for(answer: Answer, pick: int, fallen: tuple[str, ...]) -> None:
    assert fallen_labels(answer, ["A", "B", "C", "D"], pick) == fallen


# Scores


def test_survival_by_hand() -> None:
    # 2 falls first, then 1; 0 survives (1 - 0.2) * (1 - 0.1), 1 (1 - 0.3) * (1 - 0.9), 2 (1 - 0.5).
    distributions = [{0: 0.2, 1: 0.3, 2: 0.5}, {0: 0.1, 1: 0.9}]
    assert survival_scores([0, 1, 2], distributions) == pytest.approx([0.72, 0.07, 0.07])


def test_scores_never_increase_though_survival_may() -> None:
    # In windows: 3 fell early and was hardly doubted, 2 fell late after many doubts.
    distributions = [{2: 0.4, 3: 0.6}, {1: 0.3, 2: 0.7}, {0: 0.5, 1: 0.5}]
    assert survival_scores([0, 1, 2, 3], distributions) == pytest.approx([0.5, 0.35, 0.18, 0.18])


def test_certainty_and_ignorance() -> None:
    assert survival_scores([1, 0], [{0: 1.0, 1: 0.0}]) == [1.0, 0.0]
    assert survival_scores([0, 1, 2], []) == [1.0, 1.0, 1.0]
    assert survival_scores([], []) == []
    # Rounding in an engine may leave a probability a little above one.
    assert survival_scores([0, 1], [{0: -1e-9, 1: 1 + 1e-9}]) == [1.0, 0.0]


@given(
    order=st.permutations(range(6)),
    distributions=st.lists(st.dictionaries(st.integers(0, 5), st.floats(0, 1)), max_size=6),
)
def test_scores_are_probabilities_in_falling_order(order: list[int], distributions: list[dict[int, float]]) -> None:
    scores = survival_scores(order, distributions)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert scores == sorted(scores, reverse=True)


# Bad options


@pytest.mark.parametrize("strategy", [IRanker, DRanker])
@pytest.mark.parametrize(
    ("options", "error", "at_fault"),
    [
        ({"window": 1}, InputError, "window"),
        ({"window": 0}, InputError, "window"),
        ({"window": -20}, InputError, "window"),
        ({"window": 20.0}, InputTypeError, "window"),
        ({"window": "20"}, InputTypeError, "window"),
        ({"window": True}, InputTypeError, "window"),
        ({"window": None}, InputTypeError, "window"),
        ({"stride": 0}, InputError, "stride"),
        ({"stride": 20}, InputError, "stride"),
        ({"window": 5}, InputError, "stride"),
        ({"stride": 1.0}, InputTypeError, "stride"),
        ({"windows": "never"}, InputError, "windows"),
        ({"windows": True}, InputError, "windows"),
        ({"windows": ["auto"]}, InputError, "windows"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    strategy: Any, options: dict[str, Any], error: type[InputError], at_fault: str
) -> None:
    with pytest.raises(error) as caught:
        strategy(**options)
    assert caught.value.argument == at_fault


@pytest.mark.parametrize(
    ("options", "error", "at_fault"),
    [
        ({"drop": 0}, InputError, "drop"),
        ({"drop": -1}, InputError, "drop"),
        ({"drop": 1.0}, InputTypeError, "drop"),
        ({"drop": True}, InputTypeError, "drop"),
        ({"form": "prepend"}, InputError, "form"),
        ({"form": None}, InputError, "form"),
    ],
)
def test_so_is_one_of_eliminations_own(options: dict[str, Any], error: type[InputError], at_fault: str) -> None:
    with pytest.raises(error) as caught:
        IRanker(**options)
    assert caught.value.argument == at_fault


def test_the_message_says_what_is_allowed() -> None:
    with pytest.raises(InputError, match=r"^stride: 20 is not between 1 and window - 1 = 19$"):
        DRanker(stride=20)
    form: Any = "prepend"
    with pytest.raises(InputError, match=r"^form: 'prepend' is not one of rewrite, append$"):
        IRanker(form=form)


@pytest.mark.parametrize("strategy", [IRanker(), DRanker()])
@pytest.mark.parametrize("capacity", [1, 0, -1])
def test_a_prompt_must_hold_two_documents(strategy: Strategy, capacity: int) -> None:
    with pytest.raises(InputError, match=r"^capacity: "):
        play(strategy, 5, silent, capacity=capacity)
    with pytest.raises(InputError, match=r"^capacity: "):
        play(strategy, 5, silent, alphabet="A")
