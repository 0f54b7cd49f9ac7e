"""The processes of a training: which of them writes, where all meet, and whether weights are spread over them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from ..errors import InputError


def is_main() -> bool:
    """Whether this process writes: under a launcher only the first does."""
    return os.environ.get("RANK", "0") == "0"


def wait() -> None:
    """All processes have come here before one goes on."""
    if "RANK" in os.environ:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


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
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    sign = folder / ".seen-by-all"
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
