"""Attention of a few tokens over many, against what transformers computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward

from r1_rerank.engines import TransformersEngine, attention


class Layer(torch.nn.Module):
    """As much of a layer as attention asks for."""

    num_key_value_groups = 3


LAYER = Layer()


def states(rows: int, tokens: int, known: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query of nine heads, key and value of three."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (9, tokens), (3, known + tokens), (3, known + tokens)
    query, key, value = (torch.randn(rows, heads, length, 8, generator=draw) for heads, length in shapes)
    return query, key, value


def causal(rows: int, tokens: int, known: int) -> torch.Tensor:
    return torch.ones(tokens, known + tokens, dtype=torch.bool).tril(known).expand(rows, 1, -1, -1).clone()


@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 30),
    known=st.integers(0, 200),
    padding=st.integers(0, 40),
    scaling=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 99),
)
def test_it_is_what_sdpa_computes(
    rows: int, tokens: int, known: int, padding: int, scaling: float | None, seed: int
) -> None:
    query, key, value = states(rows, tokens, known, seed=seed)
    mask = causal(rows, tokens, known)
    mask[0, :, :, :padding] = False  # the first row is shorter than the others
    found, weights = attention.attend(LAYER, query, key, value, mask, scaling=scaling)
    expected, _ = sdpa_attention_forward(LAYER, query, key, value, mask, scaling=scaling)
    assert weights is None
    assert found.shape == expected.shape == (rows, tokens, 9, 8)
    assert found.isfinite().all()
    looks = mask.any(dim=-1)[:, 0]  # padding sees nothing, and nobody reads what it found
    torch.testing.assert_close(found[looks], expected[looks])


def test_one_token_alone_sees_everything() -> None:
    query, key, value = states(2, 1, 50)
    found, _ = attention.attend(LAYER, query, key, value, None)
    torch.testing.assert_close(found, sdpa_attention_forward(LAYER, query, key, value, None, is_causal=True)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_transformers_own_products(dtype: torch.dtype) -> None:
    query, key, value = states(1, 24, 1500)
    mask = causal(1, 24, 1500)
    exact, _ = sdpa_attention_forward(LAYER, query, key, value, mask)
    half = query.to(dtype), key.to(dtype), value.to(dtype)
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    ours, _ = attention.attend(LAYER, *half, mask)
    theirs, _ = eager_attention_forward(LAYER, *half, bias, scaling=8**-0.5)
    error, expected = ((found.float() - exact).square().mean().sqrt() for found in (ours, theirs))
    assert error < 1.1 * expected


def test_whole_prompts_and_what_is_special_go_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def sdpa(*args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
        called.append(kwargs)
        return torch.zeros(1), None

    monkeypatch.setattr(attention, "_SDPA", sdpa)
    query, key, value = states(1, 20, 30)
    mask = causal(1, 20, 30)
    attention.attend(LAYER, query, key, value, None)
    attention.attend(LAYER, query, key, value, torch.zeros(1, 1, 20, 50))
    attention.attend(LAYER, query, key, value, mask, dropout=0.1)
    attention.attend(LAYER, query, key, value, mask, position_bias=torch.zeros(1, 9, 20, 50))
    assert len(called) == 4
    attention.attend(LAYER, query, key, value, mask)
    assert len(called) == 4
    monkeypatch.setattr(attention, "_MOST_SCORES", 9 * 20 * 50 - 1)
    attention.attend(LAYER, query, key, value, mask)
    assert len(called) == 5


@pytest.mark.model
def test_a_model_that_we_load_has_it_and_one_of_the_user_stays_as_it_is(weights: str) -> None:
    ours = TransformersEngine(weights, device="cpu")
    assert ours.model.config._attn_implementation == attention.NAME
    theirs = AutoModelForCausalLM.from_pretrained(weights)
    TransformersEngine(theirs, ours.tokenizer)
    assert theirs.config._attn_implementation == "sdpa"


def test_models_of_which_prefixes_cannot_be_kept_keep_sdpa(tmp_path: Path, weights: str) -> None:
    config = MistralConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=16,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(weights).save_pretrained(tmp_path)
    assert TransformersEngine(str(tmp_path), device="cpu").model.config._attn_implementation == "sdpa"
