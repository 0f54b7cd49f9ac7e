"""The log of a training, which curves are drawn from."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunLog:
    """The log of a training: JSON Lines, each with the stage and the step that it is of.

    Args:
        path: Of the file; it is made when there is something to write.
        stage: Name of the stage.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self._path = path
        self._stage = stage
        self._before = 0.0
        self._started = time.perf_counter()

    def open(self, step: int) -> None:
        """Begins to write behind a step: what an earlier, killed run wrote of later steps will be done again."""
        kept, of_stage = [], [0.0]
        for line in read_log(self._path):
            if line["stage"] != self._stage:
                kept.append(line)
            elif line["step"] <= step and step > 0:
                kept.append(line)
                of_stage.append(line["seconds"])
        part = self._path.with_name(f".{self._path.name}.part")
        part.write_text("".join(_line(line) for line in kept), encoding="utf-8")
        os.replace(part, self._path)
        self._before, self._started = max(of_stage), time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long the stage has taken, those of earlier runs that are not lost included."""
        return self._before + time.perf_counter() - self._started

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line."""
        line = {"stage": self._stage, "step": step, "seconds": round(self.seconds, 1), **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(line))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a torn last one is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _line(values: Mapping[str, Any]) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value if isinstance(value, str | int | float | bool | None) else float(value)

    return json.dumps({name: plain(value) for name, value in values.items()}, ensure_ascii=False) + "\n"
