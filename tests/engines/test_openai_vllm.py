"""`vllm serve` over the embedded weights: rankings and probabilities are those of the same weights in process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from r1_rerank import DRanker, IRanker, R1Reranker
from r1_rerank.engines.base import GenerationRequest
from r1_rerank.engines.openai import OpenAIEngine
from r1_rerank.errors import ContextOverflowError, EngineError, InputError

if TYPE_CHECKING:
    from r1_rerank.engines import TransformersEngine

    from .conftest import VLLMServer

pytestmark = [pytest.mark.vllm, pytest.mark.model]

QUERY = "what is a kv cache?"
DOCUMENTS = [
    "Paris is in France.",
    "A kv cache keeps keys and values.",
    "Bread is baked.",
    "Caches speed up decoding.",
]
ROUNDING = 2e-3
"""Both compute in float32, with other kernels."""


@pytest.fixture(scope="module")
def served(vllm_server: VLLMServer) -> Iterator[OpenAIEngine]:
    engine = OpenAIEngine(vllm_server.model, base_url=vllm_server.base_url, timeout=300)
    yield engine
    engine.close()


def _request(**changes: object) -> GenerationRequest:
    shown = "\n".join(f"[{label}] {text} [{label}]" for label, text in zip("ABCD", DOCUMENTS, strict=True))
    content = f"Query: {QUERY}\n\n{shown}\n\nName the least relevant passage as <answer>[letter]</answer>."
    request = GenerationRequest(messages=[{"role": "user", "content": content}], labels=tuple("ABCD"))
    return replace(request, **changes)  # type: ignore[arg-type]  # fields of the request


def test_everything_is_found(served: OpenAIEngine) -> None:
    assert served.capabilities == {"constrain", "logprobs", "thinking", "reuse"}
    assert served.context_tokens == 8192


@pytest.mark.parametrize("strategy", [IRanker(), IRanker(form="append"), IRanker(form="append", drop=2), DRanker()])
def test_a_ranking_is_the_one_of_the_same_weights_in_process(
    served: OpenAIEngine, engine: TransformersEngine, strategy: IRanker | DRanker
) -> None:
    there = R1Reranker(served, strategy=strategy, thinking=0).rerank(QUERY, DOCUMENTS)
    here = R1Reranker(engine, strategy=strategy, thinking=0).rerank(QUERY, DOCUMENTS)
    assert (there.status, there.faults) == ("ok", ())
    assert [hit.index for hit in there] == [hit.index for hit in here]
    assert [hit.score for hit in there] == pytest.approx([hit.score for hit in here], abs=ROUNDING)
    assert there.score_kind == here.score_kind
    assert [step.answer for step in there.steps] == [step.answer for step in here.steps]


def test_probabilities_are_exact(served: OpenAIEngine, engine: TransformersEngine) -> None:
    (there,), (here,) = served.generate([_request()]), engine.generate([_request()])
    assert there.label_logprobs is not None
    assert here.label_logprobs is not None
    assert there.text == here.text
    assert there.label_logprobs == pytest.approx(here.label_logprobs, abs=ROUNDING)
    assert sum(map(math.exp, there.label_logprobs.values())) == pytest.approx(1.0)
    assert there.usage.prompt_computed + there.usage.prompt_reused == here.usage.prompt_computed + (
        here.usage.prompt_reused
    )


def test_several_labels_come_without_repeats_as_in_process(served: OpenAIEngine, engine: TransformersEngine) -> None:
    (there,), (here,) = served.generate([_request(pick=4)]), engine.generate([_request(pick=4)])
    assert there.text == here.text
    assert there.label_logprobs == pytest.approx(here.label_logprobs, abs=ROUNDING)


def test_thinking_keeps_its_budget_and_is_closed_by_force(served: OpenAIEngine, engine: TransformersEngine) -> None:
    request = _request(thinking_budget=8)
    (there,), (here,) = served.generate([request]), engine.generate([request])
    assert there.thinking == here.thinking
    assert (there.usage.thinking, there.finish_reason) == (8, "length")
    assert there.label_logprobs == pytest.approx(here.label_logprobs, abs=ROUNDING)


def test_free_text_is_written_as_in_process(served: OpenAIEngine, engine: TransformersEngine) -> None:
    request = _request(labels=None, max_answer_tokens=12)
    (there,), (here,) = served.generate([request]), engine.generate([request])
    assert there.text == here.text
    assert there.label_logprobs is None


def test_tokens_are_counted_by_the_model(served: OpenAIEngine, engine: TransformersEngine) -> None:
    messages = [{"role": "user", "content": "Judge: ça va? 日本"}, {"role": "assistant", "content": "[A]"}]
    assert served.count_tokens(messages) == engine.count_tokens(messages)
    turns = [messages[:1], [*messages, {"role": "user", "content": "Next?"}]]
    for thinking in (False, True):
        assert served.probe(turns, "AB", thinking) == engine.probe(turns, "AB", thinking)
    rewritten = [[{"role": "user", "content": "Other."}], turns[1]]
    assert not served.probe(rewritten, "AB", False).append


def test_sampling_follows_its_seed(served: OpenAIEngine) -> None:
    request = _request(temperature=2.0, seed=3)
    first, again = served.generate([request, request])
    others = served.generate([replace(request, seed=seed) for seed in range(8)])
    assert [completion.error for completion in others] == [None] * 8
    assert first.text == again.text
    assert len({completion.text for completion in others}) > 1


def test_labels_of_several_tokens_are_chosen_whole(served: OpenAIEngine) -> None:
    (completion,) = served.generate([_request(labels=("10", "11", "12"), pick=3)])
    assert completion.error is None
    assert sorted(completion.text.removeprefix("<answer>[").removesuffix("]</answer>").split("] > [")) == [
        "10",
        "11",
        "12",
    ]
    assert completion.label_logprobs is None


def test_what_the_server_reuses_is_told(served: OpenAIEngine) -> None:
    documents = [f"{text} It says so {number} times." for number, text in enumerate(DOCUMENTS)]
    result = R1Reranker(served, strategy=IRanker(form="append"), thinking=0).rerank("which is new?", documents)
    first, *further = (step.usage for step in result.steps)
    for before, usage in itertools.pairwise([first, *further]):
        whole = before.prompt_computed + before.prompt_reused
        assert whole - 32 <= usage.prompt_reused <= whole  # whole blocks of its cache


def test_many_queries_run_side_by_side(served: OpenAIEngine) -> None:
    reranker = R1Reranker(served, thinking=0, strategy=IRanker(form="append"))
    queries = [f"{QUERY} ({number})" for number in range(4)]
    results = reranker.rerank_batch(queries, [DOCUMENTS] * len(queries))
    assert [result.query for result in results] == queries
    assert {result.status for result in results} == {"ok"}


def test_a_prompt_that_is_too_long_says_so(served: OpenAIEngine) -> None:
    (completion,) = served.generate([_request(messages=[{"role": "user", "content": "long " * 9000}])])
    assert isinstance(completion.error, ContextOverflowError)
    assert "8192" in str(completion.error)


def test_the_server_refuses_by_itself_what_is_too_long(vllm_server: VLLMServer) -> None:
    engine = OpenAIEngine(vllm_server.model, base_url=vllm_server.base_url, context_tokens=100_000, timeout=300)
    (completion,) = engine.generate([_request(messages=[{"role": "user", "content": "long " * 9000}])])
    engine.close()
    assert isinstance(completion.error, ContextOverflowError)


def test_a_wrong_name_is_answered_with_the_right_ones(vllm_server: VLLMServer) -> None:
    with pytest.raises(InputError, match=f"does not have 'other'; it has: {vllm_server.model}"):
        OpenAIEngine("other", base_url=vllm_server.base_url)
    late = OpenAIEngine("other", base_url=vllm_server.base_url, dialect="plain")
    (completion,) = late.generate([_request()])
    late.close()
    assert isinstance(completion.error, EngineError)
    assert f"it has: {vllm_server.model}" in str(completion.error)


def test_the_same_server_serves_as_one_that_knows_json_schemas(vllm_server: VLLMServer) -> None:
    engine = OpenAIEngine(vllm_server.model, base_url=vllm_server.base_url, dialect="structured", timeout=300)
    for thinking in (0, 16):
        result = R1Reranker(engine, thinking=thinking).rerank(QUERY, DOCUMENTS[:3])
        assert result.status == "ok", result.faults
        assert bool(result.steps[0].thinking) == bool(thinking)
    result = R1Reranker(engine, strategy="dranker", thinking=0).rerank(QUERY, DOCUMENTS[:3])
    engine.close()
    assert result.status in ("ok", "repaired")
    assert sorted(hit.index for hit in result) == [0, 1, 2]
