"""What an answer is worth in training: by hand, and against every fault of the paper's released code."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.metrics import ndcg
from r1_rerank.prompts import render_answer
from r1_rerank.training import rewards

LIVE = ["A", "B", "C"]
ONE_POSITIVE = [0.0, 1.0, 0.0]


def answers(*texts: str, relevance: Any = ONE_POSITIVE, live: Any = LIVE, **columns: Any) -> dict[str, Any]:
    """Columns as TRL passes them, the prompts among them."""
    count = len(texts)
    return {
        "prompts": ["<think> <answer>[A]</answer>"] * count,
        "completions": list(texts),
        "labels": [live] * count,
        "relevance": [relevance] * count,
    } | columns


def test_the_examples_hold() -> None:
    found = doctest.testmod(rewards)
    assert (found.failed, found.attempted >= 8) == (0, True)


def test_every_reward_takes_what_trl_passes() -> None:
    makers = {"recall_reward": (3,), "overlap_reward": (), "overlong_reward": (10, 5)}
    named = {name: value for name, value in vars(rewards).items() if name.endswith("_reward")}
    assert len(named) == 9
    for name, value in named.items():
        reward = value(*makers[name]) if name in makers else value
        assert "completions" in inspect.signature(reward).parameters
        assert len(reward(**answers("<answer>[A]</answer>"), completion_ids=[[1]], trainer_state=None)) == 1
        assert reward.__name__.endswith("_reward")


def test_an_elimination_by_hand() -> None:
    given = answers(*(f"<answer>[{label}]</answer>" for label in "ABCDE"), "", "I would drop B.")
    assert rewards.elimination_reward(**given) == [1.0, 0.0, 1.0, -0.5, -0.5, -1.0, -1.0]


def test_an_elimination_by_grades() -> None:
    given = answers("<answer>[A]</answer>", "<answer>[B]</answer>", "<answer>[C]</answer>", relevance=[3.0, 0.0, 2.0])
    assert rewards.elimination_regret_reward(**given) == pytest.approx([0.0, 1.0, 1 / 3])
    assert rewards.elimination_regret_reward(**answers("<answer>[A]</answer>", relevance=[1, 1, 1])) == [1.0]


@given(st.permutations(LIVE), st.lists(st.floats(0, 5), min_size=3, max_size=3))
def test_a_whole_ranking_is_worth_its_ndcg(order: list[str], grades: list[float]) -> None:
    by_label = dict(zip(LIVE, grades, strict=True))
    (reward,) = rewards.ranking_reward(**answers(render_answer(order), relevance=grades))
    assert reward == pytest.approx(ndcg([by_label[label] for label in order]))


def test_turns_are_read_like_texts() -> None:
    turns = [{"role": "assistant", "content": "<answer>[B]</answer>"}]
    assert rewards.elimination_reward(**answers(turns)) == [0.0]  # type: ignore[arg-type]


def test_what_the_prompt_holds_of_the_turn_belongs_to_the_answer() -> None:
    given = answers("C]</answer>", "B]</answer>", prefill=["<answer>[", "<answer>["])
    assert rewards.elimination_reward(**given) == [1.0, 0.0]
    thought = answers("B is right.</think>\n<answer>[A]</answer>", prefill=["<think>\n"])
    assert rewards.format_reward(**thought) == [0.0]
    assert rewards.tag_count_reward(**thought) == [0.0]


def test_rows_that_ask_for_something_else_are_left_out() -> None:
    given = answers("<answer>[A]</answer>", "<answer>[B] > [A] > [C]</answer>", ask=["eliminate", "rank"])
    assert rewards.elimination_reward(**given) == [1.0, None]
    assert rewards.ranking_reward(**given) == [None, 1.0]


# Each of these is wrong in the paper's released code


def test_every_place_of_a_ranking_counts_and_not_the_letters_of_its_first_line() -> None:
    given = answers(
        "<answer>[B] > [A] > [C]</answer>", "<answer>[A] > [B] > [C]</answer>", "<answer>[A] > [C] > [B]</answer>"
    )
    assert rewards.ranking_reward(**given) == pytest.approx([1.0, 0.6309, 0.5], abs=1e-4)


def test_the_prompt_is_not_part_of_the_answer() -> None:
    given = answers("I cannot tell.", "<think>so</think><answer>[A]</answer>")
    assert rewards.elimination_reward(**given) == [-1.0, 1.0]
    assert rewards.format_reward(**given) == [-1.0, 0.0]
    assert rewards.tag_count_reward(**given) == [-1.0, 0.0]


def test_candidates_are_told_apart_by_label_and_not_by_name() -> None:
    # Two equal titles, one of them relevant: only the label says which one falls.
    given = answers("<answer>[A]</answer>", "<answer>[B]</answer>", relevance=[1.0, 0.0], live=["A", "B"])
    assert rewards.elimination_reward(**given) == [0.0, 1.0]


def test_an_answer_that_cannot_be_read_is_no_candidate() -> None:
    assert rewards.elimination_reward(**answers("The first one, Alien, is off.")) == [-1.0]
    assert rewards.ranking_reward(**answers("Alien, Aliens, Up")) == [-1.0]


def test_left_out_candidates_cost_their_share() -> None:
    given = answers("<answer>[B]</answer>", "<answer>[B] > [A]</answer>", "<answer>[B] > [D] > [B]</answer>")
    assert rewards.ranking_reward(**given) == pytest.approx([1 - 2 / 3, 1 - 1 / 3, 1 - 2 / 3])


# How it could break


@given(st.text(max_size=200))
def test_no_text_breaks_a_reward(text: str) -> None:
    given = answers(text)
    assert -1.0 <= rewards.elimination_reward(**given)[0] <= 1.0  # type: ignore[operator]
    assert -1.0 <= rewards.ranking_reward(**given)[0] <= 1.0  # type: ignore[operator]
    assert rewards.format_reward(**given)[0] in (0.0, -1.0)
    assert -1.0 <= rewards.tag_count_reward(**given)[0] <= 0.0  # type: ignore[operator]


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        rewards.elimination_reward(completions=["", ""], labels=[LIVE], relevance=[ONE_POSITIVE])


def test_overlap_falls_with_distance() -> None:
    orders = (["A", "B", "C"], ["B", "A", "C"], ["C", "B", "A"])
    given = answers(*map(render_answer, orders), relevance=[3.0, 2.0, 1.0])
    best, near, far = rewards.overlap_reward(0.9)(**given)
    assert best == pytest.approx(1.0)
    assert best > near > far  # type: ignore[operator]


def test_among_equals_no_order_is_better_than_another() -> None:
    given = answers("<answer>[C] > [A] > [B]</answer>", "<answer>[C] > [B] > [A]</answer>", relevance=[0.0, 0.0, 1.0])
    assert rewards.overlap_reward(0.9)(**given) == [1.0, 1.0]


def test_recall_looks_at_the_head() -> None:
    given = answers("<answer>[A] > [B] > [C]</answer>", relevance=[0.0, 1.0, 1.0])
    assert [rewards.recall_reward(k)(**given) for k in (1, 2, 3)] == [[0.0], [0.5], [1.0]]
    assert rewards.recall_reward(1)(**answers("<answer>[A]</answer>", relevance=[0, 0, 0])) == [None]


def test_rewards_need_no_framework() -> None:
    import ast
    from pathlib import Path

    tree = ast.parse(Path(rewards.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert ours == {"metrics", "parsing"}
