"""Recipes: read from YAML or by name, complete once read, and refused by the name of the key that is wrong."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from r1_rerank.checkpoint import BaseModelCard
from r1_rerank.errors import InputError
from r1_rerank.prompts import PromptTemplate
from r1_rerank.rows import Candidate, Row, TaskName, write_rows
from r1_rerank.training.data import Phase
from r1_rerank.training.inputs import Inputs
from r1_rerank.training.recipe import (
    LabelStage,
    PolicyStage,
    RationaleStage,
    Recipe,
    builtin_recipes,
    read_recipe,
)
from r1_rerank.training.stages import Loss

BASE = BaseModelCard(name="some/base", sha256=None)
STAGE = {"name": "first", "method": "supervised", "examples": 30, "learning_rate": 1e-3}
DATA = {"train": [{"rows": "passage-5"}]}


def written(folder: Path, **content: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": DATA, "stages": [STAGE], **content}), encoding="utf-8")
    return path


def test_every_builtin_recipe_reads_and_says_how_its_model_is_asked() -> None:
    names = builtin_recipes()
    assert {"embedded-cpu", "smoke-cpu", "lora-24gb", "qwen2.5-3b-paper"} <= set(names)
    assert not any(name.startswith(("accelerate", "verl")) for name in names)  # other programs read those
    for name in names:
        recipe = read_recipe(name)
        card = recipe.card(BASE)
        assert card.strategy == recipe.ranker.strategy
        assert card.thinking.budget == recipe.ranker.thinking


def test_every_builtin_recipe_is_told_of() -> None:
    """The command's help names them without importing what reads them."""
    from typer.testing import CliRunner

    from r1_rerank.cli import app

    told = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
    page = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for name in builtin_recipes():
        assert name in told
        assert f"`{name}`" in page


def test_the_papers_setting_is_the_papers() -> None:
    recipe = read_recipe("qwen2.5-3b-paper")
    (stage,) = recipe.stages
    assert isinstance(stage, PolicyStage)
    assert (recipe.base, recipe.lora, recipe.ranker.form) == ("Qwen/Qwen2.5-3B-Instruct", None, "rewrite")
    assert (stage.learning_rate, stage.kl, stage.batch, stage.steps) == (1e-6, 0.001, 64, 1501)
    assert (stage.max_completion_tokens, stage.temperature) == (1024, 1.0)
    assert stage.max_prompt_tokens == 2048  # the paper's 1,400 do not hold the longest lists that are built
    assert stage.eliminations
    assert {source.rows for source in recipe.data.train} == {
        *("rec-movie", "rec-music", "rec-game"),
        *("router-performance", "router-balance", "router-cost"),
        *("passage-5", "passage-7", "passage-9"),
    }


def test_every_loss_is_one_that_trl_knows() -> None:
    """Which says so in its code alone."""
    from trl.trainer import grpo_trainer

    known = inspect.getsource(grpo_trainer)
    assert all(f'"{name}"' in known for name in get_args(Loss))


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_recipe_as_run_reads_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    path = tmp_path / "as-run.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_stages_take_over_what_they_do_not_say(tmp_path: Path) -> None:
    stages = [STAGE, {**STAGE, "name": "second", "seed": 9, "save_every": 7}]
    first, second = read_recipe(written(tmp_path, seed=4, save_every=50, stages=stages)).stages
    assert (first.seed, first.save_every) == (4, 50)
    assert (second.seed, second.save_every) == (9, 7)


def test_methods_have_settings_of_their_own(tmp_path: Path) -> None:
    thinking = {"strategy": "iranker", "form": "rewrite", "thinking": 64}
    stages = [{**STAGE, "name": name, "method": name} for name in ("sft", "grpo", "rloo")]
    recipe = read_recipe(written(tmp_path, ranker=thinking, stages=stages))
    assert [type(stage) for stage in recipe.stages] == [RationaleStage, PolicyStage, PolicyStage]
    (stage,) = read_recipe(written(tmp_path)).stages
    assert isinstance(stage, LabelStage)
    assert stage.phases == (Phase(),)


def test_numbers_as_yaml_writes_them_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for a text."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {train: [{rows: a}]}\n"
        "stages: [{name: a, method: supervised, examples: 20, batch: 8, learning_rate: 1e-3, "
        "phases: [{candidates: [2, 4]}]}]\n"
    )
    (stage,) = read_recipe(path).stages
    assert (stage.learning_rate, stage.steps) == (0.001, 3)
    assert stage.phases == (Phase(candidates=(2, 4)),)


def test_rows_asked_directly_teach_a_second_strategy(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, stages=[STAGE])).card(BASE).also == ()
    recipe = read_recipe(written(tmp_path, stages=[STAGE, {**STAGE, "name": "second", "direct": 0.2}]))
    card = recipe.card(BASE)
    assert (card.strategy, card.also) == ("iranker", ("dranker",))
    assert recipe.card(BASE, stages=1).also == ()  # not yet


def test_own_templates_are_taken_into_the_recipe_from_beside_it(tmp_path: Path) -> None:
    own = PromptTemplate.builtin("passage").to_dict() | {"eliminate": "Which one fits worst?"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    recipe = read_recipe(written(tmp_path, ranker={"templates": {"passage": "mine.yaml"}}))
    (tmp_path / "mine.yaml").unlink()
    card = recipe.card(BASE)
    assert card.prompt_templates()["passage"].eliminate == "Which one fits worst?"
    # A later version may word its own otherwise: the card holds what was said.
    assert card.templates["routing"] == PromptTemplate.builtin("routing").to_dict()


def test_templates_that_do_not_agree_make_no_card(tmp_path: Path) -> None:
    """Two of three close their candidates with the label: what would the card say?"""
    own = PromptTemplate.builtin("passage").to_dict() | {"candidate": "[{label}] {text}"}
    recipe = read_recipe(written(tmp_path, ranker={"templates": {"passage": own}}))
    with pytest.raises(InputError, match=r"ranker: .*labels\.close") as caught:
        recipe.card(BASE)
    assert caught.value.argument == "ranker"


def test_templates_may_all_agree_otherwise(tmp_path: Path) -> None:
    changed = {task: {"candidate": "[{label}] {text}"} for task in get_args(TaskName)}
    card = read_recipe(written(tmp_path, ranker={"templates": changed})).card(BASE)
    assert not card.labels.close
    assert card.labels.close != read_recipe(written(tmp_path)).card(BASE).labels.close


def test_a_template_needs_only_the_keys_that_differ_from_the_one_built_in(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, ranker={"templates": {"routing": {"next": "Which one now?"}}}))
    usual = PromptTemplate.builtin("routing").to_dict()
    assert recipe.card(BASE).prompt_templates()["routing"].to_dict() == usual | {"next": "Which one now?"}
    objectives = {"routing": {"objectives": {"cost": "cheapness"}}}
    routing = read_recipe(written(tmp_path, ranker={"templates": objectives})).card(BASE).prompt_templates()["routing"]
    assert routing.objectives == {**usual["objectives"], "cost": "cheapness"}
    misspelt = read_recipe(written(tmp_path, ranker={"templates": {"routing": {"nxet": "Which one now?"}}}))
    with pytest.raises(InputError, match="routing: unknown key nxet"):
        misspelt.card(BASE)


def test_a_recipe_over_rows_of_ones_own_holds_some_of_them_out(tmp_path: Path) -> None:
    data = {"train": [{"rows": "a"}, {"rows": "b"}], "validation": [{"rows": "c"}]}
    own = read_recipe(written(tmp_path, data=data)).over(folder="here", rows="mine.jsonl")
    assert [source.rows for source in own.data.train] == ["mine.jsonl"]
    assert (own.data.validation, own.data.folder) == ((), "here")
    assert own.data.absent == "skip"  # its phases were not written for these rows
    assert read_recipe(written(tmp_path, data=data)).over(folder="here").data.absent == "refuse"


def _row(split: str = "train", name: str = "r") -> Row:
    return Row(
        id=name,
        task="passage",
        query=f"who keeps the lamp of {name}?",
        candidates=(Candidate(id="a", text="the keeper"), Candidate(id="b", text="a stone")),
        relevance=(1.0, 0.0),
        split=split,
        source="toy",
    )


def test_a_stage_may_dwell_on_some_rows(tmp_path: Path) -> None:
    for name in ("lamps", "stones"):
        write_rows([_row(name=name)], tmp_path / f"{name}.jsonl")
    data = {"train": [{"rows": f"{name}.jsonl"} for name in ("lamps", "stones")], "validation_limit": 0}
    dwelling = {**STAGE, "name": "second", "examples": 400, "weights": {"lamps": 9, "stones": 1}}
    stages = [{**STAGE, "examples": 400}, dwelling]
    recipe = read_recipe(written(tmp_path, data=data, stages=stages)).over(folder=str(tmp_path))
    shares = [
        sum(mixture.source_of(place).name == "lamps" for place in range(400)) / 400
        for mixture in Inputs(recipe).mixtures
    ]
    assert shares == pytest.approx([0.5, 0.9], abs=0.06)
    item = replace(_row(name="songs"), task="recommendation", query=None, history=("a song",))
    write_rows([item], tmp_path / "stones.jsonl")
    narrowed = Inputs(recipe.over(tasks=("passage",)))  # what is weighed may be left out on purpose
    assert {row.task for mixture in narrowed.mixtures for row in mixture} == {"passage"}
    dwelling["weights"] = {"lambs": 9}
    strange = read_recipe(written(tmp_path, data=data, stages=stages)).over(folder=str(tmp_path))
    with pytest.raises(InputError, match=r"stages\[1\]\.weights: 'lambs' is no source: these are lamps, stones"):
        _ = Inputs(strange).mixtures


def test_rows_of_ones_own_may_be_of_the_split_that_the_recipe_names(tmp_path: Path) -> None:
    write_rows([_row("test")], tmp_path / "mine.jsonl")
    for split, told in (("test", None), (None, "write `split: train` in them, or `split: test` where")):
        data = {"train": [{"rows": "a", "split": split}, {"rows": "b", "split": split}], "validation_limit": 0}
        own = read_recipe(written(tmp_path, data=data)).over(folder=str(tmp_path), rows="mine.jsonl")
        with nullcontext() if told is None else pytest.raises(InputError, match=told):
            assert len(Inputs(own).mixtures[0]) == 30


def test_a_recipe_over_some_scenarios_keeps_what_is_for_them(tmp_path: Path) -> None:
    phases = [{"tasks": ["passage"]}, {"tasks": ["routing", "passage"]}, {}]
    stages = [{**STAGE, "phases": phases}, {**STAGE, "name": "second", "phases": phases[:1]}]
    recipe = read_recipe(written(tmp_path, stages=stages))
    assert recipe.over() == recipe
    routing = recipe.over(folder="somewhere", tasks=["routing"])
    assert [len(stage.phases) for stage in routing.stages] == [2]
    assert (routing.data.folder, routing.data.tasks) == ("somewhere", ("routing",))
    assert routing.over() == routing
    only = read_recipe(written(tmp_path, stages=stages[1:]))
    with pytest.raises(InputError, match="no stage of the recipe is for routing"):
        only.over(tasks=["routing"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"stages": [{**STAGE, "bacth": 3}]}, r"stages\.0\.bacth: there is no such key"),
        ({"stages": [{**STAGE, "phases": [{"candidates": [2, 3], "size": 1}]}]}, r"stages\.0\.phases\.0\.size: there"),
        ({"stages": [{**STAGE, "phases": [{"candidates": [3, 2]}]}]}, r"stages\.0\.phases\.0: candidates: 3 to 2"),
        ({"stages": [{**STAGE, "group": 8}]}, r"stages\.0\.group: there is no such key"),  # of another method
        ({"stages": [{**STAGE, "method": "ppo"}]}, r"stages\.0: .*'ppo'.*grpo"),
        ({"stages": [{**STAGE, "learning_rate": 0}]}, r"stages\.0\.learning_rate: .*greater than 0"),
        ({"stages": [{**STAGE, "learning_rate": float("nan")}]}, r"stages\.0\.learning_rate"),
        ({"stages": [{**STAGE, "name": "../up"}]}, r"stages\.0\.name"),
        ({"stages": []}, "stages: "),
        ({"stages": [{**STAGE, "precision": "float32"}]}, r"stages\.0\.precision: there is no such key"),  # one for all
        ({"stages": [{**STAGE, "warmup": 1.0}]}, r"stages\.0\.warmup: .*less than 1"),
        ({"stages": [{**STAGE, "method": "grpo", "loss": "nonsense"}]}, r"stages\.0\.loss: .*'dr_grpo'"),
        ({"stages": [{**STAGE, "method": "rloo", "loss": "dapo"}]}, "loss needs method: grpo"),
        ({"stages": [{**STAGE, "method": "rloo"}], "ranker": {"drop": 2}}, "'first': rloo judges one label a step"),
        ({"stages": [{**STAGE, "method": "grpo", "vllm": "colocate"}]}, "an answer of one label is no text"),
        ({"data": {"train": [{"rows": "a", "negatives": {"by": "chance"}}]}}, r"data\.train\.0\.negatives\.by: "),
        (
            {"data": {"train": [{"rows": "a", "negatives": {"by": "policy", "count": 9, "depth": 8}}]}},
            r"data\.train\.0\.negatives: depth is 8, less than count, 9",
        ),
        (
            {"data": {**DATA, "validation": [{"rows": "a", "negatives": {}}]}},
            "data: validation rows are ranked as they are",
        ),
        ({"stages": [STAGE, STAGE]}, "two stages have the same name"),
        ({"extra": 1}, "extra: there is no such key"),
        ({"data": {"train": []}}, r"data\.train: "),
        ({"data": {"train": [{"rows": "a", "weight": -1}]}}, r"data\.train\.0\.weight: .*greater than 0"),
        ({"ranker": {"strategy": "pranker"}}, r"ranker\.strategy: "),
        ({"ranker": {"templates": {"passage": "missing.yaml"}}}, r"ranker\.templates: .*missing\.yaml"),
        ({"lora": {"r": 0}}, r"lora\.r: "),
        ({"ranker": {"thinking": 64}}, "'first': supervised answers at once: set ranker.thinking to 0"),
        ({"stages": [{**STAGE, "method": "sft"}]}, "sft teaches reasons: set ranker.thinking"),
        ({"stages": [{**STAGE, "method": "expected"}], "ranker": {"strategy": "dranker"}}, "needs eliminations"),
        ({"stages": [{**STAGE, "method": "grpo", "on_policy": True}], "ranker": {"strategy": "dranker"}}, "needs elim"),
        ({"stages": [{**STAGE, "method": "rloo", "on_policy": True}]}, "on_policy needs method: grpo"),
        ({"stages": [{**STAGE, "method": "grpo", "on_policy": True, "eliminations": True}]}, "drop eliminations"),
        ({"stages": [{**STAGE, "method": "grpo", "vllm_server": "http://x"}]}, "vllm_server needs vllm: server"),
        ({"stages": [{**STAGE, "method": "grpo", "group": 1}]}, r"stages\.0\.group: .*greater than or equal to 2"),
        ({"stages": [{**STAGE, "method": "expected", "teacher": {}}]}, "teacher needs method: supervised"),
        (
            {"stages": [{**STAGE, "direct": 0.5, "on_policy": True}]},
            "direct needs method: supervised without on_policy",
        ),
        ({"stages": [{**STAGE, "direct": 0.5}], "ranker": {"strategy": "dranker"}}, "leave direct out"),
        ({"stages": [{**STAGE, "teacher": {"system": "random"}}]}, r"teacher\.system: random cannot teach"),
        ({"stages": [{**STAGE, "teacher": {"system": "nobody"}}]}, r"teacher\.system: .*'nobody' is unknown"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(tmp_path: Path, content: dict[str, Any], told: str) -> None:
    path = written(tmp_path, **content)
    with pytest.raises(InputError, match=told) as caught:
        read_recipe(path)
    assert caught.value.argument == "config"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("smoke", None, "neither a YAML file nor one of .*smoke-cpu"),
        ("missing.yaml", None, "cannot be read"),
        ("torn.yaml", "stages: [", "is no YAML"),
        ("list.yaml", "- 1", "recipe: "),
        ("empty.yaml", "", "recipe: "),
    ],
)
def test_what_is_no_recipe_is_named(tmp_path: Path, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=told):
        read_recipe(tmp_path / name if "." in name else name)


def test_a_recipe_is_made_without_a_file_too() -> None:
    recipe = Recipe.model_validate({"data": DATA, "stages": [STAGE], "ranker": {"alphabet": "ABCD"}})
    assert recipe.card(BASE).labels.alphabet == "ABCD"
