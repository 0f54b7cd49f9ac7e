"""Adapters that do not fit their model: refused by name, not left out in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import peft
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from r1_rerank.engines import TransformersEngine
from r1_rerank.engines.adapters import check_adapter, weights_folder
from r1_rerank.errors import CheckpointError, InputError


def model(*, layers: int = 1, hidden: int = 32) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=hidden,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def adapter(of: LlamaForCausalLM, folder: Path) -> Path:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(of, config).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path, weights: str) -> Path:
    """A small model with the tokenizer of the embedded one."""
    folder = tmp_path / "base"
    model().save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", [None, "embed_tokens"])
def test_one_that_fits_is_merged(base: Path, tmp_path: Path, targets: str | None) -> None:
    folder = tmp_path / "adapter"
    config = peft.LoraConfig(r=2, target_modules=[targets or "q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(
        folder, save_embedding_layers=False
    )
    assert not hasattr(TransformersEngine(str(base), adapter=folder).model, "peft_config")


def test_one_of_a_deeper_model_is_refused(base: Path, tmp_path: Path) -> None:
    deeper = adapter(model(layers=2), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"adapter.*it adapts model.layers.1.self_attn.q_proj, which the model"):
        TransformersEngine(str(base), adapter=deeper)


def test_one_of_a_wider_model_is_refused(base: Path, tmp_path: Path) -> None:
    wider = adapter(model(hidden=64), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"(?s)adapter '.*' of model '.*' cannot be loaded.*size mismatch"):
        TransformersEngine(str(base), adapter=wider)


def test_one_that_lacks_weights_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(model(), tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: part for name, part in weights.items() if "v_proj" not in name}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"it has no weights for model.layers.0.self_attn.v_proj"):
        TransformersEngine(str(base), adapter=folder)


def test_one_made_for_the_same_layers_under_other_names_is_refused(base: Path, tmp_path: Path) -> None:
    """As it was made for a model that wraps this one: PEFT would pass over all of it."""
    folder = adapter(model(), tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace(".model.layers", ".language_model.layers"): part for name, part in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"it adapts language_model\.layers"):
        TransformersEngine(str(base), adapter=folder)


def test_pickled_weights_are_not_even_read(base: Path, tmp_path: Path) -> None:
    folder = adapter(model(), tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match=r"pickled ones are not loaded"):
        TransformersEngine(str(base), adapter=folder)


def test_an_empty_folder_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter(model(), tmp_path / "whole"), tmp_path / "part", ignore=lambda *_: ["adapter_config.json"])
    with pytest.raises(CheckpointError, match="adapter"):
        TransformersEngine(str(base), adapter=tmp_path / "part")


def test_weights_under_a_hub_name_are_compared_where_they_were_downloaded(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--somebody--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1a2b")
    shutil.copytree(base, repository / "snapshots" / "1a2b")
    wider = adapter(model(hidden=64), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"made for another model.*q_proj has 32, not 64"):
        check_adapter(wider, weights_folder("somebody/small"))
    for elsewhere in ("somebody/other", "no name", ""):
        assert weights_folder(elsewhere) == Path(elsewhere)
    assert weights_folder(str(base)) == base


def test_what_is_no_language_model_is_refused(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    for wrong in (object(), AutoModel.from_pretrained(base)):
        with pytest.raises(InputError, match=r"model.*causal language model, got (object|LlamaModel)"):
            TransformersEngine(wrong, tokenizer)
