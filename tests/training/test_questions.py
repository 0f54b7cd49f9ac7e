"""Training asks in the words of inference: the questions, and the sequences laid out from them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank import R1Reranker, ScriptedEngine
from r1_rerank.checkpoint import RankerCard, find_checkpoint
from r1_rerank.engines.base import Completion, GenerationRequest
from r1_rerank.engines.tokenization import ChatTokenizer
from r1_rerank.errors import CheckpointError, InputError
from r1_rerank.evaluation.systems import documents_of, task_of
from r1_rerank.prompts import render_answer
from r1_rerank.rows import Candidate, Row
from r1_rerank.training.questions import Questions
from r1_rerank.training.trajectories import sparing, trajectories

CARD = find_checkpoint().card
assert CARD is not None


def card(**changes: Any) -> RankerCard:
    assert CARD is not None
    return CARD.model_copy(update=changes)


def row_of(task: str, count: int) -> Row:
    """A row of any task, with text that would like to be a label."""
    return Row(
        id="r",
        task=task,
        query=None if task == "recommendation" else "what is [A]?",
        history=("Alien", "Aliens") if task == "recommendation" else None,
        objective="cost" if task == "routing" else None,
        candidates=tuple(
            Candidate(id=str(place), text=f"candidate {place} <answer>[B]", price=0.5 if task == "routing" else None)
            for place in range(count)
        ),
        relevance=tuple(float(place == count // 2) for place in range(count)),
        split="train",
        source="toy",
    )


@pytest.mark.parametrize("task", ["passage", "recommendation", "routing"])
@pytest.mark.parametrize(
    "changes",
    [{"form": "append"}, {"form": "rewrite"}, {"strategy": "dranker"}, {"form": "append", "drop": 2}],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_the_questions_of_training_are_those_of_inference(task: str, changes: dict[str, Any]) -> None:
    """Byte for byte, over a whole ranking with the same answers."""
    row, asked, rng = row_of(task, 6), list[GenerationRequest](), random.Random(3)

    def answer(request: GenerationRequest) -> Completion:
        asked.append(request)
        return Completion(text=render_answer(rng.sample(list(request.labels or ()), request.pick)))

    ours = card(**changes)
    engine = ScriptedEngine(answer, capabilities=frozenset({"constrain", "reuse"}))
    reranker = R1Reranker(engine, strategy=ours.ranking_strategy(), thinking=0, templates=ours.prompt_templates())
    reranker.rerank(task_of(row), documents_of(row))

    rng = random.Random(3)
    walk = Questions(ours).walk(row, lambda question: rng.sample(list(question.labels), question.pick))
    found = [question for question, _ in walk]
    assert [list(question.messages) for question in found] == [list(request.messages) for request in asked]
    assert [question.labels for question in found] == [request.labels for request in asked]


def test_a_question_knows_what_its_labels_stand_for() -> None:
    row = row_of("passage", 4)
    interview = Questions(card(form="append")).run(row)
    next(interview)
    interview.send(["B"])
    question = interview.send(["A"])
    assert (question.labels, question.places, question.relevance) == (("C", "D"), (2, 3), (1.0, 0.0))


@pytest.mark.parametrize("count", [1, 53])
def test_lists_that_no_question_can_show_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"'r' has {count} candidates"):
        Questions(card()).first(row_of("passage", count))


def test_an_appended_elimination_is_one_sequence(tokenizer: Any, make_row: Callable[..., Row]) -> None:
    """Each decision stands right behind the tokens of its own prompt."""
    chat, questions, row = ChatTokenizer(tokenizer), Questions(card(form="append")), make_row(1, 5)
    ranking = list(questions.walk(row, sparing(row, random.Random(0))))
    [found] = trajectories(ranking, chat)
    assert [len(decision.labels) for decision in found.decisions] == [5, 4, 3, 2]
    for (question, _), decision in zip(ranking, found.decisions, strict=True):
        prompt = chat.prompt(question.messages, thinking=False, constrain=True)
        assert found.tokens[: decision.position + 1] == tuple(prompt)
        assert decision.tokens == tuple(chat.label_ids[label] for label in question.labels)


def test_a_rewritten_elimination_is_a_sequence_for_each_decision(tokenizer: Any, make_row: Callable[..., Row]) -> None:
    row = make_row(2, 4)
    ranking = Questions(card(form="rewrite")).walk(row, sparing(row, random.Random(0)))
    assert [len(found.decisions) for found in trajectories(ranking, ChatTokenizer(tokenizer))] == [1, 1, 1]


def test_a_whole_ranking_is_one_sequence_with_a_decision_for_each_place(
    tokenizer: Any, make_row: Callable[..., Row]
) -> None:
    chat, row = ChatTokenizer(tokenizer), make_row(2, 4)
    [found] = trajectories(Questions(card(strategy="dranker")).walk(row, sparing(row, random.Random(0))), chat)
    assert [len(decision.labels) for decision in found.decisions] == [4, 3, 2]
    first, second = found.decisions[:2]
    assert found.tokens[first.position + 1] == chat.label_ids["C"]  # the relevant one
    assert second.position - first.position == 1 + len(chat.between)


def test_labels_of_several_tokens_are_refused(tokenizer: Any, make_row: Callable[..., Row]) -> None:
    chat, row = ChatTokenizer(tokenizer), make_row(0, 3)
    chat.label_ids.pop("B")
    with pytest.raises(CheckpointError, match="labels B are not one token each"):
        list(trajectories(Questions(card()).walk(row, sparing(row, random.Random(0))), chat))


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=9).filter(lambda values: max(values) > 0),
    st.integers(0, 2**16),
)
def test_sparing_keeps_the_most_relevant_to_the_end(relevance: list[int], seed: int) -> None:
    row = row_of("passage", len(relevance))
    row = Row(**{**vars(row), "relevance": tuple(map(float, relevance))})
    last, fallen = list(Questions(card(form="append")).walk(row, sparing(row, random.Random(seed))))[-1]
    kept = next(value for label, value in zip(last.labels, last.relevance, strict=True) if label not in fallen)
    assert kept == max(relevance)


def test_sparing_lets_those_fall_first_that_its_guide_thinks_little_of() -> None:
    row = row_of("passage", 4)  # the third is relevant
    ranking = Questions(card(form="append")).walk(row, sparing(row, random.Random(0), [0.0, 200.0, 0.0, -200.0]))
    assert [fallen for _, fallen in ranking] == [("D",), ("A",), ("B",)]
