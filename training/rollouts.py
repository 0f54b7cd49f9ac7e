"""Rollouts for GRPO: every group answers one state, which the policy may have played to itself.

TRL calls a `rollout_func` with the prompts of a generation batch, in which each stands once for every member of its
group, and takes back the tokens of prompts and answers, and fields for the rewards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..engines.base import GenerationRequest
from ..engines.transformers import TransformersEngine
from ..errors import InputError
from ..parsing import parse
from ..rows import Row
from .prompting import Prompts
from .questions import Question, Questions


class Rollouts:
    """TRL's `rollout_func`: finds the state of each group, and has the policy answer it.

    An answer without thinking is one label, drawn from the policy's distribution over the live ones. Its logarithm
    under the whole vocabulary, of which TRL takes the gradient, differs by what all labels have together; that is
    the same for all members of a group, whose advantages add up to 0, so that the gradient is the right one.

    Args:
        mixture: The rows.
        numbers: Prompt of each row's first question -> its place in the mixture.
        prompts: Writes questions out.
        on_policy: The states are those that the policy plays to; else the rows' first questions.
        temperature: Of the answers, and of those that lead to a state.
        top_p: Answers are drawn from the likeliest labels that have this probability together.
        seed: Decides, with row and step, how far a list is played, and on every draw of a label.
    """

    __name__ = "rollouts"

    def __init__(
        self,
        mixture: Sequence[Row],
        numbers: Mapping[str, int],
        prompts: Prompts,
        *,
        on_policy: bool,
        temperature: float,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._mixture = mixture
        self._numbers = numbers
        self._prompts = prompts
        self._on_policy = on_policy
        self._temperature = temperature
        self._top_p = top_p
        self._seed = seed

    def __call__(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Answers the prompts of a generation batch."""
        group = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        if any(prompts[number] != prompts[number - number % group] for number in range(len(prompts))):
            raise InputError("batch", "a group is spread over processes: let each process have whole groups")
        rows = [self._mixture[self._numbers[prompt]] for prompt in prompts[::group]]
        thinking = self._prompts.questions.thinking
        answers: list[list[str]] = []
        with policy_engine(trainer) as engine:
            states = self._states(rows, trainer.state.global_step, engine)
            if not thinking:
                answers = self._draw(states, group, trainer.state.global_step, engine)
        members = [question for question in states for _ in range(group)]
        columns = [self._prompts.columns(question) for question in members]
        tokens = [self._prompts.chat.encode(column["prompt"]) for column in columns]
        if thinking:
            # TRL's own generation: transformers, or vLLM where that is on.
            completions, logprobs = trainer._generate_single_turn(tokens, None, {}, group)
            written = {"completion_ids": completions, "logprobs": logprobs}
        else:
            written = self._written([label for drawn in answers for label in drawn])
        fields = {name: [column[name] for column in columns] for name in ("labels", "relevance", "ask", "prefill")}
        return {"prompt_ids": tokens, **written, **fields}

    def _states(self, rows: Sequence[Row], step: int, engine: TransformersEngine) -> list[Question]:
        questions = self._prompts.questions
        if not self._on_policy:
            return [questions.first(row) for row in rows]
        depths = [depth_of(row, step, drop=questions.card.drop, seed=self._seed) for row in rows]
        played = play(
            rows, questions, engine, temperature=self._temperature, seed=f"{self._seed}/{step}", depths=depths
        )
        return [one.state for one in played]

    def _draw(self, states: Sequence[Question], group: int, step: int, engine: TransformersEngine) -> list[list[str]]:
        """As many labels as the group has members, for each state."""
        requests = [GenerationRequest(messages=state.messages, labels=state.labels) for state in states]
        drawn = []
        for state, completion in zip(states, engine.generate(requests), strict=True):
            if completion.error is not None:
                raise completion.error
            weights = nucleus(completion.label_logprobs or {}, temperature=self._temperature, top_p=self._top_p)
            rng = random.Random(f"{self._seed}/{step}/{state.row}/answers")
            drawn.append(rng.choices(list(weights), list(weights.values()), k=group))
        return drawn

    def _written(self, labels: Sequence[str]) -> dict[str, Any]:
        """Answers as tokens: the policy chose the label, what closes the answer is given."""
        closed = [self._prompts.answer(label) for label in labels]
        return {
            "completion_ids": closed,
            "env_mask": [[1] + [0] * (len(tokens) - 1) for tokens in closed],
            "logprobs": None,
        }


def depth_of(row: Row, step: int, *, drop: int = 1, seed: int = 0) -> int:
    """How many answers lead to the state that a row's group answers in a step; the same in every process.

    Args:
        row: With at least two candidates.
        step: Of the training.
        drop: Candidates that fall with each answer.
        seed: Another seed, another depth.
    """
    questions = -(-(len(row.candidates) - 1) // drop)
    return random.Random(f"{seed}/{step}/{row.id}/depth").randrange(questions)


@dataclass(frozen=True, kw_only=True)
class Played:
    """How far a row was ranked.

    Args:
        answered: The questions with their answers, in order.
        state: The last question that was reached and in which not all candidates are alike.
    """

    answered: tuple[tuple[Question, tuple[str, ...]], ...]
    state: Question


def play(
    rows: Sequence[Row],
    questions: Questions,
    engine: TransformersEngine,
    *,
    temperature: float,
    seed: str,
    depths: Sequence[int] | None = None,
) -> list[Played]:
    """Lets the policy rank rows; all are played together, a step at a time.

    A state in which all candidates are alike teaches nothing: there a row ends, as the policy has lost what it should
    have kept.

    Args:
        rows: What is ranked.
        questions: Whose card asks.
        engine: The policy.
        temperature: Of its answers.
        seed: Of its answers.
        depths: How many answers each row gets at most; None: all.
    """
    interviews = [questions.run(row) for row in rows]
    states = [next(interview) for interview in interviews]
    answered: list[list[tuple[Question, tuple[str, ...]]]] = [[] for _ in rows]
    budget = questions.card.thinking.budget if questions.thinking else 0
    going = [number for number in range(len(rows)) if depths is None or depths[number] > 0]
    while going:
        requests = [
            GenerationRequest(
                messages=states[number].messages,
                labels=states[number].labels,
                pick=states[number].pick,
                thinking_budget=budget,
                temperature=temperature,
                seed=random.Random(f"{seed}/{rows[number].id}/{len(answered[number])}").getrandbits(31),
                session=str(number),
            )
            for number in going
        ]
        left = []
        for number, completion in zip(going, engine.generate(requests), strict=True):
            if completion.error is not None:
                raise completion.error
            state = states[number]
            answer = parse(completion.text, state.labels, state.pick).labels
            answered[number].append((state, answer))
            try:
                found = interviews[number].send(answer)
            except StopIteration:
                continue
            if min(found.relevance) < max(found.relevance):
                states[number] = found
                if depths is None or len(answered[number]) < depths[number]:
                    left.append(number)
        going = left
    return [Played(answered=tuple(pairs), state=state) for pairs, state in zip(answered, states, strict=True)]


def nucleus(logprobs: Mapping[str, float], *, temperature: float, top_p: float) -> dict[str, float]:
    """Probabilities at a temperature, of the likeliest that have `top_p` together.

    >>> nucleus({"A": -1.0, "B": -1.0, "C": -9.0}, temperature=1.0, top_p=0.9)
    {'A': 0.5, 'B': 0.5}
    """
    top = max(logprobs.values())
    raw = {label: math.exp((value - top) / temperature) for label, value in logprobs.items()}
    total, kept, mass = sum(raw.values()), dict[str, float](), 0.0
    for label in sorted(raw, key=lambda label: -raw[label]):
        if top_p < 1 and mass >= top_p * total:
            break
        kept[label] = raw[label]
        mass += raw[label]
    return {label: kept[label] / mass for label in logprobs if label in kept}


@contextmanager
def policy_engine(trainer: Any) -> Iterator[TransformersEngine]:
    """The weights that are trained as an engine, whole and without dropout meanwhile."""
    from trl.models import unwrap_model_for_generation

    training = trainer.model.training
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model:
        engine = TransformersEngine(model, trainer.processing_class)
        try:
            yield engine
        finally:
            engine.close()
            trainer.model.train(training)
