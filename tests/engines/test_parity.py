"""The same weights, prompts and history give the same labels on every engine.

One engine plays the eliminations; the others are asked what it was asked, step by step, so that one label chosen
differently does not change all that follows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from r1_rerank import IRanker, PassageRanking, PromptTemplate, R1Reranker
from r1_rerank.engines import TransformersEngine
from r1_rerank.engines.base import Engine, GenerationRequest
from r1_rerank.engines.openai import OpenAIEngine
from r1_rerank.engines.vllm import VLLMEngine
from r1_rerank.strategies import Answer

from .conftest import in_float32

if TYPE_CHECKING:
    from .conftest import VLLMServer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "tides.jsonl"
HANGS = 300
"""Seconds after which a ranking that should have ended hangs."""
QUERIES = (
    "Why are there usually two high tides a day and not just one?",
    "What makes the waves at a beach?",
    "How do animals live between the tide marks?",
    "When is the range of the tide largest?",
)


@dataclass(frozen=True)
class Played:
    """A step, and the label probabilities of the engine that played it."""

    request: GenerationRequest
    logprobs: dict[str, float]


def play(engine: Engine) -> list[Played]:
    """Eliminations in both forms over the example's documents, as one engine decides them."""
    example = json.loads(EXAMPLE.read_text(encoding="utf-8").splitlines()[0])
    texts = [f"{document['title']}: {document['text']}" for document in example["documents"]]
    steps: list[Played] = []
    for number, query in enumerate(QUERIES):
        steps += eliminate(engine, IRanker(form="append"), query, texts[6 * number :][:8])
    for number, query in enumerate(QUERIES[:2]):
        steps += eliminate(engine, IRanker(form="rewrite"), query, texts[3 * number :][:5])
    return steps


def eliminate(engine: Engine, strategy: IRanker, query: str, texts: list[str]) -> Iterator[Played]:
    template = PromptTemplate.builtin("passage")
    run = strategy.run(len(texts))
    window = next(run)
    while True:
        messages = template.render(PassageRanking(query), texts, window)
        session = f"{strategy.form}/{query}"
        request = GenerationRequest(messages=messages, labels=tuple(window.live), session=session)
        logprobs = asked(engine, request)
        yield Played(request, logprobs)
        try:
            window = run.send(Answer((best(logprobs),), logprobs))
        except StopIteration:
            return


def asked(engine: Engine, request: GenerationRequest) -> dict[str, float]:
    (completion,) = engine.generate([request])
    assert completion.error is None, completion.error
    assert completion.label_logprobs is not None
    assert completion.text == f"<answer>[{best(completion.label_logprobs)}]</answer>"
    return dict(completion.label_logprobs)


def best(logprobs: dict[str, float]) -> str:
    return max(logprobs, key=logprobs.__getitem__)


@dataclass(frozen=True)
class Parity:
    """How far an engine is from the one that played.

    Attributes:
        steps: Steps compared.
        same: Those with the same label.
        difference: Largest difference of a log-probability.
        margins: Where the labels differ, how far the two best lie apart for the engine that played.
    """

    steps: int
    same: int
    difference: float
    margins: list[float]

    def __str__(self) -> str:
        margins = ", ".join(f"{margin:.3f}" for margin in self.margins) or "none"
        return (
            f"{self.same}/{self.steps} labels the same, log-probabilities differ by at most {self.difference:.5f}, "
            f"margins of the disagreements: {margins}"
        )


def compare(steps: list[Played], engine: Engine) -> Parity:
    same, difference, margins = 0, 0.0, []
    for step in steps:
        found = asked(engine, step.request)
        assert set(found) == set(step.logprobs)
        difference = max(difference, *(abs(found[label] - value) for label, value in step.logprobs.items()))
        if best(found) == best(step.logprobs):
            same += 1
        else:
            first, second = sorted(step.logprobs.values(), reverse=True)[:2]
            margins.append(first - second)
    return Parity(len(steps), same, difference, margins)


@pytest.fixture(scope="module")
def played(engine: TransformersEngine) -> list[Played]:
    """The eliminations on transformers in float32."""
    return play(engine)


@pytest.fixture(params=["vllm", "server"])
def other(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Another engine with the same weights in float32."""
    with in_float32(request.param, request) as engine:
        yield engine


def test_in_float32_the_labels_and_their_probabilities_are_the_same(
    played: list[Played], other: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    parity = compare(played, other)
    with capsys.disabled():
        print(f"\n{other.name}, float32: {parity}")
    assert parity.steps == 34
    assert parity.same >= 0.99 * parity.steps
    assert parity.difference < 1e-2


@pytest.fixture(scope="module")
def played_in_bfloat16(weights: str) -> list[Played]:
    """The eliminations on transformers in bfloat16."""
    transformers = TransformersEngine(weights, dtype="bfloat16")
    steps = play(transformers)
    transformers.close()
    return steps


def test_in_bfloat16_labels_differ_only_where_two_are_about_as_good(
    played_in_bfloat16: list[Played], vllm_llm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm = VLLMEngine(vllm_llm)
    parity = compare(played_in_bfloat16, vllm)
    vllm.close()
    with capsys.disabled():
        print(f"\nvllm, bfloat16: {parity}")
    assert all(margin < 0.25 for margin in parity.margins)


async def test_in_bfloat16_so_they_do_when_served_until_the_server_dies(
    played_in_bfloat16: list[Played], start_vllm_server: Callable[..., VLLMServer], capsys: pytest.CaptureFixture[str]
) -> None:
    server = start_vllm_server("--dtype", "bfloat16")
    engine = OpenAIEngine(server.model, base_url=server.base_url, timeout=300, max_retries=1)
    parity = compare(played_in_bfloat16, engine)
    with capsys.disabled():
        print(f"\nserver, bfloat16: {parity}")
    assert all(margin < 0.25 for margin in parity.margins)

    # Starting a server takes long: the same one dies in the middle of a ranking.
    reranker, documents = R1Reranker(engine, thinking=200), [f"passage {number}" for number in range(6)]
    stream = reranker.astream(QUERIES[0], documents)
    async with asyncio.timeout(HANGS):
        async for step in stream:
            if step.number == 2:
                asyncio.get_running_loop().call_later(0.2, server.kill)  # while it thinks on
    assert stream.result is not None
    assert stream.result.status == "partial"
    fault, answered = stream.result.faults[-1], len(stream.result.steps)
    assert 2 <= answered < 5
    assert (fault.kind, fault.step) == ("engine", answered + 1)
    assert "start the server" in fault.detail
    assert sorted(hit.index for hit in stream.result) == list(range(6))
    async with asyncio.timeout(HANGS):
        results = await asyncio.gather(*(reranker.arerank(query, documents) for query in QUERIES))
    assert [(result.status, len(result)) for result in results] == [("fallback", 6)] * 4
    engine.close()
