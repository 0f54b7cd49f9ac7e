"""Rewards for ranking, as functions on TRL's contract: completions and the columns of their rows in, a number each out.

Columns that they read:

- `labels`: the live labels of the prompt, in shown order.
- `relevance`: one number per label; above 0 is relevant.
- `ask`: `eliminate` or `rank`. A reward that is meant for the other one gives None, which TRL leaves out.
- `prefill`: what the prompt already holds of the model's turn, such as `<think>`: it belongs to the answer, and is put
  back before that is read. A completion never contains the prompt.

What an answer says is read by the parser that reads it at inference, what a ranking is worth by the metric that
evaluates it. The figures are those of the R1-Ranker paper, arXiv 2506.21638.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ..metrics import mrr, ndcg
from ..parsing import ParsedAnswer, count_tags, follows_format, parse

Completion = str | Sequence[Mapping[str, str]]
"""A text, or the turns that the model wrote."""
Reward = Callable[..., list[float | None]]
"""What TRL calls: `fn(completions=…, **columns)`."""
Judge = Callable[[ParsedAnswer, Mapping[str, float]], float | None]
"""One answer, and the relevance of each live label in shown order -> its reward."""

KEPT, LOST, UNKNOWN, SILENT = 1.0, 0.0, -0.5, -1.0
"""An elimination that spares the relevant candidate, one that does not, one of no candidate, and none at all."""


def _judged(wanted: Literal["eliminate", "rank"]) -> Callable[[Judge], Reward]:
    """Makes a reward of a judge of one answer, for rows that ask for this."""

    def decorate(judge: Judge) -> Reward:
        @functools.wraps(judge)
        def reward(
            completions: Sequence[Completion],
            labels: Sequence[Sequence[str]],
            relevance: Sequence[Sequence[float]],
            ask: Sequence[str] | None = None,
            prefill: Sequence[str] | None = None,
            **_: object,
        ) -> list[float | None]:
            asked = ask if ask is not None else [wanted] * len(completions)
            rewards: list[float | None] = []
            for text, live, values, kind in zip(_texts(completions, prefill), labels, relevance, asked, strict=True):
                if kind != wanted:
                    rewards.append(None)
                    continue
                parsed = parse(text, live, 1 if wanted == "eliminate" else len(live))
                rewards.append(judge(parsed, dict(zip(live, values, strict=True))))
            return rewards

        del reward.__wrapped__  # its signature is TRL's, not the judge's
        return reward

    return decorate


@_judged("eliminate")
def elimination_reward(parsed: ParsedAnswer, relevance: Mapping[str, float]) -> float:
    """The step reward: 1 where the candidate that falls is not relevant, 0 where it is, -0.5 for none of them, -1 for
    no answer.

    >>> elimination_reward(["<answer>[A]</answer>", "<answer>[B]</answer>", "<answer>[C]</answer>", "Well."],
    ...                    labels=[["A", "B"]] * 4, relevance=[[1.0, 0.0]] * 4)
    [0.0, 1.0, -0.5, -1.0]
    """
    if not parsed.labels:
        return _without_label(parsed)
    return LOST if relevance[parsed.labels[0]] > 0 else KEPT


@_judged("eliminate")
def elimination_regret_reward(parsed: ParsedAnswer, relevance: Mapping[str, float]) -> float:
    """The graded step reward: 1 for the least relevant live candidate, 0 for the most relevant, linear between.

    >>> elimination_regret_reward(["<answer>[A]</answer>", "<answer>[B]</answer>", "<answer>[C]</answer>"],
    ...                           labels=[["A", "B", "C"]] * 3, relevance=[[3.0, 1.0, 0.0]] * 3)
    [0.0, 0.6666666666666667, 1.0]
    """
    if not parsed.labels:
        return _without_label(parsed)
    least, most = min(relevance.values()), max(relevance.values())
    return KEPT if most == least else 1.0 - (relevance[parsed.labels[0]] - least) / (most - least)


@_judged("rank")
def ranking_reward(parsed: ParsedAnswer, relevance: Mapping[str, float]) -> float:
    """nDCG of a whole ranking, less the share of candidates that it leaves out; -1 for no answer.

    What is left out follows in shown order, as at inference.

    >>> ranking_reward(["<answer>[B] > [A]</answer>", "<answer>[A] > [B]</answer>", "<answer>[B]</answer>", "…"],
    ...                labels=[["A", "B"]] * 4, relevance=[[0.0, 1.0]] * 4)
    [1.0, 0.6309297535714575, 0.5, -1.0]
    """
    return _whole_ranking(parsed, relevance, ndcg)


@_judged("rank")
def mrr_reward(parsed: ParsedAnswer, relevance: Mapping[str, float]) -> float:
    """Reciprocal rank of the first relevant candidate, else as `ranking_reward`.

    >>> mrr_reward(["<answer>[B] > [A]</answer>", "<answer>[A] > [B]</answer>", "<answer>[B]</answer>", "…"],
    ...            labels=[["A", "B"]] * 4, relevance=[[0.0, 1.0]] * 4)
    [1.0, 0.5, 0.5, -1.0]
    """
    return _whole_ranking(parsed, relevance, mrr)


def _whole_ranking(
    parsed: ParsedAnswer, relevance: Mapping[str, float], metric: Callable[[list[float]], float]
) -> float:
    if not parsed.labels:
        return SILENT
    order = [*parsed.labels, *(label for label in relevance if label not in parsed.labels)]
    left_out = 1.0 - len(parsed.labels) / len(relevance)
    return metric([max(0.0, relevance[label]) for label in order]) - left_out


def recall_reward(k: int) -> Reward:
    """Share of the relevant candidates among the first `k` that a ranking names; for mixing with `ranking_reward`.

    >>> recall_reward(1)(["<answer>[B] > [A]</answer>"], labels=[["A", "B"]], relevance=[[0.0, 1.0]])
    [1.0]
    """

    @_judged("rank")
    def recall(parsed: ParsedAnswer, relevance: Mapping[str, float]) -> float | None:
        relevant = {label for label, value in relevance.items() if value > 0}
        return len(relevant & set(parsed.labels[:k])) / min(k, len(relevant)) if relevant else None

    recall.__name__ = f"recall_at_{k}_reward"  # TRL logs rewards by name
    return recall


def overlap_reward(persistence: float = 0.9) -> Reward:
    """Rank-biased overlap of a ranking with the order by relevance, from 0 to 1; for graded rows, as a teacher's.

    Webber, Moffat and Zobel, TOIS 2010; cut at the length of the list and scaled so that the right order gives 1.

    Args:
        persistence: How far down it looks: depth d weighs `persistence` to the power of d - 1.

    >>> overlap_reward(0.5)(["<answer>[B] > [A]</answer>"], labels=[["A", "B"]], relevance=[[2.0, 1.0]])
    [0.3333333333333333]
    """

    @_judged("rank")
    def overlap(parsed: ParsedAnswer, relevance: Mapping[str, float]) -> float:
        place = {label: number for number, label in enumerate(parsed.labels)}
        # Among equals, the order that was given: it is as right as any.
        ideal = sorted(relevance, key=lambda label: (-relevance[label], place.get(label, len(place))))
        weights = {depth: persistence ** (depth - 1) for depth in range(1, len(ideal) + 1)}
        agreed = {depth: len(set(parsed.labels[:depth]) & set(ideal[:depth])) / depth for depth in weights}
        return sum(weights[depth] * agreed[depth] for depth in weights) / sum(weights.values())

    overlap.__name__ = "overlap_reward"
    return overlap


def format_reward(
    completions: Sequence[Completion], prefill: Sequence[str] | None = None, **_: object
) -> list[float | None]:
    """0 for `<think>…</think>` and then `<answer>…</answer>` and nothing else, else -1. For training with thinking.

    >>> format_reward(["why</think><answer>[A]</answer>", "<answer>[A]</answer>"], prefill=["<think>", ""])
    [0.0, -1.0]
    """
    return [0.0 if follows_format(text) else -1.0 for text in _texts(completions, prefill)]


def tag_count_reward(
    completions: Sequence[Completion], prefill: Sequence[str] | None = None, **_: object
) -> list[float | None]:
    """-0.25 for each of the four tags that does not stand exactly once. For training with thinking.

    >>> tag_count_reward(["<think>why</think><answer>[A]</answer>", "<answer>[A]"])
    [0.0, -0.75]
    """
    return [0.0 - 0.25 * sum(count != 1 for count in count_tags(text)) for text in _texts(completions, prefill)]


def overlong_reward(limit: int, margin: int) -> Reward:
    """0 up to `limit - margin` tokens, falling to -1 at `limit`: keeps thinking from running into its end.

    The soft punishment of DAPO, arXiv 2503.14476.

    Args:
        limit: Most tokens of a completion.
        margin: Over how many tokens it falls.

    >>> overlong_reward(100, 20)(["a", "b", "c"], completion_ids=[[0] * 80, [0] * 90, [0] * 100])
    [0.0, -0.5, -1.0]
    """

    def overlong(
        completions: Sequence[Completion], completion_ids: Sequence[Sequence[int]], **_: object
    ) -> list[float | None]:
        return [0.0 - min(1.0, max(0.0, (len(ids) - limit + margin) / margin)) for ids in completion_ids]

    overlong.__name__ = "overlong_reward"
    return overlong


def _without_label(parsed: ParsedAnswer) -> float:
    """An answer that names something else is better than none."""
    return UNKNOWN if any(kind == "unknown_label" for kind, _ in parsed.faults) else SILENT


def _texts(completions: Sequence[Completion], prefill: Sequence[str] | None) -> list[str]:
    """What each model turn says, with what was written for it at its start."""
    starts = prefill if prefill is not None else [""] * len(completions)
    return [
        start + (completion if isinstance(completion, str) else "".join(turn["content"] for turn in completion))
        for start, completion in zip(starts, completions, strict=True)
    ]
