"""The rewards for veRL, for those who want PPO as the paper published it.

veRL calls `compute_score` for each answer; `write_parquet` writes the file that it reads its prompts from. See
`recipes/verl-ppo.yaml`, and make the files for it by

    python -m r1_rerank.training.verl_reward --config recipe.yaml --data BUILT --out train.parquet \
        --held-out held-out.parquet
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, R1RerankError
from ..rows import Row
from .questions import Questions
from .rewards import (
    Reward,
    elimination_regret_reward,
    elimination_reward,
    format_reward,
    ranking_reward,
    tag_count_reward,
)

if TYPE_CHECKING:
    from .inputs import Inputs


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Mapping[str, Any],
    extra_info: Mapping[str, Any] | None = None,
    **_: object,
) -> dict[str, float]:
    """The reward of an answer with its parts, as veRL's custom reward.

    Args:
        data_source: Task of the row.
        solution_str: What the model wrote, without the prompt.
        ground_truth: `labels`, `relevance` and `ask`, as values or as JSON.
        extra_info: May hold `prefill`, what the prompt holds of the model's turn; `thinking`, whether the form of
            the thinking counts (it does by default); and `graded`, whether an elimination is judged by regret.

    >>> truth = {"labels": ["A", "B"], "relevance": [1.0, 0.0], "ask": "eliminate"}
    >>> compute_score("passage", "<think>why</think><answer>[B]</answer>", truth)
    {'score': 1.0, 'answer': 1.0, 'format': 0.0, 'tag_count': 0.0}
    """
    truth = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
    extra = extra_info or {}
    judges: dict[str, Reward] = {
        "eliminate": elimination_regret_reward if extra.get("graded") else elimination_reward,
        "rank": ranking_reward,
    }
    if truth["ask"] not in judges:
        raise InputError("ground_truth", f"ask is {truth['ask']!r}: use {' or '.join(judges)}")
    columns = {
        "completions": [solution_str],
        "labels": [list(truth["labels"])],
        "relevance": [list(truth["relevance"])],
        "ask": [truth["ask"]],
        "prefill": [extra.get("prefill") or ""],
    }
    parts: dict[str, Reward] = {"answer": judges[truth["ask"]]}
    if extra.get("thinking", True):
        parts |= {"format": format_reward, "tag_count": tag_count_reward}
    values = {name: float(reward(**columns)[0] or 0.0) for name, reward in parts.items()}
    return {"score": sum(values.values()), **values}


def verl_record(row: Row, questions: Questions, *, number: int = 0, graded: bool = False) -> dict[str, Any]:
    """The first question about a row as a line of veRL's data.

    veRL writes the chat template itself, and cannot go on from an opened tag: the model opens its thinking.

    Args:
        row: Any.
        questions: Whose card asks.
        number: Of the line.
        graded: Judge an elimination by regret.
    """
    question = questions.first(row)
    truth = {"labels": question.labels, "relevance": question.relevance, "ask": question.ask}
    return {
        "data_source": row.task,
        "prompt": list(question.messages),
        "ability": "ranking",
        "reward_model": {"style": "rule", "ground_truth": json.dumps(truth)},
        "extra_info": {"index": number, "row": row.id, "thinking": questions.thinking, "graded": graded},
    }


def write_parquet(
    mixture: Sequence[Row], questions: Questions, path: str | os.PathLike[str], *, graded: bool = False
) -> None:
    """Writes the first question about each row as veRL reads it."""
    from datasets import Dataset

    records = [verl_record(row, questions, number=number, graded=graded) for number, row in enumerate(mixture)]
    Dataset.from_list(records).to_parquet(os.fspath(path))


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the examples of a recipe's first stage of sampled answers, or else of its first stage.

    Beside them the ranker card, which makes a checkpoint of the weights that veRL leaves.
    """
    from .inputs import Inputs
    from .recipe import builtin_recipes, read_recipe

    parser = argparse.ArgumentParser(prog="python -m r1_rerank.training.verl_reward", description=main.__doc__)
    parser.add_argument("--config", required=True, help="a recipe's file, or the name of a built-in one")
    parser.add_argument("--data", help="the folder that `r1-rerank data build` wrote")
    parser.add_argument("--out", required=True, help="the parquet file to write; r1_rerank.json goes beside it")
    parser.add_argument("--held-out", help="a second parquet file, for the held-out rows")
    options = parser.parse_args(arguments)
    # As `r1-rerank train` does: a recipe of ours names all tasks, of which not everyone has built all.
    absent: Any = "skip" if options.config in builtin_recipes() else None
    try:
        _write(Inputs(read_recipe(options.config).over(folder=options.data, absent=absent)), options)
    except R1RerankError as error:
        parser.error(str(error))


def _write(inputs: Inputs, options: argparse.Namespace) -> None:
    from ..checkpoint import EMBEDDED_HUB, BaseModelCard
    from .recipe import EMBEDDED, PolicyStage

    recipe = inputs.recipe
    held = [row for source in inputs.validation for row in source.rows]
    if options.held_out and not held:
        raise InputError("held-out", "the recipe holds nothing out: set data.validation_limit, or leave it out")
    stages = list(zip(recipe.stages, inputs.mixtures, strict=True))
    stage, mixture = next((found for found in stages if isinstance(found[0], PolicyStage)), stages[0])
    name = EMBEDDED_HUB if recipe.base == EMBEDDED else recipe.base
    card = recipe.card(BaseModelCard(name=name, sha256=None))
    write_parquet(mixture, Questions(card), options.out, graded=stage.graded)
    if options.held_out:
        write_parquet(held, Questions(card), options.held_out, graded=stage.graded)
    card.write(Path(options.out).parent)


if __name__ == "__main__":
    main()
