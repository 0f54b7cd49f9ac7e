"""A router picks the best LLM within its limits, says why, and its log reads back as training rows."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from r1_rerank import Document, IRanker, R1Reranker, Routing, ScriptedEngine
from r1_rerank.engines import Completion, GenerationRequest
from r1_rerank.errors import DataError, EngineError, InputError, InputTypeError, MissingExtraError
from r1_rerank.integrations.router import (
    LLMProfile,
    NoEligibleLLMError,
    R1Router,
    RoutingDecision,
    load_pool,
    read_log,
)
from r1_rerank.rows import read_rows, write_rows
from r1_rerank.tasks import OBJECTIVE_WEIGHTS

if TYPE_CHECKING:
    from r1_rerank.engines import TransformersEngine

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = LLMProfile(
    name="small", description="Small talk.", input_price=0.1, output_price=0.2, context_length=4096, tags={"open"}
)
CODER = LLMProfile(
    name="coder", description="Programs.", input_price=1, output_price=2, context_length=32768, tags=["open", "tools"]
)
LARGE = LLMProfile(name="large", description="Proofs.", input_price=5, output_price=15, context_length=200_000)
BARE = LLMProfile(name="новая 🦙", description="Nobody knows what it costs.")
POOL = (SMALL, CODER, LARGE, BARE)


# Answers: a model that likes some LLMs better than others


def shown(request: GenerationRequest) -> dict[str, str]:
    """Label -> LLM of all candidates in the prompt, in shown order."""
    return dict(re.findall(r"^\[(\w)\] (.+?)\. .*\[\1\]$", request.messages[0]["content"], re.MULTILINE))


def liking(*best_first: str) -> Callable[[GenerationRequest], str]:
    """Names the live candidate that stands last in the list; those not in it come after all of it."""

    def write(request: GenerationRequest) -> str:
        place = {name: rank for rank, name in enumerate(best_first)}
        live = {label: name for label, name in shown(request).items() if label in (request.labels or ())}
        worst = max(live, key=lambda label: place.get(live[label], len(place)))
        return f"<think>{live[worst]} cannot do it</think><answer>[{worst}]</answer>"

    return write


LIKING_LARGE = liking("large", "coder", "small")


def make(script: Any = LIKING_LARGE, *, pool: Any = POOL, **options: Any) -> R1Router:
    of_reranker = {name: options.pop(name) for name in ("on_error", "strategy") if name in options}
    return R1Router(pool, R1Reranker(ScriptedEngine(script), thinking=0, **of_reranker), **options)


def asked(router: R1Router) -> list[GenerationRequest]:
    assert isinstance(router.reranker.engine, ScriptedEngine)
    return router.reranker.engine.requests


def names(decision: RoutingDecision) -> list[str]:
    return [ranked.profile.name for ranked in decision.ranking]


# What is promised


def test_the_best_llm_wins_and_the_others_stand_in_order() -> None:
    decision = make().route("Prove it.")
    assert decision.profile is LARGE
    assert names(decision) == ["large", "coder", "small", "новая 🦙"]
    assert [ranked.rank for ranked in decision.ranking] == [1, 2, 3, 4]
    assert [ranked.score for ranked in decision.ranking] == [1.0, 0.75, 0.5, 0.25]
    assert decision.expected_price == 10.0
    assert decision.excluded == {}
    assert decision.reasoning.split("\n\n") == [f"{name} cannot do it" for name in ("новая 🦙", "small", "coder")]
    assert (decision.query, decision.objective, decision.weights) == ("Prove it.", "performance", (1.0, 0.0))
    assert decision.result.status == "ok"


def test_a_name_and_a_description_are_enough() -> None:
    assert (BARE.price, BARE.context_length, BARE.tags, BARE.client) == (None, None, frozenset(), None)
    decision = make(liking(BARE.name)).route("Anything?")
    assert (decision.profile, decision.expected_price) == (BARE, None)


@pytest.mark.parametrize(
    ("prices", "mean"), [((1, 3), 2.0), ((1, None), 1.0), ((None, 3), 3.0), ((0, 0), 0.0), ((0.1, 0.2), 0.15)]
)
def test_the_price_is_the_mean_of_what_is_known(prices: Any, mean: float) -> None:
    assert LLMProfile(name="a", description="b", input_price=prices[0], output_price=prices[1]).price == mean


def test_the_profiles_stand_first_in_the_order_of_the_pool_and_the_query_after_them() -> None:
    router = make(objective="cost")
    router.route("Where is the query?")
    prompt = asked(router)[0].messages[0]["content"]
    assert list(shown(asked(router)[0]).values()) == [profile.name for profile in POOL]
    assert "[B] coder. Programs. ($1.5 per million tokens) [B]" in prompt
    assert "[D] новая 🦙. Nobody knows what it costs. [D]" in prompt
    assert prompt.index("[D]") < prompt.index("Where is the query?") < prompt.index("price first")


def test_a_client_is_carried_along_and_is_no_part_of_the_profile() -> None:
    profile = LLMProfile(name="a", description="b", client=str.upper)
    assert profile == LLMProfile(name="a", description="b")
    assert "upper" not in repr(profile)
    assert make(pool=[profile]).route("loud").profile.client("loud") == "LOUD"


def test_a_decision_is_json() -> None:
    router = make(max_price=5)
    decision = router.route("Was kostet ein 🦙?")
    for trace in (False, True):
        record = decision.to_dict(id="q1", trace=trace)
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert ("steps" in record) == trace
    assert (record["id"], record["decision_id"], record["llm"]) == ("q1", decision.decision_id, "coder")
    assert record["expected_price"] == 1.5
    assert record["ranking"][0] == {"rank": 1, "llm": "coder", "score": 1.0, "price": 1.5}
    assert set(record["excluded"]) == {"large", "новая 🦙"}
    assert record["usage"]["calls"] == 1


def test_every_decision_has_its_own_id() -> None:
    decisions = make().route_batch(["same"] * 5)
    assert len({decision.decision_id for decision in decisions}) == 5
    assert all(re.fullmatch("[0-9a-f]{32}", decision.decision_id) for decision in decisions)


# By which objective


@pytest.mark.parametrize("objective", OBJECTIVE_WEIGHTS)
def test_each_objective_has_its_words_and_weights(objective: Any) -> None:
    router = make(objective=objective)
    decision = router.route("q")
    assert (decision.objective, decision.weights) == (objective, OBJECTIVE_WEIGHTS[objective])
    asked_alike = make()
    asked_alike.route("q", objective=objective)
    assert [request.messages for request in asked(router)] == [request.messages for request in asked(asked_alike)]


@pytest.mark.parametrize(
    ("weights", "objective"),
    [
        ((1, 0), "performance"),
        ((3, 1), "performance"),
        ((2, 1), "balance"),
        ((0.5, 0.5), "balance"),
        ((2, 5), "cost"),
        ((0, 9), "cost"),
    ],
)
def test_weights_of_your_own_are_worded_by_the_nearest_objective(weights: Any, objective: str) -> None:
    decision = make(weights=weights).route("q")
    assert (decision.weights, decision.objective) == (weights, objective)


def test_a_call_may_name_another_objective() -> None:
    router = make(weights=(1, 3))
    assert (router.objective, router.route("q").weights) == ("cost", (1.0, 3.0))
    decision = router.route("q", objective="balance")
    assert (decision.objective, decision.weights) == ("balance", (0.5, 0.5))
    assert router.route(Routing("q", "performance")).weights == (1.0, 0.0)
    assert router.route(Routing("q", "performance"), objective="cost").weights == (0.2, 0.8)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"objective": "speed"}, "objective"),
        ({"objective": ["cost"]}, "objective"),
        ({"weights": (0, 0)}, "weights"),
        ({"weights": (-1, 2)}, "weights"),
        ({"weights": (1, float("nan"))}, "weights"),
        ({"weights": (1,)}, "weights"),
        ({"weights": "ab"}, "weights"),
        ({"weights": ("1", "2")}, "weights"),
        ({"max_price": -1}, "max_price"),
        ({"max_price": "1"}, "max_price"),
        ({"max_price": float("nan")}, "max_price"),
        ({"min_context": 0}, "min_context"),
        ({"min_context": 8192.0}, "min_context"),
        ({"required_tags": "open"}, "required_tags"),
        ({"required_tags": [1]}, "required_tags[0]"),
        ({"max_query_tokens": 0}, "max_query_tokens"),
    ],
)
def test_what_cannot_be_is_named(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**options)
    assert caught.value.argument == argument
    if set(options) & {"max_price", "min_context", "required_tags"}:
        with pytest.raises(InputError, match=re.escape(argument)):
            make().route("q", **options)


def test_a_reranker_is_needed() -> None:
    with pytest.raises(InputTypeError, match="reranker: expected an R1Reranker, got str"):
        R1Router(POOL, "model")  # type: ignore[arg-type]


# Within hard limits


@pytest.mark.parametrize(
    ("limits", "left", "reasons"),
    [
        (
            {"max_price": 1.5},
            ["coder", "small"],
            {"large": "price $10 is over max_price $1.5", "новая 🦙": "price unknown, max_price is $1.5"},
        ),
        ({"max_price": 0.15}, ["small"], None),
        (
            {"min_context": 32768},
            ["large", "coder"],
            {
                "small": "context length 4096 is under min_context 32768",
                "новая 🦙": "context length unknown, min_context is 32768",
            },
        ),
        (
            {"required_tags": ["tools", "open"]},
            ["coder"],
            {
                "small": "lacks required_tags tools",
                "large": "lacks required_tags open, tools",
                "новая 🦙": "lacks required_tags open, tools",
            },
        ),
        (
            {"max_price": 5, "min_context": 8192, "required_tags": {"open"}},
            ["coder"],
            {
                "small": "context length 4096 is under min_context 8192",
                "large": "price $10 is over max_price $5, lacks required_tags open",
                "новая 🦙": "price unknown, max_price is $5, context length unknown, min_context is 8192, "
                "lacks required_tags open",
            },
        ),
    ],
)
def test_limits_hold_before_the_model_is_asked(limits: dict[str, Any], left: list[str], reasons: Any) -> None:
    by_router, by_call = make(**limits), make()
    for router, decision in ((by_router, by_router.route("q")), (by_call, by_call.route("q", **limits))):
        assert names(decision) == left
        assert reasons is None or decision.excluded == reasons
        assert len(asked(router)) == len(left) - 1
        for request in asked(router):
            assert set(shown(request).values()) == set(left)


def test_a_limit_that_does_not_exist_is_no_limit_that_is_ignored() -> None:
    for call in (make().route, lambda *given, **more: make().route_batch([*given], **more)):
        with pytest.raises(TypeError, match="max_prize"):
            call("q", max_prize=1)  # type: ignore[call-arg]


def test_a_call_replaces_a_limit_of_the_router() -> None:
    router = make(max_price=0.5, required_tags=["open"])
    assert names(router.route("q")) == ["small"]
    assert names(router.route("q", max_price=2)) == ["coder", "small"]
    assert names(router.route("q", required_tags=(), max_price=20)) == ["large", "coder", "small"]
    assert names(router.route("q")) == ["small"]


@pytest.mark.parametrize(
    "call",
    [
        lambda router: router.route("q"),
        lambda router: asyncio.run(router.aroute("q")),
        lambda router: router.route_batch(["q"]),
    ],
)
def test_where_no_llm_is_left_the_error_says_which_limit_ruled_out_which(call: Callable[[R1Router], object]) -> None:
    router = make(max_price=0.12, required_tags=["tools"])
    with pytest.raises(NoEligibleLLMError) as caught:
        call(router)
    assert isinstance(caught.value, InputError)
    assert caught.value.excluded == {
        "small": "price $0.15 is over max_price $0.12, lacks required_tags tools",
        "coder": "price $1.5 is over max_price $0.12",
        "large": "price $10 is over max_price $0.12, lacks required_tags tools",
        "новая 🦙": "price unknown, max_price is $0.12, lacks required_tags tools",
    }
    assert str(caught.value).startswith("pool: no LLM is within the limits (small: price $0.15 is over")
    assert asked(router) == []


@pytest.mark.parametrize("options", [{"pool": [CODER]}, {"max_price": 0.2}])
def test_where_one_llm_is_left_the_model_is_not_asked(options: dict[str, Any]) -> None:
    router = make([], **options)
    decision = router.route("q")
    assert (decision.ranking[0].score, decision.result.status, decision.reasoning) == (1.0, "ok", "")
    assert asked(router) == []


# If the engine fails


def test_a_failed_engine_leaves_the_order_of_the_pool() -> None:
    decision = make([EngineError("gone")]).route("q")
    assert names(decision) == [profile.name for profile in POOL]
    assert decision.result.status == "fallback"
    half = make([LIKING_LARGE(request_of(POOL)), EngineError("gone")]).route("q")
    assert (half.result.status, names(half)) == ("partial", ["small", "coder", "large", "новая 🦙"])


def request_of(pool: Any) -> GenerationRequest:
    router = make(pool=pool)
    router.route("q")
    return asked(router)[0]


def test_a_failed_engine_may_raise(tmp_path: Path) -> None:
    def write(request: GenerationRequest) -> str | Completion:
        if "bad" in request.messages[0]["content"]:
            return Completion(error=EngineError("gone"))
        return LIKING_LARGE(request)

    router = make(write, on_error="raise", log=tmp_path / "log.jsonl")
    with pytest.raises(EngineError, match="gone"):
        router.route("bad")
    with pytest.raises(EngineError, match="gone"):
        asyncio.run(router.aroute("bad"))
    good, bad = router.route_batch(["good", "bad"])
    assert good.profile is LARGE
    assert (bad.ranking, bad.result.status, bad.to_dict()["llm"]) == ((), "failed", None)
    with pytest.raises(EngineError, match="gone"):
        _ = bad.profile
    assert [record["query"] for record in records(tmp_path / "log.jsonl")] == ["good"]


# Many queries, loops, threads, copies


def test_a_batch_keeps_its_order() -> None:
    def by_query(request: GenerationRequest) -> str:
        prompt = request.messages[0]["content"]
        return liking(*(("coder",) if "loop" in prompt else ("small",)))(request)

    router = make(by_query)
    queries = ["loop", "chat", Routing("loop!", "cost"), "chat!"] * 5
    decisions = router.route_batch(queries)
    assert [decision.profile.name for decision in decisions] == ["coder", "small"] * 10
    assert [decision.query for decision in decisions[:4]] == ["loop", "chat", "loop!", "chat!"]
    assert [decision.objective for decision in decisions[:3]] == ["performance", "performance", "cost"]
    assert router.route_batch([]) == []
    assert sorted(number for number, _ in router.route_iter(queries[:3])) == [0, 1, 2]


@pytest.mark.parametrize("queries", ["one string", None, 3])
def test_a_batch_is_a_list(queries: Any) -> None:
    with pytest.raises(InputTypeError, match="queries: expected a list"):
        make().route_batch(queries)


@pytest.mark.parametrize("query", ["", " \n", None, 3, b"bytes"])
def test_a_query_is_text(query: Any) -> None:
    with pytest.raises(InputError, match=r"^query: "):
        make().route(query)
    with pytest.raises(InputError, match=r"^queries\[1\]: "):
        make().route_batch(["fine", query])


async def test_routes_on_a_loop() -> None:
    router = make()
    decisions = await asyncio.gather(*(router.aroute(f"q{number}") for number in range(5)))
    assert [decision.query for decision in decisions] == [f"q{number}" for number in range(5)]
    assert {decision.profile.name for decision in decisions} == {"large"}
    assert router.route("sync inside the loop").profile is LARGE


def test_threads_share_one_router_and_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    router = make(log=log)

    def work(number: int) -> None:
        decision = router.route(f"query {number} " + "🦙" * 2000)
        router.record_outcome(decision.decision_id, 1.0, 0.1)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(40)))
    assert len({row.id for row in read_log(log)}) == 40
    assert len(log.read_bytes().splitlines()) == 80


def test_processes_share_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    code = """
import sys
from r1_rerank.integrations.routing_log import DecisionLog
log = DecisionLog(sys.argv[1])
for number in range(200):
    log.decision({"decision_id": sys.argv[2] + str(number), "query": "🦙" * 5000}, [])
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(log), name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    written = [json.loads(line) for line in log.read_bytes().splitlines() if line]  # an empty line is no harm
    assert {record["decision_id"] for record in written} == {f"{name}{n}" for name in "abc" for n in range(200)}


def test_copies_share_the_model() -> None:
    router = make()
    for twin in (copy.copy(router), copy.deepcopy(router)):
        assert twin.reranker is router.reranker
        assert twin.route("q").profile is LARGE


def test_of_a_long_query_the_beginning_and_the_end_are_read() -> None:
    router = make(max_query_tokens=20)
    query = "\n\n" * 500 + "first " + "word " * 500 + "last"
    decision = router.route(query)
    assert decision.query == decision.result.query == query
    assert [(fault.step, fault.kind) for fault in decision.result.faults] == [(None, "query_cut")]
    prompt = asked(router)[0].messages[0]["content"]
    assert "first" in prompt
    assert "last\n" in prompt
    assert prompt.count("word") == 18
    assert names(decision)[0] == "large"
    assert make(max_query_tokens=20).route("  word\n" * 20).result.faults == ()
    # However long it may be, the pool keeps its place.
    engine = ScriptedEngine(liking("large"), context_tokens=400)
    small = R1Router(POOL, R1Reranker(engine, thinking=0), max_query_tokens=None).route(query)
    assert [fault.detail for fault in small.result.faults] == ["the model read 200 tokens of the query, from both ends"]
    assert (small.profile, small.result.status) == (LARGE, "ok")


# Pools


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ([], "pool: is empty"),
        ([SMALL, CODER, SMALL], r"pool\[2\]: name 'small' is also that of pool\[0\]"),
        (["small"], r"pool\[0\]: expected an LLMProfile, got str"),
        ("pool.yaml", r"pool: expected a list of LLMProfile; read a file with load_pool\('pool.yaml'\)"),
        (7, "pool: expected a list of LLMProfile, got int"),
    ],
)
def test_a_pool_is_checked(pool: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(pool=pool)


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"name": " "}, "name"),
        ({"name": 7}, "name"),
        ({"description": ""}, "description"),
        ({"input_price": -0.1}, "input_price"),
        ({"output_price": "5"}, "output_price"),
        ({"output_price": float("inf")}, "output_price"),
        ({"input_price": True}, "input_price"),
        ({"context_length": 0}, "context_length"),
        ({"context_length": 4096.5}, "context_length"),
        ({"tags": "open"}, "tags"),
        ({"tags": ["open", None]}, "tags[1]"),
    ],
)
def test_a_profile_is_checked(values: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        LLMProfile(**({"name": "a", "description": "b"} | values))
    assert caught.value.argument == argument


FILES = {
    "list.yaml": '- name: small\n  description: Small talk.\n- {name: 大, description: "数学 🧮", tags: [a, b]}\n',
    "models.yml": "models:\n- name: small\n  description: Small talk.\n"
    "- name: 大\n  description: 数学 🧮\n  tags: [b, a]\n",
    "list.json": '[{"name": "small", "description": "Small talk.", "input_price": null},\n'
    '\t{"name": "大", "description": "数学 🧮", "tags": ["a", "b"]}]',
    "models.json": '\ufeff{"models": [{"name": "small", "description": "Small talk."},'
    '{"name": "\\u5927", "description": "数学 🧮", "tags": ["a", "b"]}]}',
}


@pytest.mark.parametrize("name", FILES)
def test_profiles_are_read_from_yaml_or_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    assert (
        load_pool(path)
        == load_pool(str(path))
        == (
            LLMProfile(name="small", description="Small talk."),
            LLMProfile(name="大", description="数学 🧮", tags=frozenset({"a", "b"})),
        )
    )


ENTRY = "{name: a, description: b}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.yaml", "", "expected a list of models, got NoneType"),
        ("p.yaml", "[]", "models: is empty"),
        ("p.yaml", "models: {a: b}", "expected a list of models, got dict"),
        ("p.yaml", "llms: []", "expected a list, or the one key models; got llms"),
        ("p.yaml", f"- {ENTRY}\n- small", r"models\[1\]: expected keys and values, got str"),
        ("p.yaml", f"- {ENTRY}\n- {{name: c}}", r"models\[1\]: lacks description"),
        ("p.yaml", f"- {ENTRY}\n- {ENTRY}", r"models\[1\]: name 'a' is also that of models\[0\]"),
        ("p.yaml", "models: [{name: a, description: b, cost: 1}]", r"models\[0\]: unknown key cost; known are name, "),
        ("p.yaml", "models: [{name: a, description: b, client: c}]", r"models\[0\]: unknown key client"),
        ("p.yaml", "models: [{name: 4, description: b}]", r"models\[0\].name: expected a str, got int"),
        ("p.yaml", "models: [{name: a, description: b, input_price: 1 USD}]", r"models\[0\].input_price: expected a "),
        ("p.yaml", "models: [{name: a, description: b, tags: open}]", r"models\[0\].tags: expected a list of str"),
        ("p.yaml", "- name: a\n  description: [", "line 2: is not valid YAML|line 3: is not valid YAML"),
        ("p.yaml", "- 2024-13-45", "is not valid YAML: month must be in 1..12"),
        ("p.yaml", "- !!python/object:os.system {}", "line 1: is not valid YAML: could not determine a constructor"),
        ("p.json", '[{"name": "a"\n"description": "b"}]', "line 2: is not valid JSON: Expecting ',' delimiter"),
        ("p.json", "[" * 100_000, "is not valid JSON"),
        ("p.json", b'["\xff"]', "is not UTF-8: invalid start byte at byte 2"),
    ],
)
def test_a_file_that_is_no_pool_is_named_with_its_entry(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load_pool(path)
    assert str(caught.value).startswith(str(path))


def test_a_pool_that_is_not_there(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=f"{path}: cannot be read: {reason}"):
            load_pool(path)


def test_the_pool_of_the_examples() -> None:
    pool = load_pool(EXAMPLES / "pool.yaml")
    assert len(pool) == 5
    assert all(profile.price is not None and profile.context_length and profile.tags for profile in pool)


# The log


def records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_decisions_and_outcomes_read_back_as_rows(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    router = make(objective="balance", max_price=20, log=log)
    decision = router.route("Beweise es. 🧮")
    router.record_outcome(decision.decision_id, effect=0.9, cost=0.3)
    (row,) = read_log(log)
    assert (row.id, row.task, row.query, row.objective) == (
        decision.decision_id,
        "routing",
        "Beweise es. 🧮",
        "balance",
    )
    assert [(candidate.id, candidate.price) for candidate in row.candidates] == [
        ("small", 0.15),
        ("coder", 1.5),
        ("large", 10.0),
    ]
    assert row.relevance == (0.0, 0.0, 1.0)
    assert (row.effects, row.prices, row.split, row.source) == (None, None, "train", "router-log")
    assert write_rows([row], tmp_path / "rows.jsonl") == 1
    assert list(read_rows(tmp_path / "rows.jsonl")) == [row]
    written, outcome = records(log)
    assert (written["event"], written["llm"], written["decision_id"]) == ("decision", "large", decision.decision_id)
    assert (outcome["event"], outcome["effect"], outcome["cost"]) == ("outcome", 0.9, 0.3)


def test_a_row_is_asked_like_the_query_that_it_comes_from(tmp_path: Path) -> None:
    router = make(objective="cost", log=tmp_path / "log.jsonl")
    router.record_outcome(router.route("q").decision_id, 1, 0)
    (row,) = read_log(tmp_path / "log.jsonl")
    engine = ScriptedEngine(LIKING_LARGE)
    documents = [Document(candidate.text, price=candidate.price) for candidate in row.candidates]
    R1Reranker(engine, thinking=0).rerank(Routing(row.query or "", "cost"), documents)
    assert [request.messages for request in engine.requests] == [request.messages for request in asked(router)]


def relevance(log: Path, **options: Any) -> list[tuple[float, ...]]:
    return [row.relevance for row in read_log(log, **options)]


def test_the_best_of_several_outcomes_counts(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    router = make(pool=(SMALL, CODER, LARGE), objective="balance", log=log)
    first, again = router.route("q"), router.route("q")
    router.record_outcome(first.decision_id, 0.9, 0.5)  # 0.2
    assert relevance(log) == [(0.0, 0.0, 1.0)]
    router.record_outcome(again.decision_id, 0.8, 0.2, llm="coder")  # 0.3
    assert relevance(log) == [(0.0, 1.0, 0.0)]
    router.record_outcome(again.decision_id, 0.2, 0.2, llm="coder")  # mean 0.15
    assert relevance(log) == [(0.0, 0.0, 1.0)]
    router.record_outcome(first.decision_id, 0.6, 0.0, llm="small")  # 0.3
    (row,) = read_log(log, split="test")
    assert (row.relevance, row.effects, row.prices) == (
        (1.0, 0.0, 0.0),
        pytest.approx((0.6, 0.5, 0.9)),
        pytest.approx((0.0, 0.2, 0.5)),
    )
    assert (row.id, row.split) == (first.decision_id, "test")
    # Another objective, or another list of LLMs, is another question.
    router.record_outcome(router.route("q", objective="cost").decision_id, 1, 0)
    router.record_outcome(router.route("q", max_price=2).decision_id, 1, 0)
    assert relevance(log) == [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0)]


def test_weights_of_your_own_say_what_is_good(tmp_path: Path) -> None:
    for name, weights, rows in (("a", (1, 0), 1), ("b", (1, 3), 0)):
        router = make(weights=weights, log=tmp_path / name)
        router.record_outcome(router.route("q").decision_id, effect=0.6, cost=0.4)
        assert len(read_log(tmp_path / name)) == rows


def test_a_query_without_a_good_outcome_gives_no_row(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    router = make(log=log)
    router.route("nobody said how it went")
    router.record_outcome(router.route("bad").decision_id, 0.0, 0.1)
    router.record_outcome(router.route("middling").decision_id, 0.4, 0.1)
    assert [row.query for row in read_log(log)] == ["middling"]
    assert read_log(log, threshold=0.5) == []


def test_a_torn_last_line_is_skipped_and_swallows_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log.jsonl"
    router = make(log=log)
    first = router.route("first")
    router.record_outcome(first.decision_id, 1, 0)
    whole = log.read_bytes()
    router.route("lost")
    longer = log.read_bytes()
    for end in range(len(whole) + 1, len(longer) - 1):
        log.write_bytes(longer[:end])
        assert [row.query for row in read_log(log)] == ["first"]
    assert "line 3: was cut off, and is skipped" in caplog.text
    later = make(log=log).route("later")
    make(log=log).record_outcome(later.decision_id, 1, 0)
    assert [row.query for row in read_log(log)] == ["first", "later"]
    assert len(log.read_bytes().splitlines()) == 5


def test_an_outcome_of_an_unknown_decision_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log.jsonl"
    make(log=log).record_outcome("0123", 1, 0)
    assert read_log(log) == []
    assert "the outcome of the unknown decision 0123 is skipped" in caplog.text


@pytest.mark.parametrize("line", ["hello", "[]", "{}", "7", '{"event": "other"}', '{"event": "outcome"}', "[\x00"])
def test_a_file_that_is_no_log_is_told(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=r"log\.jsonl, line 2: is neither a decision nor an outcome of a router"):
        read_log(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_log(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((7, 1, 0), "decision_id"),
        (("id", "good", 0), "effect"),
        (("id", True, 0), "effect"),
        (("id", float("nan"), 0), "effect"),
        (("id", 1, -0.1), "cost"),
        (("id", 1, float("inf")), "cost"),
    ],
)
def test_an_outcome_is_checked(arguments: Any, argument: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        make(log=tmp_path / "log.jsonl").record_outcome(*arguments)
    assert caught.value.argument == argument
    assert not (tmp_path / "log.jsonl").exists()


def test_outcomes_need_a_log_and_an_llm_of_the_pool(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="log: this router keeps none"):
        make().record_outcome("id", 1, 0)
    with pytest.raises(InputError, match="llm: 'other' is not in the pool"):
        make(log=tmp_path / "log.jsonl").record_outcome("id", 1, 0, llm="other")
    with pytest.raises(InputError, match=r"log: .* is a folder"):
        make(log=tmp_path)
    with pytest.raises(InputError, match=r"log: the folder .* does not exist"):
        make(log=tmp_path / "none" / "log.jsonl")


def test_half_a_character_does_not_cost_the_decision(tmp_path: Path) -> None:
    router = make(log=tmp_path / "log.jsonl")
    decision = router.route("broken \ud83d query")
    router.record_outcome(decision.decision_id, 1, 0)
    assert [row.query for row in read_log(tmp_path / "log.jsonl")] == ["broken ? query"]


# A target to spend


def by_length(request: GenerationRequest) -> str:
    """Long queries need the large one, all others do with less."""
    prompt = request.messages[0]["content"]
    return liking(*(("large", "coder", "small") if "hard" in prompt else ("small", "coder", "large")))(request)


PRICED = (SMALL, CODER, LARGE)
SAMPLE = ["easy 1", "easy 2", "easy 3", "hard"]


def test_calibration_picks_what_spends_most_within_the_target(tmp_path: Path) -> None:
    router = make(by_length, pool=PRICED, log=tmp_path / "log.jsonl")
    calibration = router.calibrate(SAMPLE, 0.6, tokens_per_call=(1000, 500))
    # Dollars per thousand queries by hand: small 0.2, coder 2, large 12.5.
    wanted = [(0.15, 0.2, (1.0, 0.0, 0.0)), (1.5, 0.65, (0.75, 0.25, 0.0)), (10.0, 3.275, (0.75, 0.0, 0.25))]
    assert calibration.table() == [
        {
            "objective": "performance",
            "max_price": max_price,
            "spend": pytest.approx(spend),
            "chosen": max_price == 0.15,
            "share small": shares[0],
            "share coder": shares[1],
            "share large": shares[2],
        }
        for max_price, spend, shares in wanted
    ]
    for target, place in ((0.65, 1), (3, 1), (3.3, 2), (100, 2)):
        again = router.calibrate(SAMPLE, target, tokens_per_call=(1000, 500))
        assert again.chosen is again.settings[place]
    none = router.calibrate(SAMPLE, 0.1, tokens_per_call=(1000, 500))
    assert (none.chosen, none.to_dict()["chosen"]) == (None, None)
    record = calibration.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert (record["target_spend"], record["chosen"]) == (0.6, record["settings"][0])
    assert record["settings"][0] == {
        "objective": "performance",
        "max_price": 0.15,
        "shares": {"small": 1.0, "coder": 0.0, "large": 0.0},
        "spend": 0.2,
    }
    assert not (tmp_path / "log.jsonl").exists()  # a sample is no traffic


def test_calibration_keeps_the_limits_of_the_router() -> None:
    router = make(by_length, pool=PRICED, max_price=2)
    calibration = router.calibrate(SAMPLE, 1, tokens_per_call=(1, 1))
    assert [setting.max_price for setting in calibration.settings] == [0.15, 1.5]
    assert set(calibration.settings[0].shares) == {"small", "coder"}


def test_calibration_over_objectives_and_prices_of_your_own() -> None:
    def by_objective(request: GenerationRequest) -> str:
        cheap = "price first" in request.messages[0]["content"]
        return liking(*(("small", "новая 🦙") if cheap else ("новая 🦙", "small")))(request)

    router = make(by_objective)
    prices = {"small": 0.001, "coder": 0.01, "large": 0.1, "новая 🦙": 0.02}
    calibration = router.calibrate(["q"], 5, price_per_call=prices, objectives=["performance", "cost"], max_prices=())
    assert [(setting.objective, setting.max_price, setting.spend) for setting in calibration.settings] == [
        ("cost", None, 1.0),
        ("performance", None, 20.0),
    ]
    assert calibration.chosen is calibration.settings[0]
    # An LLM without a price only takes part where no ceiling stands.
    every = router.calibrate(["q"], 5, price_per_call=prices)
    assert [setting.max_price for setting in every.settings] == [0.15, 1.5, 10.0, None]
    two = router.calibrate(["q"], 5, price_per_call=prices, max_prices=[1, 2])
    assert [setting.max_price for setting in two.settings] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": []}, "queries: is empty"),
        ({"target_spend": -1}, "target_spend: expected 0 or more"),
        ({"target_spend": "1"}, "target_spend: expected a number"),
        ({"tokens_per_call": None}, "tokens_per_call: pass either this or price_per_call"),
        ({"price_per_call": {}}, "tokens_per_call: pass either this or price_per_call"),
        ({"tokens_per_call": 5}, r"tokens_per_call: expected \(input, output\) tokens"),
        ({"tokens_per_call": (5, -1)}, r"tokens_per_call\[1\]: expected 0 or more"),
        ({"tokens_per_call": None, "price_per_call": {"small": 1}}, "price_per_call: lacks 'coder'"),
        ({"tokens_per_call": (1, 1)}, "tokens_per_call: 'новая 🦙' has no price; add one, or pass price_per_call"),
    ],
)
def test_calibration_needs_costs(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make().calibrate(**({"queries": ["q"], "target_spend": 1, "tokens_per_call": (1, 1)} | arguments))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_calibration_is_drawn(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot.{suffix}"
    make(by_length, pool=PRICED).calibrate(SAMPLE, 1, tokens_per_call=(1000, 500)).plot(path)
    assert path.stat().st_size > 1000
    if suffix == "svg":
        assert "performance" in path.read_text()


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calibration = make(by_length, pool=PRICED).calibrate(SAMPLE, 1, tokens_per_call=(1, 1))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingExtraError, match=re.escape('matplotlib is not installed: pip install "r1-rerank[eval]"')
    ):
        calibration.plot(tmp_path / "plot.png")


# With the embedded weights


@pytest.mark.model
def test_the_pool_is_computed_once_for_all_queries(engine: TransformersEngine) -> None:
    pool = load_pool(EXAMPLES / "pool.yaml")
    router = R1Router(pool, R1Reranker(engine, strategy=IRanker(form="append"), thinking=0))
    first, *rest = [router.route(query) for query in ("Hello!", "Wer war Gauß?", "Fix my loop.")]
    together = router.route_batch(["Sort a list.", "Translate 'sea' into Greek."], objective="cost")
    assert first.result.usage.prompt_computed > 200
    for decision in (*rest, *together):
        # The query, its instruction and a turn for each step are new; the profiles are not.
        assert decision.result.usage.prompt_computed < 150
        assert decision.result.usage.prompt_reused > 600
        assert decision.result.score_kind == "logprob"
        assert decision.result.status == "ok"


@pytest.mark.model
def test_the_example_runs() -> None:
    path = EXAMPLES / "route_endpoints.py"
    assert len(path.read_text().splitlines()) < 60
    run = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for query in ("Hello, how are you?", "Write a loop that prints 1 to 10.", "Why is the sky blue?"):
        assert re.search(rf"{re.escape(query)} -> (chat-mini|coder|scholar) \(\$[\d.]+\) of .*\n    \S", run.stdout)
    assert run.stderr.count("POST /v1/chat/completions") == 3  # real requests
