"""Routing: for each query, the LLM of a pool that serves it best under an objective and within hard limits.

from r1_rerank import R1Reranker
from r1_rerank.integrations.router import R1Router, load_pool

router = R1Router(load_pool("pool.yaml"), R1Reranker.from_pretrained(), objective="balance", max_price=5.0)
decision = router.route("Prove that the square root of 2 is irrational.")
decision.profile.name, decision.expected_price
"""

from __future__ import annotations

import copy
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypedDict, Unpack

from ..budget import shorten
from ..documents import Document, Fault, RerankResult
from ..engines.base import context_tokens
from ..errors import InputError, InputTypeError
from ..fitting import count_text
from ..reranker import R1Reranker
from ..rows import Objective
from ..tasks import OBJECTIVE_WEIGHTS, Routing, Weights
from .routing_calibration import Calibration, calibrate
from .routing_decision import RankedLLM, RoutingDecision, nearest_objective
from .routing_log import DecisionLog, read_log
from .routing_pool import Limits, LLMProfile, NoEligibleLLMError, as_pool, as_tags, load_pool, require_tokens

__all__ = [
    "Calibration",
    "LLMProfile",
    "NoEligibleLLMError",
    "R1Router",
    "RankedLLM",
    "RoutingDecision",
    "Terms",
    "load_pool",
    "read_log",
]


class Terms(TypedDict, total=False):
    """What a call may settle in place of its router; None, or left out: as the router has it.

    Args:
        objective: See `R1Router`, as the others.
        max_price: See `R1Router`.
        min_context: See `R1Router`.
        required_tags: See `R1Router`; `()` requires none.
    """

    objective: Objective | None
    max_price: float | None
    min_context: int | None
    required_tags: Iterable[str] | None


class R1Router:
    """Sends each query to the LLM of a pool that serves it best.

    Safe to share between threads; a copy shares the model. Limits rule LLMs out before the model is asked, and where
    one LLM is left it is not asked at all. The order of the pool stands where the model fails, so put the LLM that
    you would take without a router first.

    Args:
        pool: The LLMs, each of its own name.
        reranker: Ranks them. Its `on_error` and budget hold here too.
        objective: What to judge by: `performance`, `balance` or `cost`.
        weights: (a, b) of your own reward a * effect - b * cost, in place of `objective`. They decide what counts as
            a good outcome in the log; the model reads the objective whose share of cost, b / (a + b), is nearest.
        max_price: Highest price, in US dollars per million tokens (mean of input and output).
        min_context: Least context length in tokens.
        required_tags: Tags that an LLM must all have.
        max_query_tokens: Of a longer query the model reads beginning and end, and the result has the fault `query_cut`:
            prompts with whole documents in them would leave no room for the pool. At most, and for None: half the
            model's context.
        log: File to which decisions and outcomes are appended as JSON Lines.

    Raises:
        InputError: An argument that cannot be used.
    """

    def __init__(
        self,
        pool: Iterable[LLMProfile],
        reranker: R1Reranker,
        *,
        objective: Objective = "performance",
        weights: Weights | None = None,
        max_price: float | None = None,
        min_context: int | None = None,
        required_tags: Iterable[str] = (),
        max_query_tokens: int | None = 1024,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(reranker, R1Reranker):
            raise InputTypeError("reranker", f"expected an R1Reranker, got {type(reranker).__name__}")
        self.pool = as_pool(pool)
        self.reranker = reranker
        self.objective = Routing("?", objective).objective if weights is None else nearest_objective(weights)
        self.weights = OBJECTIVE_WEIGHTS[self.objective] if weights is None else (float(weights[0]), float(weights[1]))
        self.limits = Limits(
            max_price=max_price, min_context=min_context, required_tags=as_tags("required_tags", required_tags)
        )
        require_tokens("max_query_tokens", max_query_tokens)
        context = context_tokens(reranker.engine) or sys.maxsize
        self._max_query_tokens = min(max_query_tokens or context, context // 2)
        self._log = None if log is None else DecisionLog(log)

    def __deepcopy__(self, memo: dict[int, Any]) -> R1Router:
        return self  # nothing here changes, and the model is loaded once

    def route(self, query: str | Routing, **terms: Unpack[Terms]) -> RoutingDecision:
        """Chooses the LLM for a query.

        Args:
            query: What is to be answered. A `Routing` brings its own objective.
            terms: Of this call, see `Terms`.

        Raises:
            NoEligibleLLMError: The limits leave no LLM.
            InputError: An argument that cannot be used.
            EngineError: The engine failed, under `on_error="raise"`.
        """
        (question,) = self._questions({"query": query}, **terms)
        return self._decide(question, self.reranker.rerank(question.task, question.documents))

    async def aroute(self, query: str | Routing, **terms: Unpack[Terms]) -> RoutingDecision:
        """Chooses the LLM for a query, on any event loop; see `route`."""
        (question,) = self._questions({"query": query}, **terms)
        return self._decide(question, await self.reranker.arerank(question.task, question.documents))

    def route_batch(self, queries: Sequence[str | Routing], **terms: Unpack[Terms]) -> list[RoutingDecision]:
        """Chooses the LLMs for many queries, which share the cache of the pool; see `route`.

        Returns:
            One decision for each query, in order. Under `on_error="raise"` one whose engine failed has no ranking.
        """
        decisions = dict(self.route_iter(queries, **terms))
        return [decisions[number] for number in range(len(decisions))]

    def route_iter(
        self, queries: Sequence[str | Routing], **terms: Unpack[Terms]
    ) -> Iterator[tuple[int, RoutingDecision]]:
        """Like `route_batch`, but gives each decision, with the number of its query, as soon as it is known."""
        if isinstance(queries, str) or not isinstance(queries, Sequence):
            raise InputTypeError("queries", f"expected a list, got {type(queries).__name__}; use route for one query")
        questions = self._questions({f"queries[{number}]": query for number, query in enumerate(queries)}, **terms)
        results = self.reranker.rerank_iter(
            [question.task for question in questions], [question.documents for question in questions]
        )
        return ((number, self._decide(questions[number], result)) for number, result in results)

    def record_outcome(self, decision_id: str, effect: float, cost: float, *, llm: str | None = None) -> None:
        """Appends to the log how a decision turned out, any time later, also from another process.

        Args:
            decision_id: Of the decision.
            effect: Quality of the answer; 0 is useless, 1 is perfect.
            cost: Price of the answer, 0 or more, in a unit of which 1 weighs as much as a perfect answer.
            llm: The LLM that answered, where it was not the winner.

        Raises:
            InputError: The router has no log, or an argument cannot be used.
        """
        if self._log is None:
            raise InputError("log", "this router keeps none; pass R1Router(..., log=path)")
        if llm is not None and llm not in {profile.name for profile in self.pool}:
            raise InputError("llm", f"{llm!r} is not in the pool")
        self._log.outcome(decision_id, effect, cost, llm)

    def calibrate(
        self,
        queries: Sequence[str],
        target_spend: float,
        *,
        tokens_per_call: tuple[float, float] | None = None,
        price_per_call: Mapping[str, float] | None = None,
        max_prices: Sequence[float] | None = None,
        objectives: Sequence[Objective] | None = None,
    ) -> Calibration:
        """Finds the setting that spends most within a target, by routing a sample under each. Nothing is logged.

        Args:
            queries: A sample of the traffic.
            target_spend: US dollars per thousand queries.
            tokens_per_call: Mean (input, output) tokens of a call; with the profiles' prices they give its cost.
            price_per_call: In place of that: US dollars per call of each LLM, by name.
            max_prices: Price ceilings to try; None: the price of each LLM within the router's limits.
            objectives: Objectives to try; None: the router's own.

        Raises:
            InputError: An argument that cannot be used, or an LLM whose cost is unknown.
        """
        silent = copy.copy(self)
        silent._log = None
        return calibrate(
            silent,
            queries,
            target_spend,
            tokens_per_call=tokens_per_call,
            price_per_call=price_per_call,
            max_prices=max_prices,
            objectives=objectives,
        )

    def _questions(
        self,
        queries: Mapping[str, str | Routing],
        *,
        objective: Objective | None = None,
        max_price: float | None = None,
        min_context: int | None = None,
        required_tags: Iterable[str] | None = None,
    ) -> list[_Question]:
        """What the reranker is asked, for queries by the names of their arguments."""
        own = self.limits
        limits = Limits(
            max_price=own.max_price if max_price is None else max_price,
            min_context=own.min_context if min_context is None else min_context,
            required_tags=own.required_tags if required_tags is None else as_tags("required_tags", required_tags),
        )
        eligible, excluded = limits.split(self.pool) if queries else ((), {})
        questions = []
        for argument, query in queries.items():
            if not isinstance(query, str | Routing):
                raise InputTypeError(argument, f"expected a str or Routing, got {type(query).__name__}")
            judged_by, text = (query.objective, query.query) if isinstance(query, Routing) else (None, query)
            judged_by = objective or judged_by
            if not text.strip():
                raise InputError(argument, "is empty; pass what the LLM shall answer")
            questions.append(
                _Question(
                    query=text,
                    task=Routing(self._cut(text), judged_by or self.objective),
                    weights=OBJECTIVE_WEIGHTS[judged_by] if judged_by else self.weights,
                    eligible=eligible,
                    excluded=excluded,
                )
            )
        return questions

    def _cut(self, query: str) -> str:
        """What the model reads of a query."""
        limit = self._max_query_tokens
        if len(query.encode(errors="replace")) <= limit:  # a token is at least one byte
            return query
        text = " ".join(query.split())  # as in the prompt
        count = partial(count_text, self.reranker.engine)
        if count(text) <= limit:
            return text
        # Both ends: some prompts begin with the question, others bring long documents first and ask last.
        head = shorten(text, limit // 2, count)
        tail = shorten(text[::-1], limit // 2, lambda reversed_text: count(reversed_text[::-1]))[::-1]
        return f"{head} … {tail}"

    def _decide(self, question: _Question, result: RerankResult) -> RoutingDecision:
        if question.task.query.split() != question.query.split():
            detail = f"the model read {self._max_query_tokens} tokens of the query, from both ends"
            result = replace(result, query=question.query, faults=(*result.faults, Fault(None, "query_cut", detail)))
        decision = RoutingDecision(
            decision_id=uuid.uuid4().hex,
            query=question.query,
            objective=question.task.objective,
            weights=question.weights,
            ranking=tuple(RankedLLM(hit.rank, question.eligible[hit.index], hit.score) for hit in result),
            excluded=question.excluded,
            result=result,
        )
        if self._log is not None and decision.ranking:
            self._log.decision(decision.to_dict(), [profile.candidate() for profile in question.eligible])
        return decision


@dataclass(frozen=True, kw_only=True)
class _Question:
    """What one query asks the reranker."""

    query: str
    task: Routing
    weights: Weights
    eligible: tuple[LLMProfile, ...]
    excluded: Mapping[str, str]

    @property
    def documents(self) -> list[Document]:
        return [profile.document() for profile in self.eligible]
