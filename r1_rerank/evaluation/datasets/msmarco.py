"""MS MARCO v1.1: queries with the passages that a search engine showed, one of them selected by a human."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ...errors import DataError
from ...rows import Candidate, Row
from .common import Dropped, parquet_rows, shuffled


def read_msmarco(
    path: str | Path,
    k: int,
    split: str = "test",
    *,
    seed: int = 0,
    longest: int = 2600,
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """Reads MS MARCO v1.1 (Parquet: query, query_id, passages {is_selected, passage_text}).

    Args:
        path: A file, or a folder with `<split>*.parquet`.
        k: Only queries with exactly that many passages, one of them selected.
        split: Name of the split.
        seed: Decides on the order of the candidates.
        longest: Characters that the passages of a query may have together.
        dropped: Counts queries that are left out.

    Raises:
        DataError: A file is missing, truncated or of another shape.
    """
    path, dropped = Path(path), Dropped() if dropped is None else dropped
    files = sorted(path.glob(f"{split}*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(str(path), None, f"holds no {split}*.parquet")
    for file in files:
        for number, row in parquet_rows(file, ("query", "query_id", "passages")):
            passages = row["passages"]
            if not isinstance(passages, Mapping) or not {"is_selected", "passage_text"} <= passages.keys():
                raise DataError(str(file), None, f"row {number}: passages lacks is_selected or passage_text")
            selected, texts = passages["is_selected"], passages["passage_text"]
            if len(selected) != len(texts):
                raise DataError(str(file), None, f"row {number}: {len(selected)} marks for {len(texts)} passages")
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
