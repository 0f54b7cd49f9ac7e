"""While a model is trained: what is logged, when it is validated, which weights stay, when it ends, and going on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1_rerank.checkpoint import BaseModelCard, RankerCard
from r1_rerank.documents import Document, RankedDocument, RerankResult, Step, Usage
from r1_rerank.rows import Candidate, Row
from r1_rerank.training.callbacks import LogCallback, ValidationCallback
from r1_rerank.training.curves import curves_of, draw_curves
from r1_rerank.training.data import Mixture, Phase, Source
from r1_rerank.training.label_trainer import train_labels
from r1_rerank.training.logs import RunLog, read_log
from r1_rerank.training.questions import Questions
from r1_rerank.training.recipe import LabelStage, RankerSettings
from r1_rerank.training.validation import Validation, Validator, best_step, expected_reward, in_vain
from r1_rerank.training.weights import save_policy

CARD: RankerCard = RankerSettings(alphabet="ABCDEF").card(BaseModelCard(name="tiny", sha256=None))
STAGE = LabelStage(
    name="toy",
    method="supervised",
    examples=24,
    batch=4,
    micro_batch=4,
    learning_rate=3e-2,
    save_every=2,
    logging_every=1,
    phases=(Phase(candidates=(2, 2)),),
)


def rows(count: int, *, split: str = "train", size: int = 3) -> tuple[Row, ...]:
    """Whatever answers says so."""
    return tuple(
        Row(
            id=f"{split}-{number}",
            task="passage",
            query=f"{split} question {number}",
            candidates=tuple(
                Candidate(id=str(place), text=f"{'yes' if place == number % size else 'no'} {number}{place}")
                for place in range(size)
            ),
            relevance=tuple(float(place == number % size) for place in range(size)),
            split=split,
            source="toy",
        )
        for number in range(count)
    )


class Run:
    """A stage of training with its callbacks, in a folder."""

    def __init__(self, model: Any, tokenizer: Any, folder: Path, *, every: int, patience: int | None = None) -> None:
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        self.log = RunLog(folder / "log.jsonl", "toy")
        held = [Source(name="held", rows=rows(6, split="dev"))]
        self.validator = Validator(held, CARD, limit=6)
        self.validation = ValidationCallback(
            self.validator, tokenizer, folder=folder, log=self.log, every=every, patience=patience
        )

    def train(self, stage: LabelStage = STAGE, *, resume: bool = False, more: tuple[Any, ...] = ()) -> None:
        train_labels(
            self.model,
            self.tokenizer,
            mixture=Mixture([Source(name="toy", rows=rows(40))], count=stage.examples, phases=stage.phases),
            questions=Questions(CARD),
            stage=stage,
            folder=self.folder,
            callbacks=[LogCallback(self.log), self.validation, *more],
            resume=resume,
        )

    def lines(self, name: str) -> dict[int, float]:
        return {line["step"]: line[name] for line in read_log(self.folder / "log.jsonl") if name in line}


@pytest.fixture
def begin(make_model: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Callable[..., Run]:
    def build(folder: str = "stage", **settings: Any) -> Run:
        (tmp_path / folder).mkdir(exist_ok=True)
        return Run(make_model(tokenizer), tokenizer, tmp_path / folder, **settings)

    return build


def test_every_step_and_every_validation_is_in_the_log(begin: Callable[..., Run]) -> None:
    run = begin(every=2)
    run.train()
    assert list(run.lines("loss")) == [1, 2, 3, 4, 5, 6]
    scores = run.lines("eval_mrr")
    assert list(scores) == [0, 2, 4, 6]
    assert all(0 < score <= 1 for score in scores.values())
    low, high = run.lines("eval_reward_low"), run.lines("eval_reward_high")
    assert all(low[step] <= value <= high[step] for step, value in run.lines("eval_reward").items())


def test_a_validation_is_what_the_same_weights_give_at_inference(begin: Callable[..., Run]) -> None:
    run = begin(every=10)
    was = run.model.training
    first = run.validator.check(run.model, run.tokenizer)
    assert run.model.training == was
    assert run.validator.check(run.model, run.tokenizer).metrics() == first.metrics()
    run.train()
    assert run.lines("eval_mrr")[0] == first.metrics()["eval_mrr"]
    last = run.validator.check(run.model, run.tokenizer)
    assert run.lines("eval_mrr")[6] == last.metrics()["eval_mrr"]
    last.write(run.folder / "again")
    assert Validation.read(run.folder / "again").metrics() == last.metrics()


def test_validations_keep_their_sources_in_order(begin: Callable[..., Run], tmp_path: Path) -> None:
    """Whatever the sources are called: two folders may hold a task of one name, which then is named by its path."""
    run = begin(every=1)
    names = ("zebra", "data/apple.jsonl")
    sources = [Source(name=name, rows=rows(3, split=f"dev-{name}")) for name in names]
    validation = Validator(sources, CARD, limit=6).check(run.model, run.tokenizer)
    assert tuple(one.task for one in validation.runs) == names
    validation.write(tmp_path / "records")
    assert Validation.read(tmp_path / "records").together().records == validation.together().records
    assert {f"eval_mrr_{name}" for name in names} <= set(validation.metrics())


def test_the_best_weights_stay(begin: Callable[..., Run], make_model: Callable[..., Any]) -> None:
    run = begin(every=1)
    run.train()
    scores = run.lines("eval_mrr")
    assert run.validation.best == min(step for step, score in scores.items() if score == max(scores.values()))
    kept = run.validation.best_weights
    assert kept is not None
    assert [path.name for path in run.folder.glob("best-*")] == [kept.name]  # others were cleared away
    from transformers import LlamaForCausalLM

    best = LlamaForCausalLM.from_pretrained(kept)
    assert run.validator.check(best, run.tokenizer).metrics()["eval_mrr"] == max(scores.values())


def test_a_training_without_gain_ends_early(begin: Callable[..., Run]) -> None:
    run = begin(every=1, patience=2)
    run.train(STAGE.model_copy(update={"learning_rate": 1e-12, "examples": 400}))
    assert list(run.lines("eval_mrr")) == [0, 1, 2]
    assert run.validation.best == 0
    assert (run.folder / "checkpoint-2").is_dir()  # what it ended with is there


def test_after_a_kill_nothing_is_lost_and_nothing_stands_twice(begin: Callable[..., Run]) -> None:
    """A run that breaks off in step 5, its log being ahead of its last checkpoint."""
    from transformers import TrainerCallback

    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    whole = begin("whole", every=1)
    whole.train()
    broken = begin("broken", every=1)
    with pytest.raises(KeyboardInterrupt):
        broken.train(more=(Break(),))
    assert max(broken.lines("eval_mrr")) == 5
    again = begin("broken", every=1)
    again.train(resume=True)
    for name in ("loss", "eval_mrr", "eval_reward"):
        assert again.lines(name) == pytest.approx(whole.lines(name), rel=1e-4)
    assert again.validation.best == whole.validation.best
    seconds = [line["seconds"] for line in read_log(again.folder / "log.jsonl")]
    assert seconds == sorted(seconds)
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert one.detach().numpy() == pytest.approx(other.detach().numpy(), abs=1e-5)


def test_patience_counts_from_the_best_validation() -> None:
    scores = {0: 0.3, 10: 0.5, 20: 0.5, 30: 0.4}
    assert best_step(scores) == 10  # the first of two
    assert in_vain(scores, 2)
    assert not in_vain(scores, 3)
    assert not in_vain(scores, None)
    assert not in_vain({**scores, 40: 0.6}, 1)


def test_what_reports_elsewhere_hears_of_validations(begin: Callable[..., Run]) -> None:
    """Wandb and its like are callbacks of the trainer."""
    from transformers import TrainerCallback

    heard: list[dict[str, float]] = []

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            heard.append(logs)

    run = begin(every=3)
    run.train(more=(Reporter(),))
    assert [logs["eval_mrr"] for logs in heard if "eval_mrr" in logs] == list(run.lines("eval_mrr").values())
    assert sum("loss" in logs for logs in heard) == 6


def test_the_log_of_a_stage_leaves_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first, second = RunLog(path, "first"), RunLog(path, "second")
    first.open(0)
    first.write(1, {"loss": 0.5})
    second.open(0)
    second.write(1, {"loss": float("nan")})
    second.write(2, {"loss": 0.25})
    with path.open("a") as file:
        file.write('{"stage": "second", "st')  # killed while writing
    again = RunLog(path, "second")
    again.open(1)
    assert [(line["stage"], line["step"], line["loss"]) for line in read_log(path)] == [
        ("first", 1, 0.5),
        ("second", 1, None),
    ]
    again.open(0)
    assert [line["stage"] for line in read_log(path)] == ["first"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def result(probabilities: dict[int, float], *, ask: str = "eliminate") -> RerankResult:
    import math

    step = Step(
        number=1,
        ask=ask,
        shown=tuple(probabilities),
        picked=(0,),
        thinking="",
        answer="",
        logprobs={index: math.log(value) for index, value in probabilities.items()},
        usage=Usage(),
        standing=tuple(probabilities),
    )
    ranking = tuple(
        RankedDocument(rank=place + 1, index=place, score=0.0, document=Document("x")) for place in probabilities
    )
    return RerankResult(query="q", ranking=ranking, steps=(step,))


def test_the_expected_reward_is_the_chance_that_the_relevant_one_stays() -> None:
    (row,) = rows(1)  # its first candidate is relevant
    assert expected_reward(row, result({0: 0.2, 1: 0.5, 2: 0.3})) == pytest.approx(0.8)
    assert expected_reward(row, result({0: 0.2, 1: 0.5, 2: 0.3}, ask="rank")) is None
    assert expected_reward(row, replace(result({0: 1.0}), steps=())) is None


LOG = [
    {"stage": "cold start", "step": 0, "eval_mrr": 0.4, "eval_mrr_low": 0.3, "eval_mrr_high": 0.5},
    {"stage": "cold start", "step": 10, "loss": 1.5, "learning_rate": 0.1},
    {"stage": "cold start", "step": 20, "loss": None},
    {"stage": "RL", "step": 0, "eval_mrr": 0.5, "eval_mrr_low": 0.4, "eval_mrr_high": 0.6},
    {
        **{"stage": "RL", "step": 5, "loss": 0.1, "reward": 0.7, "kl": 0.01, "frac_reward_zero_std": 0.25},
        **{"rewards/elimination_reward/mean": 0.9, "rewards/format_reward/mean": -0.2, "completions/mean_length": 31},
    },
]


def test_curves_go_on_from_stage_to_stage() -> None:
    panels = curves_of(LOG)
    assert [curve.points for curve in panels["loss"]] == [((10, 1.5),), ((25, 0.1),)]
    mrr = panels["MRR on held-out rows"]
    assert [(curve.points, curve.band) for curve in mrr] == [
        (((0, 0.4),), ((0.3, 0.5),)),
        (((20, 0.5),), ((0.4, 0.6),)),
    ]
    assert [curve.name for curve in panels["reward"]] == ["reward", "elimination", "format"]
    assert panels["tokens of an answer"][0].points == ((25, 31.0),)
    assert {"divergence from the start (KL)", "groups whose answers all earn the same"} <= set(panels)
    assert "learning_rate" not in str(panels)


def test_curves_are_a_picture_where_there_is_something_to_draw() -> None:
    picture = draw_curves(LOG)
    assert picture is not None
    assert picture.startswith(b"\x89PNG")
    assert draw_curves([]) is None
    assert draw_curves([{"stage": "a", "step": 1, "learning_rate": 1.0}]) is None


def test_weights_appear_whole_or_not_at_all(begin: Callable[..., Run], tmp_path: Path) -> None:
    model = begin(every=1).model
    folder = tmp_path / "weights"
    (tmp_path / ".weights.part").mkdir()
    (tmp_path / ".weights.part" / "half").write_text("of an earlier, killed run")
    for _ in range(2):
        save_policy(model, folder)
        assert (folder / "config.json").is_file()
        assert not (tmp_path / ".weights.part").exists()
        assert not (folder / "half").exists()
