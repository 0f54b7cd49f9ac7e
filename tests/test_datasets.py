"""Readers of public data: small files of the same shape, and the real ones where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from r1_rerank.errors import DataError, InputError
from r1_rerank.evaluation.datasets import Dropped, read_llmrouter

PROFILES = {
    "small": {"feature": "Small and cheap.", "output_price": 0.1},
    "large": {"feature": "Large and dear.", "output_price": 0.9},
}
TRAIN = [{"question": "Known?", "scores": {"small": 0.0, "large": 1.0}}]
TEST = [
    {"question": "Only the large one can?", "scores": {"large": 1.0, "small": 0.0}},
    {"question": "Both a little?", "scores": {"small": 0.5, "large": 0.6}},
    {"question": "Nobody can?", "scores": {"small": 0.0, "large": 0.0}},
    {"question": " known? ", "scores": {"small": 0.0, "large": 1.0}},
    {"question": "Not measured?", "scores": {"small": float("nan"), "large": 1.0}},
]


def write(folder: Path, **files: object) -> Path:
    for name, content in ({"default_llm": PROFILES, "train": TRAIN, "test": TEST} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def best(row) -> str:
    return row.candidates[row.relevance.index(1.0)].id


def test_the_best_llm_follows_from_effect_and_price(tmp_path):
    dropped = Dropped()
    rows = list(read_llmrouter(write(tmp_path), "test", "performance", dropped=dropped))
    assert [best(row) for row in rows] == ["large", "large"]
    assert dropped.counts == {
        "all LLMs do equally well": 1,
        "the question stands in train": 1,
        "an effect is not a number": 1,
    }
    # The second: 0.5 * 0.6 - 0.5 = -0.2 for the large one, 0.5 * 0.5 - 0.5 / 9 = 0.19 for the small one.
    assert [best(row) for row in read_llmrouter(tmp_path, "test", "balance")] == ["large", "small"]
    assert rows[0].effects == (0.0, 1.0)
    assert rows[0].prices == pytest.approx((1 / 9, 1.0))
    assert rows[0].candidates[0].text == "Small and cheap."


def test_equal_rewards_go_to_the_cheaper_llm(tmp_path):
    profiles = PROFILES | {"other": {"feature": "As good.", "output_price": 0.5}}
    tied = [{"question": "Two can?", "scores": {"large": 1.0, "other": 1.0, "small": 0.0}}]
    rows = list(read_llmrouter(write(tmp_path, default_llm=profiles, test=tied), "test", "performance"))
    assert [best(row) for row in rows] == ["other"]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"test": {"not": "a list"}}, r"test\.json"),
        ({"test": [{"question": "no scores"}]}, "row 0"),
        ({"test": [{"question": "no scores by name", "scores": [1.0]}]}, "row 0"),
        ({"default_llm": {"small": {"output_price": 0.1}, "large": PROFILES["large"]}}, "'small' has no feature"),
        ({"default_llm": {"small": {"feature": "x"}, "large": PROFILES["large"]}}, "small, output_price: None is not"),
        ({"test": [{"question": "Q", "scores": {"stranger": 1.0, "small": 0.0}}]}, "stranger"),
    ],
)
def test_files_of_another_shape_are_named(tmp_path, files, named):
    with pytest.raises(DataError, match=named):
        list(read_llmrouter(write(tmp_path, **files)))


def test_missing_and_truncated_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"default_llm\.json"):
        list(read_llmrouter(tmp_path))
    write(tmp_path)
    (tmp_path / "test.json").write_text('[{"question": "cut', encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.json.*truncated"):
        list(read_llmrouter(tmp_path))
    with pytest.raises(InputError, match="split"):
        list(read_llmrouter(tmp_path, "dev"))


@pytest.mark.skipif("R1_DATA" not in os.environ, reason="R1_DATA does not name the folder of the real data sets")
def test_the_real_files_give_the_known_counts():
    folder = Path(os.environ["R1_DATA"]) / "router_llmrouter"
    assert sum(1 for _ in read_llmrouter(folder, "test")) == 284
    assert sum(1 for _ in read_llmrouter(folder, "train")) == 4386
