"""MS MARCO v1.1: queries with the passages that a search engine showed, one of them selected by a human."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...rows import Candidate, Row
from .common import Dropped, hub_rows, parquet_rows, shuffled

HUB, CONFIG = "microsoft/ms_marco", "v1.1"


def read_msmarco(
    source: str | Path,
    k: int,
    split: str = "test",
    *,
    seed: int = 0,
    longest: int = 2600,
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """Reads MS MARCO v1.1 (query, query_id, passages {is_selected, passage_text}) from the hub, a folder, or a file.

    Args:
        source: A `.parquet` file, a folder with `<split>*.parquet`, or the name on the hub, `microsoft/ms_marco`.
        k: Only queries with exactly that many passages, one of them selected.
        split: Name of the split.
        seed: Decides on the order of the candidates.
        longest: Characters that the passages of a query may have together.
        dropped: Counts queries that are left out.

    Raises:
        DataError: The hub cannot be reached, or a file is missing, truncated or of another shape.
        MissingExtraError: datasets or pyarrow is not installed.
    """
    dropped = Dropped() if dropped is None else dropped
    for where, records in _records(source, split):
        for number, row in records:
            passages = row["passages"]
            if not isinstance(passages, Mapping) or not {"is_selected", "passage_text"} <= passages.keys():
                raise DataError(where, None, f"row {number}: passages lacks is_selected or passage_text")
            selected, texts = passages["is_selected"], passages["passage_text"]
            if not all(isinstance(text, str) for text in (row["query"], *texts)):
                raise DataError(where, None, f"row {number}: the query or a passage is no text")
            if len(selected) != len(texts):
                raise DataError(where, None, f"row {number}: {len(selected)} marks for {len(texts)} passages")
            if len(texts) != k:
                dropped.add(f"a query with another number of passages than {k}")
            elif selected.count(1) != 1:
                dropped.add("a query with no or several selected passages")
            elif sum(map(len, texts)) > longest:
                dropped.add(f"passages of more than {longest} characters together")
            else:
                id = f"msmarco-{split}-{row['query_id']}"
                listed = [Candidate(id=str(place), text=text) for place, text in enumerate(texts)]
                yield Row(
                    id=id,
                    task="passage",
                    query=row["query"],
                    split=split,
                    source="MS MARCO v1.1",
                    **shuffled(listed, selected, f"{id}/{seed}"),
                )


def _records(source: str | Path, split: str) -> Iterator[tuple[str, Iterator[tuple[int, Any]]]]:
    """The rows of each file, with its name."""
    path = Path(source)
    if str(source) == HUB and not path.exists():
        instead = f"a folder with {split}*.parquet, or such a file"
        yield HUB, hub_rows(HUB, CONFIG, split, instead)
        return
    files = sorted(path.glob(f"{split}*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(str(path), None, f"holds no {split}*.parquet")
    for file in files:
        yield str(file), parquet_rows(file, ("query", "query_id", "passages"))
