"""Padded batches that go through a model of transformers, each row from the prefix that it knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from .prefixes import Prefix

if TYPE_CHECKING:
    import torch

    from .growing import Span

_GAPS = 1.25
"""Rows go on where they stand while they take at most this many times the columns that the longest needs: gaps are
left by padding and by thinking, and attention passes over all of them."""


class LabelHead:
    """The output layer for a few tokens, in float32.

    In bfloat16, be it the format of the weights or of the computation, two logits near 20 differ by 0.125 or not at
    all, so that labels would tie. Their logits are computed again from the last hidden state, unless the model does
    more to its logits than one matrix product.

    Args:
        model: A causal language model.
        tokens: The tokens to try it on.
    """

    def __init__(self, model: Any, tokens: list[int]) -> None:
        import torch

        self._layer = model.get_output_embeddings()
        self._hidden: torch.Tensor | None = None
        offloaded = getattr(self._layer, "weight", None) is not None and self._layer.weight.device.type == "meta"
        plain = type(self._layer) is torch.nn.Linear and not offloaded
        self.exact = plain and bool(tokens) and self._agrees(model, tokens)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keeps the hidden states that reach the output layer meanwhile."""
        handle = self._layer.register_forward_pre_hook(self._keep)
        try:
            yield
        finally:
            handle.remove()

    def hidden(self) -> torch.Tensor:
        """Hidden states that came last, shaped (rows, tokens, hidden size)."""
        assert self._hidden is not None, "nothing was watched"
        return self._hidden

    def last_hidden(self) -> torch.Tensor:
        """Hidden state of the last token of each row, shaped (rows, hidden size)."""
        return self.hidden()[:, -1]

    def logits(self, hidden: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """Logits of the given tokens for one hidden state."""
        import torch

        with torch.autocast(hidden.device.type, enabled=False):
            logits: torch.Tensor = self._layer.weight[list(tokens)].float() @ hidden.float()
            return logits if self._layer.bias is None else logits + self._layer.bias[list(tokens)].float()

    def _keep(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = inputs[0]

    def _agrees(self, model: Any, tokens: list[int]) -> bool:
        import torch

        with torch.inference_mode(), self.watch():
            output = model(input_ids=torch.tensor([tokens], device=model.device), logits_to_keep=1)
            theirs = output.logits[0, -1, tokens].float()
            ours = self.logits(self.last_hidden()[0], tokens)
        return bool(torch.allclose(ours, theirs, rtol=0.02, atol=0.05))


class Batch:
    """Rows of different lengths that go through the model together, each from its own cached prefix.

    Shorter rows are padded on the left of every piece that is fed; a mask hides the padding, and positions count
    real tokens only, so that a row's numbers do not depend on its neighbours.
    """

    def __init__(self, model: Any, prefixes: Sequence[Prefix | None], head: LabelHead) -> None:
        import torch
        from transformers import DynamicCache

        from .growing import GrowingLayer

        self._model = model
        self._device = model.device
        self._head = head
        self._prefixes = prefixes
        self._cache = DynamicCache(config=model.config)
        starts, columns = _begin(prefixes)
        width = starts[0].length if starts else 0
        self._mask = torch.zeros(len(prefixes), width, dtype=torch.long)
        for row, known in enumerate(columns):
            self._mask[row, known] = 1
        if is_croppable(model):
            begun: Sequence[Span | None] = starts or [None] * len(self._cache.layers)
            self._cache.layers = [GrowingLayer(start) for start in begun]
        self._left: list[Span] = []
        self._logits: list[torch.Tensor] = [torch.empty(0)] * len(prefixes)
        self._hidden: list[torch.Tensor] = [torch.empty(0)] * len(prefixes)

    def feed(self, rows: Sequence[Sequence[int]]) -> None:
        """Feeds each row its tokens. A row that gets none stays as it was."""
        import torch

        self._left = []
        width = max(len(row) for row in rows)
        tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
        fresh = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
        positions = (self._mask.sum(dim=1, keepdim=True) + fresh.cumsum(dim=1) - 1).clamp(min=0)
        self._mask = torch.cat([self._mask, fresh], dim=1)
        with self._head.watch() if self._head.exact else nullcontext():
            output = self._model(
                input_ids=tokens.to(self._device),
                # Without padding the mask says nothing, and leaving it out lets attention take its fast path.
                attention_mask=None if bool(self._mask.all()) else self._mask.to(self._device),
                position_ids=positions.to(self._device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        for number, row in enumerate(rows):
            if row:
                self._logits[number] = output.logits[number, -1]
                if self._head.exact:
                    self._hidden[number] = self._head.last_hidden()[number]

    def logits(self, row: int, tokens: Sequence[int] | None = None) -> torch.Tensor:
        """Logits after the last token of a row, of the given tokens or of the whole vocabulary."""
        if tokens is None:
            return self._logits[row].float()
        if self._head.exact:
            return self._head.logits(self._hidden[row], tokens)
        return self._logits[row][list(tokens)].float()

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, with the room behind them."""
        return sum(span.buffer.nbytes for span in self._spans())

    def prefix(self, row: int, tokens: list[int], *, alone: bool = False) -> Prefix:
        """The first real tokens of a row, which are these, with their keys and values.

        Args:
            row: The row.
            tokens: Its tokens.
            alone: In memory of their own. Otherwise they stay where they are, beside those of the other rows, so
                that the same rows can go on together without being copied.
        """
        from .growing import GrowingLayer

        spans, length = self._spans(), len(tokens)
        real = self._mask[row].nonzero().squeeze(1)[:length]
        if len(self._mask) == 1 and int(real[-1]) == length - 1:
            return Prefix(tokens, [span.cut(length) for span in spans])  # it goes on in the same memory
        if not alone:
            return Prefix(tokens, spans, row, real)
        before = self._prefixes[row]
        if before is not None and before.columns is not None:
            before = None
        known = len(before.tokens) if before else 0
        layers = []
        for number, span in enumerate(spans):
            # Behind the row's own prefix, where there is room.
            layer = GrowingLayer(before.layers[number] if before else None)
            layer.update(span.keys[row : row + 1, :, real[known:]], span.values[row : row + 1, :, real[known:]])
            layers.append(layer.span())
        return Prefix(tokens, layers)

    def _spans(self) -> list[Span]:
        """All rows as they were left; the same list as long as nothing is fed."""
        self._left = self._left or [layer.span() for layer in self._cache.layers]
        return self._left


def is_croppable(model: Any) -> bool:
    """True if all layers keep full keys and values, so that a prefix can be cut and taken up again.

    Sliding windows drop what lies behind, and linear attention cannot go back.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def _begin(prefixes: Sequence[Prefix | None]) -> tuple[list[Span], list[torch.Tensor]]:
    """What several rows know, side by side: their layers, and in which columns each row's tokens stand."""
    import torch

    known = [prefix for prefix in prefixes if prefix is not None]
    width = max((len(prefix.tokens) for prefix in known), default=0)
    if not known:
        return [], [torch.arange(0) for _ in prefixes]
    if len(known) == len(prefixes) == 1 and known[0].columns is None:
        return known[0].layers, [torch.arange(width)]
    columns = [prefix.columns for prefix in known if prefix.columns is not None and prefix.layers is known[0].layers]
    if len(columns) == len(prefixes):  # all of them rows of one batch
        first = min(int(places[0]) for places in columns)
        span = known[0].layers[0]
        if span.length - first <= _GAPS * width:
            rows = [prefix.row for prefix in known]
            # Nobody may have gone on from there.
            if rows == list(range(len(span.keys))) and span.length == span.buffer.used:
                return known[0].layers, columns
            return _pick_rows(known[0].layers, rows, first), [places - first for places in columns]
    lengths = [len(prefix.tokens) if prefix else 0 for prefix in prefixes]
    return _stack(prefixes, width), [torch.arange(width - length, width) for length in lengths]


def _pick_rows(layers: Sequence[Span], rows: Sequence[int], first: int) -> list[Span]:
    """A copy of some rows of a batch, from a column on."""
    from .growing import Buffer, Span

    picked = []
    for span in layers:
        keys, values, length = span.keys[:, :, first:], span.values[:, :, first:], span.length - first
        shape = [states[:1].expand(len(rows), -1, -1, -1) for states in (keys, values)]
        buffer = Buffer.with_room(shape[0], shape[1], length)
        for place, row in enumerate(rows):
            buffer.keys[place, :, :length] = keys[row]
            buffer.values[place, :, :length] = values[row]
        buffer.used = length
        picked.append(Span(buffer, length))
    return picked


def _stack(prefixes: Sequence[Prefix | None], width: int) -> list[Span]:
    """A copy of the prefixes of several rows as one, each padded on its left."""
    from .growing import Buffer, Span

    sample = next(prefix for prefix in prefixes if prefix is not None)
    runs = [prefix.runs() if prefix else [] for prefix in prefixes]
    stacked = []
    for number, like in enumerate(sample.layers):
        shape = [tensor[:1].expand(len(prefixes), -1, -1, -1) for tensor in (like.keys, like.values)]
        buffer = Buffer.with_room(shape[0], shape[1], width)
        for row, prefix in enumerate(prefixes):
            end = width - (len(prefix.tokens) if prefix else 0)
            # Masked, but what is multiplied by 0 must be a number.
            buffer.keys[row, :, :end] = 0
            buffer.values[row, :, :end] = 0
            for first, last in runs[row]:
                assert prefix is not None
                start, end = end, end + last - first
                known = prefix.layers[number]
                buffer.keys[row, :, start:end] = known.keys[prefix.row, :, first:last]
                buffer.values[row, :, start:end] = known.values[prefix.row, :, first:last]
        buffer.used = width
        stacked.append(Span(buffer, width))
    return stacked
