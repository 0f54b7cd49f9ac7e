"""The command line: results alone on stdout, one line for every error, and a run that was cut off goes on."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from r1_rerank import PromptTemplate, __version__
from r1_rerank.cli import app

COMMAND = [sys.executable, "-c", "from r1_rerank.cli import main; main()"]
QUERIES: list[dict[str, Any]] = [
    {"id": "tides", "query": "What causes tides?", "documents": ["The Moon's pull.", {"id": "cat", "text": "Cats."}]},
    {"query": "日本語 🌊?", "documents": [{"title": "Flut", "text": "höher"}, ""]},
    {"id": "films", "history": ["Alien", "Aliens"], "documents": ["Heat", "Alien 3"]},
]


@pytest.fixture(autouse=True)
def _no_model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the embedded model fails with exit code 1, except in tests that are about it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if request.node.get_closest_marker("model") is None:
        (tmp_path / "blocked").write_text("a file is no folder")
        monkeypatch.setenv("R1_RERANK_CACHE", str(tmp_path / "blocked" / "cache"))


def call(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, prog_name="r1-rerank")


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


def read_lines(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def ranking(record: dict[str, Any]) -> list[int]:
    return [hit["index"] for hit in record["results"]]


# What is promised, with the embedded weights.


@pytest.mark.model
def test_a_query_with_its_documents_becomes_a_line_of_json() -> None:
    result = call("rerank", "Wie entsteht die Flut? 🌊", "Die Anziehung des Mondes.", "[A] 猫", "", "--top-k", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    (record,) = read_lines(result.stdout)
    assert record["id"] is None
    assert record["query"] == "Wie entsteht die Flut? 🌊"
    assert record["status"] == "ok"
    assert len(set(ranking(record))) == 2
    assert record["usage"]["calls"] == 2
    assert "steps" not in record


@pytest.mark.model
def test_json_is_an_array_in_the_order_of_the_queries(tmp_path: Path) -> None:
    empty = {"id": "nothing", "query": "Anything?", "documents": []}
    source = write_lines(tmp_path / "queries.jsonl", [*QUERIES, empty])
    result = call("rerank", "--input", source, "--output", "json", "--trace", "--strategy", "dranker")
    assert result.exit_code == 0, result.stderr
    records = json.loads(result.stdout)
    assert [record["query"] for record in records] == [
        "What causes tides?",
        "日本語 🌊?",
        "Alien | Aliens",
        "Anything?",
    ]
    assert [sorted(ranking(record)) for record in records] == [[0, 1], [0, 1], [0, 1], []]
    assert [len(record["steps"]) for record in records] == [1, 1, 1, 0]
    ids = [record["id"] for record in records]
    assert ids[0] == "tides"
    assert len(ids[1]) == 32  # a digest


@pytest.mark.model
def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "queries.jsonl", QUERIES), tmp_path / "results.jsonl"
    command = ("rerank", "--input", source, "--output-file", output)
    assert call(*command).exit_code == 0
    whole = output.read_bytes()

    # Killed while it wrote its last line.
    output.write_bytes(whole[:-40])
    result = call(*command, "--resume")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "2 of 3 queries are done already" in result.stderr
    again = read_lines(output.read_text(encoding="utf-8"))
    before = read_lines(whole.decode())
    assert [(record["id"], ranking(record)) for record in again] == [(r["id"], ranking(r)) for r in before]
    assert output.read_bytes().splitlines()[:2] == whole.splitlines()[:2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "queries.jsonl",
        "results.jsonl",
        "results.jsonl.settings.json",
    ]


@pytest.mark.model
def test_a_failed_query_is_exit_code_1_and_redone_on_resume(tmp_path: Path) -> None:
    too_long = {"id": "long", "query": "tide " * 9000, "documents": ["a", "b"]}
    source, output = write_lines(tmp_path / "queries.jsonl", [too_long, QUERIES[0]]), tmp_path / "results.jsonl"
    command = ("rerank", "--input", source, "-o", output, "--on-error", "raise")
    for extra in ((), ("--resume",)):
        result = call(*command, *extra)
        assert result.exit_code == 1
        assert "error: query long: " in result.stderr
        statuses = {record["id"]: record["status"] for record in read_lines(output.read_text(encoding="utf-8"))}
        assert statuses == {"long": "failed", "tides": "ok"}
        assert output.read_bytes().count(b"\n") == 2


@pytest.mark.model
def test_a_table_shows_ranks_steps_and_cost(tmp_path: Path) -> None:
    output = tmp_path / "table.txt"
    arguments = ("rerank", "tides?", "[bold]Moon[/bold]\x1b[2J", "Cats", "--trace", "--think", "2", "--output", "table")
    result = call(*arguments, "--output-file", output)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    table = output.read_text(encoding="utf-8")
    assert "[bold]Moon[/bold][2J" in table  # neither markup nor an order to the terminal
    assert "step 1: of 2, out goes #" in table
    assert "status ok: 1 call, " in table


@pytest.mark.model
def test_a_dry_run_asks_nothing(tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    arguments = ("rerank", "-i", write_lines(tmp_path / "queries.jsonl", QUERIES), "--dry-run")
    result = call(*arguments, "-o", output, "--resume")
    assert result.exit_code == 0, result.stderr
    estimates = read_lines(result.stdout)
    assert [record["estimate"]["calls"] for record in estimates] == [1, 1, 1]
    assert all(record["estimate"]["prompt_computed"] > 20 for record in estimates)
    assert not output.exists()
    recommended = call("rerank", "--dry-run", "Heat", "Alien 3", "--history", "Alien", "--output", "table")
    assert "prompt computed" in recommended.stdout
    assert "Alien  " in recommended.stdout.splitlines()[1]


@pytest.mark.model
def test_the_doctor_runs_the_model() -> None:
    result = call("doctor", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["checks"][-1]["name"] == "engine transformers"
    assert report["checks"][-1]["detail"].startswith("works: ")


@pytest.mark.model
def test_a_pipe_gets_json_in_utf8_and_nothing_else() -> None:
    result = subprocess.run(
        [*COMMAND, "rerank", "-i", "-"],
        input=json.dumps(QUERIES[1]),
        capture_output=True,
        encoding="utf-8",
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    (record,) = read_lines(result.stdout)
    assert record["query"] == "日本語 🌊?"
    assert result.stderr == ""


# What is wrong is said before a model is loaded.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "query: pass a query and documents, or --input FILE"),
        ("tides?", "documents: pass at least one, or --input FILE"),
        (("", "Moon"), "query: is empty"),
        (("tides?", "Moon\udcff"), "documents: '\\udcff' is no character"),
        ("tides? Moon --task cats", "--task: 'cats' is not one of"),
        ("tides? Moon --task recommendation", "--history: is missing"),
        ("Moon --history Sun --task routing", "--history: routing takes none"),
        ("--history Sun", "documents: pass at least one"),
        ("tides? Moon --objective cost", "--objective: is for routing alone"),
        ("tides? Moon --objective speed --task routing", "--objective: 'speed' is not one of"),
        ("tides? Moon --strategy cranker", "--strategy: 'cranker' is not one of iranker, dranker"),
        ("tides? Moon --engine steam", "--engine: 'steam' is not one of transformers"),
        ("tides? Moon --model ./no-such-folder", "--model: './no-such-folder' is no folder"),
        ("tides? Moon --top-k 0", "--top-k: "),
        ("tides? Moon --top-k few", "--top-k: "),
        ("tides? Moon --think -1", "--think: "),
        ("tides? Moon --batch-size 0", "--batch-size: "),
        ("tides? Moon --budget-calls 0", "--budget-calls: "),
        ("tides? Moon --budget-tokens 0", "--budget-tokens: "),
        ("tides? Moon --budget-thinking 0", "--budget-thinking: "),
        ("tides? Moon --budget-seconds 0", "--budget-seconds: 0"),
        ("tides? Moon --score-threshold 1.5", "--score-threshold: 1.5 is no score"),
        ("tides? Moon --score-threshold nan", "--score-threshold: nan is no score"),
        ("tides? Moon --score-threshold 0.5 --strategy dranker", "--score-threshold: dranker's scores"),
        ("tides? Moon --template no-such.yaml", "no-such.yaml: cannot be read"),
        ("tides? Moon --output xml", "--output: 'xml' is not one of"),
        ("tides? Moon --on-error cry", "--on-error: 'cry' is not one of"),
        ("tides? Moon --resume", "--resume: goes on with a file of results"),
        ("tides? Moon --input no-such.jsonl", "query: stands beside --input"),
        ("--history Sun --input no-such.jsonl", "--history: stands beside --input"),
        ("--input no-such.jsonl", "no-such.jsonl: cannot be read: No such file"),
        ("--input .", ".: cannot be read: Is a directory"),
        ("--input no-such.jsonl --objective cost", "--objective: is for routing alone"),
        ("tides? Moon --output-file no-such-folder/out", "--output-file: the folder no-such-folder does not exist"),
        ("tides? Moon --output-file .", "--output-file: . is a folder"),
        ("tides? Moon --colour", "No such option"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: str | tuple[str, ...], message: str) -> None:
    words = arguments.split() if isinstance(arguments, str) else arguments
    assert refused("rerank", *words).startswith(message)


def test_an_unknown_command_is_refused_and_none_prints_the_help() -> None:
    assert "cook" in refused("cook")
    result = call()
    assert result.exit_code == 2
    assert "rerank" in result.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not valid JSON: "),
        ("[" * 100_000, "is not valid JSON: "),
        ("[]", "expected a JSON object, got a list"),
        ('{"documents": []}', "query: is missing"),
        ('{"query": "", "documents": []}', "query: is empty"),
        ('{"query": 7, "documents": []}', "query: expected a str"),
        ('{"query": "a"}', "documents: is missing"),
        ('{"query": "a", "documents": "b"}', "documents: expected a list, got a string"),
        ('{"query": "a", "documents": {"b": 1}}', "documents: expected a list, got an object"),
        ('{"query": "a", "documents": [null]}', "documents[0]: expected a string or an object with text, got null"),
        ('{"query": "a", "documents": ["b", 3]}', "documents[1]: expected a string or an object with text, got the"),
        ('{"query": "a", "documents": [{"id": "b"}]}', "documents[0].text: is missing"),
        ('{"query": "a", "documents": [{"text": 1}]}', "documents[0].text: expected a str"),
        ('{"query": "a", "documents": [{"text": "b", "id": 1}]}', "documents[0].id: expected a str"),
        ('{"query": "a", "documents": [{"text": "b", "price": "1"}]}', "documents[0].price: expected a number"),
        ('{"query": "a", "documents": [{"text": "b", "price": NaN}]}', "documents[0].price: expected"),
        ('{"query": "a", "documents": [{"text": "b", "id": "x"}, {"text": "c", "id": "x"}]}', "documents[1]: id 'x'"),
        ('{"query": "a", "documents": ["\\ud800"]}', "'\\ud800' is no character that UTF-8 can write"),
        ('{"id": 3, "query": "a", "documents": []}', "id: expected a string, got the number 3"),
        ('{"query": "a", "history": ["b"], "documents": []}', "history: stands beside a query"),
        ('{"history": [], "documents": []}', "history: is empty"),
        ('{"history": "b", "documents": []}', "history: expected a list of strings, got a string"),
        ('{"history": ["b", 1], "documents": []}', "history[1]: expected a str"),
        ('{"query": "a", "objective": "cost", "documents": []}', "objective: is for routing alone"),
        ('{"id": "first", "query": "a", "documents": []}', "id 'first' is also that of line 1"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, message: str) -> None:
    source = tmp_path / "queries.jsonl"
    source.write_text('{"id": "first", "query": "a", "documents": []}\n\n' + line + "\n", encoding="utf-8")
    assert refused("rerank", "--input", source).startswith(f"{source}, line 3: {message}")


def test_lines_for_routing(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a", [{"query": "a", "objective": "speed", "documents": []}])
    assert "line 1: objective: 'speed' is not one of" in refused("rerank", "-i", source, "--task", "routing")
    source = write_lines(tmp_path / "b", [{"history": ["a"], "documents": []}])
    assert "line 1: history: routing takes none" in refused("rerank", "-i", source, "--task", "routing")


def test_bytes_that_are_no_text_and_a_line_that_was_cut_off() -> None:
    assert refused("rerank", "-i", "-", stdin=b'{"query": "\xff"}\n').startswith("-, line 1: is not UTF-8")
    assert refused("rerank", "-i", "-", stdin=b'\xef\xbb\xbf{"query": "a", "doc').endswith("it may have been cut off)")


def test_templates_are_read_before_the_model(tmp_path: Path) -> None:
    template = tmp_path / "own.yaml"
    template.write_text(json.dumps(PromptTemplate.builtin("passage").to_dict()), encoding="utf-8")
    twice = refused("rerank", "tides?", "Moon", "--template", template, "--template", template)
    assert twice.endswith("is a second template for passage; pass one for each task")
    template.write_text("task: passage", encoding="utf-8")
    assert refused("rerank", "tides?", "Moon", "--template", template).startswith(f"{template}: lacks the key")


def test_weights_that_cannot_be_had_are_exit_code_1() -> None:
    result = call("rerank", "tides?", "Moon")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("error: ")
    report = call("doctor", "--json")
    assert report.exit_code == 1
    assert json.loads(report.stdout)["checks"][-1]["status"] == "failed"


def test_keys_that_nobody_reads_are_mentioned() -> None:
    line = {"query": "a", "documents": [{"text": "b", "score": 1}, "c"], "lang": "en"}
    result = call("rerank", "-i", "-", stdin=json.dumps(line))
    assert result.stderr.splitlines()[0] == "note: -: not used: lang, documents[].score"


# A file of results belongs to one set of settings.


class Cut:
    """A run that was killed after its first result, made without a model."""

    def __init__(self, folder: Path) -> None:
        self.source, self.output = folder / "queries.jsonl", folder / "results.jsonl"
        self.done = {"id": "tides", "query": "What causes tides?", "status": "ok", "results": []}
        self.command: tuple[str | Path, ...] = ("rerank", "--input", self.source, "-o", self.output)
        write_lines(self.source, [])
        assert call(*self.command, "--top-k", "3").exit_code == 0  # no queries, so no model: it only notes the settings
        write_lines(self.output, [self.done])
        write_lines(self.source, QUERIES[:1])


@pytest.fixture
def cut(tmp_path: Path) -> Cut:
    return Cut(tmp_path)


def test_what_is_done_is_not_done_again(cut: Cut) -> None:
    before = cut.output.read_bytes()
    result = call(*cut.command, "--top-k", "3", "--resume")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "note: 1 of 1 queries are done already\n"
    assert cut.output.read_bytes() == before


def test_a_torn_line_is_taken_away(cut: Cut) -> None:
    before = cut.output.read_bytes()
    for torn in (b'{"id": "fil', json.dumps(cut.done | {"id": "whole"}).encode()):
        cut.output.write_bytes(before + torn)
        assert call(*cut.command, "--top-k", "3", "--resume").exit_code == 0
        assert cut.output.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ("--top-k 2", "top-k was 3, now 2"),
        ("", "top-k was 3, now unset"),
        ("--top-k 3 --model some/model", 'model was "embedded", now "some/model"'),
        ("--top-k 3 --strategy dranker", 'strategy was unset, now "dranker"'),
        ("--top-k 3 --think 8", "think was unset, now 8"),
        ("--top-k 3 --label-seed 0", "label-seed was unset, now 0"),
        ("--top-k 3 --dtype float32", 'dtype was unset, now "float32"'),
        ("--top-k 3 --trace", "trace was false, now true"),
        ("--top-k 3 --budget-calls 1", "budget-calls was unset, now 1"),
        ("--top-k 3 --score-threshold 0.5", "score-threshold was unset, now 0.5"),
        ("--top-k 3 --task routing", 'task was "passage", now "routing"'),
        ("--top-k 3 --template OWN", "template was {}, now {"),
    ],
)
def test_other_settings_are_refused(cut: Cut, tmp_path: Path, options: str, difference: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps(PromptTemplate.builtin("passage").to_dict()), encoding="utf-8")
    before = cut.output.read_bytes()
    message = refused(*cut.command, "--resume", *options.replace("OWN", str(own)).split())
    assert message.startswith("--resume: ")
    assert difference in message
    assert cut.output.read_bytes() == before


def test_results_of_unknown_settings_are_refused(cut: Cut) -> None:
    settings = cut.output.with_name("results.jsonl.settings.json")
    settings.write_text("[")
    assert "missing or damaged" in refused(*cut.command, "--top-k", "3", "--resume")
    settings.unlink()
    assert "missing or damaged" in refused(*cut.command, "--top-k", "3", "--resume")


def test_an_id_that_now_means_another_query_is_refused(cut: Cut) -> None:
    write_lines(cut.source, [{"id": "tides", "query": "What causes storms?", "documents": []}])
    message = refused(*cut.command, "--top-k", "3", "--resume")
    assert "has a result for id 'tides' with another query ('What causes tides?')" in message


def test_a_file_that_holds_something_else_is_left_alone(cut: Cut) -> None:
    assert refused(*cut.command, "--top-k", "3").endswith(
        "is not empty; pass --resume to go on with it, or another file"
    )
    assert refused(*cut.command, "--output", "json").endswith("is not empty; pass another file")
    assert refused(*cut.command, "--output", "json", "--resume").startswith("--resume: ")
    with cut.output.open("a") as file:
        file.write("a diary\n")
    before = cut.output.read_bytes()
    assert f"{cut.output}, line 2: is no result" in refused(*cut.command, "--top-k", "3", "--resume")
    assert cut.output.read_bytes() == before


# The program as a whole.


def test_the_help_loads_no_framework() -> None:
    script = (
        "import sys, r1_rerank.cli; from typer.testing import CliRunner;"
        "[CliRunner().invoke(r1_rerank.cli.app, [*command, '--help']) for command in ([], ['rerank'], ['doctor'])];"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
    assert call("--version").stdout == f"r1-rerank {__version__}\n"


def test_the_doctor_without_a_run_looks_only() -> None:
    result = call("doctor", "--no-run", "--json")
    names = [check["name"] for check in json.loads(result.stdout)["checks"]]
    assert names[:2] == ["python", "r1-rerank"]
    assert {"torch", "transformers", "device", "embedded weights"} <= set(names)
    assert "engine transformers" not in names
    assert "embedded weights" in call("doctor", "--no-run").stdout


def test_the_doctor_counts_what_an_extra_takes_over_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / f"r1_rerank-{__version__}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = [
        *("Metadata-Version: 2.4", "Name: r1-rerank", f"Version: {__version__}"),
        *("Provides-Extra: few", 'Requires-Dist: no-such-distribution; extra == "few"'),
        *("Provides-Extra: more", 'Requires-Dist: r1-rerank[few]; extra == "more"'),
        'Requires-Dist: pytest; extra == "more"',
    ]
    metadata.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = {check["name"]: check for check in json.loads(call("doctor", "--no-run", "--json").stdout)["checks"]}
    assert found["extra few"]["status"] == found["extra more"]["status"] == "missing"
    assert found["extra more"]["detail"] == "no-such-distribution not installed"


def test_no_queries_are_no_results() -> None:
    result = call("rerank", "-i", "-", stdin="\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "note: -: holds no queries\n")
    assert call("rerank", "-i", "-", "--output", "json", stdin="").stdout == "[]\n"


def test_a_terminal_gets_a_table() -> None:
    leader, follower = pty.openpty()
    command = [*COMMAND, "rerank", "-i", os.devnull, "--dry-run"]
    subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, check=True)
    os.close(follower)
    assert "documents" in os.read(leader, 10_000).decode()
    os.close(leader)


def test_errors_leave_the_script_as_a_line_and_a_code() -> None:
    result = subprocess.run([*COMMAND, "rerank", "-i", "-"], input="{", capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: -, line 1: is not valid JSON")
    assert result.stderr.count("\n") == 1


def test_a_reader_that_leaves_is_no_news() -> None:
    command = [*COMMAND, "rerank", "-i", "-", "--output", "json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"note: -: holds no queries\n"
        assert process.wait() == 1


def test_ctrl_c_is_exit_code_130_without_a_word() -> None:
    script = """if True:
        import signal
        from r1_rerank.cli import main

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
        print("ready", flush=True)
        main()
    """
    command = [sys.executable, "-c", script, "rerank", "-i", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(2)  # until it waits for its input
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("base_url", "is not KEY=VALUE"),
        ("=2", "is not KEY=VALUE"),
        ("devise=cpu", "--engine-option devise: TransformersEngine takes no such option"),
        (" dev-ise =cpu", "--engine-option dev_ise: TransformersEngine takes no such option"),
        ("cache_gib=much", "--engine-option cache_gib: "),
        ("dtype=float32", "dtype is there twice"),
        ("cache_gib=[", "the value of cache_gib is no YAML"),
    ],
)
def test_engine_options_are_checked_before_the_model_is_loaded(pair: str, message: str) -> None:
    call_of_it = ("rerank", "q", "a", "b", "--dtype", "float32")
    assert message in refused(*call_of_it, "--engine-option", pair)
    assert message in refused(*call_of_it, f"--engine-option={pair}")


def test_an_engine_that_nobody_knows() -> None:
    assert "transformers, vllm, openai" in refused("rerank", "q", "a", "b", "--engine", "tgi")
