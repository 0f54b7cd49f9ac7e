"""The recipe `smoke-cpu` over 200 real rows, through the command line: killed, resumed, better, and loadable."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from r1_rerank import R1Reranker
from r1_rerank.evaluation import compare
from r1_rerank.evaluation.datasets import read_insuranceqa
from r1_rerank.evaluation.datasets.packages import INSURANCEQA
from r1_rerank.evaluation.datasets.passages import question_lists
from r1_rerank.rows import write_rows
from r1_rerank.training.finishing import read_result
from r1_rerank.training.folder import LOG, read_validation, stage_folder
from r1_rerank.training.logs import read_log
from r1_rerank.training.resuming import last_checkpoint

pytestmark = pytest.mark.smoke

PATIENCE = 600


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    questions = read_insuranceqa(INSURANCEQA.fetch())
    lists = question_lists(questions, 5, split="train", source="InsuranceQA", seed=0)
    path = tmp_path / "rows.jsonl"
    write_rows(itertools.islice(lists, 200), path)
    return path


def command(rows: Path, out: Path, *options: str) -> list[str]:
    told = ["train", "--config", "smoke-cpu", "--data", str(rows), "--out", str(out), *options]
    return [sys.executable, "-c", "from r1_rerank.cli import main; main()", *told]


def kill_after_a_checkpoint(started: list[str], stage: Path) -> int:
    """Kills a training once it can go on, and returns the step from which it will."""
    # A group of its own: what it started ends with it.
    process = subprocess.Popen(started, start_new_session=True)
    deadline = time.monotonic() + PATIENCE
    while (last := last_checkpoint(stage)) is None:
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return int(last.rpartition("-")[2])


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(out / LOG) if "loss" in line]


def test_the_smoke_recipe_learns_from_200_real_rows(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stage = stage_folder(out, 0, "reward")
    step = kill_after_a_checkpoint(command(rows, out), stage)
    assert read_result(stage) is None
    before_the_kill = [line for line in steps_of(out) if line["step"] <= step]
    assert before_the_kill
    subprocess.run(command(rows, out, "--resume"), check=True, timeout=PATIENCE)

    result = read_result(stage)
    assert result is not None
    steps = steps_of(out)
    # Not even its time is another: what was done was not done again.
    assert steps[: len(before_the_kill)] == before_the_kill
    numbers = [line["step"] for line in steps]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == result.steps == 24
    before, after = read_validation(out, result, before=True), read_validation(out, result)
    assert before is not None
    assert after is not None
    told = "the embedded checkpoint reads these words already: give the recipe others, from which it can learn"
    assert before.metrics()["eval_reward"] < 0.6, told
    assert compare(before.together(), after.together(), "reward").difference.low > 0

    with R1Reranker.from_pretrained(out) as reranker:
        ranked = reranker.rerank(
            "Does home insurance pay for a stolen bicycle?",
            ["A term life policy ends after twenty years.", "Bicycles are covered as personal property against theft."],
        )
    assert ranked.card == "model"
    assert ranked.faults == ()
    assert [hit.index for hit in ranked] == [1, 0]
