"""`r1-rerank train`: from rows to a checkpoint in one command, going on after a kill, errors that name the option."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from r1_rerank.cli import app
from r1_rerank.evaluation.protocols import SCENARIOS, train_command
from r1_rerank.rows import Candidate, Row, write_rows
from r1_rerank.training.inputs import Inputs
from r1_rerank.training.recipe import read_recipe

COMMAND = [sys.executable, "-c", "from r1_rerank.cli import main; main()"]


@pytest.fixture(scope="module")
def place(make_model: Callable[..., Any], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model, a data folder with two tasks, and a recipe for them."""
    folder = tmp_path_factory.mktemp("place")
    make_model(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for task, count in (("toy", 30), ("toy-too", 30)):
        (folder / "built" / task).mkdir(parents=True)
        write_rows(
            [
                Row(
                    id=f"{task}-{number}",
                    task="passage",
                    query=f"{task} question {number}",
                    candidates=tuple(Candidate(id=str(n), text=f"{task} answer {number} {n}") for n in range(3)),
                    relevance=tuple(float(n == number % 3) for n in range(3)),
                    split="train",
                    source=task,
                )
                for number in range(count)
            ],
            folder / "built" / task / "train.jsonl",
        )
    recipe = {
        "base": str(folder / "base"),
        "precision": "float32",
        "keep": "last",
        "threads": 1,
        "ranker": {"alphabet": "ABCDEF"},
        "lora": {"r": 4},
        "data": {"train": [{"rows": "toy"}, {"rows": "toy-too", "weight": 0.5}], "validation_limit": 4},
        **{"save_every": 2, "validate_every": 2, "logging_every": 1},
        "stages": [
            {"name": "first", "method": "supervised", "examples": 24, "batch": 4, "learning_rate": 1e-2},
            {
                "name": "second",
                "method": "expected",
                "on_policy": True,
                "examples": 8,
                "batch": 4,
                "learning_rate": 1e-3,
            },
        ],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Callable[..., Result]:
    def invoke(*arguments: str, out: str = "out") -> Result:
        given = ["--config", str(place / "recipe.yaml"), "--data", str(place / "built"), *arguments]
        return CliRunner().invoke(app, ["train", "--out", str(tmp_path / out), *given])

    return invoke


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_dry_run_shows_what_it_would_do(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("--dry-run")
    assert result.exit_code == 0, result.output
    assert "question" in result.stdout
    assert "<answer>[A]</answer>  +" in result.stdout
    assert "trained parameters: " in result.stdout
    assert "first: 24 examples in 6 steps" in result.stdout
    assert "second: 8 examples in 2 steps" in result.stdout
    assert "an estimate" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_training_that_is_killed_goes_on_to_the_same_weights(
    run: Callable[..., Result], place: Path, tmp_path: Path
) -> None:
    whole = run(out="whole")
    assert whole.exit_code == 0, whole.output
    assert "first: 6 steps of supervised" in whole.stdout
    assert "checkpoint: MRR " in whole.stdout

    log = tmp_path / "out" / "log.jsonl"
    arguments = ["train", "--config", str(place / "recipe.yaml"), "--data", str(place / "built"), "--out", log.parent]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment, stderr=subprocess.DEVNULL)
    while not (log.is_file() and '"step": 3' in log.read_text()):
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()

    refused = run()
    assert refused.exit_code == 2
    assert "--out: " in refused.output
    assert "--resume" in refused.output
    resumed = run("--resume")
    assert resumed.exit_code == 0, resumed.output
    assert weights(log.parent) == weights(tmp_path / "whole")


def test_a_folder_with_its_recipe_needs_no_other(run: Callable[..., Result], place: Path, tmp_path: Path) -> None:
    """And a finished training can be merged later."""
    assert run().exit_code == 0
    before = weights(tmp_path / "out")
    built = str(place / "built")
    again = ["train", "--out", str(tmp_path / "out"), "--data", built, "--resume", "--merge"]
    result = CliRunner().invoke(app, again)
    assert result.exit_code == 0, result.output
    assert weights(tmp_path / "out") == before
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--task", "cooking"], "--task: 'cooking' is not one of passage, recommendation, routing"),
        (["--task", "routing"], "--task: no row of data.train is of routing"),
        (["--config", "nothing"], "config: 'nothing' is neither a YAML file nor one of"),
        (["--data", "nowhere"], "--data: nowhere is no folder"),
    ],
)
def test_errors_name_the_option(run: Callable[..., Result], arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.output


def test_scenarios_do_with_the_tasks_that_are_built(run: Callable[..., Result], place: Path, tmp_path: Path) -> None:
    """A recipe for all scenarios, a folder with the tasks of one."""
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    recipe["data"]["train"] += [{"rows": "toy-three"}, {"rows": "rec-toy"}]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(recipe))
    refused = run("--config", str(tmp_path / "all.yaml"), "--dry-run")
    assert refused.exit_code == 2
    assert "toy-three" in refused.output
    result = run("--config", str(tmp_path / "all.yaml"), "--task", "passage")
    assert result.exit_code == 0, result.output
    assert "left out: " in result.stderr
    assert "toy-three" in result.stderr
    assert "rec-toy" in result.stderr
    cards = json.loads((tmp_path / "out" / "data.json").read_text())["stages"]
    assert [source["name"] for source in cards[0]["sources"]] == ["toy", "toy-too"]
    # As it goes on, the recipe beside it knows.
    again = ["train", "--out", str(tmp_path / "out"), "--data", str(place / "built"), "--resume"]
    assert CliRunner().invoke(app, again).exit_code == 0
    arguments = ["--config", str(tmp_path / "all.yaml"), "--task", "passage", "--data", str(tmp_path / "out")]
    nothing = run(*arguments, out="none")
    assert nothing.exit_code != 0
    assert "does not exist" in nothing.output


def test_rows_of_ones_own_take_the_place_of_the_recipes(
    run: Callable[..., Result], place: Path, tmp_path: Path
) -> None:
    own = tmp_path / "mine.jsonl"
    own.write_text((place / "built" / "toy" / "train.jsonl").read_text())
    result = run("--data", str(own))
    assert result.exit_code == 0, result.output
    cards = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [source["name"] for source in cards["stages"][0]["sources"]] == ["mine"]
    assert [(source["name"], source["rows"]) for source in cards["validation"]] == [("mine", 4)]
    assert str(own.parent) not in (tmp_path / "out" / "recipe.yaml").read_text()
    assert run("--data", str(own), "--resume").exit_code == 0
    own.write_text((place / "built" / "toy-too" / "train.jsonl").read_text())
    changed = run("--data", str(own), "--resume")
    assert changed.exit_code == 2
    assert "source 'mine' has not the rows" in " ".join(changed.output.split())


def test_whole_weights_have_nothing_to_merge(run: Callable[..., Result], place: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({**recipe, "lora": None}))
    result = run("--config", str(tmp_path / "whole.yaml"), "--merge")
    assert result.exit_code == 2
    assert "merge: the recipe trains whole weights" in result.output


def test_the_command_that_protocols_print_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As far as the data, of which it says nothing where R1_BUILT does not."""
    monkeypatch.delenv("R1_BUILT", raising=False)
    monkeypatch.chdir(tmp_path)
    for held_out in SCENARIOS:
        command = shlex.split(train_command([task for task in SCENARIOS if task != held_out], "out"))
        assert command[:2] == ["r1-rerank", "train"]
        result = CliRunner().invoke(app, command[1:])
        assert result.exit_code == 2
        assert "--data: " in result.output
        assert "is no file or folder here" in result.output


@pytest.mark.parametrize("tasks", [found for count in (1, 2, 3) for found in combinations(SCENARIOS, count)])
def test_the_recipe_of_the_embedded_checkpoint_does_without_any_scenario(
    tasks: Any, make_built: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_built(tmp_path)
    recipe = read_recipe("embedded-cpu").over(folder=str(tmp_path), absent="skip", tasks=tasks)
    mixtures = Inputs(recipe).mixtures
    assert len(mixtures) == len(recipe.stages)
    assert {row.task for mixture in mixtures for row in mixture} == set(tasks)
    assert "easy" not in caplog.text  # without passages it says nothing
