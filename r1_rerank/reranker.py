"""R1Reranker: ranks documents with an engine; one query or many, sync or async."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Literal, get_args

from .budget import NO_LIMIT, Budget
from .documents import (
    Document,
    RankedDocument,
    RerankResult,
    Step,
    Usage,
    as_documents,
)
from .engines.base import (
    CAPABILITIES,
    Completion,
    Engine,
    GenerationRequest,
    batch_size,
    missing_members,
)
from .errors import EngineError, InputError, InputTypeError
from .options import OnError, RankingOptions, as_strategy, check_options, require_whole, settle
from .prompts import PromptTemplate, default_templates
from .ranking import Ranking
from .rows import TaskName
from .strategies import ALPHABET, Strategy
from .tasks import Task, as_task

logger = logging.getLogger(__name__)

EngineName = Literal["transformers"]

DEFAULT_THINKING = 512
"""Thinking tokens for a model without a ranker card."""


class R1Reranker:
    """Puts documents in order with a language model.

    Safe to share between threads. Synchronous calls also work inside a running event loop.

    Args:
        engine: What runs the model.
        strategy: `iranker`, `dranker`, or an `IRanker` or `DRanker` with settings of its own.
        thinking: Most tokens to think before each answer; 0 answers at once.
        templates: Wording of a task in place of the built-in one.
        budget: Limits for every query; a call may pass its own.
        on_error: What an engine fault does. `partial` ends the query with the best order so far and says so;
            `raise` raises it (in a batch: the row's status is `failed`).
        constrain: Decode answers over the live labels where the engine can, so that none is malformed.
        alphabet: Labels in the order in which they are given out.
        label_seed: Permute the labels by this seed; None: in order.
        temperature: 0 is greedy.
        seed: For sampling; None: another one each time.

    Raises:
        InputError: An argument that cannot be used.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        strategy: str | Strategy = "iranker",
        thinking: int = DEFAULT_THINKING,
        templates: Mapping[TaskName, PromptTemplate] | None = None,
        budget: Budget = NO_LIMIT,
        on_error: OnError = "partial",
        constrain: bool = True,
        alphabet: str = ALPHABET,
        label_seed: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> None:
        if isinstance(engine, str):
            raise InputTypeError("engine", "expected an engine object, got a str; from_pretrained builds one by name")
        if missing := missing_members(engine):
            raise InputTypeError("engine", f"{type(engine).__name__} is no engine: it lacks {', '.join(missing)}")
        if isinstance(engine.capabilities, str) or not set(engine.capabilities) <= CAPABILITIES:
            raise InputError("engine", f"its capabilities are not a set of {', '.join(sorted(CAPABILITIES))}")
        check_options(strategy, thinking, templates, budget, on_error, constrain, label_seed, temperature, seed)
        if not isinstance(alphabet, str) or len(set(alphabet)) < max(2, len(alphabet)) or set(alphabet) - set(ALPHABET):
            raise InputError("alphabet", f"expected at least two different letters of A-Z and a-z, got {alphabet!r}")
        self.engine = engine
        self._budget = budget
        self._on_error = on_error
        self._options = settle(
            engine,
            RankingOptions(
                strategy=as_strategy(strategy),
                templates=default_templates(templates),
                thinking=thinking,
                constrain=constrain,
                alphabet=tuple(alphabet),
                label_seed=label_seed,
                temperature=temperature,
                seed=seed,
            ),
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str] | None = None,
        *,
        engine: EngineName = "transformers",
        strategy: str | Strategy | None = None,
        thinking: int | None = None,
        templates: Mapping[TaskName, PromptTemplate] | None = None,
        budget: Budget = NO_LIMIT,
        on_error: OnError = "partial",
        constrain: bool = True,
        label_seed: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        cache_gib: float = 4.0,
    ) -> R1Reranker:
        """Loads a model, and asks it the way its ranker card says.

        Args:
            model: A hub name, a local folder (a whole model or a LoRA adapter), or None for the embedded one.
            engine: What runs it.
            strategy: In place of the card's.
            thinking: In place of the card's.
            templates: In place of the card's.
            budget: See the class.
            on_error: See the class.
            constrain: See the class.
            label_seed: See the class.
            temperature: See the class.
            seed: See the class.
            device: See `TransformersEngine`.
            dtype: See `TransformersEngine`.
            batch_size: See `TransformersEngine`.
            cache_gib: See `TransformersEngine`.

        Raises:
            InputError: An argument that cannot be used, before anything is loaded where that can be known.
            CheckpointError: Weights, adapter or card that cannot be used.
        """
        if engine not in get_args(EngineName):
            raise InputError("engine", f"{engine!r} is not one of {', '.join(get_args(EngineName))}")
        check_options(
            strategy or "iranker", thinking or 0, templates, budget, on_error, constrain, label_seed, temperature, seed
        )
        if model is not None and not isinstance(model, str | PathLike):
            raise InputTypeError(
                "model",
                f"expected a name or folder, got {type(model).__name__}; "
                "for a loaded model: R1Reranker(TransformersEngine(model, tokenizer))",
            )
        from .checkpoint import find_checkpoint
        from .engines.loading import choose_device, choose_dtype
        from .engines.transformers import TransformersEngine

        choose_dtype(dtype, choose_device(device))
        require_whole("batch_size", batch_size, least=1)
        found = find_checkpoint(model)
        card = found.card
        if card is not None:
            if strategy is None or isinstance(strategy, str):
                strategy = card.ranking_strategy(strategy)
            if thinking is None:
                thinking = card.thinking.budget if card.thinking.mode == "free" else 0
            templates = card.prompt_templates() | dict(templates or {})
        reranker = cls(
            TransformersEngine(
                found.model,
                adapter=found.adapter,
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                cache_gib=cache_gib,
            ),
            strategy=strategy or "iranker",
            thinking=DEFAULT_THINKING if thinking is None else thinking,
            templates=templates,
            budget=budget,
            on_error=on_error,
            constrain=constrain,
            alphabet=card.labels.alphabet if card is not None else ALPHABET,
            label_seed=label_seed,
            temperature=temperature,
            seed=seed,
        )
        reranker._options = replace(
            reranker._options, card=found.source, notes=(*found.notes, *reranker._options.notes)
        )
        return reranker

    def rerank(
        self,
        query: str | Task,
        documents: Iterable[str | Document],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        budget: Budget | None = None,
    ) -> RerankResult:
        """Ranks the documents of one query.

        Args:
            query: A query for passages, or a `Recommendation` or `Routing` task.
            documents: Texts or `Document`s, in the order of an earlier stage, best first.
            top_k: How many come back; None: all.
            score_threshold: Leave out what scores lower; needs label probabilities and elimination.
            budget: In place of the reranker's own.

        Returns:
            Every document exactly once, or the first `top_k`.

        Raises:
            InputError: An argument that cannot be used, before the model runs.
            EngineError: The engine failed, under `on_error="raise"`.
        """
        (result,) = self.rerank_batch([query], [documents], top_k=top_k, score_threshold=score_threshold, budget=budget)
        if result.error is not None:
            raise result.error
        return result

    def rerank_batch(
        self,
        queries: Sequence[str | Task],
        documents_per_query: Sequence[Iterable[str | Document]],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        budget: Budget | None = None,
    ) -> list[RerankResult]:
        """Ranks many queries; each advances on its own, and a finished one makes room for the next.

        Returns:
            One result for each query, in order.
        """
        results = dict(
            self.rerank_iter(queries, documents_per_query, top_k=top_k, score_threshold=score_threshold, budget=budget)
        )
        return [results[number] for number in range(len(results))]

    def rerank_iter(
        self,
        queries: Sequence[str | Task],
        documents_per_query: Sequence[Iterable[str | Document]],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        budget: Budget | None = None,
    ) -> Iterator[tuple[int, RerankResult]]:
        """Like `rerank_batch`, but gives each result, with the number of its query, as soon as it is known."""
        if isinstance(queries, str) or not isinstance(queries, Sequence):
            raise InputTypeError("queries", f"expected a list, got {type(queries).__name__}; use rerank for one query")
        if isinstance(documents_per_query, str) or not isinstance(documents_per_query, Sequence):
            raise InputTypeError("documents_per_query", f"expected a list, got {type(documents_per_query).__name__}")
        if len(queries) != len(documents_per_query):
            raise InputError(
                "documents_per_query",
                f"{len(documents_per_query)} lists of documents for {len(queries)} queries",
            )
        many = len(queries) > 1
        rows = []
        for number, (query, documents) in enumerate(zip(queries, documents_per_query, strict=True)):
            names = (f"queries[{number}]", f"documents_per_query[{number}]") if many else ("query", "documents")
            rows.append((as_task(query, names[0]), as_documents(documents, names[1])))
        self._check(top_k, score_threshold, budget)
        return self._drive(rows, top_k, score_threshold, budget or self._budget)

    async def arerank(
        self,
        query: str | Task,
        documents: Iterable[str | Document],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        budget: Budget | None = None,
    ) -> RerankResult:
        """Ranks the documents of one query on any event loop; see `rerank`."""
        stream = self.astream(query, documents, top_k=top_k, score_threshold=score_threshold, budget=budget)
        async for _ in stream:
            pass
        assert stream.result is not None
        return stream.result

    def astream(
        self,
        query: str | Task,
        documents: Iterable[str | Document],
        *,
        top_k: int | None = None,
        score_threshold: float | None = None,
        budget: Budget | None = None,
    ) -> RerankStream:
        """Ranks the documents of one query and gives each step as it is done.

        stream = reranker.astream(query, documents)
        async for step in stream:
            ...                          # step.standing: the best order so far
        stream.result
        """
        task, normalised = as_task(query), as_documents(documents)
        self._check(top_k, score_threshold, budget)
        return RerankStream(self, task, normalised, top_k, score_threshold, budget or self._budget)

    def estimate(self, query: str | Task, documents: Iterable[str | Document]) -> Usage:
        """Calls and tokens that `rerank` would take at most, without running the model (`seconds` is 0).

        Budgets are left out of account.

        Raises:
            ContextOverflowError: No prompt fits into the model's context.
        """
        task, normalised = as_task(query), as_documents(documents)
        if len(normalised) < 2:
            return Usage()
        return Ranking(task, normalised, self._options, self.engine, NO_LIMIT).estimate()

    def close(self) -> None:
        """Frees the model."""
        self.engine.close()

    def __enter__(self) -> R1Reranker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _drive(
        self,
        rows: Sequence[tuple[Task, tuple[Document, ...]]],
        top_k: int | None,
        score_threshold: float | None,
        budget: Budget,
    ) -> Iterator[tuple[int, RerankResult]]:
        waiting = iter(enumerate(rows))
        active: dict[int, Ranking] = {}
        while True:
            while len(active) < batch_size(self.engine):
                number, (task, documents) = next(waiting, (-1, (None, ())))
                if task is None:
                    break
                if len(documents) < 2:
                    yield number, self._trivial(task, documents, top_k)
                else:
                    active[number] = Ranking(task, documents, self._options, self.engine, budget)
            if not active:
                return
            requests = {number: ranking.request() for number, ranking in active.items()}
            asked = {number: request for number, request in requests.items() if request is not None}
            if asked:
                for number, completion in zip(asked, self._generate(list(asked.values())), strict=True):
                    active[number].receive(completion)
            for number in [number for number, ranking in active.items() if ranking.done]:
                yield number, self._finish(active.pop(number), top_k, score_threshold)

    def _generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Asks the engine; one that breaks its promise not to raise fails its requests, not the caller."""
        try:
            completions = self.engine.generate(requests)
            if len(completions) != len(requests):
                raise EngineError(f"{len(completions)} completions for {len(requests)} requests")
        except Exception as error:
            logger.exception("engine %s raised", self.engine.name)
            return [_failed(error)] * len(requests)
        return list(map(_sound, completions))

    async def _agenerate(self, request: GenerationRequest) -> Completion:
        try:
            return _sound(await self.engine.agenerate(request))
        except Exception as error:
            logger.exception("engine %s raised", self.engine.name)
            return _failed(error)

    def _finish(self, ranking: Ranking, top_k: int | None, score_threshold: float | None) -> RerankResult:
        result = ranking.result(top_k=top_k, score_threshold=score_threshold)
        if ranking.error is not None and self._on_error == "raise":
            return replace(result, ranking=(), status="failed", error=ranking.error)
        return result

    def _trivial(self, task: Task, documents: Sequence[Document], top_k: int | None) -> RerankResult:
        """No or one document: nothing to ask."""
        hits = tuple(RankedDocument(1, 0, 1.0, document) for document in documents)
        return RerankResult(query=str(task), ranking=hits[:top_k], card=self._options.card)

    def _check(self, top_k: int | None, score_threshold: float | None, budget: Budget | None) -> None:
        if top_k is not None:
            require_whole("top_k", top_k, least=1)
        if budget is not None and not isinstance(budget, Budget):
            raise InputTypeError("budget", f"expected a Budget, got {type(budget).__name__}")
        if score_threshold is None:
            return
        if isinstance(score_threshold, bool) or not isinstance(score_threshold, int | float):
            raise InputTypeError("score_threshold", f"expected a number, got {type(score_threshold).__name__}")
        if not 0 <= score_threshold <= 1:
            raise InputError("score_threshold", f"{score_threshold} is no score; pass a number from 0 to 1")
        knows = {"constrain", "logprobs"} <= self.engine.capabilities and self._options.constrain
        if not knows or self._options.strategy.name != "iranker":
            raise InputError(
                "score_threshold",
                "these scores only tell the rank; use strategy='iranker' with an engine that reports label "
                "probabilities, or top_k",
            )


class RerankStream:
    """Steps of one ranking as they are done; `result` once they are all there."""

    def __init__(
        self,
        reranker: R1Reranker,
        task: Task,
        documents: tuple[Document, ...],
        top_k: int | None,
        score_threshold: float | None,
        budget: Budget,
    ) -> None:
        self.result: RerankResult | None = None
        self._steps = self._play(reranker, task, documents, top_k, score_threshold, budget)

    def __aiter__(self) -> AsyncIterator[Step]:
        return self._steps

    async def _play(
        self,
        reranker: R1Reranker,
        task: Task,
        documents: tuple[Document, ...],
        top_k: int | None,
        score_threshold: float | None,
        budget: Budget,
    ) -> AsyncIterator[Step]:
        if len(documents) < 2:
            self.result = reranker._trivial(task, documents, top_k)
            return
        # Counting the tokens of long documents takes a while: not on the loop.
        ranking = await asyncio.to_thread(Ranking, task, documents, reranker._options, reranker.engine, budget)
        while (request := ranking.request()) is not None:
            step = ranking.receive(await reranker._agenerate(request))
            if step is not None:
                yield step
        self.result = reranker._finish(ranking, top_k, score_threshold)
        if self.result.error is not None:
            raise self.result.error


def _sound(completion: Completion) -> Completion:
    """The completion, if it is one."""
    if isinstance(completion, Completion) and isinstance(completion.text, str):
        return completion
    return _failed(EngineError(f"the engine answered with {type(completion).__name__} and no text"))


def _failed(error: Exception) -> Completion:
    return Completion(
        error=error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}")
    )
