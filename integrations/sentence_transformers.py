"""The call shape of a sentence-transformers CrossEncoder, over an R1Reranker. Needs no extra.

from r1_rerank.integrations.sentence_transformers import R1CrossEncoder

model = R1CrossEncoder()
for hit in model.rank("what is a kv cache?", texts, top_k=5, return_documents=True):
    print(hit["corpus_id"], hit["score"], hit["text"])
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import InputError
from ..options import OnError
from ..reranker import R1Reranker
from .adapter import source_of


class R1CrossEncoder:
    """Ranks where code expects a CrossEncoder.

    A CrossEncoder scores each pair of query and document alone. An R1Reranker compares the documents of a query with
    each other, so a score means something only inside its list: there is `rank`, and `predict` raises.

    The model is loaded by the first call, once for all objects, copies and threads that name it.

    Args:
        model: A hub name or a local folder; None: the embedded model.
        reranker: A built reranker, in place of the other arguments.
        strategy: `iranker` or `dranker`; None: the model's own.
        thinking: Most tokens to think before each answer; None: the model's own number.
        on_error: What an engine fault does: `partial` (default) returns the best order so far, `raise` raises it.

    Raises:
        InputError: An argument that cannot be used.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        reranker: R1Reranker | None = None,
        strategy: str | None = None,
        thinking: int | None = None,
        on_error: OnError | None = None,
    ) -> None:
        self._source = source_of(reranker, model=model, strategy=strategy, thinking=thinking, on_error=on_error)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        num_workers: int | None = None,
        chunk_size: int | None = None,
    ) -> list[dict[str, Any]]:
        """Ranks the documents of one query.

        Args:
            query: What is asked.
            documents: Texts, each ranked by its position.
            top_k: How many come back; None: all.
            return_documents: Also return each text.
            batch_size: Accepted and left aside, as are the next three: a list is ranked as a whole.
            show_progress_bar: See `batch_size`.
            num_workers: See `batch_size`.
            chunk_size: See `batch_size`.

        Returns:
            `{"corpus_id", "score"}`, with `"text"` on request, best first. Scores are floats in [0, 1].

        Raises:
            InputError: An argument that cannot be used.
            EngineError: The engine failed, under `on_error="raise"`.
        """
        hits: list[dict[str, Any]] = []
        for hit in self._source.load().rerank(query, documents, top_k=top_k):
            hits.append({"corpus_id": hit.index, "score": hit.score})
            if return_documents:
                hits[-1]["text"] = hit.text
        return hits

    def predict(self, *pairs: object, **arguments: object) -> NoReturn:
        """Raises: a pair alone has no score here.

        Raises:
            InputError: Always; says what to call.
        """
        raise InputError("predict", "a listwise reranker cannot score a pair alone; use rank(query, documents)")
