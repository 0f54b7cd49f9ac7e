"""A model of two small layers with a tokenizer of its own, for what a trainer does whatever the weights are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from r1_rerank.engines.tokenization import ChatTokenizer
from r1_rerank.prompts import PromptTemplate, close_thinking
from r1_rerank.rows import Candidate, Row, write_rows
from r1_rerank.strategies import ALPHABET

if TYPE_CHECKING:
    from r1_rerank.training.run import Training

CHAT = (
    "{{ bos }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{{ turn }}{% endif %}"
)


def build_tokenizer(*, bos: bool = False, turn: str = "", special: tuple[str, ...] = ()) -> Any:
    """A byte-level tokenizer.

    Args:
        bos: The chat template writes `<s>`, and the tokenizer puts one in front of any text by itself.
        turn: What the chat template begins the model's turn with.
        special: More special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>", "<s>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [str(value) for value in PromptTemplate.builtin("passage").to_dict().values()]
    tokenizer.train_from_iterator(
        [*words, close_thinking("It fits."), "<think>", *(["<answer> </answer>"] * 50)], trainer
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        bos_token="<s>" if bos else None,
        chat_template=CHAT.replace("{{ bos }}", "<s>" if bos else "").replace("{{ turn }}", turn),
    )


def build_model(tokenizer: Any, *, seed: int = 0) -> Any:
    """Random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    ).eval()


def build_row(number: int, candidates: int = 4) -> Row:
    """A question with one passage that answers it, not always in the same place."""
    right = number % candidates
    return Row(
        id=f"r{number}",
        task="passage",
        query=f"who keeps the {('red', 'green', 'blue', 'grey')[number % 4]} lamp?",
        candidates=tuple(
            Candidate(id=f"c{place}", text="The keeper does." if place == right else f"A stone, the {place}th.")
            for place in range(candidates)
        ),
        relevance=tuple(float(place == right) for place in range(candidates)),
        split="train",
        source="toy",
    )


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    return build_tokenizer


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return build_model


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    return build_row


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    found = build_tokenizer()
    assert set(ChatTokenizer(found).label_ids) == set(ALPHABET)  # each is one token, as trainers need them
    return found


def build_rows(count: int, *, split: str = "train", words: int = 1, candidates: int = 3) -> list[Row]:
    """Passage rows whose right candidates say yes; no text stands in two splits."""
    end = "" if split == "train" else f"{split} "

    def text(number: int, place: int) -> str:
        return f"{'yes' if place == number % candidates else 'no'} {number}{place} {end}" * words

    return [
        Row(
            id=f"{split}-{number}",
            task="passage",
            query=f"{split} question {number}",
            candidates=tuple(Candidate(id=str(place), text=text(number, place)) for place in range(candidates)),
            relevance=tuple(float(place == number % candidates) for place in range(candidates)),
            split=split,
            source="toy",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="session")
def toy_rows() -> Callable[..., list[Row]]:
    return build_rows


def build_scenarios(folder: Path, candidates: int = 6) -> None:
    """A task of each scenario, under its usual name, as `r1-rerank data build` writes them."""
    plain = build_rows(12, candidates=candidates)
    tastes = [
        replace(row, task="recommendation", query=None, history=(f"film {row.id}", "another"), source="films")
        for row in plain
    ]
    routes = [
        replace(
            row,
            task="routing",
            query=f"solve {row.id}",
            objective="balance",
            effects=tuple(0.5 + value / 2 for value in row.relevance),
            prices=tuple(place / candidates for place in range(candidates)),
            source="llms",
        )
        for row in plain
    ]
    for task, rows in (("passage-5", plain), ("rec-game", tastes), ("router-cost", routes)):
        (folder / task).mkdir()
        write_rows(rows, folder / task / "train.jsonl")


@pytest.fixture(scope="session")
def make_built() -> Callable[..., None]:
    return build_scenarios


@pytest.fixture(scope="session")
def base(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in a folder."""
    folder = tmp_path_factory.mktemp("tiny-base")
    build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one task."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "toy").mkdir()
    write_rows(build_rows(30), folder / "toy" / "train.jsonl")
    card = {"sources": {"train": [{"name": "Toys", "licence": "CC0", "home": "https://toys.example"}]}}
    (folder / "toy" / "card.json").write_text(json.dumps(card))
    return folder


STAGE = {"name": "Cold start", "method": "supervised", "examples": 8, "batch": 4, "learning_rate": 1e-2}
PHASES = [{"candidates": [2, 3]}]


@pytest.fixture(scope="session")
def toy_training(base: Path, toys: Path) -> Callable[..., Training]:
    """A training on toy rows in a folder; the keys of its recipe can be changed."""
    from r1_rerank.training.recipe import Recipe
    from r1_rerank.training.run import Training

    first = {**STAGE, "phases": PHASES}
    settings: dict[str, Any] = {
        "base": str(base),
        "precision": "float32",
        "lora": {"r": 4},
        "keep": "last",
        "logging_every": 1,
        "validate_every": 1,
        "ranker": {"alphabet": "ABCDEF"},
        "data": {"folder": str(toys), "train": [{"rows": "toy"}], "validation_limit": 4},
        "stages": [first, {**first, "name": "RL", "method": "expected", "on_policy": True}],
    }
    return lambda out, **changes: Training(Recipe.model_validate({**settings, **changes}), out)


@pytest.fixture
def make(toy_training: Callable[..., Training], tmp_path: Path) -> Callable[..., Training]:
    return lambda out="out", **changes: toy_training(tmp_path / out, **changes)


@pytest.fixture
def first_steps() -> Any:
    """A callback of a trainer that notes, in `begun`, behind how many finished steps each one began."""
    from transformers import TrainerCallback

    class FirstSteps(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.begun: list[int] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun.append(state.global_step)

    return FirstSteps()


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """Runs two processes of a script or a module.

    What they tell has to be in files: their lines run together on one stream.
    """

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]

    return run
