"""A task knows for whom is ranked and what a model reads of a candidate; what it cannot use it names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from r1_rerank import Document, PassageRanking, Recommendation, Routing
from r1_rerank.errors import InputError, InputTypeError
from r1_rerank.rows import OBJECTIVES
from r1_rerank.tasks import Task, as_task


def test_a_bare_query_asks_for_passages() -> None:
    assert as_task("what is a kv cache?") == PassageRanking("what is a kv cache?")


@pytest.mark.parametrize("task", [PassageRanking("q"), Recommendation(["Alien"]), Routing("q", "cost")])
def test_a_task_is_taken_as_it_is(task: Task) -> None:
    assert as_task(task) is task


@pytest.mark.parametrize("history", [["Alien", "Aliens"], ("Alien", "Aliens"), iter(["Alien", "Aliens"])])
def test_a_history_may_be_any_list_and_is_copied(history: Iterable[str]) -> None:
    task = Recommendation(history)
    if isinstance(history, list):
        history.append("Blade Runner")
    assert task.history == ("Alien", "Aliens")
    assert str(task) == "Alien | Aliens"


def test_tasks_can_be_compared_and_hashed() -> None:
    assert len({Recommendation(["Alien"]), Recommendation(("Alien",)), PassageRanking("q"), Routing("q")}) == 3


# What the model reads of a candidate


@pytest.mark.parametrize("task", [PassageRanking("q"), Recommendation(["Alien"]), Routing("q")])
def test_a_title_stands_before_the_text(task: Task) -> None:
    assert task.candidate_text(Document("The text.", title="The title")) == "The title. The text."
    assert task.candidate_text(Document("The text.", id="7", metadata={"secret": 1})) == "The text."
    assert task.candidate_text(Document("", title="")) == ""


def test_a_price_is_shown_in_routing_only() -> None:
    priced = Document("A small model.", price=0.05)
    assert Routing("q").candidate_text(priced) == "A small model. ($0.05 per million tokens)"
    assert Routing("q").candidate_text(Document("A free model.", price=0)) == "A free model. ($0 per million tokens)"
    assert Routing("q").candidate_text(Document("A model.")) == "A model."
    assert PassageRanking("q").candidate_text(priced) == "A small model."


# What cannot be used


@pytest.mark.parametrize("query", [None, 3, b"q", ["q"], {"query": "q"}, PassageRanking])
def test_a_query_of_another_type_is_named(query: Any) -> None:
    with pytest.raises(InputTypeError, match=r"^query: expected a str, PassageRanking, Recommendation or Routing"):
        as_task(query)
    for task in (PassageRanking, Routing):
        with pytest.raises(InputTypeError, match=r"^query: expected a str, got "):
            task(query)


@pytest.mark.parametrize("query", ["", " ", "\n\t"])
def test_an_empty_query_is_named(query: str) -> None:
    for ask in (as_task, PassageRanking, Routing):
        with pytest.raises(InputError, match=r"^query: is empty"):
            ask(query)


@pytest.mark.parametrize("history", ["Alien", b"Alien", None, 3, {"Alien": 5}])
def test_a_history_of_another_type_is_named(history: Any) -> None:
    with pytest.raises(InputTypeError, match=r"^history: expected a list of str, got \w+; wrap one item as \[item\]$"):
        Recommendation(history)


def test_an_item_of_a_history_is_named_by_its_place() -> None:
    with pytest.raises(InputError, match=r"^history: is empty"):
        Recommendation([])
    with pytest.raises(InputError, match=r"^history\[1\]: is empty"):
        Recommendation(["Alien", " "])
    items: Any = ["Alien", None]
    with pytest.raises(InputTypeError, match=r"^history\[1\]: expected a str, got NoneType$"):
        Recommendation(items)


def test_an_unknown_objective_is_named() -> None:
    assert [Routing("q", objective).objective for objective in OBJECTIVES] == ["performance", "balance", "cost"]
    objective: Any = "speed"
    with pytest.raises(InputError, match=r"^objective: 'speed' is not one of performance, balance, cost$"):
        Routing("q", objective)
