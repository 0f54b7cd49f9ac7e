"""The same weights, prompts and history give the same labels on every engine.

One engine plays the eliminations; the others are asked what it was asked, step by step, so that one label chosen
differently does not change all that follows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from r1_rerank import IRanker, PassageRanking, PromptTemplate
from r1_rerank.engines import TransformersEngine
from r1_rerank.engines.base import Engine, GenerationRequest
from r1_rerank.engines.vllm import VLLMEngine
from r1_rerank.strategies import Answer

if TYPE_CHECKING:
    from .conftest import VLLMServer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

EXAMPLE = Path(__file__).parents[2] / "examples" / "tides.jsonl"
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
    if request.param == "vllm":
        yield request.getfixturevalue("vllm_engine")
        return
    from r1_rerank.engines.openai import OpenAIEngine

    server: VLLMServer = request.getfixturevalue("vllm_server")
    engine = OpenAIEngine(server.model, base_url=server.base_url, timeout=300)
    yield engine
    engine.close()


def test_in_float32_the_labels_and_their_probabilities_are_the_same(
    played: list[Played], other: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    parity = compare(played, other)
    with capsys.disabled():
        print(f"\n{other.name}, float32: {parity}")
    assert parity.steps == 34
    assert parity.same >= 0.99 * parity.steps
    assert parity.difference < 1e-2


def test_in_bfloat16_labels_differ_only_where_two_are_about_as_good(
    weights: str, vllm_llm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = TransformersEngine(weights, dtype="bfloat16")
    steps = play(transformers)
    transformers.close()
    vllm = VLLMEngine(vllm_llm)
    parity = compare(steps, vllm)
    vllm.close()
    with capsys.disabled():
        print(f"\nvllm, bfloat16: {parity}")
    assert all(margin < 0.25 for margin in parity.margins)
