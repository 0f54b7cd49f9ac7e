"""How many questions of each source are held out for validation, where the recipe names no rows for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..errors import InputError
from ..evaluation.datasets.leaks import question_key
from .sources import Source, hold_out

logger = logging.getLogger(__name__)

_TRAINED = 3
"""At most one question of a source out of so many is held out: a few rows are needed more for training."""


def even_share(sizes: Sequence[int], total: int) -> int:
    """What is to be taken at most from each of several, to have `total` together, as evenly as they allow.

    >>> even_share([50, 50, 50], 60), even_share([294, 2], 60), even_share([10, 2], 60)
    (20, 58, 10)
    """
    most = max(sizes)
    return next((each for each in range(1, most) if sum(min(size, each) for size in sizes) >= total), most)


def hold_some_out(
    sources: Sequence[Source], total: int, *, seed: int = 0
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Takes about so many questions for validation, evenly; what a small source cannot give the larger ones do.

    Args:
        sources: Rows to train on.
        total: Questions to hold out; fewer where there are not three times as many, which is told. A source of fewer
            than three gives none.
        seed: Decides which.

    Returns:
        The sources to train on, and those held out; no question stands in both.

    Raises:
        InputError: No source has three questions, or one would keep no row.
    """
    most = [len({question_key(row) for row in source.rows}) // _TRAINED for source in sources]
    if not any(most):
        detail = f"no source has {_TRAINED} questions, of which one could be held out: set it to 0, or name rows for it"
        raise InputError("data.validation_limit", detail)
    each = even_share(most, total)
    counts = [min(size, each) for size in most]
    try:
        kept, held = hold_out(sources, counts, seed=seed)
    except InputError as error:
        detail = f"{total} is too many for these rows; set it lower, or name other rows for validation"
        raise InputError("data.validation_limit", f"{detail} ({error})") from error
    if sum(counts) < total:
        logger.warning(
            "%d questions are held out for validation, not %d: of no source more than one in %d",
            sum(counts),
            total,
            _TRAINED,
        )
    return kept, held
