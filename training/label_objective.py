"""Losses on the exact distribution over the live labels: no answer is sampled, every one is weighed.

Answer-only policies choose one label out of a few, so that both the cross-entropy to a target and the expected
reward of a decision can be computed outright. A whole elimination in `append` form is one sequence, and each of its
decisions is learned from in one pass.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..engines.kv_cache import LabelHead
from ..engines.tokenization import ChatTokenizer
from ..engines.transformers import TransformersEngine
from ..errors import InputError, InputTypeError
from ..evaluation.systems import System
from ..prompts import render_answer
from ..rows import Row, TaskName
from ..tasks import TASKS
from .questions import Choice, Questions
from .rewards import Reward
from .rollouts import play
from .trajectories import Decision, Trajectory, sparing, trajectories

if TYPE_CHECKING:
    import torch

_SHARPNESS = 10.0
"""The target of a label loss is the softmax of this times the relevance over its maximum: all but a choice."""
_TOKENS = 1280
"""So many tokens at once keep the cores of a CPU busy; more of them take memory only."""
_MULTIPLE = 32
"""Sequences are padded to a multiple: a CPU prepares its kernels anew for every length."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A ranker whose scores grade every candidate, where a label knows one good one.

    Args:
        system: Scores the candidates of rows.
        weight: Its share of the target, from 0 to 1; the rest is the label's.
        temperature: Scores are divided by it before their softmax: 0.05 suits cosine similarities.
        tasks: What it can judge; other rows are learned from their labels alone.
    """

    system: System
    weight: float = 0.5
    temperature: float = 0.05
    tasks: tuple[TaskName, ...] = TASKS

    def log_odds(self, rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
        """The scores over the temperature, by the id of the row, for rows that it can judge.

        Raises:
            InputError: The system failed on a row.
        """
        judged = [row for row in rows if row.task in self.tasks]
        found: dict[str, tuple[float, ...]] = {}
        for number, outcome in self.system.rank_iter(judged):
            if outcome.scores is None:
                detail = f"{self.system.name} failed on row {judged[number].id!r}: {outcome.error}"
                raise InputError("teacher", detail)
            found[judged[number].id] = tuple(score / self.temperature for score in outcome.scores)
        return found


@dataclass(frozen=True, kw_only=True)
class LaidOut:
    """Some rows as sequences, with the teacher's log-odds of every candidate of each row."""

    sequences: tuple[Trajectory, ...]
    guides: Mapping[str, tuple[float, ...]]


class LabelObjective:
    """The loss of a policy on rows.

    Args:
        questions: Whose card asks; without thinking.
        tokenizer: Of the policy.
        method: `supervised`: cross-entropy of the candidates' distribution (the best one is the least likely to be
            eliminated) to label and teacher. `expected`: minus the expected reward of each decision.
        reward: For `expected`: what each answer would be worth.
        teacher: For `supervised`: grades the candidates.
        direct: Share of the rows that are asked for the whole order in one answer, whatever the card's strategy.
        on_policy: The states are those that the policy itself reaches; else the most relevant candidate stays to
            the end and the others fall at random, the teacher's worst rather.
        temperature: Of the policy that reaches the states.
        sequences: How many go through the model together; None: as many as are worth it.
        seed: Of the states.
    """

    def __init__(
        self,
        questions: Questions,
        tokenizer: ChatTokenizer,
        *,
        method: Literal["supervised", "expected"],
        reward: Reward,
        teacher: Teacher | None = None,
        direct: float = 0.0,
        on_policy: bool = False,
        temperature: float = 1.0,
        sequences: int | None = None,
        seed: int = 0,
    ) -> None:
        self._questions = questions
        self._whole = Questions(questions.card.model_copy(update={"strategy": "dranker", "also": ()}))
        self._direct = direct
        self._tokenizer = tokenizer
        self._method = method
        self._reward = reward
        self._teacher = teacher
        self._on_policy = on_policy
        self._temperature = temperature
        self._sequences = sequences
        self._seed = seed
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._head: LabelHead | None = None

    def lay_out(self, rows: Sequence[Row], policy: TransformersEngine | None = None) -> LaidOut:
        """The sequences to learn from.

        Args:
            rows: At least one.
            policy: The weights that are trained, as an engine; needed on-policy.
        """
        guides = self._teacher.log_odds(rows) if self._teacher else {}
        if self._on_policy:
            if policy is None:
                raise InputTypeError("policy", "on-policy states need the policy as an engine")
            played = play(rows, self._questions, policy, temperature=self._temperature, seed=str(self._seed))
            policy.clear_cache()
            rankings = [one.answered for one in played]
        else:
            rankings = [tuple(self._asked(row).walk(row, self._behaviour(row, guides.get(row.id)))) for row in rows]
        sequences = [found for ranking in rankings for found in trajectories(ranking, self._tokenizer)]
        self._note("tokens", sum(len(found.tokens) for found in sequences) / len(rows))
        return LaidOut(sequences=tuple(sequences), guides=guides)

    def losses(self, model: Any, laid_out: LaidOut) -> Iterator[Any]:
        """The mean loss of the rows in parts, each to be propagated back before the next is computed."""
        decisions = Counter(
            found.row
            for found in laid_out.sequences
            for decision in found.decisions
            if self._teaches(decision, found.row in laid_out.guides)
        )
        for group in _grouped(laid_out.sequences, self._sequences):
            total = None
            for trajectory, scores in zip(group, self._scores(model, group), strict=True):
                for decision, logits in zip(trajectory.decisions, scores, strict=True):
                    loss = self._loss(decision, logits, laid_out.guides.get(trajectory.row))
                    if loss is not None:
                        # Every row weighs the same, however many decisions teach something.
                        share = loss / (len(decisions) * decisions[trajectory.row])
                        total = share if total is None else total + share
            if total is not None:
                yield total

    def metrics(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        self._sums.clear()
        self._counts.clear()
        return means

    def _asked(self, row: Row) -> Questions:
        whole = random.Random(f"{self._seed}/direct/{row.id}").random() < self._direct
        return self._whole if whole else self._questions

    def _behaviour(self, row: Row, guide: Sequence[float] | None) -> Choice:
        return sparing(row, random.Random(f"{self._seed}/{row.id}"), guide)

    def _scores(self, model: Any, group: Sequence[Trajectory]) -> list[list[torch.Tensor]]:
        """Logits of the live labels at each decision, in float32."""
        import torch

        if self._head is None:
            self._head = LabelHead(model, sorted(self._tokenizer.label_ids.values()))
        device = next(model.parameters()).device
        width = -(-max(len(trajectory.tokens) for trajectory in group) // _MULTIPLE) * _MULTIPLE
        # Padding on the right is never looked at by what stands before it.
        tokens = torch.zeros(len(group), width, dtype=torch.long)
        for number, trajectory in enumerate(group):
            tokens[number, : len(trajectory.tokens)] = torch.tensor(trajectory.tokens)
        positions = sorted({decision.position for trajectory in group for decision in trajectory.decisions})
        place = {position: number for number, position in enumerate(positions)}
        with self._head.watch():
            output = model(
                input_ids=tokens.to(device),
                logits_to_keep=torch.tensor(positions, device=device),
                use_cache=False,
            )
        return [
            [
                self._head.logits(self._head.hidden()[number, place[decision.position]], decision.tokens)
                if self._head.exact
                else output.logits[number, place[decision.position], list(decision.tokens)].float()
                for decision in trajectory.decisions
            ]
            for number, trajectory in enumerate(group)
        ]

    def _loss(self, decision: Decision, logits: torch.Tensor, guide: Sequence[float] | None) -> torch.Tensor | None:
        import torch

        # What is eliminated is the worst: the best has the lowest logit.
        goodness = logits if decision.ask == "rank" else -logits
        relevance = torch.tensor(decision.relevance, device=logits.device)
        informed = max(decision.relevance) > min(decision.relevance)
        if decision.ask == "eliminate":
            rewards = torch.tensor(self._rewards(decision), device=logits.device)
            expected = (torch.softmax(logits, 0) * rewards).sum()
            self._note("reward", float(expected.detach()))
            if self._method == "expected":
                return -expected
        if informed:
            best = int(goodness.detach().argmax())
            self._note("accuracy", float(relevance[best] == relevance.max()))
        if not self._teaches(decision, guide is not None):
            return None
        target = torch.softmax(_SHARPNESS * relevance / max(float(relevance.max()), 1e-9), 0)
        if guide is not None:
            assert self._teacher is not None
            graded = torch.softmax(torch.tensor([guide[place] for place in decision.places]).to(target), 0)
            share = self._teacher.weight if informed else 1.0
            target = share * graded + (1.0 - share) * target
        return -(target * torch.log_softmax(goodness, 0)).sum()

    def _teaches(self, decision: Decision, guided: bool) -> bool:
        """Whether a decision has a loss: of a whole order, none has once the labels that are left are alike."""
        rewarded = self._method == "expected" and decision.ask == "eliminate"
        return rewarded or guided or max(decision.relevance) > min(decision.relevance)

    def _rewards(self, decision: Decision) -> list[float]:
        """What each live label would earn, by the reward that judges sampled answers."""
        count = len(decision.labels)
        found = self._reward(
            completions=[render_answer([label]) for label in decision.labels],
            labels=[decision.labels] * count,
            relevance=[decision.relevance] * count,
        )
        return [0.0 if value is None else value for value in found]

    def _note(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + 1


def _grouped(sequences: Sequence[Trajectory], most: int | None) -> Iterator[list[Trajectory]]:
    """Sequences of like length, to go through the model together."""
    group: list[Trajectory] = []
    for trajectory in sorted(sequences, key=lambda found: len(found.tokens)):
        full = len(trajectory.tokens) * (len(group) + 1) > _TOKENS if most is None else len(group) == most
        if group and full:
            yield group
            group = []
        group.append(trajectory)
    if group:
        yield group
