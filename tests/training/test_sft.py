"""A cold start with thinking: reasons that are short and true to the data, right answers, and a loss on these alone."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.checkpoint import BaseModelCard
from r1_rerank.engines.tokenization import ChatTokenizer
from r1_rerank.errors import InputError
from r1_rerank.parsing import follows_format, parse
from r1_rerank.rows import Candidate, Row
from r1_rerank.tasks import TASKS
from r1_rerank.training.preflight import answer_tokens
from r1_rerank.training.prompting import Prompts
from r1_rerank.training.questions import Questions
from r1_rerank.training.rationales import rationale, wording
from r1_rerank.training.recipe import RankerSettings, RationaleStage
from r1_rerank.training.resuming import last_checkpoint
from r1_rerank.training.sft import rationale_dataset, train_rationales

LAMP = Row(
    id="lamp",
    task="passage",
    query="Who keeps the lighthouse lamp?",
    candidates=(
        Candidate(id="0", text="A lamp keeps its oil."),
        Candidate(id="1", text="Old Mara keeps the lighthouse lamp, and the lighthouse."),
        Candidate(id="2", text="Bread, which takes an hour to bake."),
    ),
    relevance=(0.0, 1.0, 0.0),
    split="train",
    source="toy",
)
ROUTE = Row(
    id="route",
    task="routing",
    query="Prove that the series converges.",
    objective="cost",
    candidates=(
        Candidate(id="0", text="Good at series and proofs", price=2.0),
        Candidate(id="1", text="A writer of code", price=0.5),
    ),
    relevance=(1.0, 0.0),
    split="train",
    source="toy",
)
TASTE = Row(
    id="taste",
    task="recommendation",
    history=("Alien", "Alien Resurrection"),
    candidates=(Candidate(id="0", text="Alien Covenant"), Candidate(id="1", text="Heidi")),
    relevance=(0.0, 1.0),
    split="train",
    source="toy",
)


def ask(**settings: Any) -> Questions:
    return Questions(RankerSettings(**{"thinking": 96, **settings}).card(BaseModelCard(name="toy", sha256=None)))


def test_a_reason_by_hand() -> None:
    questions = ask(strategy="dranker")
    made = rationale(LAMP, questions)
    assert made.thinking == (
        "[A] has lamp, keeps.",
        "[B] answers the query.",
        "[C] is about something else.",  # `which` counts for nothing
        "So [B] fits best.",
    )
    assert made.answer == ("B", "A", "C")
    assert made.text().endswith("</think>\n<answer>[B] > [A] > [C]</answer>")


@pytest.mark.parametrize("row", [LAMP, ROUTE, TASTE], ids=lambda row: row.task)
@pytest.mark.parametrize("strategy", ["iranker", "dranker"])
@pytest.mark.parametrize("seed", range(5))
def test_every_answer_is_right_and_well_formed(row: Row, strategy: str, seed: int) -> None:
    made = rationale(row, ask(strategy=strategy), seed=seed)
    question = made.question
    text = "<think>\n" + made.text()
    assert follows_format(text)
    read = parse(text, question.labels, len(made.answer))
    assert (read.faults, read.labels) == ((), made.answer)
    worth = dict(zip(question.labels, question.relevance, strict=True))
    if question.ask == "eliminate":
        assert worth[made.answer[0]] == min(worth.values()) == 0
    else:
        assert worth[made.answer[0]] == 1


@pytest.mark.parametrize("seed", range(8))
def test_as_many_fall_as_the_ranker_drops(seed: int) -> None:
    candidates = tuple(Candidate(id=str(n), text=f"number {n}") for n in range(7))
    row = replace(LAMP, candidates=candidates, relevance=tuple(float(n == seed % 7) for n in range(7)))
    made = rationale(row, ask(drop=2), seed=seed)
    question = made.question
    assert len(made.answer) == question.pick
    read = parse("<think>\n" + made.text(), question.labels, question.pick)
    assert (read.faults, read.labels) == ((), made.answer)
    worth = dict(zip(question.labels, question.relevance, strict=True))
    assert not any(worth[label] for label in made.answer)
    assert all(f"[{label}] fits least" in made.thinking[-1] for label in made.answer)


def test_of_candidates_that_are_alike_any_may_fall() -> None:
    """Else the place of a label would be the answer, whatever the candidates say."""
    candidates = tuple(Candidate(id=str(n), text=f"number {n}") for n in range(5))
    fallen = Counter[str]()
    for seed in range(400):
        row = replace(LAMP, id=str(seed), candidates=candidates, relevance=(1.0, 0.0, 0.0, 0.0, 0.0))
        made = rationale(row, ask(), seed=seed)
        if len(made.question.labels) == len(candidates):
            fallen[made.answer[0]] += 1
    assert set(fallen) == {"B", "C", "D", "E"}
    assert min(fallen.values()) > 0.5 * fallen.total() / 4


def test_there_is_room_for_all_that_fall(make_tokenizer: Any) -> None:
    chat = ChatTokenizer(make_tokenizer())
    one, two = (answer_tokens(stage_of(), ask(drop=drop), chat, 4) for drop in (1, 2))
    assert two > one


@given(st.integers(2, 30), st.integers(0, 1000))
def test_a_reason_stays_short_and_speaks_of_live_candidates(count: int, seed: int) -> None:
    candidates = tuple(Candidate(id=str(n), text=f"lighthouse lamp number {n}") for n in range(count))
    row = replace(LAMP, candidates=candidates, relevance=tuple(float(n == seed % count) for n in range(count)))
    made = rationale(row, ask(), seed=seed)
    assert len(made.thinking) <= 5
    said = {part[0] for part in " ".join(made.thinking).split("[")[1:]}
    assert said <= set(made.question.labels)
    assert made.answer[0] in said


def test_every_task_and_ask_is_worded() -> None:
    assert set(wording()) == {*TASKS, "conclusion"}
    assert all(set(wording()[task]) == {"shares", "differs", "fits"} for task in TASKS)
    assert set(wording()["conclusion"]) == {"eliminate", "rank"}


def test_the_questions_are_those_of_a_whole_elimination(make_row: Any) -> None:
    asked = {len(rationale(make_row(1, candidates=6), ask(), seed=seed).question.labels) for seed in range(60)}
    assert asked == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("bos", [False, True])
def test_only_reason_and_answer_are_learned(make_tokenizer: Any, make_row: Any, bos: bool) -> None:
    tokenizer = make_tokenizer(bos=bos)
    prompts = Prompts(ask(), tokenizer)
    rows = [make_row(number) for number in range(4)]
    dataset = rationale_dataset(rows, prompts, limit=200)
    for row, record in zip(rows, dataset, strict=True):
        made = rationale(row, prompts.questions)
        cut = record["completion_mask"].index(1)
        assert set(record["completion_mask"][cut:]) == {1}
        # The prompt of inference, and behind it what the policy should write, its end included.
        assert record["input_ids"][:cut] == prompts.chat.prompt(made.question.messages, thinking=True, constrain=False)
        assert tokenizer.decode(record["input_ids"][cut:]) == made.text() + tokenizer.eos_token


def test_a_reason_gives_way_to_its_answer(make_tokenizer: Any, make_row: Any) -> None:
    tokenizer = make_tokenizer()
    prompts, row = Prompts(ask(), tokenizer), make_row(0)
    whole = len(prompts.chat.encode(rationale(row, prompts.questions).text())) + 1
    (short,) = rationale_dataset([row], prompts, limit=whole - 1)
    completion = [t for t, mask in zip(short["input_ids"], short["completion_mask"], strict=True) if mask]
    text = tokenizer.decode(completion, skip_special_tokens=True)
    assert rationale(row, prompts.questions).text().endswith(text)
    assert len(completion) < whole
    with pytest.raises(InputError, match="max_completion_tokens: the answer alone to row 'r0'"):
        rationale_dataset([row], prompts, limit=3)


def stage_of(**settings: Any) -> RationaleStage:
    values: dict[str, Any] = {
        "name": "toy",
        "method": "sft",
        "examples": 48,
        "batch": 4,
        "learning_rate": 1e-2,
        "logging_every": 1,
        "save_every": 4,
    }
    return RationaleStage(**{**values, **settings})


def test_it_learns_and_resumes_after_a_kill(
    make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path
) -> None:
    import torch
    from transformers import TrainerCallback

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise RuntimeError("killed")

    tokenizer = make_tokenizer()
    rows, stage = [make_row(number) for number in range(46)], stage_of(examples=46)

    def train(folder: Path, **more: Any) -> Any:
        model = make_model(tokenizer)
        train_rationales(model, tokenizer, mixture=rows, questions=ask(), stage=stage, folder=folder, **more)
        assert not {"forward", "_original_forward"} & set(vars(model))
        return model.state_dict()

    whole = train(tmp_path / "whole")
    last = last_checkpoint(tmp_path / "whole")
    assert last is not None
    log = json.loads((Path(last) / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "killed", callbacks=[Killer()])
    resumed = train(tmp_path / "killed", resume=True)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)
    over = train(tmp_path / "whole", resume=True)  # takes what was left, and no step more
    assert last_checkpoint(tmp_path / "whole") == last
    for name, value in whole.items():
        torch.testing.assert_close(over[name], value, rtol=0, atol=0, msg=name)


def test_a_ranker_that_does_not_think_has_no_use_for_reasons(
    make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    with pytest.raises(InputError, match=r"ranker\.thinking: is 0"):
        train_rationales(
            make_model(tokenizer),
            tokenizer,
            mixture=[make_row(0)],
            questions=ask(thinking=0),
            stage=stage_of(),
            folder=tmp_path,
        )
