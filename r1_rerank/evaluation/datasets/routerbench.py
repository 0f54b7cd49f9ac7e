"""RouterBench: prompts with the score and the cost in US dollars of each LLM's response."""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import DataError
from ...rows import Candidate, Objective, Row
from .common import Dropped, number_of
from .routing import routing_row

COST = "|total_cost"

PROFILES: Mapping[str, tuple[str, float]] = {
    "WizardLM/WizardLM-13B-V1.2": (
        "13B open model tuned on instructions of growing difficulty; good for its size.",
        0.3,
    ),
    "claude-instant-v1": ("Fast, low-cost commercial assistant; sound on everyday questions and summaries.", 2.4),
    "claude-v1": ("Large commercial assistant of the first generation; careful, detailed answers.", 24.0),
    "claude-v2": (
        "Large commercial assistant; long context, stronger at code and reasoning than its predecessor.",
        24.0,
    ),
    "gpt-3.5-turbo-1106": ("Mid-size commercial chat model; reliable on general questions, follows formats well.", 2.0),
    "gpt-4-1106-preview": ("Top commercial model of its time; strongest at reasoning, knowledge and code.", 30.0),
    "meta/code-llama-instruct-34b-chat": (
        "34B open model for writing and explaining code; weaker outside of it.",
        0.776,
    ),
    "meta/llama-2-70b-chat": ("70B open chat model; broad knowledge, cautious, middling at code and mathematics.", 0.9),
    "mistralai/mistral-7b-chat": ("7B open chat model; the cheapest here, fine for plain questions.", 0.2),
    "mistralai/mixtral-8x7b-chat": (
        "Open mixture of eight 7B experts; close to much larger models at a low price.",
        0.6,
    ),
    "zero-one-ai/Yi-34B-Chat": ("34B open chat model, bilingual; strong at common sense and reading.", 0.8),
}
"""LLM -> description and list price of a million output tokens in US dollars; the files have neither."""


def read_routerbench(
    folder: str | Path, split: str = "train", objective: Objective = "performance", *, dropped: Dropped | None = None
) -> Iterator[Row]:
    """Reads the zero-shot tables of RouterBench, `<benchmark>_<split>.csv`, in alphabetical order.

    The examples that some prompts begin with are cut off: the query is the last block. Relevant is the LLM with the
    highest a * effect - b * cost, the cheapest of several, the costs divided by the highest of the row.

    Args:
        folder: Folder of the files.
        split: Which files.
        objective: Which reward decides.
        dropped: Counts what is left out.

    Raises:
        DataError: There is no such file, or one is truncated or of another shape.
    """
    folder, dropped = Path(folder), Dropped() if dropped is None else dropped
    paths = sorted(folder.glob(f"*_{split}.csv"))
    if not paths:
        raise DataError(str(folder), None, f"holds no *_{split}.csv")
    for path in paths:
        names: list[str] = []
        for line, cells in _cells(path):
            names = names or sorted(name.removesuffix(COST) for name in cells if name.endswith(COST))
            effects = [number_of(path, line, name, cells[name]) for name in names]
            costs = [number_of(path, line, name + COST, cells[name + COST]) for name in names]
            row = routing_row(
                id=f"routerbench-{cells['sample_id']}",
                query=_query(path, line, cells["prompt"]),
                objective=objective,
                candidates=[
                    Candidate(id=name, text=f"{name}: {PROFILES[name][0]}", price=PROFILES[name][1])
                    if name in PROFILES
                    else Candidate(id=name, text=name)
                    for name in names
                ],
                effects=effects,
                costs=costs,
                split=split,
                source="RouterBench",
                dropped=dropped,
            )
            if row is not None:
                yield row


def _cells(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    found = False
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or ())
            llms = [name.removesuffix(COST) for name in names if name.endswith(COST)]
            missing = [name for name in ("sample_id", "prompt", *llms) if name not in names]
            if missing or not llms:
                raise DataError(str(path), 1, f"the header lacks {', '.join(missing) or f'columns *{COST}'}")
            for cells in reader:
                found = True
                if None in cells or None in cells.values():
                    raise DataError(str(path), reader.line_num, f"not {len(names)} cells (truncated?)")
                yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(str(path), None, f"cannot be read: {error} (truncated?)") from error
    if not found:
        raise DataError(str(path), None, "holds no rows (truncated?)")


def _query(path: Path, line: int, prompt: str) -> str:
    """The prompt stands as the text of a Python list."""
    try:
        parts = ast.literal_eval(prompt) if prompt.startswith("[") else [prompt]
        return [block for block in re.split(r"\n\s*\n", parts[-1]) if block.strip()][-1].strip()
    except (ValueError, SyntaxError, IndexError, TypeError) as error:
        raise DataError(str(path), line, f"prompt: expected a list with a text, got {prompt[:40]!r}") from error
