"""Every block of the README runs as it stands, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]


def test_every_block_is_of_a_kind_that_is_run_here():
    assert {language for language, _ in BLOCKS} == {"python", "text", "bash"}


@pytest.mark.model
def test_python_blocks_run_in_order_and_print_what_stands_below_them(monkeypatch):
    """A text block is the output of the Python block before it."""
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {"__name__": "readme"}
    printed = ""
    compared = 0
    for language, block in BLOCKS:
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, "README.md", "exec"), names)
            printed = out.getvalue()
        elif language == "text":
            # Scores are rounded differently where the processor has no bfloat16; the order of the words is not.
            if names["reranker"].engine.dtype == "bfloat16":
                assert printed == block
            assert len(printed.split()) == len(block.split())
            compared += 1
    assert compared == 3


@pytest.mark.parametrize("command", commands())
def test_commands_run(command, tmp_path):
    """Installing is only tried out, and make only asked what it would do: the tests themselves run under it."""
    words = shlex.split(command)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if words[0] == "pip":
        words = [sys.executable, "-m", *words, "--dry-run", "--no-deps", "--no-build-isolation", "-q"]
    elif words[0] == "make":
        words.insert(1, "--dry-run")
    else:
        assert words[0] == "r1-rerank"
    ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout or words[1] == "-m"


def test_the_costs_are_those_of_the_results_page():
    results = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    assert len(rows) == 4
    measured = re.findall(r"^\| 20 of 60 words \| (.+) \|$", results.split("### On vLLM")[0], re.MULTILINE)
    for name, tokens, ratio, time in rows:
        cells = next(cells for cells in (row.split(" | ") for row in measured) if cells[0] == name.replace("`", ""))
        assert [cells[2], cells[3], cells[7]] == [tokens, ratio, time]


def test_every_link_into_the_repository_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        path, _, heading = link.partition("#")
        assert (ROOT / path).exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [title.lower().replace(" ", "-") for title in titles], link
