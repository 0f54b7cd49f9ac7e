"""The numbers of a training: what weights are held in, and whether they are computed in bfloat16."""

from __future__ import annotations

import os
from typing import Any, Literal

Precision = Literal["mixed", "bfloat16", "float32"]

_MARK = "training_precision"


def computes_bfloat16(device: Any) -> bool:
    """Whether a device need not emulate it."""
    import torch

    from ..engines.loading import choose_dtype

    return choose_dtype("auto", device) is torch.bfloat16


def weights_format(precision: Precision, device: Any, *, adapted: bool) -> Literal["bfloat16", "float32"]:
    """What weights are loaded in.

    Args:
        precision: Of the recipe.
        device: Where they go.
        adapted: Only an adapter is trained: the weights below it need not be finer than they are computed.
    """
    coarse = precision == "bfloat16" or (precision == "mixed" and adapted and computes_bfloat16(device))
    return "bfloat16" if coarse else "float32"


def mark_precision(model: Any, precision: Precision) -> None:
    """Has a model say how it is trained: of weights in float32 alone it could not be told."""
    setattr(model, _MARK, precision)


def precision_of(model: Any) -> Precision:
    """How a model is trained: as it is marked, or else as its weights are."""
    import torch

    marked: Precision | None = getattr(model, _MARK, None)
    if marked is not None:
        return marked
    weights = [(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()]
    if all(dtype == torch.float32 for dtype, _ in weights):
        return "float32"
    return "mixed" if any(dtype == torch.float32 and trained for dtype, trained in weights) else "bfloat16"


def computes_mixed(model: Any) -> bool:
    """Whether the passes of a training are computed in bfloat16, around weights in float32."""
    return precision_of(model) == "mixed" and computes_bfloat16(next(model.parameters()).device)


def overrule_launcher(model: Any) -> None:
    """Has accelerate compute as the recipe says, not as its own file does."""
    if precision_of(model) != "bfloat16":  # there DeepSpeed has to be told of the weights
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if computes_mixed(model) else "no"
