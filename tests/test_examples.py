"""The examples run as they stand, offline, with the embedded weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# Run by the tests of their adapters.
ELSEWHERE = {
    "haystack_pipeline.py",
    "langchain_compression.py",
    "llama_index_query_engine.py",
    "retrieve_and_rerank.py",
    "route_endpoints.py",
}


def test_every_example_is_run_somewhere():
    assert {path.name for path in EXAMPLES.glob("*.py")} == ELSEWHERE | {"demo.py"}
    tests = "".join(path.read_text(encoding="utf-8") for path in (EXAMPLES.parent / "tests").rglob("test_*.py"))
    assert all(name in tests for name in ELSEWHERE)


@pytest.mark.model
def test_the_demo_ranks_and_shows_its_steps_and_their_cost():
    ran = subprocess.run([sys.executable, EXAMPLES / "demo.py"], capture_output=True, text=True, check=True)
    steps, ranking = ran.stdout.split("rank", 1)
    assert steps.count(" is out (") == 23
    assert all(word in ranking for word in ("far-side-bulge", "prompt tokens", "generated", "status ok"))
    # What is not about tides does not come out on top.
    head = "".join(line for line in ranking.splitlines() if re.match(r"│ [1-8] ", line))
    assert not any(name in head for name in ("tsunami", "leman-seiche", "rip-currents", "limpets-barnacles"))
