"""Data cards: what a built task is made of, as JSON and as a page to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

CARD, README = "card.json", "README.md"


@dataclass(frozen=True, kw_only=True)
class FileCard:
    """A file of rows.

    Args:
        rows: How many.
        questions: How many queries, or users: intervals go by these.
        candidates: Fewest and most in a row.
        duplicates: Rows with the question and the candidates of an earlier one.
        first_positive: Place -> rows whose first relevant candidate stands there.
        bytes: Size.
        sha256: Digest.
    """

    rows: int
    questions: int
    candidates: tuple[int, int]
    duplicates: int
    first_positive: Mapping[str, int]
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SourceCard:
    """A source of rows.

    Args:
        name: Of the data set.
        licence: Under which terms.
        home: Where it comes from.
        read: Rows that it gave.
        dropped: Reason -> what was left out.
    """

    name: str
    licence: str
    home: str
    read: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class TaskCard:
    """A built task.

    Args:
        name: Of the task.
        paper: The data that the R1-Ranker paper uses.
        instead: What stands in its place; empty where nothing does.
        files: Split -> file.
        sources: Split -> where its rows come from.
        leaks: Reason -> rows of train that were dropped because of test.
        notes: What is missing.
        seed: Of splits, negatives and orders.
        negatives: How negatives were drawn, in recommendation tasks.
        limit: Rows that each file was cut to.
    """

    name: str
    paper: str
    instead: str
    files: Mapping[str, FileCard]
    sources: Mapping[str, tuple[SourceCard, ...]]
    leaks: Mapping[str, int]
    notes: tuple[str, ...]
    seed: int
    negatives: str | None
    limit: int | None

    def to_json(self) -> str:
        """The card, with a version of its format."""
        return json.dumps({"format": 1, **asdict(self)}, ensure_ascii=False, indent=2) + "\n"

    def to_markdown(self) -> str:
        """The card as a page."""
        lines = [f"# {self.name}", "", f"Data of the R1-Ranker paper: {self.paper}."]
        if self.instead:
            lines += ["", f"**Not the paper's data:** {self.instead}."]
        lines += [
            "",
            "| file | rows | queries or users | candidates | duplicates | SHA-256 |",
            "|---|---|---|---|---|---|",
        ]
        for split, file in self.files.items():
            low, high = file.candidates
            listed = str(low) if low == high else f"{low} to {high}"
            lines.append(
                f"| {split}.jsonl | {file.rows} | {file.questions} | {listed} | {file.duplicates} | `{file.sha256}` |"
            )
        lines += ["", "## Sources", ""]
        for split, sources in self.sources.items():
            for source in sources:
                lines.append(f"- {split}: {source.name}, {source.read} rows. Licence: {source.licence}. {source.home}")
                lines += [f"  - left out, {reason}: {count}" for reason, count in source.dropped.items()]
        lines += [f"- dropped from train, {reason}: {count}" for reason, count in self.leaks.items()]
        lines += [f"- {note}" for note in self.notes]
        lines += ["", "## How it was made", "", f"Seed {self.seed}."]
        if self.negatives:
            lines.append(
                f"Negatives: drawn by {self.negatives}, never from the user's own items; users are split 80/20."
            )
        if self.limit:
            lines.append(f"Cut to the first {self.limit} rows of each file.")
        lines.append("The licences above are those of the sources: the rows hold their texts.")
        return "\n".join(lines) + "\n"
