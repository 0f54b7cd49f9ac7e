"""What our own code costs: the import, and the pure layer for each step of an elimination.

python benchmarks/overhead.py [--queries 1000] [--documents 20]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer

from r1_rerank import IRanker, R1Reranker, ScriptedEngine
from r1_rerank.engines import Completion, GenerationRequest
from r1_rerank.prompts import render_answer

IMPORT = "import time; s = time.perf_counter(); import r1_rerank; print(time.perf_counter() - s)"


def worst_is_last(request: GenerationRequest) -> Completion:
    """An answer that costs nothing: the last live label, with a distribution."""
    labels = request.labels or ()
    return Completion(
        text=render_answer(labels[-1:]),
        label_logprobs={label: -1.0 - place for place, label in enumerate(reversed(labels))},
    )


def main(
    queries: Annotated[int, typer.Option(help="Queries.")] = 1000,
    documents: Annotated[int, typer.Option(help="Documents for each query.")] = 20,
) -> None:
    """Prints both figures."""
    imports = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    print(f"import r1_rerank: {statistics.median(imports) * 1000:.1f} ms")
    texts = [" ".join(f"word{place}" for place in range(60))] * documents
    for form in ("append", "rewrite"):
        engine = ScriptedEngine(worst_is_last, capabilities=frozenset({"constrain", "logprobs"}))
        reranker = R1Reranker(engine, strategy=IRanker(form=form), thinking=0)
        started = time.process_time()
        results = reranker.rerank_batch(["what is it?"] * queries, [texts] * queries)
        spent = time.process_time() - started
        steps = sum(len(result.steps) for result in results)
        print(f"{form}: {spent / steps * 1e6:.0f} µs of processor time a step, over {steps:,} steps")


if __name__ == "__main__":
    typer.run(main)
