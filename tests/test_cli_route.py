"""`r1-rerank route`: decisions alone on stdout, and everything that cannot work is told before a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from r1_rerank.cli import app
from r1_rerank.integrations.router import read_log

POOL = Path(__file__).parent.parent / "examples" / "pool.yaml"
NAMES = {"pocket-1b", "everyday-8b", "coder-32b", "scholar-70b", "summit"}


@pytest.fixture(autouse=True)
def _no_model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the embedded model fails with exit code 1, except in tests that are about it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if request.node.get_closest_marker("model") is None:
        (tmp_path / "blocked").write_text("a file is no folder")
        monkeypatch.setenv("R1_RERANK_CACHE", str(tmp_path / "blocked" / "cache"))


def call(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["route", *map(str, arguments)], input=stdin, prog_name="r1-rerank")


def refused(*arguments: str | Path, stdin: str | bytes | None = None) -> str:
    """The message of a call that has to be refused before anything is loaded."""
    result = call(*arguments, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def write_lines(path: Path, records: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


# What is promised, with the embedded weights.


@pytest.mark.model
def test_a_query_becomes_a_line_of_json_and_a_line_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    limits = ("--max-price", "10", "--min-context", "16000", "--tag", "open", "--tag", "tools")
    result = call("Löse x² = 2 🧮", "--pool", POOL, "--objective", "balance", *limits, "--log", log)
    assert (result.exit_code, result.stderr) == (0, "")
    record: dict[str, Any] = json.loads(result.stdout)
    assert (record["id"], record["query"], record["objective"]) == (None, "Löse x² = 2 🧮", "balance")
    assert {entry["llm"] for entry in record["ranking"]} == {"everyday-8b", "coder-32b", "scholar-70b"}
    assert record["llm"] == record["ranking"][0]["llm"]
    assert record["expected_price"] == record["ranking"][0]["price"] <= 10
    assert set(record["excluded"]) == {"pocket-1b", "summit"}
    assert (record["status"], record["usage"]["calls"]) == ("ok", 2)
    assert "steps" not in record
    (written,) = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert (written["decision_id"], written["query"]) == (record["decision_id"], "Löse x² = 2 🧮")
    assert read_log(log) == []  # nobody told yet how it went


@pytest.mark.model
def test_a_file_is_routed_query_by_query(tmp_path: Path) -> None:
    lines = [{"id": "a", "query": "Hi!"}, {"query": "日本語?", "objective": "cost", "user": 7}]
    source = write_lines(tmp_path / "queries.jsonl", lines)
    result = call("--input", source, "-p", POOL, "--output", "json", "--trace", "--strategy", "dranker")
    assert result.exit_code == 0, result.stderr
    assert f"note: {source}: not used: user" in result.stderr
    first, second = json.loads(result.stdout)
    assert [(record["id"], record["objective"]) for record in (first, second)] == [("a", "performance"), ("2", "cost")]
    for record in (first, second):
        assert {entry["llm"] for entry in record["ranking"]} == NAMES
        assert len(record["steps"]) == 1


@pytest.mark.model
def test_a_table_shows_who_is_out_and_why() -> None:
    result = call("Hi!", "-p", POOL, "--max-price", "0.3", "--output", "table")
    assert result.exit_code == 0, result.stderr
    assert "summit is out: price $15 is over max_price $0.3" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    ranks = {line[2]: line[0] for line in lines if len(line) > 2 and line[2] in NAMES}
    assert ranks.keys() == {"pocket-1b", "everyday-8b"}
    assert sorted(ranks.values()) == ["1", "2"]
    assert "$0.04: Tiny and very fast." in result.stdout


@pytest.mark.model
def test_a_failed_query_is_exit_code_1(tmp_path: Path) -> None:
    pool = write_lines(tmp_path / "pool.json", [[{"name": name, "description": "Words. " * 9000} for name in "ab"]])
    source = write_lines(tmp_path / "queries.jsonl", [{"id": "q", "query": "a"}, {"query": "b"}])
    result = call("-i", source, "-p", pool, "--think", "8170", "--on-error", "raise")
    assert result.exit_code == 1
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["failed", "failed"]
    assert "error: query q: " in result.stderr
    assert "note: 2 queries: 2 failed" in result.stderr


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "sample.jsonl", [{"query": "Hi!"}, {"query": "Beweise es. 🧮"}])


CALIBRATION = ("--spend", "0.5", "--input-tokens", "500", "--output-tokens", "300", "--max-price", "1")


@pytest.mark.model
def test_a_calibration_finds_the_price_ceiling_that_keeps_a_target(sample: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    result = call("-p", POOL, "--calibrate", sample, *CALIBRATION, "--output", "json", "--plot", plot)
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    settings = {setting["max_price"]: setting for setting in record["settings"]}
    assert settings.keys() == {0.04, 0.2, 0.9}
    # By hand: 500 tokens in at 0.04, 300 out at 0.04 are 0.000032 dollars a query.
    assert settings[0.04]["spend"] == 0.032
    assert settings[0.04]["shares"] == {"pocket-1b": 1.0, "everyday-8b": 0.0, "coder-32b": 0.0}
    assert all(sum(setting["shares"].values()) == 1 for setting in settings.values())
    within = [setting for setting in settings.values() if setting["spend"] <= 0.5]
    assert record["chosen"] in within
    assert record["chosen"]["spend"] == max(setting["spend"] for setting in within)
    assert record["target_spend"] == 0.5
    assert "pocket-1b" in plot.read_text(encoding="utf-8")


@pytest.mark.model
def test_a_calibration_is_a_table_or_lines(sample: Path) -> None:
    cheap = ("-p", POOL, "--calibrate", sample, *CALIBRATION, "--max-price", "0.3", "--objective", "cost")
    table = call(*cheap, "--output", "table")
    assert table.exit_code == 0, table.stderr
    head, *rows = [line.split() for line in table.stdout.splitlines()[:3]]
    assert head == ["max", "price", "spend", "pocket-1b", "everyday-8b"]
    assert rows[0][-4:] == ["0.04", "0.032", "100%", "0%"]
    assert sum(row[0] == "→" for row in rows) == 1
    assert "objective cost" in table.stdout
    lines = call(*cheap)
    assert [json.loads(line)["max_price"] for line in lines.stdout.splitlines()] == [0.04, 0.2]


@pytest.mark.model
def test_a_target_that_nothing_keeps_is_exit_code_1(tmp_path: Path) -> None:
    sample = write_lines(tmp_path / "sample.jsonl", [{"query": "Hi!", "objective": "cost"}])
    result = call("-p", POOL, "--calibrate", sample, *CALIBRATION, "--spend", "0.01", "--max-price", "0.1")
    assert result.exit_code == 1
    assert "error: --spend: even the cheapest setting spends $0.032, not $0.01" in result.stderr
    assert f"note: {sample}: a calibration has one objective, performance" in result.stderr
    assert json.loads(result.stdout)["spend"] == 0.032


# What is told at once.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibrate", "SAMPLE"], "--spend: is missing"),
        (["--calibrate", "SAMPLE", "--spend", "1", "--input-tokens", "5"], "--output-tokens: is missing"),
        (["--calibrate", "SAMPLE", *CALIBRATION, "Hi!"], "--query: stands beside --calibrate"),
        (["--calibrate", "SAMPLE", *CALIBRATION, "--input", "-"], "--input: stands beside --calibrate"),
        (["--calibrate", "SAMPLE", *CALIBRATION, "--log", "log"], "--log: stands beside --calibrate"),
        (["--calibrate", "SAMPLE", *CALIBRATION, "--spend", "-1"], "--spend: "),
        (["--calibrate", "SAMPLE", *CALIBRATION, "--spend", "nan"], "--spend: "),
        (["--calibrate", "SAMPLE", *CALIBRATION, "--spend", "inf"], "--spend: expected 0 or more"),
        (["--calibrate", "SAMPLE", *CALIBRATION, "--plot", "/nowhere/plot.svg"], "--plot: the folder /nowhere"),
        (["--calibrate", "/nowhere.jsonl", *CALIBRATION], "/nowhere.jsonl: cannot be read"),
        (["--calibrate", "EMPTY", *CALIBRATION], "--calibrate: "),
        (["--calibrate", "SAMPLE", *CALIBRATION, "--max-price", "0.01"], "--pool: no LLM is within the limits"),
        (["Hi!", "--spend", "1"], "--spend: belongs to --calibrate"),
        (["Hi!", "--plot", "plot.svg"], "--plot: belongs to --calibrate"),
    ],
)
def test_what_a_calibration_cannot_do_is_told(arguments: list[str], message: str, sample: Path, tmp_path: Path) -> None:
    files = {"SAMPLE": str(sample), "EMPTY": str(write_lines(tmp_path / "empty.jsonl", []))}
    told = refused("-p", POOL, *(files.get(argument, argument) for argument in arguments))
    assert told.removeprefix("--").startswith(message.removeprefix("--"))


def test_a_calibration_needs_prices(sample: Path, tmp_path: Path) -> None:
    pool = write_lines(tmp_path / "pool.json", [[{"name": name, "description": "An LLM."} for name in "ab"]])
    arguments = ("-p", pool, "--calibrate", sample, "--spend", "1", "--input-tokens", "5", "--output-tokens", "5")
    assert refused(*arguments).removeprefix("--").startswith("pool: 'a' has no price; add one")


def test_an_empty_file_needs_no_model(tmp_path: Path) -> None:
    result = call("-i", write_lines(tmp_path / "none.jsonl", []), "-p", POOL, "--output", "json")
    assert (result.exit_code, result.stdout) == (0, "[]\n")
    assert "holds no queries" in result.stderr


def test_where_no_llm_is_left_the_limits_are_told() -> None:
    message = refused("Hi!", "-p", POOL, "--max-price", "0.1", "--tag", "code")
    assert message.removeprefix("--").startswith(
        "pool: no LLM is within the limits (pocket-1b: lacks required_tags code; everyday-8b: "
    )
    assert "summit: price $15 is over max_price $0.1" in message


def test_a_pool_is_needed(tmp_path: Path) -> None:
    assert "--pool" in refused("Hi!")
    assert refused("Hi!", "-p", tmp_path / "none.yaml").startswith(f"{tmp_path / 'none.yaml'}: cannot be read: ")
    pool = tmp_path / "pool.yaml"
    pool.write_text("- {name: a, description: b}\n- {name: c}\n")
    assert refused("Hi!", "-p", pool) == f"{pool}: models[1]: lacks description"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "query: pass a query, or --input FILE"),
        ([" "], "query: is empty"),
        (["a", "--input", "-"], "query: stands beside --input"),
        (["a", "--objective", "speed"], "--objective: "),
        (["a", "--max-price", "-1"], "--max-price: "),
        (["a", "--max-price", "nan"], "--max-price: "),
        (["a", "--min-context", "0"], "--min-context: "),
        (["a", "--strategy", "best"], "--strategy: "),
        (["a", "--engine", "steam"], "--engine: "),
        (["a", "--log", "/nowhere/log.jsonl"], "log: the folder /nowhere does not exist"),
        (["a", "--budget-calls", "0"], "--budget-calls: "),
        (["a", "--template", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
    ],
)
def test_what_cannot_be_is_told(arguments: list[str], message: str) -> None:
    assert refused(*arguments, "-p", POOL).removeprefix("--").startswith(message.removeprefix("--"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not valid JSON: "),
        ("[]", "expected a JSON object, got a list"),
        ('{"id": "a"}', "query: is missing"),
        ('{"query": 7}', "query: expected a str, got int"),
        ('{"query": ""}', "query: is empty"),
        ('{"query": "a", "id": 7}', "id: expected a string, got 7; write it in quotes"),
        ('{"query": "a", "objective": "speed"}', "objective: 'speed' is not one of performance, balance, cost"),
        ('{"query": "\\ud800"}', "'\\ud800' is no character that UTF-8 can write; repair the text"),
    ],
)
def test_a_line_that_is_no_query_is_named(line: str, message: str) -> None:
    told = refused("-i", "-", "-p", POOL, stdin=f'{{"query": "fine"}}\n\n{line}\n')
    assert told.startswith(f"-, line 3: {message}")


def test_a_template_of_another_task_is_refused(tmp_path: Path) -> None:
    from r1_rerank import PromptTemplate

    path = tmp_path / "passage.yaml"
    path.write_text(json.dumps(PromptTemplate.builtin("passage").to_dict()))
    assert (
        refused("Hi!", "-p", POOL, "--template", path) == f"--template: {path} words another task; pass one for routing"
    )
