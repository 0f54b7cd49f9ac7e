"""The examples run as they stand, offline, with the embedded weights."""

from __future__ import annotations

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
def test_the_demo_shows_both_rankings_their_steps_and_their_cost():
    ran = subprocess.run([sys.executable, EXAMPLES / "demo.py"], capture_output=True, text=True, check=True)
    first, second = ran.stdout.split("iranker")
    assert "dranker" in first
    assert second.count(" is out") == 23
    for half in (first, second):
        assert all(word in half for word in ("far-side-bulge", "prompt tokens", "generated", "not trained"))
