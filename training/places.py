"""Names of files and folders, and what of them is told to others."""

from __future__ import annotations

from pathlib import Path


def is_place(name: str) -> bool:
    """Whether a name says where something lies on this machine: from its root, from home or from here.

    >>> [is_place(name) for name in ("/models/mine", "~/mine", "../mine", "you/ranker", "passage-5")]
    [True, True, True, False, False]
    """
    return Path(name).is_absolute() or name.startswith((".", "~"))


def without_folders(name: str) -> str:
    """A name that does not say where something lies; one of the hub or of a task stays.

    >>> without_folders("~/private/mine.jsonl"), without_folders("you/ranker"), without_folders(".")
    ('mine.jsonl', 'you/ranker', '.')
    """
    return Path(name).name or name if is_place(name) else name
