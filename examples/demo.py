"""Reranks real passages with the embedded model and shows how the order came about, and what it cost."""

import json
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from r1_rerank import Document, R1Reranker, RerankResult

console = Console()


def main() -> None:
    """Ranks passages for a question by elimination."""
    record = json.loads(Path(__file__).with_name("tides.jsonl").read_text(encoding="utf-8"))
    documents = [Document(**document) for document in record["documents"]]
    console.print("Loading the embedded model (the first time its weights are converted, about 20 seconds) …")
    with R1Reranker.from_pretrained() as reranker:
        result = reranker.rerank(record["query"], documents)
    console.rule(f"[bold]{record['query']}[/bold]")
    show_steps(result, documents)
    show_ranking(result)


def show_steps(result: RerankResult, documents: list[Document]) -> None:
    """One line for each elimination, with how sure the model was."""
    for step in result.steps:
        worst = step.picked[0]
        sure = f" ({math.exp(step.logprobs[worst]):.0%})" if step.logprobs else ""
        console.print(f"step {step.number:2}: {documents[worst].id} is out{sure}")


def show_ranking(result: RerankResult) -> None:
    """The ranked documents, and what they cost."""
    table = Table("rank", "score", "document", "text")
    for hit in result:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.document.id, hit.text[:60] + "…")
    console.print(table)
    usage = result.usage
    console.print(
        f"status {result.status}; {usage.calls} calls; prompt tokens: {usage.prompt_computed} computed, "
        f"{usage.prompt_reused} reused; {usage.generated} generated; {usage.seconds:.1f} s"
    )
    for fault in result.faults:
        console.print(f"note: {fault.detail}", style="yellow")


if __name__ == "__main__":
    main()
