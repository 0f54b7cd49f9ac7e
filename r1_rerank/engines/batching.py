"""Which requests of the transformers engine share a batch, and what happens where one does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .decoding import Job
from .prefixes import MIN_SHARED

_BUCKET = 1.25
"""Rows share a batch while the longest has at most this many times the tokens of the shortest to compute."""
_KNOWN_BUCKET, _KNOWN_SLACK = 2.0, 512
"""The same for tokens that a cache holds, and so many more: padding them only costs memory and its copying, while
one more batch reads all weights once more."""


def buckets(jobs: Mapping[int, Job], rows: int) -> list[list[int]]:
    """Groups requests of about equal length, so that little is spent on padding."""
    made: list[list[int]] = []
    # Steps of elimination differ by a token or two: by what they know they come in the same order each time.
    for number in sorted(jobs, key=lambda number: (jobs[number].to_compute // MIN_SHARED, jobs[number].known)):
        for bucket in made:
            if len(bucket) < rows and _alike([jobs[other] for other in (*bucket, number)]):
                bucket.append(number)
                break
        else:
            made.append([number])
    return made


def _alike(jobs: Sequence[Job]) -> bool:
    to_compute, known = [job.to_compute for job in jobs], [job.known for job in jobs]
    return (
        max(to_compute) <= _BUCKET * min(to_compute) + MIN_SHARED
        and max(known) <= _KNOWN_BUCKET * min(known) + _KNOWN_SLACK
    )


def out_of_memory(error: Exception) -> bool:
    """Whether this is how the device says that its memory is full."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        # CPU and MPS raise a bare RuntimeError.
        isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    )


def empty_allocator(device: Any) -> None:
    """Gives back what the allocator keeps of freed memory."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
