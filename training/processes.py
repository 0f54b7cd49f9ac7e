"""The processes of a training: which of them writes, where all meet, and whether weights are spread over them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from ..errors import InputError

SEEN = ".seen-by-all"
"""File that the first process writes for the others to see; a start that failed may leave it."""


def is_main() -> bool:
    """Whether this process writes: under a launcher only the first does."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """How many there are, over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait() -> None:
    """All processes have come here before one goes on."""
    if "RANK" in os.environ:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def leave() -> None:
    """The processes part, with nothing more to exchange; one that exits without it may bring itself or others down."""
    if "RANK" in os.environ:
        from accelerate import PartialState

        wait()
        PartialState().destroy_process_group()


def as_first(value: dict[str, float]) -> dict[str, float]:
    """What the first process has: by rounding others may have found something else, and all must decide alike."""
    if "RANK" not in os.environ:
        return value
    from accelerate.utils import broadcast_object_list

    shared = [value]
    broadcast_object_list(shared)
    return shared[0]


def sharding() -> Literal["FSDP", "DeepSpeed"] | None:
    """What the launcher spreads weights by; None: each process has them whole."""
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return "FSDP"
    return "DeepSpeed" if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") else None


def check_shared(folder: Path) -> None:
    """Sees to it that the folder of a training is one folder, on whatever machine a process runs.

    Raises:
        InputError: A process does not see what the first one writes.
    """
    if world_size() == 1:
        return
    sign = folder / SEEN
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        sign.touch()
    wait()
    seen = sign.is_file()
    wait()
    if is_main():
        sign.unlink(missing_ok=True)
    if not seen:
        raise InputError("out", f"{folder} is not one folder for all machines: name one that they share")
