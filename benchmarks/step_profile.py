"""Where the time of one ranking goes, in its prompt and in its further steps, on the CPU.

    python benchmarks/step_profile.py [--documents 20,50]

Lists of 60 words a document, eliminated in `append` form by transformers. The profiler itself takes a little of the
time. Prints a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from tables import caption, print_rows, print_table
from torch.profiler import ProfilerActivity, profile, record_function
from workloads import PACKAGES, documents_of, forget, load

from r1_rerank import IRanker, R1Reranker
from r1_rerank.engines.kv_cache import Batch

KINDS = {
    "layers' products": ("aten::mm", "aten::addmm"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::bmm",
        "aten::_softmax",
        "aten::masked_fill_",
        "aten::all",
    ),
    "copies": ("aten::copy_", "aten::cat"),
}
"""What each operation counts as; all others are small ones, and Python between them."""
REST = "everything else"
LONGEST_STEP = 64
"""Tokens."""
PROMPT, STEP = "a piece of its prompt", "a further step"


def main(
    documents: Annotated[str, typer.Option(help="Documents in a list.")] = "20,50",
    words: Annotated[int, typer.Option(help="Words in each document.")] = 60,
) -> None:
    """Prints the table in Markdown."""
    engine = load("transformers")
    reranker = R1Reranker(engine, strategy=IRanker(form="append"), thinking=0)
    reranker.rerank(*documents_of(3, words))  # warm up
    print_table(["documents", "", "times", "ms each", *(f"{kind}, ms" for kind in (*KINDS, REST))], [])
    for count in map(int, documents.split(",")):
        forget(engine)
        with _told_apart(), profile(activities=[ProfilerActivity.CPU]) as profiled:
            reranker.rerank(*documents_of(count, words))
        for name in (PROMPT, STEP):
            passes = [event for event in profiled.events() if event.name == name]
            spent: Counter[str] = Counter()
            for event in passes:
                spent.update(_by_kind(event))
            times = [spent[kind] / 1000 / len(passes) for kind in (*KINDS, REST)]
            print_rows([[count, name, len(passes), *(f"{time:.0f}" for time in (sum(times), *times))]])
    print("\n" + caption(*PACKAGES))


@contextmanager
def _told_apart() -> Iterator[None]:
    """Names each pass through the model; the prompt goes through it in pieces, each longer than any step."""
    feed = Batch.feed

    def named(batch: Batch, rows: Sequence[Sequence[int]]) -> None:
        with record_function(PROMPT if max(map(len, rows)) > LONGEST_STEP else STEP):
            feed(batch, rows)

    Batch.feed = named  # type: ignore[method-assign]
    try:
        yield
    finally:
        Batch.feed = feed  # type: ignore[method-assign]


def _by_kind(event: Any) -> Counter[str]:
    """Microseconds of a pass, each operation within it by what it took itself."""
    spent: Counter[str] = Counter()
    waiting = [event]
    while waiting:
        operation = waiting.pop()
        kind = next((kind for kind, names in KINDS.items() if operation.name in names), REST)
        spent[kind] += operation.self_cpu_time_total
        waiting.extend(operation.cpu_children)
    return spent


if __name__ == "__main__":
    typer.run(main)
