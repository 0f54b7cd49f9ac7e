"""A cache that is appended to in place: what is known stays as it is, whoever else goes on from it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.engines.growing import GrowingLayer, Span


def states(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, tokens, 4, generator=draw), torch.randn(1, 2, tokens, 4, generator=draw)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 400), st.floats(0, 1)), min_size=1, max_size=8))
def test_conversations_that_share_their_beginning_do_not_see_each_other(turns: list[tuple[int, int, float]]) -> None:
    """Each turn goes on from any earlier one, or from a part of it; concatenation says what it must know."""
    known: list[tuple[Span, torch.Tensor, torch.Tensor]] = []
    for seed, (earlier, tokens, share) in enumerate(turns):
        keys, values = states(tokens, seed)
        layer = GrowingLayer()
        if known:
            span, old_keys, old_values = known[earlier % len(known)]
            length = max(1, round(share * span.length))
            layer = GrowingLayer(span.cut(length))
            keys = torch.cat([old_keys[:, :, :length], keys], dim=2)
            values = torch.cat([old_values[:, :, :length], values], dim=2)
        found = layer.update(*states(tokens, seed))
        assert torch.equal(found[0], keys)
        assert torch.equal(found[1], values)
        assert layer.get_seq_length() == keys.shape[2]
        known.append((layer.span(), keys, values))
    for span, keys, values in known:
        assert torch.equal(span.keys, keys)
        assert torch.equal(span.values, values)


def test_a_conversation_that_goes_on_is_not_copied() -> None:
    layer = GrowingLayer()
    layer.update(*states(100, 0))
    first = layer.span()
    layer.update(*states(20, 1))
    assert layer.span().buffer is first.buffer
    assert (first.length, layer.span().length) == (100, 120)
