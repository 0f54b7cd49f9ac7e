"""Measures one group of systems in a process of its own; `peers.py` starts it in the peers' environment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from peers_served import llama_index
from peers_systems import Rank, Tally, cross_encoder, ours, rank_llm
from workloads import documents_of

GROUPS: dict[str, Callable[[], AbstractContextManager[dict[str, Rank]]]] = {
    "ours": ours,
    "rank_llm": rank_llm,
    "llama_index": llama_index,
    "cross_encoder": cross_encoder,
}


def attempt(rank: Rank, query: str, documents: list[str]) -> Tally:
    """Ranks once; an exception loses the query."""
    tally = Tally()
    started = time.perf_counter()
    try:
        rank(tally, query, documents)
    except Exception as error:
        tally.error = f"{type(error).__name__}: {error}"[:200]
        tally.answers = max(tally.answers, 1)
        tally.malformed = max(tally.malformed, 1)
    tally.seconds = time.perf_counter() - started
    return tally


def main(group: str, out: str, queries: str, long_queries: str) -> None:
    """Runs every query and writes a record for each."""
    found = []
    with GROUPS[group]() as rankers:
        for system, rank in rankers.items():
            attempt(rank, *documents_of(20, 60, offset=11))  # warm up
            for documents, words, number in ((20, 60, int(queries)), (100, 30, int(long_queries))):
                for query in range(number):
                    tally = attempt(rank, *documents_of(documents, words, offset=37 * query))
                    record = {"system": system, "documents": documents, "words": words, "tally": asdict(tally)}
                    print(record, flush=True)
                    found.append(record)
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
