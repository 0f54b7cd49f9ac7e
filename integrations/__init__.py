"""Adapters for frameworks, installed as `r1_rerank.integrations`; each module needs its framework's extra.

`llama_index`, `langchain`, `haystack`: rerankers and routers for these frameworks. `sentence_transformers`: the call
shape of a CrossEncoder. `router`: choosing among a pool of LLMs; needs no extra.
"""
