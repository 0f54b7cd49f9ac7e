"""The same rewards for veRL: its contract, its data, and the figures of the paper."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from r1_rerank.checkpoint import EMBEDDED_HUB, BaseModelCard, RankerCard
from r1_rerank.errors import InputError
from r1_rerank.rows import write_rows
from r1_rerank.training import verl_reward
from r1_rerank.training.questions import Questions
from r1_rerank.training.recipe import RankerSettings
from r1_rerank.training.verl_reward import compute_score, main, verl_record, write_parquet

TRUTH = {"labels": ["A", "B", "C"], "relevance": [0.0, 1.0, 0.0], "ask": "eliminate"}


def ask(**settings: Any) -> Questions:
    return Questions(RankerSettings(**settings).card(BaseModelCard(name="toy", sha256=None)))


def test_the_examples_hold() -> None:
    found = doctest.testmod(verl_reward)
    assert (found.failed, found.attempted > 0) == (0, True)


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("<think>why</think><answer>[A]</answer>", (1.0, 0.0, 0.0)),
        ("<think>why</think><answer>[B]</answer>", (0.0, 0.0, 0.0)),
        ("<think>why</think><answer>[D]</answer>", (-0.5, 0.0, 0.0)),
        ("<answer>[A]</answer>", (1.0, -1.0, -0.5)),
        ("", (-1.0, -1.0, -1.0)),
    ],
)
def test_the_figures_of_the_paper(written: str, parts: tuple[float, float, float]) -> None:
    found = compute_score("passage", written, json.dumps(TRUTH), {"index": 0, "num_turns": 1})
    assert (found["answer"], found["format"], found["tag_count"]) == parts
    assert found["score"] == sum(parts)


def test_without_thinking_only_the_answer_counts() -> None:
    extra = {"thinking": False, "prefill": "<answer>["}
    assert compute_score("passage", "C]</answer>", TRUTH, extra) == {"score": 1.0, "answer": 1.0}


def test_grades_and_whole_rankings() -> None:
    graded = TRUTH | {"relevance": [1.0, 4.0, 0.0]}
    extra = {"thinking": False, "graded": True}
    assert compute_score("routing", "<answer>[A]</answer>", graded, extra)["score"] == 0.75
    ranked = TRUTH | {"ask": "rank"}
    assert compute_score("passage", "<answer>[B] > [A] > [C]</answer>", ranked, {"thinking": False})["score"] == 1.0
    with pytest.raises(InputError, match="ground_truth: ask is 'guess'"):
        compute_score("passage", "", TRUTH | {"ask": "guess"})


def test_a_line_of_its_data_is_the_question_and_its_truth(make_row: Any) -> None:
    questions, row = ask(thinking=64), make_row(1)
    record = verl_record(row, questions, number=7)
    question = questions.first(row)
    assert record["prompt"] == list(question.messages)
    assert record["extra_info"]["index"] == 7
    truth = record["reward_model"]["ground_truth"]
    right = question.labels[question.relevance.index(1.0)]
    found = compute_score(
        record["data_source"], f"<think>a</think><answer>[{right}]</answer>", truth, record["extra_info"]
    )
    assert found["score"] == 0.0


def test_the_file_is_read_back_as_written(make_row: Any, tmp_path: Path) -> None:
    import pyarrow.parquet

    rows, questions = [make_row(number) for number in range(3)], ask(thinking=64)
    write_parquet(rows, questions, tmp_path / "train.parquet")
    read = pyarrow.parquet.read_table(tmp_path / "train.parquet").to_pylist()
    assert read == [verl_record(row, questions, number=number) for number, row in enumerate(rows)]


def test_a_recipe_makes_the_file(make_row: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet

    (tmp_path / "rows.jsonl").write_text("".join(make_row(number).to_json() + "\n" for number in range(6)))
    (tmp_path / "recipe.yaml").write_text(
        f"""
base: some/base
ranker: {{form: rewrite, thinking: 64}}
data: {{train: [{{rows: {tmp_path / "rows.jsonl"}}}], validation_limit: 0}}
stages:
  - {{name: ppo, method: grpo, examples: 10, eliminations: true, phases: [{{candidates: null}}], learning_rate: 1e-6}}
"""
    )
    out = tmp_path / "train.parquet"
    arguments = ["--config", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    main(arguments)
    records = pyarrow.parquet.read_table(out).to_pylist()
    assert len(records) == 10
    assert {len(json.loads(record["reward_model"]["ground_truth"])["labels"]) for record in records} <= {2, 3, 4}
    card = RankerCard.read(tmp_path / "r1_rerank.json")  # for the weights that veRL leaves
    assert (card.base.name, card.thinking.budget) == ("some/base", 64)
    with pytest.raises(SystemExit):
        main([*arguments, "--held-out", str(tmp_path / "held.parquet")])
    assert "error: held-out: the recipe holds nothing out" in capsys.readouterr().err


def test_a_recipe_of_ours_does_with_the_tasks_that_are_built(
    toy_rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet

    (tmp_path / "passage-5").mkdir()
    write_rows(toy_rows(9), tmp_path / "passage-5" / "train.jsonl")
    out = tmp_path / "train.parquet"
    arguments = ["--config", "lora-24gb", "--out", str(out)]
    main([*arguments, "--data", str(tmp_path)])
    assert pyarrow.parquet.read_table(out).num_rows == 8000
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--data", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert "passage-5: does not exist" in capsys.readouterr().err


def test_held_out_rows_have_a_file_of_their_own(toy_rows: Any, tmp_path: Path) -> None:
    import pyarrow.parquet

    write_rows(toy_rows(9), tmp_path / "rows.jsonl")
    (tmp_path / "recipe.yaml").write_text(
        "base: embedded\n"
        f"data: {{train: [{{rows: {tmp_path / 'rows.jsonl'}}}], validation_limit: 3}}\n"
        "ranker: {form: rewrite, thinking: 64}\n"
        "stages: [{name: ppo, method: grpo, examples: 20, learning_rate: 1e-6}]\n"
    )
    files = {name: tmp_path / f"{name}.parquet" for name in ("out", "held-out")}
    paths = [part for name, file in files.items() for part in (f"--{name}", str(file))]
    main(["--config", str(tmp_path / "recipe.yaml"), *paths])
    trained, held = (
        {record["extra_info"]["row"].partition("#")[0] for record in records}
        for records in (pyarrow.parquet.read_table(file).to_pylist() for file in files.values())
    )
    assert len(held) == 3
    assert trained | held == {row.id for row in toy_rows(9)}
    assert not trained & held
    assert RankerCard.read(tmp_path / "r1_rerank.json").base.name == EMBEDDED_HUB
