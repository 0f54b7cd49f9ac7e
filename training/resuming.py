"""Where an interrupted stage goes on."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

_NAME = re.compile(r"checkpoint-(\d+)")


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint of a trainer that was written to its end, None where there is none.

    A kill may leave half of one behind: the trainer writes its own state last.
    """
    whole = [
        (int(found[1]), path)
        for path in Path(folder).glob("checkpoint-*")
        if (found := _NAME.fullmatch(path.name)) and _is_whole(path / "trainer_state.json")
    ]
    return str(max(whole)[1]) if whole else None


def _is_whole(state: Path) -> bool:
    try:
        return isinstance(json.loads(state.read_bytes()), dict)
    except (OSError, ValueError):
        return False
