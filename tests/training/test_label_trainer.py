"""Learning from the exact distribution over the live labels: the right numbers, then what it is for, then faults."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from r1_rerank.checkpoint import RankerCard, ThinkingCard, find_checkpoint
from r1_rerank.engines import TransformersEngine
from r1_rerank.engines.base import GenerationRequest
from r1_rerank.engines.tokenization import ChatTokenizer
from r1_rerank.errors import InputError
from r1_rerank.evaluation.systems import FunctionSystem
from r1_rerank.rows import Row
from r1_rerank.training.label_objective import LabelObjective, Teacher
from r1_rerank.training.label_trainer import train_labels
from r1_rerank.training.questions import Questions
from r1_rerank.training.recipe import LabelStage
from r1_rerank.training.rewards import elimination_reward
from r1_rerank.training.rollouts import play

MakeRow = Callable[..., Row]


def questions_in(form: str = "append", **changes: Any) -> Questions:
    card = find_checkpoint().card
    assert isinstance(card, RankerCard)
    return Questions(card.model_copy(update={"form": form, **changes}))


def objective_of(tokenizer: Any, questions: Questions, method: Any = "supervised", **settings: Any) -> LabelObjective:
    return LabelObjective(questions, ChatTokenizer(tokenizer), method=method, reward=elimination_reward, **settings)


def total(objective: LabelObjective, model: Any, rows: Sequence[Row]) -> float:
    return sum(float(part.detach()) for part in objective.losses(model, objective.lay_out(rows)))


def distributions(engine: TransformersEngine, questions: Questions, ranking: Any) -> list[dict[str, float]]:
    """What the engine says of each state that a ranking passed."""
    requests = [GenerationRequest(messages=question.messages, labels=question.labels) for question, _ in ranking]
    return [dict(completion.label_logprobs or {}) for completion in engine.generate(requests)]


def stage(**settings: Any) -> LabelStage:
    usual = {"name": "toy", "method": "expected", "examples": 96, "batch": 8, "learning_rate": 3e-3, "warmup": 0.0}
    return LabelStage(**{**usual, "schedule": "constant", "save_every": 4, **settings})


@pytest.mark.parametrize("form", ["append", "rewrite"])
def test_the_expected_reward_is_the_one_that_the_engine_would_earn(
    tokenizer: Any, make_model: Any, make_row: MakeRow, form: str
) -> None:
    """One pass over padded sequences gives the numbers that the engine gives a state at a time."""
    model, questions = make_model(tokenizer), questions_in(form)
    rows = [make_row(1, 3), make_row(2, 5)]
    engine = TransformersEngine(model, tokenizer, dtype="float32")
    expected = 0.0
    objective = objective_of(tokenizer, questions, "expected", on_policy=True, seed=7)
    for played in play(rows, questions, engine, temperature=1.0, seed="7"):
        ranking = played.answered
        earned = [
            sum(
                math.exp(logprob) * (value <= 0)
                for logprob, value in zip(logprobs.values(), question.relevance, strict=True)
            )
            for (question, _), logprobs in zip(ranking, distributions(engine, questions, ranking), strict=True)
        ]
        expected += sum(earned) / len(earned) / len(rows)
    parts = objective.losses(model, objective.lay_out(rows, engine))
    assert -sum(float(part.detach()) for part in parts) == pytest.approx(expected, abs=1e-4)


def test_the_supervised_loss_is_the_cross_entropy_of_the_best(
    tokenizer: Any, make_model: Any, make_row: MakeRow
) -> None:
    """Of two candidates, the one to keep is kept as often as the other one is named."""
    model, questions, row = make_model(tokenizer), questions_in(), make_row(0, 2)
    engine = TransformersEngine(model, tokenizer, dtype="float32")
    [logprobs] = distributions(engine, questions, [(questions.first(row), ())])
    assert total(objective_of(tokenizer, questions), model, [row]) == pytest.approx(-logprobs["B"], abs=1e-3)


def test_a_teacher_shares_in_the_target(tokenizer: Any, make_model: Any, make_row: MakeRow) -> None:
    model, questions, row = make_model(tokenizer), questions_in(), make_row(0, 2)
    system = FunctionSystem(lambda row: [0.0, math.log(3.0)], "judge")
    losses = {
        weight: total(
            objective_of(tokenizer, questions, teacher=Teacher(system=system, weight=weight, temperature=1.0)),
            model,
            [row],
        )
        for weight in (0.0, 0.5, 1.0)
    }
    assert losses[0.5] == pytest.approx((losses[0.0] + losses[1.0]) / 2, abs=1e-4)
    engine = TransformersEngine(model, tokenizer, dtype="float32")
    [logprobs] = distributions(engine, questions, [(questions.first(row), ())])
    # The teacher gives B three quarters; what falls is the other one.
    assert losses[1.0] == pytest.approx(-0.25 * logprobs["B"] - 0.75 * logprobs["A"], abs=1e-3)


def test_a_teacher_is_not_asked_about_tasks_that_it_cannot_judge(
    tokenizer: Any, make_model: Any, make_row: MakeRow
) -> None:
    def refuse(row: Row) -> list[float]:
        raise AssertionError(row.id)

    teacher = Teacher(system=FunctionSystem(refuse, "judge"), tasks=("recommendation",))
    objective, plain = (objective_of(tokenizer, questions_in(), teacher=given) for given in (teacher, None))
    model = make_model(tokenizer)
    assert total(objective, model, [make_row(0)]) == total(plain, model, [make_row(0)])


def test_rows_asked_directly_are_learned_from_as_a_dranker_is_asked(
    tokenizer: Any, make_model: Any, make_row: MakeRow
) -> None:
    model, rows = make_model(tokenizer), [make_row(number, 4) for number in range(8)]
    one_by_one, direct = (
        {row.id: total(objective_of(tokenizer, questions_in(strategy=name)), model, [row]) for row in rows}
        for name in ("iranker", "dranker")
    )
    assert total(objective_of(tokenizer, questions_in(), direct=1.0), model, rows) == pytest.approx(
        sum(direct.values()) / len(rows), abs=1e-4
    )
    some = objective_of(tokenizer, questions_in(), direct=0.5)
    asked = {found.row: found.decisions[0].ask for found in some.lay_out(rows).sequences}
    assert set(asked.values()) == {"rank", "eliminate"}
    expected = [(direct if ask == "rank" else one_by_one)[row] for row, ask in asked.items()]
    assert total(some, model, rows) == pytest.approx(sum(expected) / len(rows), abs=1e-4)


def test_what_follows_the_last_good_label_of_a_whole_order_takes_nothing_from_its_row(
    tokenizer: Any, make_model: Any, make_row: MakeRow
) -> None:
    """One of four is relevant: once it is named, nothing more can be learned."""
    model, row, questions = make_model(tokenizer), make_row(0, 4), questions_in(strategy="dranker")
    good = row.relevance.index(max(row.relevance))
    engine = TransformersEngine(model, tokenizer, dtype="float32")
    [logprobs] = distributions(engine, questions, [(questions.first(row), ())])
    assert total(objective_of(tokenizer, questions), model, [row]) == pytest.approx(-logprobs["ABCD"[good]], abs=1e-3)


def test_every_row_weighs_the_same(tokenizer: Any, make_model: Any, make_row: MakeRow) -> None:
    """However many decisions it takes, and however the sequences are grouped."""
    model, questions = make_model(tokenizer), questions_in("rewrite")
    rows = [make_row(0, 2), make_row(1, 6)]
    alone = [total(objective_of(tokenizer, questions), model, [row]) for row in rows]
    for sequences in (None, 1, 2):
        together = total(objective_of(tokenizer, questions, sequences=sequences), model, rows)
        assert together == pytest.approx(sum(alone) / 2, abs=1e-4)


@pytest.mark.parametrize(("method", "on_policy"), [("supervised", False), ("expected", False), ("expected", True)])
def test_training_raises_the_reward(
    tokenizer: Any, make_model: Any, make_row: MakeRow, tmp_path: Path, method: str, on_policy: bool
) -> None:
    """As many small weights can learn: the passage that answers always stands first."""
    model, questions = make_model(tokenizer), questions_in()
    held_out = [make_row(number, 3) for number in range(300, 336, 3)]
    measure = objective_of(tokenizer, questions, "expected")
    before = -total(measure, model, held_out)
    train_labels(
        model,
        tokenizer,
        mixture=[make_row(3 * number, 3) for number in range(96)],
        questions=questions,
        stage=stage(method=method, on_policy=on_policy),
        folder=tmp_path,
    )
    after = -total(measure, model.eval(), held_out)
    assert after > before + 0.1


def test_a_run_that_was_killed_ends_as_an_unbroken_one(
    tokenizer: Any, make_model: Any, make_row: MakeRow, tmp_path: Path, first_steps: Any
) -> None:
    import torch
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        """Dies in the middle of step 7, three steps after the checkpoint."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 6:
                raise KeyboardInterrupt

    rows = [make_row(number, 3) for number in range(96)]
    settings: dict[str, Any] = {
        "mixture": rows,
        "questions": questions_in(),
        "stage": stage(on_policy=True, schedule="linear"),
    }
    unbroken = make_model(tokenizer)
    train_labels(unbroken, tokenizer, folder=tmp_path / "unbroken", **settings)

    broken = make_model(tokenizer)
    with pytest.raises(KeyboardInterrupt):
        train_labels(broken, tokenizer, folder=tmp_path / "broken", callbacks=[Kill()], **settings)
    resumed = make_model(tokenizer)
    train_labels(resumed, tokenizer, folder=tmp_path / "broken", resume=True, callbacks=[first_steps], **settings)
    assert first_steps.begun == list(range(4, 12))
    wanted = unbroken.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())


def test_to_resume_where_nothing_was_saved_is_to_begin(
    tokenizer: Any, make_model: Any, make_row: MakeRow, tmp_path: Path
) -> None:
    model = make_model(tokenizer)
    before = copy.deepcopy(model.state_dict())
    rows = [make_row(number) for number in range(8)]
    train_labels(
        model,
        tokenizer,
        mixture=rows,
        questions=questions_in(),
        stage=stage(examples=8),
        folder=tmp_path / "none",
        resume=True,
    )
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())


TWO_PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from conftest import build_model, build_row, build_tokenizer
from test_label_trainer import questions_in, stage
from r1_rerank.training.label_trainer import train_labels
from r1_rerank.training.processes import leave
model, tokenizer = build_model(build_tokenizer()), build_tokenizer()
rows = [build_row(number, 2 if number % 2 else 6) for number in range(8)]
train_labels(model, tokenizer, mixture=rows, questions=questions_in("rewrite"), folder={folder!r},
             stage=stage(examples=8, batch=2, micro_batch=1))
import os
if os.environ["RANK"] == "0":
    model.save_pretrained({folder!r})
leave()
"""


def test_two_processes_train_as_one(
    make_tokenizer: Any, make_model: Any, make_row: MakeRow, tmp_path: Path, launch: Any
) -> None:
    """Also where one of them has three times as many sequences as the other."""
    import torch
    from transformers import AutoModelForCausalLM

    model = make_model(make_tokenizer())
    rows = [make_row(number, 2 if number % 2 else 6) for number in range(8)]
    train_labels(
        model,
        make_tokenizer(),
        mixture=rows,
        questions=questions_in("rewrite"),
        stage=stage(examples=8, batch=2, micro_batch=1),
        folder=tmp_path / "one",
    )
    script, folder = tmp_path / "train.py", str(tmp_path / "two")
    script.write_text(TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=folder))
    launch(str(script))
    two = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.allclose(value, two[name], atol=1e-4) for name, value in model.state_dict().items())


def test_states_are_played_without_what_only_training_wants(
    tokenizer: Any, make_model: Any, make_row: MakeRow, tmp_path: Path
) -> None:
    """Checkpointed gradients leave a model in training without a cache; the weights come out the same."""
    ends = []
    for checkpointed in (False, True):
        model = make_model(tokenizer)
        train_labels(
            model,
            tokenizer,
            mixture=[make_row(number, 3) for number in range(8)],
            questions=questions_in(),
            stage=stage(examples=8, on_policy=True, gradient_checkpointing=checkpointed),
            folder=tmp_path / str(checkpointed),
        )
        ends.append(model.state_dict())
    assert all(value.allclose(ends[1][name], atol=1e-4) for name, value in ends[0].items())


def test_thinking_is_refused(tokenizer: Any, make_model: Any, make_row: MakeRow, tmp_path: Path) -> None:
    questions = questions_in(thinking=ThinkingCard(mode="free", budget=8))
    with pytest.raises(InputError, match=r"ranker\.thinking"):
        train_labels(
            make_model(tokenizer),
            tokenizer,
            mixture=[make_row(0)],
            questions=questions,
            stage=stage(),
            folder=tmp_path,
        )


def test_a_stage_with_a_teacher_needs_one(tokenizer: Any, make_model: Any, make_row: MakeRow, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="teacher"):
        train_labels(
            make_model(tokenizer),
            tokenizer,
            mixture=[make_row(0)],
            questions=questions_in(),
            stage=stage(method="supervised", teacher={"system": "minilm"}),
            folder=tmp_path,
        )


def test_a_teacher_that_fails_is_named(tokenizer: Any, make_row: MakeRow) -> None:
    system = FunctionSystem(lambda row: [math.nan] * len(row.candidates), "judge")
    with pytest.raises(InputError, match="judge gave candidate 0 of row 'r5'"):
        objective_of(tokenizer, questions_in(), teacher=Teacher(system=system)).lay_out([make_row(5)])
