"""A well-formed answer is read as it stands; anything else is read as far as it is certain, and says what was wrong.

Well-formed is an optional `<think>…</think>` and then `<answer>[X] > [Y]</answer>` with exactly the labels asked for.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from r1_rerank.parsing import parse
from r1_rerank.prompts import render_answer
from r1_rerank.strategies import ALPHABET

LIVE = ("A", "B", "C")
RANKED = "<answer>[C] > [A] > [B]</answer>"

WELL_FORMED = re.compile(
    r"\s*(?:(?:<think>)?(?:(?!</?think>).)*</think>\s*)?<answer>(\[[A-Za-z]\](?: > \[[A-Za-z]\])*)</answer>\s*",
    re.DOTALL,
)


def kinds(completion: str, pick: int = 1) -> list[str]:
    return [kind for kind, _ in parse(completion, LIVE, pick).faults]


# What is promised


@pytest.mark.parametrize(
    ("completion", "pick", "labels", "thinking"),
    [
        ("<answer>[B]</answer>", 1, ("B",), ""),
        ("\n <answer>[B]</answer>\n", 1, ("B",), ""),
        ("<answer>[B] > [A]</answer>", 2, ("B", "A"), ""),
        (RANKED, 3, ("C", "A", "B"), ""),
        ("<think>B is off topic.</think><answer>[B]</answer>", 1, ("B",), "B is off topic."),
        ("<think>\nOne line.\nAnother.\n</think>\n\n<answer>[B]</answer>", 1, ("B",), "One line.\nAnother."),
        ("<think></think><answer>[B]</answer>", 1, ("B",), ""),
        # The chat template opened the thinking, so the completion only closes it.
        ("B is off topic.</think><answer>[B]</answer>", 1, ("B",), "B is off topic."),
        # A draft in the thinking is no answer.
        ("<think>Perhaps [A], perhaps <answer>[C]</answer>.</think><answer>[B]</answer>", 1, ("B",), None),
    ],
)
def test_a_well_formed_answer(completion: str, pick: int, labels: tuple[str, ...], thinking: str | None) -> None:
    answer = parse(completion, LIVE, pick)
    assert answer.labels == labels
    assert answer.well_formed
    assert answer.faults == ()
    assert thinking is None or answer.thinking == thinking


@given(labels=st.permutations(ALPHABET), pick=st.integers(1, len(ALPHABET)))
def test_what_render_answer_writes_is_read_back(labels: list[str], pick: int) -> None:
    answer = parse(render_answer(labels[:pick]), ALPHABET, pick)
    assert answer.labels == tuple(labels[:pick])
    assert answer.well_formed


# How an answer can be wrong, and what is still certain of it


@pytest.mark.parametrize(
    ("completion", "pick", "labels", "faults"),
    [
        # Too few, too many, twice, unknown
        ("<answer>[B]</answer>", 2, ("B",), ["too_few"]),
        ("<answer>[B] > [A]</answer>", 1, ("B",), ["too_many"]),
        ("<answer>[B] > [B] > [A]</answer>", 3, ("B", "A"), ["repeated_label", "too_few"]),
        ("<answer>[Z] > [B]</answer>", 1, ("B",), ["unknown_label"]),
        ("<answer>[Z]</answer>", 1, (), ["unknown_label", "too_few"]),
        ("<answer>[b]</answer>", 1, (), ["unknown_label", "too_few"]),
        # Another form inside the tags
        ("<answer>B</answer>", 1, ("B",), ["answer_form"]),
        ("<answer> [ B ] </answer>", 1, ("B",), ["answer_form"]),
        ("<answer>C > A, B</answer>", 3, ("C", "A", "B"), ["answer_form"]),
        ("<answer>[C], [A] and [B]</answer>", 3, ("C", "A", "B"), ["answer_form"]),
        ("<answer>[C]>[A]>[B]</answer>", 3, ("C", "A", "B"), ["answer_form"]),
        ("<answer>The worst is [B].</answer>", 1, ("B",), ["answer_form"]),
        ("<answer>A passage about bees</answer>", 1, (), ["answer_form", "too_few"]),
        ("<answer></answer>", 1, (), ["answer_form", "too_few"]),
        # Digits, signs and full-width forms are no labels
        ("<answer>[2]</answer>", 1, (), ["answer_form", "too_few"]),
        ("<answer>[-1]</answer>", 1, (), ["answer_form", "too_few"]),
        ("<answer>２</answer>", 1, (), ["answer_form", "too_few"]),
        ("<answer>［Ｂ］</answer>", 1, (), ["answer_form", "too_few"]),
        ("<answer>[Ｂ]</answer>", 1, (), ["answer_form", "too_few"]),
        ("<answer>[AB]</answer>", 1, (), ["answer_form", "too_few"]),
        ("<answer>[B\x00]</answer>", 1, (), ["answer_form", "too_few"]),
        # Tags missing, twice, nested, the wrong way round
        ("<answer>[B]", 1, ("B",), ["unclosed_answer"]),
        ("<answer>[C] > [A] > [", 3, ("C", "A"), ["unclosed_answer", "answer_form", "too_few"]),
        ("<answer>[A]</answer><answer>[B]</answer>", 1, ("B",), ["repeated_tag"]),
        ("<answer>[A]</answer> or rather <answer>[B]</answer>", 1, ("B",), ["repeated_tag"]),
        ("<answer><answer>[B]</answer></answer>", 1, ("B",), ["outside_text", "answer_form"]),
        ("</answer>[B]<answer>", 1, (), ["unclosed_answer", "answer_form", "too_few"]),
        ("<ANSWER>[B]</ANSWER>", 1, ("B",), ["no_answer_tag"]),
        # Text around it
        ("It is <answer>[B]</answer>", 1, ("B",), ["outside_text"]),
        ("<answer>[B]</answer> since [A] fits.", 1, ("B",), ["outside_text"]),
        ("\x00<answer>[B]</answer>", 1, ("B",), ["outside_text"]),
        # Thinking that went wrong
        ("<think>B is off", 1, (), ["unclosed_thinking", "no_answer_tag", "too_few"]),
        ("<think>It is <answer>[B]</answer>", 1, (), ["unclosed_thinking", "no_answer_tag", "too_few"]),
        ("<answer>[B]</answer><think>Why?", 1, ("B",), ["unclosed_thinking"]),
        ("Well, <think>why?</think><answer>[B]</answer>", 1, ("B",), ["repeated_tag"]),
        ("<think><think>why?</think><answer>[B]</answer>", 1, ("B",), ["repeated_tag"]),
        ("<think>a</think><think>b</think><answer>[B]</answer>", 1, ("B",), ["repeated_tag", "outside_text"]),
        ("<answer>[B]</answer></think>", 1, (), ["no_answer_tag", "too_few"]),
        # Nothing
        ("", 1, (), ["no_answer_tag", "too_few"]),
        ("\n\t ", 1, (), ["no_answer_tag", "too_few"]),
        ("\x00", 1, (), ["no_answer_tag", "too_few"]),
    ],
)
def test_a_wrong_answer(completion: str, pick: int, labels: tuple[str, ...], faults: list[str]) -> None:
    answer = parse(completion, LIVE, pick)
    assert answer.labels == labels
    assert list(dict.fromkeys(kinds(completion, pick))) == faults
    assert not answer.well_formed


def test_every_fault_has_a_sentence() -> None:
    answer = parse("<answer>[Z] > [A] > [A]</answer>", LIVE, 2)
    assert dict(answer.faults) == {
        "unknown_label": "[Z] is not one of the live labels",
        "repeated_label": "[A] stands twice",
        "too_few": "1 labels, 2 asked for",
    }


# Prose


@pytest.mark.parametrize(
    "prose",
    [
        "A is the best and B is worse than C.",
        "I would drop 2 of 3.",
        "Passage 1, then 3, then 2.",
        "1. B\n2. A\n3. C",
        "Answer: B",
        "(B)",
        "**B**",
        "Ｂ is off topic, ２ is not.",
        "-1",
        "[1] > [2] > [3]",
        "[the worst] is a matter of taste",
    ],
)
@pytest.mark.parametrize("pick", [1, 2, 3])
def test_letters_and_digits_in_prose_are_never_taken(prose: str, pick: int) -> None:
    assert parse(prose, LIVE, pick).labels == ()
    assert kinds(prose, pick) == ["no_answer_tag", "too_few"]


def test_a_label_in_prose_counts_where_no_other_could_be_meant() -> None:
    assert parse("The worst is [B], surely [B].", LIVE).labels == ("B",)
    assert parse("[C] > [A] > [B]", LIVE, 3).labels == ("C", "A", "B")
    assert kinds("The worst is [B].") == ["no_answer_tag"]


@pytest.mark.parametrize("pick", [1, 2])
def test_more_labels_in_prose_than_asked_for_are_a_guess_and_not_taken(pick: int) -> None:
    # Taking the first of them would throw out the passages that the model praises.
    assert parse("[A] fits best, so I would drop [B] and [C].", LIVE, pick).labels == ()


# Whatever is written


TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
LABELS = ["[A]", "[B]", "[C]", "[Z]", " > "]
NOISE = ["A", "B", "2", "[2]", "［Ｂ］", " ", "\n", "\x00", "why", "[", "]", "<", "-1"]
WHOLE = [RANKED, "<answer>[A]</answer>", "<answer>[B] > [A]</answer>"]
fragments = st.sampled_from([*TAGS, *LABELS, *NOISE, *WHOLE])
completions = st.lists(fragments, max_size=8).map("".join) | st.text(max_size=30)


@given(completion=completions, pick=st.integers(1, 3))
@example(completion="<think>x</think>" + RANKED, pick=3)
def test_well_formed_is_what_a_strict_reading_accepts(completion: str, pick: int) -> None:
    answer = parse(completion, LIVE, pick)
    strict = WELL_FORMED.fullmatch(completion)
    named = re.findall("[A-Za-z]", strict[1]) if strict else []
    assert answer.well_formed == (len(set(named)) == len(named) == pick and set(named) <= set(LIVE))
    if answer.well_formed:
        assert answer.labels == tuple(named)


@given(completion=completions, pick=st.integers(1, 3))
def test_labels_are_live_and_different_and_no_more_than_asked_for(completion: str, pick: int) -> None:
    labels = parse(completion, LIVE, pick).labels
    assert set(labels) <= set(LIVE)
    assert len(set(labels)) == len(labels) <= pick
