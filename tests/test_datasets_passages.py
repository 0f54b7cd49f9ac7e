"""Passage data: files of the public schemas become lists with one answer among passages that are none."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1_rerank.errors import DataError, InputError
from r1_rerank.evaluation.datasets import (
    Dropped,
    JudgedQuery,
    Question,
    graded_lists,
    question_lists,
    read_beir,
    read_insuranceqa,
    read_llmjudge,
    read_msmarco,
    read_qrels,
    read_squad,
    read_trec,
    read_wikiqa,
    rerank_rows,
)

real = pytest.mark.skipif("R1_DATA" not in os.environ, reason="R1_DATA does not name the folder of the real data sets")


def write(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow
    from pyarrow import parquet as writer

    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def positive(row) -> str:
    (place,) = [place for place, value in enumerate(row.relevance) if value > 0]
    return row.candidates[place].text


# From judgments


judgments = st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=1, max_size=40).map(
    lambda grades: JudgedQuery(
        id="q", query="why?", passages=[(f"d{place}", f"text {place}", grade) for place, grade in enumerate(grades)]
    )
)


@given(judged=judgments, k=st.integers(2, 9), seed=st.integers(0, 5))
def test_lists_from_judgments_hold_one_best_passage_and_never_share_one(judged, k, seed):
    grade = {id: value for id, _, value in judged.passages}
    best = max(grade.values())
    rows = list(graded_lists([judged], k, split="test", source="s", seed=seed))
    used = [candidate.id for row in rows for candidate in row.candidates]
    assert len(used) == len(set(used))
    for row in rows:
        assert len(row.candidates) == k
        assert sorted(grade[candidate.id] for candidate in row.candidates) == [0] * (k - 1) + [best]
        assert [grade[c.id] > 0 for c in row.candidates] == [value == 1.0 for value in row.relevance]
    counts = Counter(grade.values())
    assert len(rows) == (min(counts[best], counts[0] // (k - 1)) if best else 0)
    assert rows == list(graded_lists([judged], k, split="test", source="s", seed=seed))


def test_a_query_that_gives_no_list_is_counted():
    dropped = Dropped()
    queries = [
        JudgedQuery(id="a", query="?", passages=[("1", "x", 0)]),
        JudgedQuery(id="b", query="?", passages=[("1", "x", 3), ("2", "y", 0)]),
    ]
    assert not list(graded_lists(queries, 3, split="test", source="s", dropped=dropped))
    assert dropped.counts == {
        "a query without a relevant passage": 1,
        "a query with fewer than 2 passages of grade 0": 1,
    }
    with pytest.raises(InputError, match="k: 1"):
        list(graded_lists(queries, 1, split="test", source="s"))


def test_the_positive_stands_everywhere():
    questions = [
        Question(id=str(n), query="?", positive=("p", "yes"), negatives=[(str(m), f"no {m}") for m in range(4)])
        for n in range(500)
    ]
    places = Counter(row.relevance.index(1.0) for row in question_lists(questions, 5, split="train", source="s"))
    assert set(places) == set(range(5))
    assert max(places.values()) < 150  # 100 expected, 9 the standard deviation


# SQuAD: negatives of the same article without an answer


def squad_rows() -> list[dict]:
    def row(id, title, context, question, *answers):
        starts = [max(0, context.find(answer)) for answer in answers]
        return {"id": id, "title": title, "context": context, "question": question,
                "answers": {"text": list(answers), "answer_start": starts}}  # fmt: skip

    return [
        row("1", "Tea", "Tea is grown in Assam.", "Where is tea grown?", "Assam"),
        row("2", "Tea", "Green tea is not fermented.", "Which tea is not fermented?", "Green tea"),
        row("3", "Tea", "Assam lies in the north-east.", "Where does it lie?", "the north-east"),
        row("4", "Ice", "Ice floats.", "What floats?", "Ice"),
    ]


def test_squad_takes_negatives_from_the_article_and_none_with_an_answer(tmp_path):
    path, dropped = parquet(tmp_path / "squad.parquet", squad_rows()), Dropped()
    rows = list(question_lists(read_squad(path), 2, split="train", source="squad", dropped=dropped))
    listed = {row.query: ({c.text for c in row.candidates}, positive(row)) for row in rows}
    # The third paragraph names Assam, the answer to the first question.
    assert listed["Where is tea grown?"] == (
        {"Tea is grown in Assam.", "Green tea is not fermented."},
        "Tea is grown in Assam.",
    )
    assert len(rows) == 3
    assert dropped.counts == {"fewer than 1 passages that do not answer, of at most 800 characters": 1}


def test_long_passages_are_left_out(tmp_path):
    path, dropped = parquet(tmp_path / "squad.parquet", squad_rows()), Dropped()
    rows = question_lists(read_squad(path), 2, split="train", source="squad", longest=25, dropped=dropped)
    assert [row.query for row in rows] == []
    assert dropped.counts["the passage that answers has more than 25 characters"] == 2


# WikiQA: sentences as they come


def test_wikiqa_keeps_questions_with_one_answer_among_enough_sentences(tmp_path):
    header = "QuestionID\tQuestion\tDocumentID\tDocumentTitle\tSentenceID\tSentence\tLabel"
    line = '{q}\tWho is {q}?\tD\tTitle\t{q}-{n}\tSentence "{n}\tof it.\t{label}'.replace("\tof", " of")
    kept = [line.format(q="Q1", n=n, label=int(n == 0)) for n in range(6)]
    several = [line.format(q="Q2", n=n, label=1) for n in range(6)]
    short = [line.format(q="Q3", n=n, label=int(n == 0)) for n in range(2)]
    path, dropped = write(tmp_path / "wikiqa.tsv", header, *kept, *several, *short), Dropped()
    (row,) = read_wikiqa(path, dropped=dropped)
    assert row.query == "Who is Q1?"
    assert positive(row) == 'Sentence "0 of it.'
    assert dropped.counts == {
        "a question with no or several answers": 1,
        "a question with fewer than 5 sentences": 1,
    }
    write(path, header, "Q1\tWho?\tD\tT\tQ1-0\tcut o")
    with pytest.raises(DataError, match=r"line 2: 6 cells for 7 columns \(truncated"):
        list(read_wikiqa(path))
    write(path, header, "Q1\tWho?\tD\tT\tQ1-0\tText\tmaybe")
    with pytest.raises(DataError, match="line 2: Label: 'maybe'"):
        list(read_wikiqa(path))


# InsuranceQA: its 200 negatives, the best by BM25 first


def insurance(folder: Path, **change: object) -> Path:
    answers = {str(n): {"zh": "", "en": f"Answer  {n} about {'cars' if n % 2 else 'houses'}."} for n in range(40)}
    train = {"7": {"zh": "", "en": "Who  insures cars?", "answers": ["1"], "negatives": [str(n) for n in range(2, 40)]}}
    folder.mkdir(exist_ok=True)
    for name, content in {"answers": answers, "train": train, **change}.items():
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    return folder


def test_insuranceqa_prefers_negatives_that_share_words(tmp_path):
    (question,) = read_insuranceqa(insurance(tmp_path / "i"))
    assert question.query == "Who insures cars?"
    assert question.positive == ("1", "Answer 1 about cars.")
    # 19 of the others speak of cars; 20 are drawn from.
    assert sum("cars" in text for _, text in question.negatives[:20]) == 19
    assert "1" not in {id for id, _ in question.negatives}
    broken = {"7": {"en": "Who?", "answers": ["99"], "negatives": ["2"]}}
    with pytest.raises(DataError, match=r"entry '7': no answer '99'"):
        list(read_insuranceqa(insurance(tmp_path / "j", train=broken)))
    packed = (tmp_path / "i" / "answers.json.gz").read_bytes()
    (tmp_path / "i" / "answers.json.gz").write_bytes(packed[:40])
    with pytest.raises(DataError, match=r"answers\.json\.gz.*truncated"):
        list(read_insuranceqa(tmp_path / "i"))


# MS MARCO v1.1


def marco(id: int, texts: list[str], selected: list[int]) -> dict:
    passages = {"is_selected": selected, "passage_text": texts, "url": ["u"] * len(texts)}
    return {"query_id": id, "query": f"query {id}", "query_type": "x", "answers": ["a"], "passages": passages}


def test_msmarco_keeps_exactly_k_passages_one_of_them_selected(tmp_path):
    rows = [
        marco(1, ["a", "b", "c"], [0, 1, 0]),
        marco(2, ["a", "b"], [1, 0]),
        marco(3, ["a", "b", "c"], [0, 0, 0]),
        marco(4, ["a", "b", "c" * 2599], [0, 1, 0]),
    ]
    parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    dropped = Dropped()
    (row,) = read_msmarco(tmp_path, 3, dropped=dropped)
    assert (row.query, positive(row), len(row.candidates)) == ("query 1", "b", 3)
    assert dropped.counts == {
        "a query with another number of passages than 3": 1,
        "a query with no or several selected passages": 1,
        "passages of more than 2600 characters together": 1,
    }
    with pytest.raises(DataError, match=r"holds no train\*\.parquet"):
        list(read_msmarco(tmp_path, 3, "train"))
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(DataError, match="truncated"):
        list(read_msmarco(tmp_path, 3))


# Judged collections


def beir(folder: Path, qrels: tuple[str, ...] = ("q1\td1\t2", "q1\td2\t0")) -> Path:
    texts = (("d1", "Tea", "Grown in Assam."), ("d2", "", "Ice floats."), ("d3", "", "Never judged."))
    write(folder / "corpus.jsonl", *({"_id": id, "title": title, "text": text} for id, title, text in texts))
    write(folder / "queries.jsonl", {"_id": "q1", "text": "where is tea grown"})
    write(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", *qrels)
    return folder


def test_beir_takes_the_judged_documents_or_those_of_a_run(tmp_path):
    (row,) = read_beir(beir(tmp_path))
    assert [(c.id, c.text) for c in row.candidates] == [("d1", "Tea. Grown in Assam."), ("d2", "Ice floats.")]
    assert row.relevance == (2.0, 0.0)
    run = write(tmp_path / "run.txt", "q1 Q0 d3 1 9.5 bm25", "q1 Q0 d1 2 9.0 bm25", "q1 Q0 d2 3 8.0 bm25")
    (row,) = read_beir(tmp_path, run=run, top=2)
    assert [candidate.id for candidate in row.candidates] == ["d3", "d1"]
    assert row.relevance == (0.0, 2.0)


def test_an_unknown_document_is_refused_or_counted(tmp_path):
    folder = beir(tmp_path, ("q1\td1\t2", "q1\td2\t0", "q1\tlost\t1", "lost\td1\t1"))
    with pytest.raises(DataError, match="document 'lost'"):
        list(read_beir(folder))
    dropped = Dropped()
    assert len(list(read_beir(folder, unknown="drop", dropped=dropped))) == 1
    assert dropped.counts == {
        "an unknown document in the judgments or the run": 1,
        "an unknown query in the judgments or the run": 1,
    }
    with pytest.raises(InputError, match="unknown: 'ignore'"):
        list(read_beir(folder, unknown="ignore"))


def test_a_document_with_the_text_of_another_is_counted(tmp_path):
    folder = beir(tmp_path, ("q1\td1\t2", "q1\td2\t0", "q1\td4\t1"))
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "d4", "title": "", "text": "ice  FLOATS."}) + "\n")
    dropped = Dropped()
    (row,) = read_beir(folder, dropped=dropped)
    assert [candidate.id for candidate in row.candidates] == ["d1", "d2"]
    assert dropped.counts == {"a candidate with the text of an earlier one": 1}


def test_an_id_that_stands_twice_is_named(tmp_path):
    folder = beir(tmp_path)
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "d2", "text": "Something else."}) + "\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 4: the id 'd2' stands twice"):
        list(read_beir(folder))


def test_ids_with_percent_signs_are_taken_as_they_stand(tmp_path):
    folder = beir(tmp_path, ("q1\tMillionaire%3F\t1", "q1\td2\t0"))
    with (folder / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "Millionaire%3F", "title": "", "text": "A quiz."}) + "\n")
    run = write(tmp_path / "run.txt", "q1 Q0 Millionaire%3F 1 9.5 bm25", "q1 Q0 d2 2 8.0 bm25")
    (row,) = read_beir(folder, run=run)
    assert [candidate.id for candidate in row.candidates] == ["Millionaire%3F", "d2"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("q1 0 d1 2", "q1 0 7"), r"line 2: 3 fields, where the lines before have 4 \(truncated"),
        (("q1 0 d1 nan",), "line 1: grade: 'nan' is not a finite number"),
        (("q1 0",), "line 1: 2 fields"),
    ],
)
def test_judgments_that_are_cut_off_or_no_numbers_are_named(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        read_qrels(write(tmp_path / "qrels", *lines))


def test_a_damaged_archive_is_named(tmp_path):
    packed = bytearray(gzip.compress(json.dumps({"a": list(range(500))}).encode()))
    packed[40:60] = bytes(20)
    (tmp_path / "pairs.jsonl.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"pairs\.jsonl\.gz: cannot be read"):
        read_llmjudge(tmp_path / "pairs.jsonl.gz")


def test_novel_eval_files_are_read_as_a_trec_collection(tmp_path):
    corpus = write(tmp_path / "corpus.tsv", "0-0\tA film won.", "0-1\tA match was lost.")
    queries = write(tmp_path / "queries.tsv", "0\twhich film won?")
    qrels = write(tmp_path / "qrels.txt", "0 Q0 0-0 2", "0 Q0 0-1 0")
    (row,) = read_trec(queries, corpus, qrels, source="NovelEval")
    assert (row.query, row.relevance) == ("which film won?", (2.0, 0.0))
    with pytest.raises(DataError, match=r"qrels\.txt, line 2: document '0-0' is judged twice"):
        list(read_trec(queries, corpus, write(qrels, "0 Q0 0-0 2", "0 Q0 0-0 1")))
    with pytest.raises(DataError, match=r"corpus\.tsv, line 1: is not an id, a tab"):
        list(read_trec(queries, write(corpus, "no tab"), write(qrels, "0 Q0 0-0 2")))
    with pytest.raises(DataError, match=r"qrels\.txt: is empty"):
        list(read_trec(queries, write(corpus, "0-0\tA film won."), write(qrels)))


def test_judged_pairs_with_their_texts(tmp_path):
    def pair(document: str, grade: int) -> list:
        judgment = {"query": 7, "titleQuery": "where is tea grown", "relevance": grade}
        return [
            7,
            [{"paragraph_id": document, "text": f"text of {document}", "paragraph_data": {"judgments": [judgment]}}],
        ]

    path = tmp_path / "pairs.jsonl.gz"
    lines = [json.dumps(pair(f"d{n}", grade)) for n, grade in enumerate([3, 0, 0, 1])]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    (judged,) = read_llmjudge(path, qrels=write(tmp_path / "qrels", "7 0 d0 3", "7 0 d1 0", "7 0 d2 0", "7 0 d3 1"))
    assert judged.query == "where is tea grown"
    run = write(
        tmp_path / "run", *(f"7 Q0 {name} {n} {9 - n} t" for n, name in enumerate(["d2", "new", "d3", "d0"], 1))
    )
    (row,) = rerank_rows([judged], run, top=3)
    assert [(c.id, value) for c, value in zip(row.candidates, row.relevance, strict=True)] == [
        ("d2", 0.0),
        ("d3", 1.0),
        ("d0", 3.0),
    ]
    with pytest.raises(DataError, match="query '7' is judged otherwise"):
        read_llmjudge(path, qrels=write(tmp_path / "qrels", "7 0 d0 2"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated"):
        read_llmjudge(path)


# The real files


@real
def test_the_real_squad_gives_the_known_counts():
    questions = list(read_squad(Path(os.environ["R1_DATA"]) / "passage_squad" / "SQUAD.parquet"))
    for k, count in ((5, 6629), (7, 6595), (9, 6546)):
        assert sum(1 for _ in question_lists(questions, k, split="train", source="squad")) == count


@real
def test_the_real_judgments_give_the_known_counts():
    folder = Path(os.environ["R1_DATA"]) / "passage_trecdl20"
    judged = read_llmjudge(folder / "4_prompts_dl2020.jsonl.gz", qrels=folder / "2020qrels-pass.txt")
    assert (len(judged), sum(len(query.passages) for query in judged)) == (54, 11386)
    for k, count in ((5, 633), (7, 525), (9, 444)):
        rows = list(graded_lists(judged, k, split="test", source="dl20"))
        assert (len(rows), len({row.query for row in rows})) == (count, 54)
    assert sum(1 for _ in rerank_rows(judged, folder / "run_BM25_dl20_top100.txt")) == 53


@real
def test_the_real_wikiqa_gives_the_known_counts():
    assert sum(1 for _ in read_wikiqa(Path(os.environ["R1_DATA"]) / "passage_wikiqa" / "WikiQA-test-gold.tsv")) == 160
