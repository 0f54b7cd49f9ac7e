"""A group answers one state: the policy plays to it, as far as row and step say, and not past what teaches."""

from __future__ import annotations

import doctest
import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.checkpoint import BaseModelCard
from r1_rerank.engines import ScriptedEngine
from r1_rerank.engines.base import Completion, GenerationRequest
from r1_rerank.errors import EngineError, InputError
from r1_rerank.parsing import parse
from r1_rerank.prompts import render_answer
from r1_rerank.training import rollouts
from r1_rerank.training.prompting import Prompts
from r1_rerank.training.questions import Questions
from r1_rerank.training.recipe import RankerSettings
from r1_rerank.training.rollouts import Rollouts, depth_of, nucleus, play


def ask(**settings: Any) -> Questions:
    return Questions(RankerSettings(**settings).card(BaseModelCard(name="toy", sha256=None)))


def eliminating(*order: str) -> ScriptedEngine:
    """A policy that eliminates the first of these labels that is still there."""

    def answer(request: GenerationRequest) -> str:
        live = [label for label in order if label in (request.labels or ())]
        return render_answer(live[: request.pick])

    return ScriptedEngine(answer)


def test_the_examples_hold() -> None:
    found = doctest.testmod(rollouts)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_a_state_is_as_deep_as_row_and_step_say(make_row: Any) -> None:
    row = make_row(1, candidates=5)
    depths = [depth_of(row, step) for step in range(200)]
    assert depths == [depth_of(row, step) for step in range(200)]
    assert set(depths) == {0, 1, 2, 3}  # after four answers nothing is left to ask
    assert depths != [depth_of(make_row(2, candidates=5), step) for step in range(200)]
    assert {depth_of(row, step, drop=2) for step in range(50)} == {0, 1}
    assert {depth_of(make_row(1, candidates=2), step) for step in range(50)} == {0}


@pytest.mark.parametrize(("form", "answers", "left"), [("append", "ABE", ("C", "D")), ("rewrite", "AAA", ("A", "B"))])
def test_a_played_state_is_what_inference_would_ask(
    make_row: Any, form: str, answers: str, left: tuple[str, ...]
) -> None:
    questions, row = ask(form=form), make_row(3, candidates=5)  # the fourth is right
    engine = eliminating("A", "B", "E")
    (played,) = play([row], questions, engine, temperature=1.0, seed="0", depths=[3])
    state = played.state
    interview = questions.run(row)
    next(interview)
    assert state == [interview.send(answer) for answer in answers][-1]
    assert (state.labels, sum(state.relevance)) == (left, 1)
    assert len(engine.requests) == 3


def test_every_row_goes_as_far_as_its_own_depth(make_row: Any) -> None:
    rows = [make_row(3), make_row(7), make_row(11)]
    engine = eliminating("A", "B", "C", "D")
    states = [one.state for one in play(rows, ask(), engine, temperature=0.7, seed="0", depths=[0, 1, 2])]
    assert [len(state.labels) for state in states] == [4, 3, 2]
    assert len(engine.requests) == 3
    assert {request.temperature for request in engine.requests} == {0.7}
    assert len({request.seed for request in engine.requests}) == 3


def test_a_policy_that_loses_the_right_one_answers_for_that_state(make_row: Any) -> None:
    row = make_row(1)  # the second is right
    (played,) = play([row], ask(), eliminating("A", "B", "C"), temperature=1.0, seed="0", depths=[3])
    assert played.state.labels == ("B", "C", "D")


def test_a_policy_that_thinks_thinks_on_its_way(make_row: Any) -> None:
    engine = eliminating("A")
    play([make_row(3)], ask(thinking=32), engine, temperature=1.0, seed="0", depths=[1])
    assert [request.thinking_budget for request in engine.requests] == [32]


def test_an_unreadable_answer_is_what_it_is_at_inference(make_row: Any) -> None:
    (played,) = play([make_row(0)], ask(), ScriptedEngine(["Well."]), temperature=1.0, seed="0", depths=[1])
    assert played.state.labels == ("A", "B", "C")  # the last of the incoming order fell


def test_a_failing_engine_is_not_passed_over(make_row: Any) -> None:
    engine = ScriptedEngine(lambda _: Completion(error=EngineError("broken")))
    with pytest.raises(EngineError, match="broken"):
        play([make_row(0)], ask(), engine, temperature=1.0, seed="0", depths=[1])


@given(
    st.dictionaries(st.sampled_from("ABCDEF"), st.integers(-20, 0).map(float), min_size=1),
    st.floats(0.5, 5),
    st.floats(0.01, 1),
)
def test_what_is_drawn_from(logprobs: dict[str, float], temperature: float, top_p: float) -> None:
    kept = nucleus(logprobs, temperature=temperature, top_p=top_p)
    assert math.isclose(sum(kept.values()), 1.0)
    assert max(logprobs.values()) in {logprobs[label] for label in kept}
    left_out = [logprobs[label] for label in logprobs if label not in kept]
    assert not left_out or max(left_out) <= min(logprobs[label] for label in kept)
    if top_p == 1.0:
        assert set(kept) == set(logprobs)


def trainer_of(model: Any, tokenizer: Any, *, group: int, step: int = 0) -> Any:
    """As much of a trainer as a rollout asks for."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    return SimpleNamespace(
        model=model,
        model_wrapped=model,
        accelerator=accelerator,
        processing_class=tokenizer,
        num_generations=group,
        num_generations_eval=group,
        state=SimpleNamespace(global_step=step),
    )


@pytest.fixture(scope="module")
def policy(make_model: Any, make_tokenizer: Any) -> tuple[Any, Any]:
    tokenizer = make_tokenizer()
    return make_model(tokenizer).train(), tokenizer


def rolled(policy: tuple[Any, Any], rows: list[Any], *, group: int, step: int = 0, **settings: Any) -> tuple[Any, Any]:
    model, tokenizer = policy
    prompts = Prompts(ask(), tokenizer)
    dataset = prompts.dataset(rows)
    numbers = {prompt: number for number, prompt in enumerate(dataset["prompt"])}
    rollout = Rollouts(rows, numbers, prompts, temperature=1.0, **{"on_policy": True, **settings})
    batch = [prompt for prompt in dataset["prompt"] for _ in range(group)]
    return rollout(batch, trainer_of(model, tokenizer, group=group, step=step)), prompts


def test_a_group_answers_one_state_with_live_labels(policy: tuple[Any, Any], make_row: Any) -> None:
    model, tokenizer = policy
    rows = [make_row(number, candidates=5) for number in range(6)]
    found, _ = rolled(policy, rows, group=4)
    assert model.training  # as it was
    assert {len(found[name]) for name in ("prompt_ids", "completion_ids", "env_mask", "labels", "relevance")} == {24}
    for start in range(0, 24, 4):
        for name in ("prompt_ids", "labels", "relevance", "ask", "prefill"):
            assert all(value == found[name][start] for value in found[name][start : start + 4])
    assert len({len(labels) for labels in found["labels"]}) > 1  # some rows were played further than others
    for number, tokens in enumerate(found["completion_ids"]):
        text = found["prefill"][number] + tokenizer.decode(tokens, skip_special_tokens=True)
        read = parse(text, found["labels"][number])
        assert (read.faults, read.labels[0] in found["labels"][number]) == ((), True)
        assert found["env_mask"][number] == [1] + [0] * (len(tokens) - 1)  # only the label was the policy's choice
        assert tokens[-1] == tokenizer.eos_token_id
        assert max(found["relevance"][number]) > min(found["relevance"][number])


def test_the_state_follows_from_row_and_step_alone(policy: tuple[Any, Any], make_row: Any) -> None:
    rows = [make_row(number, candidates=6) for number in range(5)]
    together, _ = rolled(policy, rows, group=2, step=3)
    for number, row in enumerate(rows):
        alone, _ = rolled(policy, [row], group=2, step=3)  # as another process would see it
        assert alone["prompt_ids"] == together["prompt_ids"][2 * number : 2 * number + 2]
        assert alone["completion_ids"] == together["completion_ids"][2 * number : 2 * number + 2]
    later, _ = rolled(policy, rows, group=2, step=4)
    assert later["prompt_ids"] != together["prompt_ids"]


def test_without_playing_the_state_is_the_list_itself(policy: tuple[Any, Any], make_row: Any) -> None:
    rows = [make_row(0), make_row(1, candidates=3)]
    found, prompts = rolled(policy, rows, group=2, on_policy=False)
    questions = prompts.questions
    expected = [prompts.chat.prompt(questions.first(row).messages, thinking=False, constrain=True) for row in rows]
    assert found["prompt_ids"] == [expected[0], expected[0], expected[1], expected[1]]


def test_labels_are_drawn_as_the_policy_weighs_them(policy: tuple[Any, Any], make_row: Any) -> None:
    from r1_rerank.engines import TransformersEngine

    row, group = make_row(2), 4000
    found, prompts = rolled(policy, [row], group=group, on_policy=False)
    question = prompts.questions.first(row)
    request = GenerationRequest(messages=question.messages, labels=question.labels)
    (completion,) = TransformersEngine(*policy).generate([request])
    policy[0].train()
    drawn = Counter(policy[1].decode(tokens[:1]) for tokens in found["completion_ids"])
    for label, logprob in (completion.label_logprobs or {}).items():
        expected = math.exp(logprob)
        assert abs(drawn[label] / group - expected) < 5 * math.sqrt(expected * (1 - expected) / group)


def test_half_a_group_is_refused(policy: tuple[Any, Any], make_row: Any) -> None:
    model, tokenizer = policy
    rows = [make_row(0), make_row(1)]
    prompts = Prompts(ask(), tokenizer)
    texts = prompts.dataset(rows)["prompt"]
    rollout = Rollouts(rows, {text: n for n, text in enumerate(texts)}, prompts, on_policy=True, temperature=1.0)
    with pytest.raises(InputError, match="whole groups"):
        rollout([texts[0], texts[1], texts[1], texts[1]], trainer_of(model, tokenizer, group=2))
