"""What our own code costs: the import, the pure layer for each step of an elimination, and making tokens of it.

    python benchmarks/overhead.py [--queries 1000] [--documents 20] [--tokenized 50]

No two documents are the same. An engine of the user's own would tokenize as it likes; what ours does is measured over
the requests of a few queries, with the tokenizer of the embedded weights.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer
from tables import caption, print_table
from workloads import documents_of

from r1_rerank import IRanker, R1Reranker, ScriptedEngine
from r1_rerank.checkpoint import embedded_base
from r1_rerank.engines import Completion, GenerationRequest
from r1_rerank.engines.tokenization import ChatTokenizer
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
    tokenized: Annotated[int, typer.Option(help="Queries whose prompts are made into tokens.", min=1)] = 50,
) -> None:
    """Prints the table in Markdown."""
    imports = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    rows = [("`import r1_rerank`", f"{statistics.median(imports) * 1000:.1f} ms", "")]
    lists = [documents_of(documents, 60, offset=number) for number in range(queries)]
    asked: dict[str, list[GenerationRequest]] = {}
    for form in ("append", "rewrite"):
        engine = ScriptedEngine(worst_is_last, capabilities=frozenset({"constrain", "logprobs"}))
        reranker = R1Reranker(engine, strategy=IRanker(form=form), thinking=0)
        started = time.process_time()
        results = reranker.rerank_batch([query for query, _ in lists], [texts for _, texts in lists])
        spent = time.process_time() - started
        steps = sum(len(result.steps) for result in results)
        rows.append((f"a step of `{form}`", f"{spent / steps * 1e6:.0f} µs", f"{steps:,} steps"))
        asked[form] = engine.requests[: tokenized * (documents - 1)]
    from transformers import AutoTokenizer  # only now: the steps are timed without it in memory

    chat = ChatTokenizer(AutoTokenizer.from_pretrained(embedded_base()[0]))
    for form, requests in asked.items():
        started = time.process_time()
        for request in requests:
            chat.checked_prompt(request, None)
        spent = (time.process_time() - started) / len(requests)
        rows.append((f"chat template and tokens of it, `{form}`", f"{spent * 1e6:.0f} µs", f"{len(requests):,} steps"))
    print_table(["processor time", "", "over"], rows)
    print("\n" + caption("transformers", "tokenizers"))


if __name__ == "__main__":
    typer.run(main)
