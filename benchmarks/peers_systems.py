"""The compared systems that run in this process, and how their answers are judged.

A ranking over numbers (rank_llm, RankGPT) is malformed if the numbers in the answer, read as generously as the peers
do, are not every document once. Choices (`LLMRerank`) are malformed if its own parser refuses a line, or a number is
repeated or no document's, or there are none. Ours counts by itself; scores cannot be malformed. A query on which a
system raises is lost, and one of its answers counts as malformed.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from workloads import forget, load

from r1_rerank import IRanker, R1Reranker
from r1_rerank.checkpoint import embedded_base

WINDOW, STRIDE = 20, 10


@dataclass
class Tally:
    """What one query took; a system adds to it as it goes."""

    seconds: float = 0.0
    computed: int = 0
    generated: int = 0
    answers: int = 0
    malformed: int = 0
    error: str = ""


Rank = Callable[[Tally, str, list[str]], object]


def complete(answer: str, count: int) -> bool:
    """Whether the numbers in an answer are 1 to `count`, each once."""
    return sorted(map(int, re.findall("[0-9]+", answer))) == list(range(1, count + 1))


@contextmanager
def ours() -> Iterator[dict[str, Rank]]:
    """`IRanker` and `DRanker` over vLLM in process; the prefix cache is emptied before each query."""
    engine = load("vllm")

    def ranker(strategy: Any) -> Rank:
        reranker = R1Reranker(engine, strategy=strategy, thinking=0, on_error="raise")

        def rank(tally: Tally, query: str, documents: list[str]) -> None:
            forget(engine)
            result = reranker.rerank(query, documents)
            tally.computed += result.usage.prompt_computed
            tally.generated += result.usage.generated
            tally.answers += len(result.steps)
            tally.malformed += result.malformed

        return rank

    yield {"IRanker, append": ranker(IRanker(form="append")), "DRanker": ranker("dranker")}
    engine.close()


@contextmanager
def rank_llm() -> Iterator[dict[str, Rank]]:
    """rank_llm's listwise ranker with its own vLLM; tokens are read from what vLLM returns to it."""
    # Its T5 rankers do not import under transformers 5, and its package imports them all.
    t5 = SimpleNamespace(FiD=object, FiDCrossAttentionScore=object)
    sys.modules["rank_llm.rerank.listwise.lit5.model"] = t5  # type: ignore[assignment]
    from rank_llm.data import Candidate, Query, Request
    from rank_llm.rerank.listwise.rank_listwise_os_llm import RankListwiseOSLLM

    model = RankListwiseOSLLM(str(embedded_base()[0]), window_size=WINDOW, stride=STRIDE)
    llm = model._vllm_handler._vllm
    generate, outputs = llm.generate, []

    def watched(*arguments: Any, **options: Any) -> Any:
        made = generate(*arguments, **options)
        outputs.extend(made)
        return made

    llm.generate = watched

    def rank(tally: Tally, query: str, documents: list[str]) -> None:
        outputs.clear()
        candidates = [Candidate(place, 0.0, {"text": text}) for place, text in enumerate(documents)]
        try:
            model.rerank_batch([Request(Query(query, 0), candidates)], rank_end=len(documents))
        finally:
            for output in outputs:
                tally.computed += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
                tally.generated += len(output.outputs[0].token_ids)
                tally.answers += 1
                tally.malformed += not complete(output.outputs[0].text, min(WINDOW, len(documents)))

    yield {"rank_llm listwise": rank}


@contextmanager
def cross_encoder() -> Iterator[dict[str, Rank]]:
    """A pointwise model of the same size, with random weights, in bfloat16."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    base = embedded_base()[0]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    config = AutoConfig.from_pretrained(base, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = CrossEncoder(folder, model_kwargs={"dtype": torch.bfloat16})

    def rank(tally: Tally, query: str, documents: list[str]) -> None:
        model.rank(query, documents, show_progress_bar=False)
        tally.answers += len(documents)
        tally.computed += sum(map(len, tokenizer([query] * len(documents), documents)["input_ids"]))

    yield {"CrossEncoder, pointwise": rank}
