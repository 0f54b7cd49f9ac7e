"""How good a model is on held-out rows, while it is trained: ranked as at inference, with the weights as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint import RankerCard
from ..documents import RerankResult
from ..engines.transformers import TransformersEngine
from ..evaluation.evaluator import RerankingEvaluator
from ..evaluation.records import EvaluationRun, Record, load_run
from ..evaluation.systems import Outcome, Settings, documents_of, outcome_of, task_of
from ..prompts import render_answer
from ..reranker import R1Reranker
from ..rows import Row
from ..strategies import ALPHABET
from .holding import even_share
from .precision import computes_bfloat16
from .rewards import elimination_reward
from .sources import Source

REWARD = "reward"
"""Metric of a validation: the expected reward of the first elimination; only where the engine tells probabilities."""
_NAMES = "sources.json"


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What came of it.

    Args:
        runs: By source.
    """

    runs: tuple[EvaluationRun, ...]

    def metrics(self) -> dict[str, float]:
        """Figures for logs: MRR and expected reward with their intervals, and the MRR of each source."""
        together, found = self.together(), dict[str, float]()
        for metric in ("mrr", REWARD):
            if metric in together.metrics:
                interval = together.interval(metric)
                values = {"": interval.mean, "_low": interval.low, "_high": interval.high}
                found |= {f"eval_{metric}{bound}": value for bound, value in values.items()}
        if len(self.runs) > 1:
            found |= {f"eval_mrr_{run.task}": run.interval("mrr").mean for run in self.runs}
        return found

    def together(self) -> EvaluationRun:
        """All rows as one run."""
        records = [_named(record, run.task) for run in self.runs for record in run.records]
        return EvaluationRun(task="validation", system=self.runs[0].system, records=tuple(records))

    def write(self, folder: Path) -> None:
        """Writes the records of each source into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, run in enumerate(self.runs):
            run.write(folder / f"{number}.jsonl")
        # The names of sources are not always those of files.
        (folder / _NAMES).write_text(json.dumps([run.task for run in self.runs]) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Validation:
        """Reads what was written."""
        names = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
        runs = [replace(load_run(folder / f"{number}.jsonl"), task=name) for number, name in enumerate(names)]
        return cls(runs=tuple(replace(run, system=_Policy.name) for run in runs))


def best_step(scores: Mapping[int, float]) -> int:
    """Step of the best validation, the first of several; `scores` has the MRR by step."""
    return max(scores, key=lambda step: (scores[step], -step))


def in_vain(scores: Mapping[int, float], patience: int | None) -> bool:
    """Whether so many validations since the best one brought nothing that a stage ends."""
    return patience is not None and sum(step > best_step(scores) for step in scores) >= patience


class Validator:
    """Ranks held-out rows.

    Args:
        sources: Of the rows.
        card: How the model is asked.
        limit: How many rows, shared by the sources.
        seed: Decides which.
        mixed: Compute in bfloat16, as training does.
    """

    def __init__(
        self, sources: Sequence[Source], card: RankerCard, *, limit: int, seed: int = 0, mixed: bool = False
    ) -> None:
        each = even_share([len(source.rows) for source in sources], limit)
        self._evaluators = {
            source.name: RerankingEvaluator(
                source.rows, name=source.name, metrics=("mrr", "ndcg@10"), limit=each, seed=seed
            )
            for source in sources
        }
        self._card = card
        self._mixed = mixed

    def evaluators(self) -> tuple[RerankingEvaluator, ...]:
        """One for each source; they also measure what stands beside a model."""
        return tuple(self._evaluators.values())

    def check(self, model: Any, tokenizer: Any) -> Validation:
        """Ranks with a model in training, which is left as it was."""
        with policy_reranker(model, tokenizer, self._card, mixed=self._mixed) as reranker:
            return self(reranker)

    def __call__(self, reranker: R1Reranker) -> Validation:
        """Ranks with a reranker."""
        runs = []
        for evaluator in self._evaluators.values():
            system = _Policy(reranker)
            run = evaluator(system)
            records = [_with_reward(record, system.rewards.get(record.row)) for record in run.records]
            runs.append(replace(run, records=tuple(records)))
        return Validation(runs=tuple(runs))


@contextmanager
def policy_reranker(model: Any, tokenizer: Any, card: RankerCard, *, mixed: bool) -> Iterator[R1Reranker]:
    """A model in training as a reranker that is asked by a card; the model is left as it was.

    Args:
        model: On its device.
        tokenizer: Its tokenizer.
        card: How the model is asked.
        mixed: Compute in bfloat16, as training does.
    """
    was_training = model.training
    try:
        with _computing(model, mixed):
            yield R1Reranker(TransformersEngine(model, tokenizer, cache_gib=1.0), **_as_asked(card))
    finally:
        model.train(was_training)


class _Policy:
    """A reranker as a system that also tells what its first eliminations are worth."""

    name = "policy"

    def __init__(self, reranker: R1Reranker) -> None:
        self._reranker = reranker
        self.rewards: dict[str, float] = {}

    def settings(self) -> Settings:
        return {}

    def rank_iter(self, rows: Sequence[Row]) -> Iterator[tuple[int, Outcome]]:
        tasks, documents = [task_of(row) for row in rows], [documents_of(row) for row in rows]
        for number, result in self._reranker.rerank_iter(tasks, documents):
            if result.error is not None:
                raise result.error
            expected = expected_reward(rows[number], result)
            if expected is not None:
                self.rewards[rows[number].id] = expected
            yield number, outcome_of(result, len(documents[number]))


def expected_reward(row: Row, result: RerankResult) -> float | None:
    """What the first elimination of a ranking is worth on average, were it drawn by its probabilities.

    None where nothing is eliminated or no probabilities are known.
    """
    first = result.steps[0] if result.steps else None
    if first is None or first.ask != "eliminate" or first.logprobs is None:
        return None
    labels = ALPHABET[: len(first.shown)]  # any will do
    worth = elimination_reward(
        completions=[render_answer([label]) for label in labels],
        labels=[labels] * len(labels),
        relevance=[[row.relevance[index] for index in first.shown]] * len(labels),
    )
    return sum(
        math.exp(first.logprobs[index]) * (value or 0.0) for index, value in zip(first.shown, worth, strict=True)
    )


def _as_asked(card: RankerCard) -> dict[str, Any]:
    return {
        "strategy": card.ranking_strategy(),
        "thinking": card.thinking.budget,
        "templates": card.prompt_templates(),
        "alphabet": card.labels.alphabet,
        "on_error": "raise",
    }


@contextmanager
def _computing(model: Any, mixed: bool) -> Iterator[None]:
    if not mixed:
        yield
        return
    import torch

    device = next(model.parameters()).device
    # As in training: only where the device does not have to emulate it.
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_bfloat16(device)):
        yield


def _named(record: Record, task: str) -> Record:
    return replace(record, id=f"{task}/{record.id}", row=f"{task}/{record.row}")


def _with_reward(record: Record, reward: float | None) -> Record:
    return record if reward is None else replace(record, metrics={**record.metrics, REWARD: reward})
