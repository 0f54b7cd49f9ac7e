"""A training that goes on: with the same rows or not at all, whatever moment it was killed at, and however many run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from r1_rerank.checkpoint import RankerCard, find_checkpoint
from r1_rerank.engines.loading import load_model
from r1_rerank.errors import InputError
from r1_rerank.rows import Row, write_rows
from r1_rerank.training.finishing import finish, lacks_weights, read_result
from r1_rerank.training.folder import DATA_CARD, DONE, RECIPE, WEIGHTS, StageResult, stage_folder
from r1_rerank.training.processes import SEEN
from r1_rerank.training.resuming import last_checkpoint
from r1_rerank.training.run import Training
from r1_rerank.training.traces import as_it_was
from r1_rerank.training.weights import ADAPTER, gather_weights

STAGE = {
    "name": "Cold start",
    "method": "supervised",
    "examples": 8,
    "batch": 4,
    "learning_rate": 1e-2,
    "phases": [{"candidates": [2, 3]}],
}
RESULT = StageResult(number=1, name="toy", method="supervised", steps=2, seconds=1.0, before={}, after={}, kept=2)


@pytest.fixture
def begun(make: Callable[..., Training], toys: Path, tmp_path: Path) -> Callable[..., Training]:
    """A training whose rows, held-out ones among them, stand in files that can be changed."""
    shutil.copytree(toys, tmp_path / "rows")

    def build(**changes: Any) -> Training:
        data = {
            "folder": str(tmp_path / "rows"),
            "train": [{"rows": "toy"}],
            "validation": [{"rows": "held.jsonl"}],
            "validation_limit": 3,
        }
        return make(data={**data, **changes}, stages=[STAGE])

    return build


@pytest.fixture
def change(toy_rows: Callable[..., list[Row]], tmp_path: Path) -> Callable[..., None]:
    """Writes training and held-out rows."""

    def write(train: int = 30, held: int = 3) -> None:
        write_rows(toy_rows(train), tmp_path / "rows" / "toy" / "train.jsonl")
        write_rows(toy_rows(held, split="dev"), tmp_path / "rows" / "held.jsonl")

    return write


def test_it_goes_on_with_the_rows_that_it_began_with(
    begun: Callable[..., Training], change: Callable[..., None]
) -> None:
    change()
    (result,) = begun().run()
    out = begun().out
    card = (out / DATA_CARD).read_text()
    assert [source["rows"] for source in json.loads(card)["validation"]] == [3]
    assert begun().run(resume=True) == (result,)
    change(train=29)
    with pytest.raises(InputError, match=r"resume: stage 'Cold start': source 'toy' has not the rows .*pass the same"):
        begun().run(resume=True)
    change(held=2)
    with pytest.raises(InputError, match=r"resume: validation: source 'held' has not the rows"):
        begun().run(resume=True)
    assert (out / DATA_CARD).read_text() == card
    change()
    assert begun().run(resume=True) == (result,)


def test_what_was_begun_is_not_written_again(begun: Callable[..., Training], change: Callable[..., None]) -> None:
    """A kill before the end of the first stage: the stage is done again, by what is there."""
    change()
    begun().run()
    out = begun().out
    shutil.rmtree(stage_folder(out, 0, "Cold start"))
    before = {name: (out / name).stat().st_mtime_ns for name in (RECIPE, DATA_CARD)}
    change(train=20)
    with pytest.raises(InputError, match=r"resume: stage 'Cold start'"):
        begun().run(resume=True)
    change()
    assert begun().run(resume=True)[0].steps == 2
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


# A kill while a stage is cleared away


def checkpoint(folder: Path, step: int, *, state: str | None = None) -> Path:
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_text(f"weights of step {step}")
    written = {"global_step": step, "max_steps": 2, "log_history": []}
    (place / "trainer_state.json").write_text(json.dumps(written) if state is None else state)
    return place


class Killed:
    """A tokenizer that is never written to its end."""

    def save_pretrained(self, folder: Path) -> None:
        raise KeyboardInterrupt


def test_nothing_is_removed_before_the_stage_is_said_to_be_done(tokenizer: Any, tmp_path: Path) -> None:
    card = find_checkpoint().card
    assert card is not None
    checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path, RESULT, Killed(), card)
    assert read_result(tmp_path) is None
    assert (tmp_path / "checkpoint-2").is_dir()
    finish(tmp_path, RESULT, tokenizer, card)
    assert read_result(tmp_path) == RESULT
    assert (tmp_path / WEIGHTS / "model.safetensors").read_text() == "weights of step 2"
    assert (tmp_path / WEIGHTS / "tokenizer.json").is_file()
    assert RankerCard.find(tmp_path / WEIGHTS) == card
    assert sorted(path.name for path in tmp_path.iterdir()) == [DONE, WEIGHTS]


def test_an_adapter_is_never_left_without_its_settings(tokenizer: Any, tmp_path: Path) -> None:
    card = find_checkpoint().card
    assert card is not None
    (checkpoint(tmp_path, 2) / ADAPTER).write_text(json.dumps({"r": 4, "base_model_name_or_path": "/here"}))
    write = Path.write_text

    def killed(path: Path, text: str, *args: Any, **settings: Any) -> int:
        write(path, text[: len(text) // 2], *args, **settings)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path, RESULT, tokenizer, card)
    finish(tmp_path, RESULT, tokenizer, card)
    settings = {"r": 4, "base_model_name_or_path": card.base.name, "inference_mode": True}
    assert json.loads((tmp_path / WEIGHTS / ADAPTER).read_text()) == settings


def test_what_a_kill_left_of_a_finished_stage_is_cleared_away(
    begun: Callable[..., Training], change: Callable[..., None]
) -> None:
    change()
    (result,) = begun().run()
    folder = stage_folder(begun().out, 0, "Cold start")
    left = [checkpoint(folder, 1), folder / "best-0"]
    left[1].mkdir()
    assert begun().run(resume=True) == (result,)
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"global_step": 2, "log_his'])
def test_a_checkpoint_with_half_a_state_is_none(tmp_path: Path, torn: str) -> None:
    whole = checkpoint(tmp_path, 1)
    checkpoint(tmp_path, 2, state=torn)
    assert last_checkpoint(tmp_path) == str(whole)


# Weights that are spread over processes


class Sharded:
    """As much of a trainer as gathering asks for."""

    def __init__(self, *, killed: bool = False) -> None:
        self.accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
        self._killed = killed

    def is_world_process_zero(self) -> bool:
        return True

    def save_model(self, folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "model-1.safetensors").touch()
        if self._killed:
            raise KeyboardInterrupt
        (Path(folder) / "model-2.safetensors").touch()


def test_gathered_weights_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        gather_weights(Sharded(killed=True), tmp_path / WEIGHTS)
    assert not (tmp_path / WEIGHTS).exists()
    gather_weights(Sharded(), tmp_path / WEIGHTS)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS}
    assert len(list((tmp_path / WEIGHTS).iterdir())) == 2


class Zero3:
    """As much of DeepSpeed's settings as transformers asks for when it loads a model."""

    def is_zero3(self) -> bool:
        return True


def test_weights_that_are_loaded_after_a_trainer_are_not_spread(base: Path) -> None:
    """The first process loads them alone, for the last validation; a next stage spreads them itself."""
    from transformers.integrations import is_deepspeed_zero3_enabled
    from transformers.integrations.deepspeed import set_hf_deepspeed_config

    model, settings = load_model(str(base), None, "cpu", "float32")[0], Zero3()
    for _ in range(2):
        with as_it_was(model):
            set_hf_deepspeed_config(settings)  # as accelerate does for each trainer, whatever zero3_init_flag says
            assert is_deepspeed_zero3_enabled()
        assert not is_deepspeed_zero3_enabled()
    assert load_model(str(base), None, "cpu", "float32")[0].num_parameters() == model.num_parameters()
    set_hf_deepspeed_config(settings)
    with pytest.raises(KeyboardInterrupt), as_it_was(model):
        raise KeyboardInterrupt
    assert not is_deepspeed_zero3_enabled()


def test_a_stage_that_ended_before_its_weights_were_gathered_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    last = checkpoint(tmp_path, 2)
    (last / "model.safetensors").unlink()  # as FSDP leaves it, by SHARDED_STATE_DICT
    assert not lacks_weights(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert lacks_weights(tmp_path)
    (last / "model.safetensors").touch()
    assert not lacks_weights(tmp_path)
    (last / "model.safetensors").unlink()
    (tmp_path / WEIGHTS).mkdir()
    assert not lacks_weights(tmp_path)


# Several processes

APART = """
import os, sys
from pathlib import Path
from r1_rerank.training.processes import check_shared, leave
folder = Path(sys.argv[1]) / os.environ["RANK"]
folder.mkdir(exist_ok=True)
try:
    check_shared(folder)
except Exception as error:
    (folder / "told").write_text(str(error))
leave()
"""


def test_two_processes_run_a_recipe_and_go_on_with_it(
    make: Callable[..., Training], tmp_path: Path, launch: Any
) -> None:
    stages = [{**STAGE, "name": name, "validate_every": 1, "keep": "best"} for name in ("first", "second")]
    recipe = make(stages=stages).recipe
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    out = tmp_path / "together"
    command = ("-m", "r1_rerank.training.grpo", "--config", str(tmp_path / "recipe.yaml"), "--out", str(out))

    def steps() -> list[int | None]:
        found = [read_result(stage_folder(out, number, name)) for number, name in enumerate(("first", "second"))]
        return [None if one is None else one.steps for one in found]

    launch(*command)
    assert steps() == [2, 2]
    assert not (out / SEEN).exists()
    assert find_checkpoint(out).card is not None
    shutil.rmtree(stage_folder(out, 1, "second"))
    launch(*command, "--resume")
    assert steps() == [2, 2]


def test_a_start_that_failed_leaves_the_folder_free(make: Callable[..., Training]) -> None:
    training = make(stages=[STAGE])
    training.out.mkdir(parents=True)
    (training.out / SEEN).touch()  # the others never came to see it
    assert training.run()[0].steps == 2


def test_machines_that_share_no_folder_are_told(tmp_path: Path, launch: Any) -> None:
    (tmp_path / "script.py").write_text(APART)
    launch(str(tmp_path / "script.py"), str(tmp_path))
    (said,) = [file.read_text() for file in tmp_path.glob("*/told")]
    assert said.startswith("out: ")
    assert "is not one folder for all machines" in said
