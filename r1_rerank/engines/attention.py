"""Attention of a few new tokens over many cached ones, on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "r1_rerank_cpu"
"""What transformers knows it by."""
_SDPA = ALL_ATTENTION_FUNCTIONS["sdpa"]
_MOST_SCORES = 2**24
"""Scores of a layer that are held at once: 32 MiB in bfloat16, and as much after their softmax."""


def use(model: Any) -> None:
    """Lets a model attend by `attend`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What `sdpa` computes; over a short piece of a long conversation by two plain matrix products.

    torch's kernel for the CPU is made for whole prompts: for one token over 1,900 cached ones it takes four times as
    long. And under a mask transformers copies the cache for every head that shares a key, in every layer and step;
    here such heads are further rows of one product. In half precision the scores are rounded before their softmax, as
    in transformers' `eager`; torch's kernel keeps them in float32.

    Args:
        module: The layer.
        query: Shaped (rows, heads, tokens, head size).
        key: Shaped (rows, key heads, tokens seen, head size), the new ones last.
        value: Likewise.
        attention_mask: Shaped (rows or 1, 1, tokens, tokens seen), True where a token may look. None hides only what
            comes later.
        dropout: Share of the weights that is dropped.
        scaling: Factor of the scores; by default one over the square root of the head size.
        kwargs: What else `sdpa` takes.

    Returns:
        What was read, shaped (rows, tokens, heads, head size), and None for the weights.
    """
    rows, heads, tokens, size = query.shape
    key_heads, seen = key.shape[1:3]
    plain = tokens == 1 if attention_mask is None else attention_mask.dtype == torch.bool
    special = dropout or any(kwargs.get(name) is not None for name in ("position_bias", "cache"))
    if special or not plain or rows * heads * tokens * seen > _MOST_SCORES:
        result: tuple[torch.Tensor, None] = _SDPA(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    stacked = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, key_heads, -1, size)
    scores = stacked @ key.transpose(-1, -2)
    if attention_mask is not None:
        # Without padding only the new tokens hide anything, and they are few.
        first = seen - tokens if bool(attention_mask[..., : seen - tokens].all()) else 0
        hidden = ~attention_mask[..., first:].unsqueeze(2)
        # Not -inf: a padding token, to which everything is hidden, would become NaN.
        scores.view(rows, key_heads, -1, tokens, seen)[..., first:].masked_fill_(hidden, torch.finfo(scores.dtype).min)
    read = torch.softmax(scores, dim=-1) @ value
    return read.view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None
