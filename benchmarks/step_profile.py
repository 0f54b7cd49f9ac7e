"""Where the time of one ranking goes, in its prompt and in its further steps, on the CPU.

    python benchmarks/step_profile.py [--engine vllm] [--documents 20,50]

Lists of 60 words a document, eliminated in `append` form. Torch's profiler itself takes a part of the time. Prints a
table; vLLM prints one of its own for each list before it.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from tables import caption, print_table
from workloads import PACKAGES, EngineKind, documents_of, forget, load

from r1_rerank import IRanker, R1Reranker

KINDS = {
    "layers' products": ("aten::mm", "aten::addmm", "_C::onednn_mm"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::bmm",
        "aten::_softmax",
        "aten::masked_fill_",
        "aten::all",
        "_C::cpu_attention_with_kv_cache",
    ),
    "copies": ("aten::copy_", "aten::cat", "_C::cpu_attn_reshape_and_cache"),
}
"""What each operation counts as; all others are small ones, and Python between them."""
REST = "everything else"
PASS = re.compile(r"(?:pass|execute_context_\d+)\((\d+)\)")
"""What a pass over so many tokens is called in a trace: by us, or by vLLM, which runs empty ones too."""
LONGEST_STEP = 64
"""Tokens."""
PROMPT, STEP = "a piece of its prompt", "a further step"


@dataclass(frozen=True)
class Pass:
    """One pass through the model.

    Args:
        tokens: Tokens fed forward.
        spent: Microseconds by kind.
        gap: Microseconds until the next one begins; None for the last.
    """

    tokens: int
    spent: Counter[str]
    gap: float | None


def main(
    engine: Annotated[EngineKind, typer.Option(help="What runs the model.")] = "transformers",
    documents: Annotated[str, typer.Option(help="Documents in a list.")] = "20,50",
    words: Annotated[int, typer.Option(help="Words in each document.")] = 60,
) -> None:
    """Prints the table in Markdown."""
    kinds = (*KINDS, REST)
    rows: list[list[object]] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        loaded = load(engine, **_vllm_profiler(folder) if engine == "vllm" else {})
        reranker = R1Reranker(loaded, strategy=IRanker(form="append"), thinking=0)
        reranker.rerank(*documents_of(3, words))  # warm up
        for count in map(int, documents.split(",")):
            forget(loaded)
            run = _profiled_vllm if engine == "vllm" else _profiled
            trace = run(loaded, folder, lambda count=count: reranker.rerank(*documents_of(count, words)))
            found = passes(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])
            trace.unlink()
            for what, some in (
                (PROMPT, [one for one in found if one.tokens > LONGEST_STEP]),
                (STEP, [one for one in found if one.tokens <= LONGEST_STEP]),
            ):
                if not some:
                    continue
                times = [statistics.mean(one.spent[kind] for one in some) for kind in kinds]
                gaps = [one.gap for one in some if one.gap is not None]
                rows.append(
                    [
                        count,
                        what,
                        len(some),
                        f"{statistics.mean(one.tokens for one in some):.0f}",
                        *(f"{time / 1000:.0f}" for time in (sum(times), *times)),
                        f"{statistics.mean(gaps) / 1000:.0f}" if gaps else "–",
                    ]
                )
    head = ["documents", "", "times", "tokens each", "ms each", *(f"{kind}, ms" for kind in kinds)]
    print_table([*head, "until the next, ms"], rows)
    print("\n" + caption(*PACKAGES))


def passes(events: Sequence[dict[str, Any]]) -> list[Pass]:
    """The passes of a trace in Chrome's format, with all operations in them, each by what it took itself."""
    timed = [event for event in events if event.get("cat") in ("cpu_op", "user_annotation")]
    # An operation before those within it.
    timed.sort(key=lambda event: (event["ts"], -event["dur"]))
    marks = [(event, int(named[1])) for event in timed if (named := PASS.match(event["name"])) and int(named[1])]
    found = []
    for number, (mark, tokens) in enumerate(marks):
        end = mark["ts"] + mark["dur"]
        within = [event for event in timed if event["tid"] == mark["tid"] and mark["ts"] <= event["ts"] < end]
        gap = marks[number + 1][0]["ts"] - end if number + 1 < len(marks) else None
        found.append(Pass(tokens, _by_kind(within), gap))
    return found


def _by_kind(nested: Sequence[dict[str, Any]]) -> Counter[str]:
    """Microseconds of operations, each without those within it."""
    spent: Counter[str] = Counter()
    around: list[tuple[str, float]] = []  # kinds and ends of the operations that the next one may be within
    for event in nested:
        kind = next((kind for kind, names in KINDS.items() if event["name"] in names), REST)
        while around and around[-1][1] <= event["ts"]:
            around.pop()
        if around:
            spent[around[-1][0]] -= event["dur"]
        spent[kind] += event["dur"]
        around.append((kind, event["ts"] + event["dur"]))
    return spent


def _profiled(engine: Any, folder: Path, work: Callable[[], object]) -> Path:
    """The trace of work on transformers."""
    from torch.profiler import ProfilerActivity, profile

    with _passes_named(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        work()
    trace = folder / "trace.json"
    profiled.export_chrome_trace(str(trace))
    return trace


@contextmanager
def _passes_named() -> Iterator[None]:
    """Names each pass through the model; the prompt goes through it in pieces, each longer than any step."""
    from torch.profiler import record_function

    from r1_rerank.engines.kv_cache import Batch

    feed = Batch.feed

    def named(batch: Batch, rows: Sequence[Sequence[int]]) -> None:
        with record_function(f"pass({sum(map(len, rows))})"):
            feed(batch, rows)

    Batch.feed = named  # type: ignore[method-assign]
    try:
        yield
    finally:
        Batch.feed = feed  # type: ignore[method-assign]


def _vllm_profiler(folder: Path) -> dict[str, Any]:
    """What makes vLLM write traces."""
    config = {"torch_profiler_dir": str(folder), "torch_profiler_use_gzip": False, "torch_profiler_with_stack": False}
    return {"profiler_config": {"profiler": "torch", **config}}


def _profiled_vllm(engine: Any, folder: Path, work: Callable[[], object]) -> Path:
    """The trace of work on vLLM, which its own process writes."""
    engine.llm.start_profile()
    work()
    engine.llm.stop_profile()
    (trace,) = folder.glob("*.json")
    return trace


if __name__ == "__main__":
    typer.run(main)
