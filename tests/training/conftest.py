"""A model of two small layers with a tokenizer of its own, for what a trainer does whatever the weights are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from r1_rerank.prompts import PromptTemplate, close_thinking, render_answer
from r1_rerank.rows import Candidate, Row
from r1_rerank.strategies import ALPHABET

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
    assert all(len(found(render_answer([label]))["input_ids"]) for label in ALPHABET)
    return found
