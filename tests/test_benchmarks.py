"""Every benchmark runs at a tiny size, and what it computes from its figures is right."""

from __future__ import annotations

import importlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from r1_rerank import IRanker, ScriptedEngine
from r1_rerank.engines import Completion, GenerationRequest

ROOT = Path(__file__).parents[1]
KV_BYTES = 30 * 2 * 3 * 64 * 2
"""Of one token in the embedded weights: layers, keys and values, heads, head size, bfloat16."""

Load = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Load]:
    """A module of the benchmarks; they import each other as scripts do."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))


# Every script runs, prints its tables, says what it met, and draws its plot.


@pytest.mark.parametrize(
    ("script", "options", "plot", "columns"),
    [
        pytest.param(
            "cost", {"sizes": "2,3", "words": 5, "repeats": 1, "apart": False}, "cost-transformers-0", ["reused"]
        ),
        pytest.param(
            "long_list", {"documents": 3, "words": 5}, "long-list-transformers", ["peak MiB above the weights"]
        ),
        pytest.param("batch_memory", {"most": 2, "repeats": 1, "words": 5}, "batch-memory", ["x one list"]),
        pytest.param("routing_cost", {"queries": 3, "profiles": 3, "words": 5}, "routing-transformers", ["steps"]),
        pytest.param(
            "throughput",
            {"queries": 3, "released_queries": 2, "words": 5, "fewest": 2, "most": 3},
            "throughput-transformers",
            ["of them at once", "requests under way", "outside the model"],
        ),
    ],
)
@pytest.mark.model
def test_a_benchmark_prints_its_tables_and_draws_its_plot(
    benchmark: Load,
    script: str,
    options: dict[str, Any],
    plot: str,
    columns: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    benchmark(script).main(**options, out=tmp_path)
    printed = capsys.readouterr().out
    assert re.search(r"^\| target \|  \| measured \| met \|$", printed, re.MULTILINE)
    assert re.search(r"\| (yes|no) \|$", printed, re.MULTILINE)
    assert "transformers 5" in printed.splitlines()[-1]
    for column in ["prompt tokens computed" if script != "routing_cost" else "computed, first", *columns]:
        assert f"| {column} |" in printed
    assert [path.name for path in tmp_path.iterdir()] == [f"{plot}.png"]


@pytest.mark.model
def test_the_overhead_of_our_own_code_has_a_line_for_tokens(benchmark: Load, capsys: pytest.CaptureFixture[str]):
    benchmark("overhead").main(queries=2, documents=3, tokenized=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:7]] == [
        "| `import r1_rerank`",
        "| a step of `append`",
        "| a step of `rewrite`",
        "| chat template and tokens of it, `append`",
        "| chat template and tokens of it, `rewrite`",
    ]
    assert lines[3].endswith("| 4 steps |")
    assert lines[5].endswith("| 2 steps |")


@pytest.mark.model
def test_a_profile_tells_the_prompt_from_the_steps(benchmark: Load, capsys: pytest.CaptureFixture[str]):
    benchmark("step_profile").main(documents="4", words=60)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:4]]
    assert [row[:3] for row in rows] == [["4", "a piece of its prompt", "1"], ["4", "a further step", "2"]]
    for row in rows:
        milliseconds = [int(cell) for cell in row[4:-1]]
        assert milliseconds[0] == pytest.approx(sum(milliseconds[1:]), abs=4)  # of rounded parts
        assert milliseconds[1] > 0


def test_a_pass_of_vllm_has_what_each_operation_took_by_itself(benchmark: Load):
    module = benchmark("step_profile")

    def event(name: str, start: int, end: int, *, thread: int = 1, kind: str = "cpu_op") -> dict[str, Any]:
        return {"ph": "X", "cat": kind, "name": name, "ts": start, "dur": end - start, "tid": thread}

    found = module.passes(
        [
            event("execute_context_1(32)_generation_0(0)", 200, 300, kind="user_annotation"),
            event("_C::cpu_attention_with_kv_cache", 210, 240),
            event("aten::linear", 240, 290),
            event("_C::onednn_mm", 245, 285),
            event("aten::copy_", 210, 290, thread=2),
            event("execute_context_0(0)_generation_0(0)", 320, 330, kind="user_annotation"),
            event("execute_context_1(27)_generation_0(0)", 350, 360, kind="user_annotation"),
            {"ph": "i", "name": "an instant", "ts": 0},
        ]
    )
    assert [one.tokens for one in found] == [32, 27]
    assert found[0].spent == {"attention": 30, "layers' products": 40, "everything else": 30}
    assert found[1].spent == {"everything else": 10}
    assert [one.gap for one in found] == [50, None]


def test_a_caption_names_no_folder_of_the_machine(benchmark: Load, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/here/cost.py", "--engine", "vllm", "--out", "/there", "--repeats", "1"])
    assert benchmark("tables").caption().startswith("`python benchmarks/cost.py --engine vllm --repeats 1` — ")


def test_make_runs_all_that_need_no_environment_of_their_own(benchmark: Load):
    scripts = {
        path.name
        for path in (ROOT / "benchmarks").glob("*.py")
        if "typer.run(main)" in path.read_text(encoding="utf-8")
    }
    target = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nbenchmark:")[1].split("\n\n")[0]
    assert set(re.findall(r"benchmarks/(\w+\.py)", target)) == scripts - {"peers.py"}


# Nothing is served by a cache, or by memory, that another run has filled.


def test_no_two_documents_are_the_same(benchmark: Load):
    documents_of = benchmark("workloads").documents_of
    _, many = documents_of(1000, 60)
    _, more = documents_of(1000, 60, offset=37)
    assert {len(text.split()) for text in many} == {60}
    assert len({*many, *more}) == 2000
    # Neither do two windows of a list begin alike.
    assert len({text.split()[0] for text in many[:50]}) == 50


def test_documents_that_could_not_differ_are_refused(benchmark: Load):
    documents_of = benchmark("workloads").documents_of
    for count, words, offset in ((2, 3, 0), (10_001, 60, 0), (2, 60, 10**6)):
        with pytest.raises(ValueError, match=r"documents have more|no words of its own"):
            documents_of(count, words, offset=offset)


@pytest.mark.model
def test_memory_is_counted_from_the_weights_up_in_every_run(benchmark: Load):
    bare_pass, documents_of = benchmark("workloads").bare_pass, benchmark("workloads").documents_of
    with benchmark("measuring").Bench(bare_pass, "transformers", cached=False) as bench:
        costs = [bench.measure(*documents_of(3, 60)) for _ in range(2)]
    for cost in costs:
        assert cost.mib * 2**20 > cost.computed * KV_BYTES


@pytest.mark.model
def test_a_second_run_over_the_same_lists_starts_cold(benchmark: Load, engine: Any):
    throughput = benchmark("throughput")
    lists = benchmark("workloads").mixed_lists(2, 5, fewest=2, most=3)
    work = partial(throughput.ours, lists=lists, strategy=IRanker(form="append"))
    first, second = (throughput.measured(engine, 2, lists, work) for _ in range(2))
    assert first.computed == second.computed
    assert (first.queries, first.documents) == (2, 5)
    assert 0 < second.outside < 100
    assert 0 < second.under_way <= 2


def test_the_baseline_goes_on_asking_of_a_list_that_is_done(benchmark: Load):
    engine = ScriptedEngine(lambda request: f"<answer>[{request.labels[0]}]</answer>")
    benchmark("released").eliminate_in_lockstep(engine, [("one", ["a", "b"]), ("two", ["a", "b", "c", "d"])])
    # An engine asks its model for nothing where there is a single label.
    assert [len(request.labels or ()) for request in engine.requests] == [2, 4, 2, 3, 2, 2]


# What is computed from the figures.


def test_runs_are_interleaved_and_their_middle_counts(benchmark: Load):
    measuring, cost = benchmark("measuring"), benchmark("workloads").Cost
    turns = []

    def bench(name: str, seconds: list[float], mib: list[float]) -> Any:
        costs = iter(cost(1, 10, 0, 1, *pair) for pair in zip(seconds, mib, strict=True))
        return SimpleNamespace(measure=lambda query, documents: turns.append(name) or next(costs))

    found = measuring.interleaved(
        {"a": bench("a", [3.0, 1.0, 2.0], [5, 9, 7]), "b": bench("b", [8.0, 8.5, 1.0], [1, 1, 1])}, 3, "q", ["d"]
    )
    assert turns == ["a", "b"] * 3
    assert (found["a"].seconds, found["a"].mib) == (2.0, 9)
    assert (found["b"].seconds, found["b"].mib) == (8.0, 1)


def _found(benchmark: Load, **ways: dict[int, tuple[int, float]]) -> Any:
    cost, made = benchmark("workloads").Cost, benchmark("cost")
    names = {"limit": made.LIMIT, "append": made.APPEND, "windows": made.WINDOWS, "whole": made.RELEASED}
    return {
        names[way]: {count: cost(1, tokens, 0, 1, seconds) for count, (tokens, seconds) in costs.items()}
        for way, costs in ways.items()
    }


def test_slopes_leave_out_the_lists_of_shorter_documents_and_ways_of_long_lists_alone(benchmark: Load):
    found = _found(
        benchmark,
        limit={5: (1, 5.0), 10: (1, 10.0), 20: (1, 20.0), 100: (1, 1.0)},
        append={5: (1, 25.0), 10: (1, 100.0), 20: (1, 400.0), 100: (1, 1.0)},
        windows={100: (1, 1.0)},
    )
    assert list(benchmark("cost").slopes(found).values()) == pytest.approx([1.0, 2.0])
    assert benchmark("cost").slopes(_found(benchmark, limit={20: (1, 1.0), 100: (1, 1.0)})) == {}


def test_the_targets_of_a_ranking(benchmark: Load):
    found = _found(
        benchmark,
        limit={10: (700, 1.0), 20: (1000, 2.0), 100: (2000, 2.0)},
        append={10: (900, 2.0), 20: (1600, 4.0), 100: (4000, 10.0)},
        windows={100: (3000, 9.0)},
        whole={10: (5000, 5.0), 20: (9000, 20.0), 100: (9000, 199.0)},
    )
    targets = benchmark("cost").targets(found, "transformers")
    assert [(target.measured, target.bound, target.met) for target in targets] == [
        (pytest.approx(1.6), 1.5, False),
        (pytest.approx(2.0), 2, True),
        (pytest.approx(5.0), 5, True),
        (pytest.approx(19.9), 20, False),
        (pytest.approx(22.1, abs=0.1), 20, True),
        (pytest.approx(0.0), 0.1, True),
    ]
    assert benchmark("cost").targets(found, "vllm")[0].met  # 1.7 there
    assert (
        benchmark("cost").targets(_found(benchmark, limit={5: (1, 1.0)}, append={5: (1, 1.0)}, whole={}), "vllm") == []
    )


def test_the_targets_of_a_long_list(benchmark: Load):
    cost, made = benchmark("workloads").Cost, benchmark("long_list")
    costs = {
        made.LIMIT: cost(1, 100, 0, 0, 1.0, 10.0),
        "IRanker, append": cost(1, 250, 0, 1, 1.0, 4096.0),
        "DRanker": cost(1, 260, 0, 1, 1.0, 4097.0),
    }
    assert [target.met for target in made.targets(costs)] == [True, True, False, False]
    assert len(made.targets({name: cost(1, 100, 0, 0, 1.0) for name in costs})) == 2  # vLLM's memory tells nothing


def test_memory_of_a_batch_may_grow_as_its_lists_do(benchmark: Load):
    cost, made = benchmark("workloads").Cost, benchmark("batch_memory")
    costs = {lists: cost(1, 1, 0, 1, 1.0, mib) for lists, mib in {1: 100.0, 2: 200.0, 4: 401.0}.items()}
    assert [(target.bound, target.met) for target in made.targets(costs)] == [(2, True), (4, False)]


def test_throughput_is_documents_over_time_and_the_rest_is_outside(benchmark: Load):
    throughput = benchmark("throughput")
    ours = throughput.Run(queries=10, documents=300, computed=1, seconds=10.0, inside=9.0, under_way=4.0)
    theirs = throughput.Run(queries=2, documents=50, computed=1, seconds=5.0, inside=5.0, under_way=2.0)
    assert ours.outside == pytest.approx(10.0)
    assert throughput.ratio({throughput.APPEND: ours, throughput.RELEASED: theirs}) == pytest.approx(3.0)


def test_a_routing_decision_may_compute_the_query_and_its_steps(benchmark: Load):
    bound = benchmark("routing_cost").bound
    assert bound(25, 9, 1) == 25 + 8 * 30
    assert bound(25, 9, 32) == 25 + 8 * 30 + 9 * 31


def test_time_inside_the_model_is_counted_and_the_model_left_as_it_was(benchmark: Load):
    class Stepping:
        def step(self) -> list[str]:
            time.sleep(0.01)
            return ["reply"]

    stepping = Stepping()
    engine = SimpleNamespace(llm=SimpleNamespace(llm_engine=stepping))
    with benchmark("watching").model_time(engine) as clock:
        assert [stepping.step(), stepping.step()] == [["reply"], ["reply"]]
        time.sleep(0.01)
    stepping.step()
    assert clock.seconds >= 0.02
    assert vars(stepping) == {}


def test_requests_under_way_are_counted_while_the_engine_has_them(benchmark: Load):
    def slowly(request: GenerationRequest) -> Completion:
        time.sleep(0.01)
        return Completion(text="")

    started = time.perf_counter()
    watched = benchmark("watching").Watched(ScriptedEngine(slowly), 5)
    watched.generate([GenerationRequest(messages=[], labels=None)] * 3)
    seconds = time.perf_counter() - started
    assert watched.batch_size == 5
    assert 3 * 0.03 <= watched.mean_under_way(seconds) * seconds <= 3 * seconds


# Peers: what a system lost says nothing of its speed.


def _record(system: str, seconds: float, error: str = "", documents: int = 20) -> dict[str, Any]:
    tally = {"seconds": seconds, "computed": 100, "generated": 10, "answers": 1, "malformed": 0, "error": error}
    if error:
        tally |= {"computed": 1, "generated": 0, "malformed": 1}
    return {"system": system, "documents": documents, "words": 60, "tally": tally}


def test_lost_queries_are_left_out_and_counted(benchmark: Load):
    records = [_record("a", 4.0), _record("a", 0.1, "gone"), _record("a", 6.0), _record("b", 0.1, "gone")]
    assert benchmark("peers").summary(records) == [
        ("a", "100", "10", "5.00", "1 of 3", "1 of 3"),
        ("b", "–", "–", "–", "1 of 1", "1 of 1"),
    ]
    assert benchmark("peers").summary([]) == []


def test_a_plot_of_peers_leaves_out_what_nobody_ranked(benchmark: Load, tmp_path: Path):
    records = [_record("a", 4.0), _record("b", 0.1, "gone"), _record("a", 9.0, documents=100)]
    benchmark("peers")._draw(records, [20, 100], tmp_path, "command — machine")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
