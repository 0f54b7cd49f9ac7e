"""A recipe pointed at other rows: it does what it can with them and tells the rest; one's own is taken at its word."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1_rerank.errors import InputError
from r1_rerank.rows import read_rows, write_rows
from r1_rerank.training.inputs import Inputs
from r1_rerank.training.recipe import Recipe, builtin_recipes, read_recipe
from r1_rerank.training.run import Training


@pytest.fixture
def built(make_built: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """A data folder with these tasks alone, and with lists of so many candidates."""

    def make(*tasks: str, candidates: int = 6) -> Path:
        make_built(tmp_path, candidates)
        for folder in tmp_path.iterdir():
            if folder.name not in tasks:
                (folder / "train.jsonl").unlink()
                folder.rmdir()
        return tmp_path

    return make


def phases(recipe: Recipe) -> dict[str, int]:
    return {stage.name: len(stage.phases) for stage in recipe.stages}


@pytest.mark.parametrize("name", builtin_recipes())
@pytest.mark.parametrize("task", ["passage-5", "rec-game", "router-cost"])
@pytest.mark.parametrize("candidates", [2, 6])
def test_every_recipe_of_ours_trains_on_what_rows_there_are(
    built: Callable[..., Path], name: str, task: str, candidates: int
) -> None:
    rows = built(task, candidates=candidates) / task / "train.jsonl"
    recipes = [read_recipe(name).over(folder=str(rows.parent), rows=rows.name)]  # as rows of one's own
    if task in {source.rows for source in read_recipe(name).data.train}:
        recipes.append(read_recipe(name).over(folder=str(rows.parent.parent), absent="skip"))
    for recipe in recipes:
        inputs = Inputs(recipe)
        assert len(inputs.mixtures) == len(inputs.recipe.stages) > 0
        assert inputs.validation
        assert {len(row.candidates) for mixture in inputs.mixtures for row in mixture[:20]} <= set(range(2, 7))
        # What was adapted once fits: a resumed training reads it as it was written.
        assert Inputs(inputs.recipe).recipe == inputs.recipe


STAGE = {"name": "a", "method": "supervised", "examples": 8, "batch": 4, "learning_rate": 1e-3}


def recipe_of(folder: Path, *stages: list[dict[str, Any]], **other: Any) -> Recipe:
    """A recipe for all rows in a folder, with the phases of each stage."""
    named = [{**STAGE, **other, "name": "abc"[place], "phases": found} for place, found in enumerate(stages)]
    data = {"folder": str(folder), "train": [{"rows": "."}], "validation_limit": 2, "absent": "skip"}
    return Recipe.model_validate({"data": data, "stages": named})


def test_phases_and_stages_for_other_tasks_fall_away(
    built: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    passages, others = {"tasks": ["passage"]}, {"tasks": ["recommendation", "routing"]}
    recipe = recipe_of(built("passage-5"), [passages, others, {}], [others, {"tasks": ["routing"]}], [passages])
    inputs = Inputs(recipe)
    assert phases(inputs.recipe) == {"a": 2, "c": 1}
    assert inputs.recipe.stages[0].phases == (recipe.stages[0].phases[0], recipe.stages[0].phases[2])
    assert [mixture.phases for mixture in inputs.mixtures] == [stage.phases for stage in inputs.recipe.stages]
    ending = "which is for recommendation, routing: the rows are of passage"
    assert f"left out: stage 'a', phase 2, {ending}" in caplog.text
    assert f"left out: stage 'b', {ending}" in caplog.text
    assert caplog.text.count("left out: ") == 2
    alone = recipe.model_copy(update={"stages": recipe.stages[1:2]})
    with pytest.raises(InputError, match="data: the rows are of passage, and no stage of the recipe is for that"):
        _ = Inputs(alone).recipe


def test_lists_may_be_as_short_as_the_rows(built: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = built("passage-5", candidates=3)
    inputs = Inputs(recipe_of(folder, [{"candidates": [4, 20]}, {"candidates": [2, 9]}, {"candidates": [3, 5]}]))
    assert [phase.candidates for phase in inputs.recipe.stages[0].phases] == [(3, 20), (2, 9), (3, 5)]
    assert "stage 'a', phase 1: lists of 3, not of 4 at least: no row has more" in caplog.text
    assert "phase 2" not in caplog.text
    assert len(inputs.mixtures[0][0].candidates) == 3


def test_a_recipe_of_ones_own_is_taken_at_its_word(built: Callable[..., Path]) -> None:
    folder = built("passage-5", candidates=3)
    for phase, told in (
        ({"tasks": ["routing"]}, "no row fits it: the rows are of passage"),
        ({"candidates": [4, 9]}, "no row fits it: .* the longest list has 3"),
    ):
        recipe = recipe_of(folder, [phase, {}])
        assert Inputs(recipe).mixtures
        with pytest.raises(InputError, match=rf"stages\[0\]\.phases\[0\]: {told}"):
            _ = Inputs(recipe.over(absent="refuse")).mixtures


def test_routing_without_outcomes_keeps_its_label(built: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """As a router's log gives rows, where not every LLM has answered."""
    path = built("router-cost") / "router-cost" / "train.jsonl"
    rows = list(read_rows(path))
    write_rows([replace(row, effects=None, prices=None) for row in rows[:6]] + rows[6:], path)
    recipe = recipe_of(path.parents[1], [{}], graded=True, examples=40)
    inputs = Inputs(recipe)
    ungraded = {row.id for row in rows[:6]}
    shown = [row for mixture in inputs.mixtures for row in mixture]
    kept = [row for row in shown if row.id.partition("#")[0] in ungraded]
    assert kept
    assert all(set(row.relevance) == {0.0, 1.0} for row in kept)
    assert any(len(set(row.relevance)) > 2 for row in shown)
    assert "routing rows tell no effects or no prices: they are not graded" in caplog.text
    with pytest.raises(InputError, match=r"graded_routing: row .* has no effects or no prices"):
        _ = Inputs(recipe.over(absent="refuse")).mixtures


def test_what_cannot_be_lent_is_not_asked_for(built: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """Short lists of many questions, and long ones of a single question: nobody could lend these a candidate."""
    path = built("passage-5", candidates=3) / "passage-5" / "train.jsonl"
    (path.parents[1] / "long").mkdir()
    rows = [replace(row, query="one question", source="long") for row in read_rows(path)][:2]
    more = [
        replace(row.candidates[1], id=f"more {place}", text=f"more {place}") for row in rows[:1] for place in (1, 2)
    ]
    write_rows(
        [replace(row, candidates=(*row.candidates, *more), relevance=(*row.relevance, 0.0, 0.0)) for row in rows],
        path.parents[1] / "long" / "train.jsonl",
    )
    recipe = recipe_of(path.parents[1], [{"candidates": [5, 5], "easy": 0.5}, {"easy": 0.5}])
    recipe = recipe.over().model_copy(update={"data": recipe.data.model_copy(update={"validation_limit": 0})})
    inputs = Inputs(recipe)
    assert [phase.easy for phase in inputs.recipe.stages[0].phases] == [0.0, 0.5]
    assert inputs.mixtures
    assert "stage 'a', phase 1: no easy negatives" in caplog.text


def test_an_easy_validation_needs_two_questions(built: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    path = built("passage-5") / "passage-5" / "train.jsonl"
    write_rows(list(read_rows(path))[:3], path)
    recipe = read_recipe("smoke-cpu").over(folder=str(path.parent), rows=path.name)
    with caplog.at_level(logging.WARNING):
        (held,) = Inputs(recipe).validation
    assert len(held.rows) == 1
    assert "data.validation_phase: no easy negatives" in caplog.text
    with pytest.raises(InputError, match="of easy negatives: there are no two held-out passage questions"):
        _ = Inputs(recipe.over(absent="refuse")).validation


def test_a_training_writes_and_resumes_what_it_did(
    make: Callable[..., Training], built: Callable[..., Path], tmp_path: Path
) -> None:
    stages = [[{"candidates": [4, 9]}, {"tasks": ["routing"]}], [{"tasks": ["recommendation"]}]]
    recipe = recipe_of(built("passage-5", candidates=3), *stages)
    changes = {key: value for key, value in recipe.model_dump(mode="json").items() if key in ("data", "stages")}
    training = make("../out", **changes)
    (result,) = training.run()
    assert phases(read_recipe(training.out / "recipe.yaml")) == {"a": 1}
    assert make("../out", **changes).run(resume=True) == (result,)
    beside = read_recipe(training.out / "recipe.yaml").over(folder=recipe.data.folder)
    assert Training(beside, training.out).run(resume=True) == (result,)
