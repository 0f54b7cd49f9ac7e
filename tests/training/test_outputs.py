"""A training from its recipe to a checkpoint: what is refused before the first step, and what it leaves behind."""

from __future__ import annotations

import base64
import doctest
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from r1_rerank import R1Reranker
from r1_rerank.checkpoint import CARD_NAME, EMBEDDED_HUB, RankerCard
from r1_rerank.errors import CheckpointError, DataError, InputError
from r1_rerank.rows import Candidate, Row, write_rows
from r1_rerank.training import places
from r1_rerank.training.data import hard_negatives, pool_of
from r1_rerank.training.folder import WEIGHTS, StageResult, stage_folder
from r1_rerank.training.logs import read_log
from r1_rerank.training.model_card import model_card
from r1_rerank.training.outputs import check_publishing, publish, write_merged, write_outputs
from r1_rerank.training.preflight import sample_rewards
from r1_rerank.training.questions import Questions
from r1_rerank.training.recipe import LabelStage, Recipe
from r1_rerank.training.run import Training
from r1_rerank.training.settings import published
from r1_rerank.training.validation import Validation
from r1_rerank.training.weights import load_policy

STAGE = {
    "name": "Cold start",
    "method": "supervised",
    "examples": 8,
    "batch": 4,
    "learning_rate": 1e-2,
    "phases": [{"candidates": [2, 3]}],
}
RL = {**STAGE, "name": "RL", "method": "expected", "on_policy": True}


@dataclass
class Finished:
    """A training, its stages and what the checkpoint came to."""

    training: Training
    results: tuple[StageResult, ...]
    final: Validation | None

    @property
    def out(self) -> Path:
        return self.training.out


@pytest.fixture(scope="module")
def finished(toy_training: Callable[..., Training], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    training = toy_training(tmp_path_factory.mktemp("finished") / "ranker")
    results = training.run()
    return Finished(training, results, write_outputs(training, results, merge=True))


def test_the_checkpoint_loads_by_its_folder_and_is_asked_as_it_was_trained(finished: Finished, base: Path) -> None:
    out = finished.out
    reranker = R1Reranker.from_pretrained(out)
    result = reranker.rerank("train question 1", ["no 10", "yes 11", "no 12"])
    assert (result.card, result.status, result.faults) == ("model", "ok", ())
    card = RankerCard.read(out / CARD_NAME)
    assert (card.base.name, card.form, card.labels.alphabet) == (str(base), "append", "ABCDEF")
    merged = R1Reranker.from_pretrained(out / "merged").rerank("train question 1", ["no 10", "yes 11", "no 12"])
    steps = zip(result.steps, merged.steps, strict=True)
    assert all(one.logprobs == pytest.approx(other.logprobs, abs=0.05) for one, other in steps)


def test_what_a_stage_ended_with_loads_too(finished: Finished) -> None:
    weights = stage_folder(finished.out, 0, finished.results[0].name) / WEIGHTS
    result = R1Reranker.from_pretrained(weights).rerank("train question 1", ["no 10", "yes 11", "no 12"])
    assert (result.card, result.status, result.faults) == ("model", "ok", ())


def test_an_adapter_is_small_portable_and_readable_by_all(finished: Finished, base: Path) -> None:
    from safetensors import safe_open

    out = finished.out
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(base), 4)
    assert (out / "adapter_model.safetensors").stat().st_mode & 0o444 == 0o444
    assert not list(out.glob("tokenizer*"))  # the base has it


@pytest.mark.parametrize(
    ("ranker", "stage"),
    [
        ({"form": "append"}, {"method": "grpo", "on_policy": True, "group": 2}),
        ({"form": "rewrite"}, {"method": "rloo", "eliminations": True, "group": 2}),
        ({"form": "rewrite", "thinking": 4}, {"method": "sft"}),
        ({"strategy": "dranker"}, {"method": "supervised"}),
        ({"strategy": "dranker", "thinking": 4}, {"method": "grpo", "group": 2}),
    ],
)
def test_every_method_runs_by_a_recipe(
    make: Callable[..., Training], ranker: dict[str, Any], stage: dict[str, Any]
) -> None:
    training = make(
        ranker={"alphabet": "ABCDEF", **ranker}, stages=[{**STAGE, "phases": [{"candidates": [2, 2]}], **stage}]
    )
    (result,) = training.run()
    assert result.steps == 2
    assert 0 < result.after["eval_mrr"] <= 1
    log = read_log(training.out / "log.jsonl")
    assert {line["step"] for line in log if "loss" in line} == {1, 2}
    if result.method in ("grpo", "rloo"):
        assert all("frac_reward_zero_std" in line for line in log if "loss" in line)
    write_outputs(training, [result])
    assert R1Reranker.from_pretrained(training.out).rerank("train question 1", ["no 10", "yes 11"]).ranking


def test_whole_weights_come_with_their_tokenizer(make: Callable[..., Training]) -> None:
    training = make(lora=None, stages=[STAGE, RL])
    write_outputs(training, training.run())
    out = training.out
    assert (out / "model.safetensors").is_file()
    assert (out / "tokenizer.json").is_file()
    assert R1Reranker.from_pretrained(out).rerank("train question 1", ["no 10", "yes 11"]).status == "ok"
    with pytest.raises(CheckpointError, match="nothing to merge"):
        write_merged(out, out / "merged", start=training.start, card=training.card)


def test_the_model_card_tells_data_licences_figures_recipe_and_versions(finished: Finished, toys: Path) -> None:
    training, results, final = finished.training, finished.results, finished.final
    page = (training.out / "README.md").read_text()
    assert "- toy: 16 examples drawn from 26 rows" in page
    assert "Toys. Licence: CC0. https://toys.example" in page
    assert "| MRR | rows | before | after Cold start | after RL | this checkpoint |" in page
    assert final is not None
    assert f"| toy | 4 | {results[0].before['eval_mrr']:.3f} |" in page
    assert f"{final.metrics()['eval_mrr']:.3f} |" in page
    assert "p = " in page
    assert "![Training curves](curves.png)" in page
    assert (training.out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "transformers " in page
    assert "learning_rate: 0.01" in page
    assert str(toys) not in page
    again = Recipe.model_validate(_yaml(page.partition("```yaml")[2].partition("```")[0]))
    assert again == published(training.recipe)


def test_each_stage_begins_with_what_the_one_before_it_kept(finished: Finished) -> None:
    first, second = finished.results
    assert (first.kept, second.kept) == (2, 2)
    assert second.before == pytest.approx(first.after, abs=1e-5)
    assert first.before != first.after


def test_without_validation_there_is_a_checkpoint_all_the_same(make: Callable[..., Training], toys: Path) -> None:
    data = {"folder": str(toys), "train": [{"rows": "toy"}], "validation_limit": 0}
    training = make(data=data, stages=[STAGE])
    results = training.run()
    assert write_outputs(training, results) is None
    assert results[0].after == {}
    assert "None were ranked" in (training.out / "README.md").read_text()


def test_held_out_rows_are_not_trained_on_and_may_be_cut(make: Callable[..., Training], toys: Path) -> None:
    data = {"folder": str(toys), "train": [{"rows": "toy"}], "validation_limit": 5}
    whole = make(data=data)
    (train,), (held,) = whole.inputs.sources
    assert (len(train.rows), len(held.rows)) == (25, 5)
    assert not {row.query for row in train.rows} & {row.query for row in held.rows}
    cut = make(data={**data, "validation_phase": {"candidates": [2, 2], "words": [1, 1]}})
    (ranked,) = cut.inputs.validation
    assert [len(row.candidates) for row in ranked.rows] == [2] * 5
    assert {row.query for row in ranked.rows} <= {row.query for row in held.rows}
    assert all(len(candidate.text.split()) == 1 for row in ranked.rows for candidate in row.candidates)


def test_a_validation_of_cut_rows_asks_each_held_out_question_once(
    make: Callable[..., Training], toys: Path, toy_rows: Callable[..., list[Row]], tmp_path: Path
) -> None:
    others = [replace(row, split="train") for row in toy_rows(40, split="dev")]
    write_rows([*others, *(replace(row, id=f"long-{row.id}") for row in others)], tmp_path / "others.jsonl")
    sources = [{"rows": "toy", "weight": 9}, {"rows": str(tmp_path / "others.jsonl")}]
    data = {"folder": str(toys), "train": sources, "validation_limit": 20}
    phase = {"candidates": [2, 2], "easy": 1.0}
    training = make(data={**data, "validation_phase": phase})
    assert [len({row.query for row in source.rows}) for source in training.inputs.validation] == [10, 10]
    assert training.validator is not None
    assert sum(len(evaluator.rows) for evaluator in training.validator.evaluators()) == 20
    with pytest.raises(InputError, match=r"data\.validation_phase: no row fits it"):
        _ = make(data={**data, "validation_phase": {"candidates": [4, 5]}}).inputs.validation


def test_hard_negatives_are_mined_from_what_is_trained_on(
    make: Callable[..., Training], toys: Path, tmp_path: Path
) -> None:
    data = {"folder": str(toys), "validation_limit": 5, "train": [{"rows": "toy", "negatives": {"count": 4}}]}
    training = make(data=data)
    (train,), (held,) = training.inputs.sources
    assert {len(row.candidates) for row in train.rows} == {5}
    assert all(row.id.endswith("/hard") for row in train.rows)
    # What is held out is neither mined for nor mined.
    assert {len(row.candidates) for row in held.rows} == {3}
    unseen = {candidate.text for row in held.rows for candidate in row.candidates}
    assert not unseen & {candidate.text for row in train.rows for candidate in row.candidates}
    assert training.run()[0].steps == 2
    route = Row(
        id="route",
        task="recommendation",
        history=("Alien",),
        candidates=(Candidate(id="0", text="Aliens"), Candidate(id="1", text="Heidi")),
        relevance=(1.0, 0.0),
        split="train",
        source="toy",
    )
    write_rows([route], tmp_path / "tastes.jsonl")
    tastes = {"rows": str(tmp_path / "tastes.jsonl"), "negatives": {}}
    with pytest.raises(InputError, match=r"data\.train\[1\]\.negatives: source 'tastes' has no passage rows"):
        _ = make(data={**data, "validation_limit": 0, "train": [{"rows": "toy"}, tastes]}).inputs.sources


def test_hard_negatives_are_picked_by_the_weights_that_it_begins_with(
    make: Callable[..., Training], finished: Finished, toys: Path
) -> None:
    mined = {"rows": "toy", "negatives": {"by": "policy", "count": 2, "depth": 6}}
    data = {"folder": str(toys), "train": [mined], "validation_limit": 5}
    training = make(data=data, start=str(finished.out), stages=[STAGE])
    (train,), _ = training.inputs.sources
    assert {len(row.candidates) for row in train.rows} == {3}
    # The same by hand: the checkpoint ranks the best six of BM25, and its best two stay.
    (whole,) = make("whole", data={**data, "train": [{"rows": "toy"}]}).inputs.sources[0]
    with R1Reranker.from_pretrained(finished.out, dtype="float32") as policy:
        by_hand = hard_negatives(whole.rows, pool_of(whole.rows), by=policy, count=2, depth=6)
        assert train.rows == tuple(by_hand)
    assert training.run()[0].steps == 2
    again = make(data=data, start=str(finished.out), stages=[STAGE])
    assert again.run(resume=True) == training.run(resume=True)


def test_a_final_validation_is_told_though_there_was_none_before(finished: Finished) -> None:
    """As where the weights were spread over processes until the end."""
    training, results, final = finished.training, finished.results, finished.final
    assert final is not None
    page = model_card(
        name="ranker",
        recipe=training.recipe,
        card=training.card,
        data=[],
        results=results,
        validations=[None, None, None],
        final=final,
        curves=None,
        adapter=True,
    )
    assert "| MRR | rows | this checkpoint |" in page
    assert f"| toy | 4 | {final.metrics()['eval_mrr']:.3f} |" in page
    assert "the gain is not known" in page


def test_an_adapter_can_be_gone_on_from(make: Callable[..., Training], finished: Finished) -> None:
    start = finished.out
    (after,) = make("more", start=str(start), stages=[RL]).run()
    direct = R1Reranker.from_pretrained(start)
    assert after.before["eval_mrr"] == make("more").validator(direct).metrics()["eval_mrr"]  # type: ignore[misc]
    for changes, told in (
        ({"lora": {"r": 8}}, r"lora\.r: 8, but the adapter .* has r = 4"),
        ({"lora": {"r": 4, "alpha": 8}}, r"lora\.alpha: 8, but the adapter .* has lora_alpha = 32"),
        ({"lora": {"r": 4, "targets": ["q_proj"]}}, r"lora\.targets: q_proj, but the adapter .* reaches .*v_proj"),
        ({"lora": None}, "start: .* is an adapter, and the recipe trains whole weights"),
    ):
        with pytest.raises(InputError, match=told):
            _ = make("other", start=str(start), **changes).start
    with pytest.raises(InputError, match=r"base: .* is an adapter: name its base"):
        _ = make("other", base=str(start)).start


def test_an_adapter_gone_on_from_takes_the_settings_that_it_can(
    make: Callable[..., Training], finished: Finished
) -> None:
    training = make("dropped", start=str(finished.out), lora={"r": 4, "dropout": 0.25})
    model, _ = load_policy(training.start, training.recipe)
    assert model.peft_config["default"].lora_dropout == 0.25
    assert {module.p for name, module in model.named_modules() if name.endswith("lora_dropout.default")} == {0.25}
    few = make("few", lora={"r": 4, "targets": ["q_proj", "v_proj"]}, stages=[STAGE])
    write_outputs(few, few.run())
    same = make("same", start=str(few.out), lora={"r": 4, "targets": ["v_proj", "q_proj"]}, stages=[STAGE])
    assert same.run()[0].steps == 2
    other = make("other", start=str(few.out), lora={"r": 4}, stages=[STAGE])
    with pytest.raises(InputError, match=r"lora\.targets: all-linear, but the adapter .* does not reach .*k_proj"):
        other.run()


def test_the_hub_is_not_asked_for_a_base_that_is_here(
    make: Callable[..., Training], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint names its base as the hub does; PEFT would look there at every save, and warn."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(finished.out, tmp_path / "start")
    path = tmp_path / "start" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "nobody/nothing"}))
    assert make("named", start=str(path.parent), stages=[STAGE]).run()[0].steps == 2


def test_an_adapter_of_another_base_is_refused(
    make: Callable[..., Training],
    make_model: Callable[..., Any],
    tokenizer: Any,
    finished: Finished,
    tmp_path: Path,
) -> None:
    make_model(tokenizer, seed=1).save_pretrained(tmp_path / "other-base")
    tokenizer.save_pretrained(tmp_path / "other-base")
    with pytest.raises(InputError, match=r"start: .* was trained from .*, not from .*other-base"):
        make("next", base=str(tmp_path / "other-base"), start=str(finished.out)).run()
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"train": [{"rows": "toy"}]}}, "data: 'toy' is no file or folder here.*pass --data BUILT"),
        ({"stages": [{**STAGE, "phases": [{"candidates": [4, 5]}]}]}, r"stages\[0\]\.phases\[0\]: no row fits"),
        ({"stages": [STAGE, {**RL, "phases": [{"tasks": ["routing"]}]}]}, r"stages\[1\]\.phases\[0\]: no row fits"),
        ({"ranker": {"alphabet": "AB"}}, "row: 'train-.*' has 3 candidates"),
        ({"stages": [{**STAGE, "max_prompt_tokens": 60}]}, r"stage 'Cold start': 8 of 8 prompts are longer than 60"),
        ({"stages": [STAGE, {**RL, "method": "grpo", "rewards": {"format": 1.0}}]}, "rewards: format cannot judge"),
        ({"lora": {"targets": ["no_such_layer"]}}, r"lora\.targets: do not fit the model"),
        ({"start": "./missing"}, "model: './missing' is no folder"),
    ],
)
def test_what_cannot_be_trained_is_named_before_the_first_step(
    make: Callable[..., Training], tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        make(**changes).run()
    assert not (tmp_path / "out").exists()


def test_rows_that_are_missing_or_tested_on_are_named(
    make: Callable[..., Training], toys: Path, toy_rows: Callable[..., list[Row]], tmp_path: Path
) -> None:
    data = {"folder": str(toys), "train": [{"rows": "toy"}], "validation_limit": 3}
    with pytest.raises(DataError, match="nowhere: does not exist"):
        make(data={**data, "train": [{"rows": "nowhere"}]}).run()
    with pytest.raises(InputError, match=r"validation: is no test of source 'toy'.*30 x its question stands in valid"):
        make(data={**data, "validation": [{"rows": "toy", "split": "train"}]}).run()
    write_rows(toy_rows(5, split="test"), tmp_path / "test.jsonl")
    with pytest.raises(InputError, match="not of the split train"):
        make(data={**data, "train": [{"rows": str(tmp_path / "test.jsonl")}], "validation_limit": 1}).run()
    with pytest.raises(InputError, match=r"task: no row of data\.train is of routing"):
        make(data={**data, "tasks": ["routing"]}).run()


def test_prompts_longer_than_the_model_are_counted_and_named(
    make: Callable[..., Training], toy_rows: Callable[..., list[Row]], tmp_path: Path
) -> None:
    long = [*toy_rows(20), *toy_rows(3, words=600)]
    write_rows([Row(**{**vars(row), "id": str(number)}) for number, row in enumerate(long)], tmp_path / "long.jsonl")
    data = {"train": [{"rows": str(tmp_path / "long.jsonl")}], "validation_limit": 0}
    with pytest.raises(
        InputError, match=r"max_prompt_tokens: stage 'Cold start': \d+ of 40 prompts are longer"
    ) as told:
        make(data=data, stages=[{**STAGE, "examples": 40}]).run()
    assert "row '2" in str(told.value)  # one of the long ones


@pytest.mark.parametrize(
    ("tokenizer_settings", "told"),
    [
        ({"special": ("[A",)}, r"ranker\.alphabet: A are not one token each in this model: use 'BCDEF'"),
        (
            {"lower": True},
            r"ranker: this tokenizer cuts answers: of '<answer>\[C\]</answer>' .* it leaves '<answer>\[c\]",
        ),
    ],
)
def test_a_tokenizer_that_cannot_write_answers_is_named(
    make: Callable[..., Training],
    make_tokenizer: Callable[..., Any],
    make_model: Callable[..., Any],
    tmp_path: Path,
    tokenizer_settings: dict[str, Any],
    told: str,
) -> None:
    lower = tokenizer_settings.pop("lower", False)
    tokenizer = make_tokenizer(**tokenizer_settings)
    if lower:  # as BERT's: what it writes is not what was written
        from tokenizers import normalizers

        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    folder = tmp_path / "odd-base"
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=told):
        make(base=str(folder)).run()


def test_a_chat_template_that_rewrites_turns_cannot_append(
    make: Callable[..., Training], make_tokenizer: Callable[..., Any], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "turns: {{ messages | length }} {{ messages[-1]['content'] }} answer: "
    folder = tmp_path / "odd-base"
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"ranker\.form: .*set it to rewrite"):
        make(base=str(folder)).run()
    assert make(base=str(folder), ranker={"alphabet": "ABCDEF", "form": "rewrite"}, stages=[STAGE]).run()


def test_a_folder_with_something_in_it_is_refused(make: Callable[..., Training], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"out: .* is not empty and holds no training"):
            make().run(resume=resume)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out: .* is a file"):
        make("file").run()


def test_a_finished_training_stays_as_it_is(make: Callable[..., Training], finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.out, tmp_path / "out")
    with pytest.raises(InputError, match=r"out: .* holds a training; pass --resume"):
        make().run()
    with pytest.raises(InputError, match=r"resume: .*another recipe .*stages\[0\]\.examples"):
        make(stages=[{**STAGE, "examples": 4}, RL]).run(resume=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert make().run(resume=True) == finished.results  # all done: nothing is done again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_teacher_is_asked_about_the_rows(make: Callable[..., Training]) -> None:
    training = make(stages=[{**STAGE, "teacher": {"system": "bm25", "weight": 1.0, "temperature": 1.0}}])
    teacher = training.inputs.teacher(training.recipe.stages[0])
    assert teacher is not None
    ((_, outcome),) = teacher.rank_iter(training.inputs.mixtures[0][:1])
    assert outcome.scores is not None
    assert training.run()[0].steps == 2


def test_a_teacher_by_words_knows_what_phases_cut(make: Callable[..., Training]) -> None:
    phase = {"candidates": [2, 3], "words": [1, 1]}
    training = make(stages=[{**STAGE, "phases": [phase], "teacher": {"system": "bm25"}}])
    (mixture,) = training.inputs.mixtures
    assert {candidate.text for row in mixture for candidate in row.candidates} == {"yes", "no"}
    teacher = training.inputs.teacher(training.recipe.stages[0])
    assert teacher is not None
    assert all(outcome.scores is not None for _, outcome in teacher.rank_iter(mixture))
    assert training.run()[0].steps == 2


def test_a_teacher_that_cannot_be_made_is_named_with_its_stage(make: Callable[..., Training]) -> None:
    teacher = {"system": "embedding:./nowhere", "tasks": ["passage"]}
    with pytest.raises(
        InputError, match=r"stage 'Cold start': teacher\.system: embedding:./nowhere .*nowhere does not"
    ):
        make(stages=[{**STAGE, "teacher": teacher}]).run()


def test_a_dry_run_shows_prompt_rewards_and_cost_and_writes_nothing(make: Callable[..., Training]) -> None:
    training = make()
    preview = training.dry_run()
    assert not training.out.exists()
    assert preview.prompt.endswith("<answer>[")
    assert preview.row.query in preview.prompt
    assert 0 < preview.trained < preview.parameters
    for one, stage in zip(preview.estimates, training.recipe.stages, strict=True):
        assert (one.stage, one.steps, one.examples) == (stage.name, 2, 8)
        assert 0 < one.tokens <= one.longest
        assert one.seconds > 0
        assert one.memory > 0


def test_sample_rewards_are_those_of_the_answers(
    make: Callable[..., Training], toy_rows: Callable[..., list[Row]]
) -> None:
    training = make()
    (row,) = toy_rows(1)  # its first candidate is relevant
    found = dict(sample_rewards(training.questions.first(row)))
    assert found == {"<answer>[A]</answer>": 0.0, "<answer>[B]</answer>": 1.0, "<answer>[C]</answer>": 1.0}
    whole = make(ranker={"alphabet": "ABCDEF", "strategy": "dranker"}, stages=[STAGE])
    values = dict(sample_rewards(Questions(whole.card).first(row)))
    assert max(values, key=lambda answer: values[answer]) == "<answer>[A] > [B] > [C]</answer>"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a push takes; keeps what it is sent."""

    def do_GET(self) -> None:
        self._answer({"id": "you/ranker", "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        if self.path.endswith("/repos/create"):
            name = json.loads(body)["name"]
            if name == "refused":
                return self._answer({"error": "You may not."}, status=400)
            return self._answer({"url": f"{server.address}/you/{name}"})
        if self.path.endswith("/validate-yaml"):
            head = _yaml(json.loads(body)["content"].split("---")[1])
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", head.get("base_model", "none")):
                return self._answer({"errors": [{"message": '"base_model" is not valid'}], "warnings": []}, status=400)
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for path in paths]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self._answer(
                {"commitUrl": f"{server.address}/you/ranker/commit/1", "commitOid": "1" * 40, "success": True}
            )
        return self._answer({"error": f"unexpected: {self.path}"}, status=404)

    def _answer(self, content: object, *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import huggingface_hub.constants

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.address = {}, f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)  # read once, from HF_ENDPOINT
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "not-a-token")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_push_publishes_the_checkpoint_and_not_the_workshop(
    finished: Finished, base: Path, hub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    out = finished.out
    assert publish(out, "ranker") == f"{hub.address}/you/ranker"
    assert f"the adapter's base is the folder {base}" in caplog.text
    assert hub.files["adapter_model.safetensors"] == (out / "adapter_model.safetensors").read_bytes()
    assert {CARD_NAME, "adapter_config.json", "README.md", "curves.png", "recipe.yaml", "log.jsonl"} <= set(hub.files)
    assert not [path for path in hub.files if path.startswith(("stages", "merged", "validation"))]
    assert b"base_model:" not in hub.files["README.md"]  # it is a folder here, which the hub refuses
    assert str(base) not in hub.files["README.md"].decode()
    with pytest.raises(CheckpointError, match=r"you/refused cannot be pushed: .*You may not"):
        publish(out, "you/refused")


def test_where_rows_lie_is_not_published(make: Callable[..., Training], toys: Path, tmp_path: Path, hub: Any) -> None:
    rows = tmp_path / "private" / "mine.jsonl"
    rows.parent.mkdir()
    shutil.copy(toys / "toy" / "train.jsonl", rows)
    training = make(data={"train": [{"rows": str(rows)}], "validation_limit": 2}, stages=[STAGE])
    write_outputs(training, training.run())
    publish(training.out, "ranker")
    for name in ("README.md", "recipe.yaml"):
        assert b"rows: mine.jsonl" in hub.files[name]
        assert b"private" not in hub.files[name]
    assert str(rows) in (training.out / "recipe.yaml").read_text()  # a resumed training finds them


def test_a_place_is_told_from_a_name() -> None:
    found = doctest.testmod(places)
    assert (found.attempted, found.failed) == (2, 0)


def test_what_is_published_names_what_lies_here_but_not_where(make: Callable[..., Training]) -> None:
    stage = {**STAGE, "teacher": {"system": "embedding:/home/me/minilm,name=mine"}}
    train = [{"rows": "toy"}, {"rows": "~/private/own.jsonl"}, {"rows": "built/passage-5"}, {"rows": "."}]
    recipe = make(base="../private/base", start="~/private/begun", data={"train": train}, stages=[stage]).recipe
    told = published(recipe)
    assert (told.base, told.start) == ("base", "begun")
    assert [one.rows for one in told.data.train] == ["toy", "own.jsonl", "built/passage-5", "."]
    (first,) = told.stages
    assert isinstance(first, LabelStage)
    assert first.teacher is not None
    assert first.teacher.system == "embedding:minilm,name=mine"
    named = make(base="you/base", start="you/ranker", stages=[{**STAGE, "teacher": {"system": "embedding:you/e5"}}])
    assert published(named.recipe).model_dump(exclude={"data"}) == named.recipe.model_dump(exclude={"data"})


@pytest.mark.model
def test_an_embedded_base_is_named_by_its_hub_name(make: Callable[..., Training]) -> None:
    training = make(base="embedded", precision="bfloat16", stages=[{**STAGE, "examples": 4}])
    write_outputs(training, training.run())
    out = training.out
    for folder in (out, stage_folder(out, 0, training.recipe.stages[0].name) / WEIGHTS):
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == EMBEDDED_HUB
    page = (out / "README.md").read_text()
    assert "license: apache-2.0" in page
    assert f"base_model: {EMBEDDED_HUB}\n" in page
    assert R1Reranker.from_pretrained(out).rerank("train question 1", ["no 10", "yes 11"]).faults == ()


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def test_what_cannot_be_pushed_is_known_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    check_publishing("you/ranker")
    with pytest.raises(CheckpointError, match="you/ran ker cannot be pushed: "):
        check_publishing("you/ran ker")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)  # whoever runs this may be logged in
    with pytest.raises(CheckpointError, match="no token; set HF_TOKEN, or log in"):
        check_publishing("you/ranker")
