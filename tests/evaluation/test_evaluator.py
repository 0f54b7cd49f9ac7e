"""An evaluation: anything that ranks goes in, a record a row comes out, and reports are made of records."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1_rerank import R1Reranker, ScriptedEngine
from r1_rerank.documents import Usage
from r1_rerank.engines.base import Completion, GenerationRequest
from r1_rerank.errors import DataError, EngineError, InputError
from r1_rerank.evaluation.baselines import RandomDraw, incoming_order, oracle, random_order
from r1_rerank.evaluation.comparison import assert_no_regression, compare, compare_means
from r1_rerank.evaluation.evaluator import RerankingEvaluator
from r1_rerank.evaluation.records import EvaluationRun, Record, load_run, read_records
from r1_rerank.evaluation.report import build_report
from r1_rerank.evaluation.rowsets import check_rows, choose, read_task
from r1_rerank.evaluation.summary import summarise
from r1_rerank.rows import Candidate, Row, write_rows


def passage(number: int, *, query: str | None = None, size: int = 4, best: int | None = None) -> Row:
    best = number % size if best is None else best
    return Row(
        id=f"row-{number:03d}",
        task="passage",
        query=query or f"query {number}",
        candidates=tuple(Candidate(id=f"d{place}", text=f"passage {number} {place}") for place in range(size)),
        relevance=tuple(float(place == best) for place in range(size)),
        split="test",
        source="test",
    )


ROWS = [passage(number) for number in range(12)]
MIXED = [
    *ROWS[:3],
    Row(id="u1", task="recommendation", history=("Alien",), candidates=ROWS[0].candidates, relevance=ROWS[0].relevance,
        split="test", source="test"),
    Row(id="r1", task="routing", query="why?", objective="cost", candidates=ROWS[0].candidates,
        relevance=ROWS[0].relevance, effects=(1, 0, 0, 0), prices=(0, 1, 1, 1), split="test", source="test"),
]  # fmt: skip


def longest_label(request: GenerationRequest) -> Completion:
    """Eliminates the last candidate each time, so that the incoming order stays."""
    assert request.labels
    usage = Usage(calls=1, prompt_computed=100, generated=3)
    return Completion(text=f"<answer>[{request.labels[-1]}]</answer>", usage=usage)


def reranker(script=longest_label, **options) -> R1Reranker:
    return R1Reranker(ScriptedEngine(script), strategy="iranker", thinking=0, **options)


# What is promised.


def test_a_function_a_reranker_and_a_system_are_measured_alike():
    evaluator = RerankingEvaluator(MIXED, name="mixed")
    function = evaluator(incoming_order)
    model = evaluator(reranker(), name="kept")
    assert (function.system, model.system, model.task) == ("incoming_order", "kept", "mixed")
    assert function.values("mrr") == model.values("mrr")
    assert function.values("mrr")["row-001"] == 0.5
    assert model.records[0].usage.calls == 3
    assert function.values("reward") == {"r1": pytest.approx(0.2)}


def test_an_interval_draws_queries_and_users_not_lists():
    rows = [passage(number, query="one query for all") for number in range(6)]
    run = RerankingEvaluator(rows)(incoming_order)
    assert run.interval("mrr").clusters == 1
    recommendations = [
        Row(id=f"u{n}", task="recommendation", history=("same",), candidates=ROWS[n].candidates,
            relevance=ROWS[n].relevance, split="test", source="test")
        for n in range(6)
    ]  # fmt: skip
    assert RerankingEvaluator(recommendations)(incoming_order).interval("mrr").clusters == 6


def test_repaired_fallback_and_failed_answers_are_counted():
    def script(request: GenerationRequest) -> Completion:
        text = request.messages[-1]["content"]
        if "passage 1 " in text:
            return Completion(text="I cannot decide.")
        if "passage 2 " in text:
            return Completion(error=EngineError("out of order"))
        return longest_label(request)

    evaluator = RerankingEvaluator(ROWS[:4])
    summary = summarise(evaluator(reranker(script, on_error="raise")))
    assert summary.rows == 3  # the failed one is in no mean
    assert summary.statuses == {"ok": 0.5, "repaired": 0.0, "partial": 0.0, "fallback": 0.25, "failed": 0.25}
    assert summary.malformed == 0.25
    assert summarise(evaluator(reranker(script))).statuses["failed"] == 0
    failed = [record for record in evaluator(reranker(script, on_error="raise")).records if record.status == "failed"]
    assert [(record.row, record.error, record.metrics) for record in failed] == [("row-002", "out of order", {})]


def test_shuffles_tell_a_ranker_that_reads_from_one_that_keeps_the_order():
    evaluator = RerankingEvaluator([passage(n, size=6) for n in range(40)], shuffles=3)
    kept, read = summarise(evaluator(incoming_order)), summarise(evaluator(oracle))
    assert evaluator.count() == 160
    assert kept.bias == pytest.approx(1.0)
    assert kept.stability is not None
    assert abs(kept.stability.tau) < 0.15
    assert kept.stability.spread > 0.1
    assert read.stability is not None
    assert (read.stability.tau, read.stability.top, read.stability.spread) == (1.0, 1.0, 0.0)
    assert read.bias is None  # one rank for all: nothing to correlate
    backwards = summarise(evaluator(lambda row: [-score for score in incoming_order(row)]))
    assert backwards.bias == pytest.approx(-1.0)
    assert backwards.placements[0].rank == 1.0


def test_the_curve_of_falls_of_a_random_order_is_a_line_and_an_oracle_loses_nothing():
    evaluator = RerankingEvaluator([passage(n, size=5) for n in range(10)])
    random_falls = dict(summarise(evaluator(random_order)).falls)
    assert random_falls == pytest.approx({0: 0, 0.25: 0.2, 0.5: 0.4, 0.75: 0.6, 1: 0.8})
    assert set(dict(summarise(evaluator(oracle)).falls).values()) == {0}
    last = summarise(evaluator(lambda row: [-value for value in row.relevance]))
    # The positive is always worst, so the first elimination takes it.
    assert dict(last.falls) == pytest.approx({0: 0, 0.25: 1, 0.5: 1, 0.75: 1, 1: 1})


def test_a_limit_takes_as_many_queries_as_it_can_and_grows_without_dropping_any():
    rows = [passage(number, query=f"query {number // 10}") for number in range(50)]
    few, more = choose(rows, 5), choose(rows, 20)
    assert len({row.query for row in few}) == 5
    assert {row.id for row in few} <= {row.id for row in more}
    assert more == sorted(more, key=rows.index)
    assert choose(rows, 5, seed=1) != few
    assert choose(rows, None) == choose(rows, 99) == rows


def test_records_survive_their_file(tmp_path):
    run = RerankingEvaluator(MIXED, shuffles=1)(reranker(), name="model")
    run.write(tmp_path / "model.jsonl")
    assert tuple(read_records(tmp_path / "model.jsonl")) == run.records
    loaded = load_run(tmp_path / "model.jsonl")
    assert loaded.system == "model"
    assert loaded.values("ndcg@10") == run.values("ndcg@10")
    line = json.loads(run.records[0].to_json())
    assert set(line["timing"]) == {"seconds"}
    assert "seconds" not in line["usage"]


def test_an_evaluation_that_breaks_three_times_ends_as_one_that_does_not():
    class Power(Exception):
        """Goes out in the third row."""

    evaluator = RerankingEvaluator(ROWS, shuffles=1)
    whole = evaluator(RandomDraw(1), name="draw")
    kept: list[Record] = []
    for _ in range(3):
        left = 2

        def fails(row: Row) -> list[float]:
            nonlocal left
            left -= 1
            if left < 0:
                raise Power
            return RandomDraw(1)(row)

        with pytest.raises(Power):
            evaluator(fails, name="draw", done=kept, on_record=kept.append)
    assert len(kept) == 6
    again = evaluator(RandomDraw(1), name="draw", done=kept)
    assert [timeless(record) for record in again.records] == [timeless(record) for record in whole.records]
    never = evaluator(lambda row: pytest.fail("all is done"), name="draw", done=again.records)
    assert never.records == again.records


def timeless(record: Record) -> dict:
    content = json.loads(record.to_json())
    del content["timing"]
    return content


# Comparisons.


def scored(skill: float, seed: int = 0):
    """Finds the positive with a chance of `skill`."""

    def ranker(row: Row) -> list[float]:
        draw = random.Random(f"{seed}:{row.id}")
        return oracle(row) if draw.random() < skill else [draw.random() for _ in row.candidates]

    return ranker


MANY = RerankingEvaluator([passage(number) for number in range(150)], name="many")


def test_a_regression_is_an_assertion_with_the_numbers_and_noise_is_none():
    before, worse, same = MANY(scored(0.8), name="v1"), MANY(scored(0.3, 1), name="v2"), MANY(scored(0.8, 2), name="v3")
    with pytest.raises(AssertionError, match=r"mrr on many: v2 0\.\d+ against v1 0\.\d+, difference -0\..*150 rows"):
        assert_no_regression(before, worse)
    gain = assert_no_regression(worse, before)
    assert gain.difference.low > 0
    assert gain.p < 0.001
    assert assert_no_regression(before, same).p > 0.01
    # What is allowed does not count.
    fall = -compare(before, worse).difference.mean
    assert_no_regression(before, worse, tolerance=fall + 0.01)
    with pytest.raises(AssertionError, match=r"worse by more than 0\.05"):
        assert_no_regression(before, worse, tolerance=0.05)


def test_a_higher_price_is_a_regression(tmp_path):
    rows = [
        Row(id=f"r{n}", task="routing", query=f"q{n}", candidates=ROWS[0].candidates, relevance=ROWS[0].relevance,
            effects=(1, 0, 0, 0), prices=(0.1, 0.5, 0.7, 0.9), split="test", source="test")
        for n in range(10)
    ]  # fmt: skip
    evaluator = RerankingEvaluator(rows, name="routing")
    cheap, dear = tmp_path / "cheap.jsonl", tmp_path / "dear.jsonl"
    evaluator(incoming_order).write(cheap)
    evaluator(lambda row: [-score for score in incoming_order(row)]).write(dear)
    assert_no_regression(dear, cheap, "price")
    with pytest.raises(AssertionError, match="price on"):
        assert_no_regression(cheap, dear, "price")


def test_a_fall_of_exactly_the_tolerance_is_fine():
    after = RerankingEvaluator(ROWS)(oracle)
    before = replace(after, records=tuple(replace(record, metrics={"mrr": 0.59}) for record in after.records))
    worse = replace(after, records=tuple(replace(record, metrics={"mrr": 0.59 - 0.1}) for record in after.records))
    assert_no_regression(before, worse, tolerance=0.1)
    with pytest.raises(AssertionError):
        assert_no_regression(before, worse, tolerance=0.09)
    with pytest.raises(InputError, match="other_rows: 'drop'"):
        compare(before, worse, other_rows="drop")


def test_runs_over_other_rows_are_not_compared_unless_that_is_wanted():
    a, b = RerankingEvaluator(ROWS[:8])(incoming_order), RerankingEvaluator(ROWS[4:])(random_order)
    with pytest.raises(InputError, match="4 rows only in incoming_order, such as 'row-000'; 4 rows only in random"):
        compare(a, b)
    compared = compare(a, b, other_rows="skip")
    assert (compared.difference.values, compared.skipped) == (4, 8)
    with pytest.raises(InputError, match="no row in common"):
        compare(RerankingEvaluator(ROWS[:4])(oracle), RerankingEvaluator(ROWS[4:])(oracle), other_rows="skip")
    with pytest.raises(InputError, match="'bleu' was not taken of incoming_order on rows; there is mrr"):
        compare(a, a, "bleu")
    changed = RerankingEvaluator([passage(0, best=2), *ROWS[1:8]])(oracle)
    with pytest.raises(InputError, match="row 'row-000' has other candidates or judgments"):
        compare(a, changed)


def test_each_task_counts_alike_in_the_mean_of_several():
    few, many = MANY.rows[:10], MANY.rows[10:110]
    pairs = [
        tuple(RerankingEvaluator(rows, name=task)(scored(skill, 1), name=name) for name, skill in systems.items())
        for task, rows, systems in (
            ("few", few, {"before": 0.0, "after": 1.0}),
            ("many", many, {"before": 1.0, "after": 1.0}),
        )
    ]
    gain = compare_means(pairs)
    # Ten rows rise, a hundred cannot: the mean of two tasks rises by half of what the ten do.
    assert gain.difference.mean == pytest.approx(compare(*pairs[0]).difference.mean / 2)
    assert gain.difference.mean == pytest.approx(gain.mean_b - gain.mean_a)
    assert (gain.task, gain.difference.values) == ("mean of 2 tasks", 110)
    assert gain.difference.low > 0
    # The same queries in another task are no more queries.
    twice = compare_means([pairs[0], tuple(replace(run, task="again") for run in pairs[0])])
    assert twice.difference == replace(compare(*pairs[0]).difference, values=20)
    with pytest.raises(InputError, match="pairs: is empty"):
        compare_means([])
    report = build_report([run for pair in pairs for run in pair], against="before")
    assert [item.task for item in report.comparisons] == ["few", "many", "mean of 2 tasks"]
    assert "| mean of 2 tasks | after | before |" in report.to_markdown()
    report = build_report([*pairs[0], pairs[1][0]], against="before")
    assert [item.task for item in report.comparisons] == ["few"]  # it was not on the other


# Reports.


def runs() -> list[EvaluationRun]:
    evaluator = RerankingEvaluator([passage(number, size=5) for number in range(30)], name="passage-5", shuffles=1)
    few = RerankingEvaluator([passage(number, size=5) for number in range(30)], name="passage-5", limit=7)
    return [
        evaluator(random_order, name="random"),
        evaluator(scored(0.7), name="a | <b>"),
        few(reranker(), name="model"),
        evaluator(oracle, name="oracle"),
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_report_says_the_same_in_every_form(tmp_path):
    report = build_report(runs(), notes=["A note <with> signs."], reference=True)
    report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "report.html", "plots"}
    text, page = ((tmp_path / f"report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [summary["system"] for summary in numbers["summaries"]] == ["random", "a | <b>", "model", "oracle"]
    assert "| random | 45.7 [45.7, 45.7] |" in text
    assert "(n = 7)" in text
    assert "a \\| <b>" in text
    assert "a | &lt;b&gt;" in page
    assert "<with>" not in page
    # The paper's figures stand apart, and say what they are.
    assert "## Reference: the paper, on other data" in text
    assert "| IRanker-3B | 60.98 |" in text
    assert 'class="other"' in page
    assert numbers["reference"]["values"]["IRanker-3B"]["passage-5"] == 60.98
    # Everything is in the page.
    plots = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert set(plots) == {"quality.png", "cost.png", "position.png", "falls.png"}
    assert all(content.startswith(b"\x89PNG") for content in plots.values())
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("https://arxiv", "")


def test_comparisons_go_by_the_baseline_and_by_common_rows():
    report = build_report(runs())
    assert [(item.a, item.b, item.skipped) for item in report.comparisons] == [
        ("random", "a | <b>", 0),
        ("random", "model", 23),
    ]
    assert all(p >= item.p for p, item in zip(report.adjusted, report.comparisons, strict=True))
    chosen = build_report(runs(), against="model", pairs=[("random", "a | <b>")])
    assert [(item.a, item.b) for item in chosen.comparisons][-1] == ("random", "a | <b>")
    with pytest.raises(InputError, match="against"):
        build_report(runs(), against="nobody")
    with pytest.raises(InputError, match="stands twice"):
        build_report([runs()[0], runs()[0]])
    with pytest.raises(InputError, match="runs"):
        build_report([])
    with pytest.raises(InputError, match="'bleu' was not taken"):
        build_report(runs(), metric="bleu")


# What comes in may be bad.


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (passage(1, best=9), "no relevant candidate"),
        (passage(1, size=1), "fewer than 2 candidates"),
        (passage(1, query=" "), "no usable query"),
        (passage(0), "id stands twice"),
    ],
)
def test_a_row_that_cannot_be_evaluated_is_refused_or_counted(tmp_path, row, reason):
    with pytest.raises(InputError, match=rf"rows\[1\]: row '{row.id}'"):
        RerankingEvaluator([ROWS[0], row])
    assert check_rows([ROWS[0], row], bad_rows="skip").dropped == {reason: 1}
    write_rows([ROWS[0], row, ROWS[2]], tmp_path / "task.jsonl")
    with pytest.raises(DataError, match=rf"line 2: row '{row.id}'"):
        read_task(tmp_path / "task.jsonl")
    found = read_task(tmp_path / "task.jsonl", bad_rows="skip")
    assert (found.name, found.rows, found.dropped) == ("task", (ROWS[0], ROWS[2]), {reason: 1})
    run = RerankingEvaluator(found)(oracle)
    assert f"| task | oracle | {reason} | 1 |" in build_report([run]).to_markdown()


def test_nan_effects_and_lines_that_are_no_rows_are_refused_or_counted(tmp_path):
    nan = MIXED[-1].to_json().replace('"effects":[1,', '"effects":[NaN,')
    path = tmp_path / "router-cost" / "test.jsonl"
    path.parent.mkdir()
    path.write_text(f"{ROWS[0].to_json()}\n{nan}\n{{torn", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 2: effects\[0\]: needs a finite number"):
        read_task(path)
    found = read_task(path, bad_rows="skip")
    assert (found.name, found.dropped) == ("router-cost", {"not a row: unusable effects": 1, "not a row": 1})


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_an_empty_file_is_an_error_under_every_policy(tmp_path, policy):
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_task(tmp_path / "none.jsonl", bad_rows=policy)
    with pytest.raises(InputError, match="holds no rows"):
        check_rows([], bad_rows=policy)


def test_nothing_left_after_skipping_says_what_was_skipped():
    with pytest.raises(InputError, match=r"left out: 2 \(no relevant candidate\)"):
        check_rows([passage(1, best=9), passage(2, best=9)], bad_rows="skip")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "1 scores for 4 candidates"),
        ([1, 2, 3, float("nan")], "candidate 3 .* nan"),
        (None, "no list of numbers"),
    ],
)
def test_scores_that_are_none_are_refused_with_their_row(scores, message):
    with pytest.raises(InputError, match=f"broken gave .*{message}"):
        RerankingEvaluator(ROWS)(lambda row: scores, name="broken")


def test_arguments_are_checked():
    for arguments, name in (
        ({"shuffles": -1}, "shuffles"),
        ({"limit": 0}, "limit"),
        ({"bad_rows": "ignore"}, "bad_rows"),
    ):
        with pytest.raises(InputError) as caught:
            RerankingEvaluator(ROWS, **arguments)
        assert caught.value.argument == name
    with pytest.raises(InputError, match="system: expected a System"):
        RerankingEvaluator(ROWS)(3)


def test_a_torn_line_is_left_out_and_a_damaged_one_named(tmp_path):
    run = RerankingEvaluator(ROWS)(oracle)
    path = tmp_path / "run.jsonl"
    run.write(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read_records(path)) == len(ROWS) - 1
    path.write_text('{"id": 3}\n')
    with pytest.raises(DataError, match="line 1: is no record"):
        read_records(path)
    path.write_text("")
    with pytest.raises(DataError, match="did not begin"):
        load_run(path)


@given(st.permutations(range(6)), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_input_does_not_change_what_a_reader_gets(order, best):
    row = passage(best, size=6)
    run = RerankingEvaluator([row], shuffles=2)(lambda row: [order[int(c.id[1:])] for c in row.candidates])
    assert len({record.metrics["mrr"] for record in run.records}) == 1
    assert len({record.candidates for record in run.records}) > 1


def test_rows_are_read_by_the_name_of_their_folder(tmp_path: Path):
    (tmp_path / "passage-5").mkdir()
    write_rows(ROWS, tmp_path / "passage-5" / "test.jsonl")
    assert read_task(tmp_path / "passage-5" / "test.jsonl").name == "passage-5"
    write_rows(ROWS, tmp_path / "mine.jsonl")
    assert read_task(tmp_path / "mine.jsonl").name == "mine"
