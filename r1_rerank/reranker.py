"""R1Reranker: ranks documents with an engine; one query or many, sync or async."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

from .budget import NO_LIMIT, Budget
from .documents import Document, RerankResult, Usage, as_documents
from .driving import RerankStream, drive
from .engines import ENGINES, EngineName, engine_class
from .engines.base import Engine
from .engines.checking import check_engine, check_engine_options
from .errors import InputError, InputTypeError
from .options import Cut, OnError, RankingOptions, as_alphabet, as_strategy, settle
from .prefilter import Prefilter
from .prompts import PromptTemplate, default_templates
from .query import Query
from .rows import TaskName
from .strategies import ALPHABET, Strategy
from .tasks import Task, as_task
from .voting import Fusion

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
        seed: For sampling, and for the shuffles of passes; None samples another way each time.
        passes: Rankings of each query that vote. The first sees the incoming order, the others documents and labels
            shuffled; the result's `stability` tells how far they agree.
        fusion: How passes vote: `borda` (mean place) or `rrf` (reciprocal rank fusion).
        prefilter: Orders a longer list first and hands its head on, such as `prefilter.BM25Prefilter`.

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
        passes: int = 1,
        fusion: Fusion = "borda",
        prefilter: Prefilter | None = None,
    ) -> None:
        options = RankingOptions(
            strategy=as_strategy(strategy),
            thinking=thinking,
            templates=default_templates(templates),
            budget=budget,
            on_error=on_error,
            constrain=constrain,
            alphabet=as_alphabet(alphabet),
            label_seed=label_seed,
            temperature=temperature,
            seed=seed,
            passes=passes,
            fusion=fusion,
            prefilter=prefilter,
        )
        self._build(engine, options)

    def _build(self, engine: Engine, options: RankingOptions) -> None:
        self.engine = check_engine(engine)
        self._options = settle(engine, options)

    @classmethod
    def from_pretrained(
        cls,
        model: str | PathLike[str] | None = None,
        *,
        engine: EngineName = "transformers",
        card: str | PathLike[str] | None = None,
        strategy: str | Strategy | None = None,
        thinking: int | None = None,
        templates: Mapping[TaskName, PromptTemplate] | None = None,
        budget: Budget = NO_LIMIT,
        on_error: OnError = "partial",
        constrain: bool = True,
        label_seed: int | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        passes: int = 1,
        fusion: Fusion = "borda",
        prefilter: Prefilter | None = None,
        **engine_options: Any,
    ) -> R1Reranker:
        """Loads a model, and asks it the way its ranker card says.

        Args:
            model: A hub name, a local folder (a whole model or a LoRA adapter), or None for the embedded one. With
                `engine="openai"`: the name under which a server has it.
            engine: What runs it: `transformers`, `vllm` or `openai`.
            card: A ranker card, in place of the one beside the weights; a server does not tell its model's.
            strategy: In place of the card's.
            thinking: In place of the card's.
            templates: In place of the card's.
            budget: See the class, as for all that follow.
            on_error: See the class.
            constrain: See the class.
            label_seed: See the class.
            temperature: See the class.
            seed: See the class.
            passes: See the class.
            fusion: See the class.
            prefilter: See the class.
            **engine_options: Handed on to the engine: see `TransformersEngine` (such as `device`, `dtype`,
                `batch_size`), `VLLMEngine` and `OpenAIEngine`.

        Raises:
            InputError: An argument that cannot be used, before anything is loaded where that can be known.
            CheckpointError: Weights, adapter or card that cannot be used.
            MissingExtraError: The engine's extra is not installed.
        """
        if not isinstance(engine, str):
            raise InputTypeError("engine", "expected a name; for an engine object: R1Reranker(engine)")
        if "adapter" in engine_options:
            raise InputError("adapter", "pass the adapter's folder as the model: its card names the base")
        if engine not in ENGINES:
            raise InputError("engine", f"{engine!r} is not one of {', '.join(ENGINES)}")
        if model is not None and not isinstance(model, str | PathLike):
            raise InputTypeError(
                "model",
                f"expected a name or folder, got {type(model).__name__}; "
                "for a loaded model: R1Reranker(TransformersEngine(model, tokenizer))",
            )
        options = RankingOptions(
            strategy=as_strategy(strategy or "iranker"),
            thinking=DEFAULT_THINKING if thinking is None else thinking,
            templates=default_templates(templates),
            budget=budget,
            on_error=on_error,
            constrain=constrain,
            label_seed=label_seed,
            temperature=temperature,
            seed=seed,
            passes=passes,
            fusion=fusion,
            prefilter=prefilter,
        )
        kind = engine_class(engine)
        check_engine_options(kind, engine_options)
        from .checkpoint import Checkpoint, RankerCard, find_checkpoint

        if engine == "openai":
            if model is None:
                raise InputError("model", "name the model that the server has; a server does not run the embedded one")
            found = Checkpoint.served(model)
        else:
            found = find_checkpoint(model)
        own = found.card if card is None else RankerCard.find(card)
        if own is not None:
            options = replace(
                options,
                strategy=own.ranking_strategy(strategy) if isinstance(strategy, str | None) else strategy,
                thinking=own.thinking.budget if thinking is None else thinking,
                templates=own.prompt_templates() | dict(templates or {}),
                alphabet=as_alphabet(own.labels.alphabet),
            )
        departure = None if own is None else own.departure(options.strategy, options.thinking)
        notes = found.notes if departure is None else (*found.notes, departure)
        options = replace(options, card=found.source if card is None else "given", notes=notes)
        reranker = cls.__new__(cls)
        adapter = {} if found.adapter is None else {"adapter": found.adapter}
        reranker._build(kind(found.model, **adapter, **engine_options), options)
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
            detail = f"{len(documents_per_query)} lists of documents for {len(queries)} queries"
            raise InputError("documents_per_query", detail)
        many = len(queries) > 1
        rows = []
        for number, (query, documents) in enumerate(zip(queries, documents_per_query, strict=True)):
            names = (f"queries[{number}]", f"documents_per_query[{number}]") if many else ("query", "documents")
            rows.append((as_task(query, names[0]), as_documents(documents, names[1])))
        cut = self._cut(top_k, score_threshold, budget)
        return self._ranked(rows, cut)

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
        cut = self._cut(top_k, score_threshold, budget)
        return RerankStream(partial(Query, task, normalised, self._options, self.engine, cut), self.engine)

    def estimate(self, query: str | Task, documents: Iterable[str | Document]) -> Usage:
        """Calls and tokens that `rerank` would take at most, without running the model (`seconds` is 0).

        Budgets are left out of account.

        Raises:
            ContextOverflowError: No prompt fits into the model's context.
        """
        return Query(as_task(query), as_documents(documents), self._options, self.engine, Cut()).estimate()

    def close(self) -> None:
        """Frees the model."""
        self.engine.close()

    def __enter__(self) -> R1Reranker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ranked(
        self, rows: Sequence[tuple[Task, tuple[Document, ...]]], cut: Cut
    ) -> Iterator[tuple[int, RerankResult]]:
        queries = (
            (number, Query(task, documents, self._options, self.engine, cut))
            for number, (task, documents) in enumerate(rows)
        )
        with contextlib.closing(drive(queries, self.engine)) as driven:  # left early: nothing stays under way
            for number, query in driven:
                yield number, query.result()

    def _cut(self, top_k: int | None, score_threshold: float | None, budget: Budget | None) -> Cut:
        options = self._options
        cut = Cut(top_k=top_k, score_threshold=score_threshold, budget=options.budget if budget is None else budget)
        knows = {"constrain", "logprobs"} <= self.engine.capabilities and options.constrain
        if score_threshold is None or options.passes > 1 or (knows and options.strategy.name == "iranker"):
            return cut
        raise InputError(
            "score_threshold",
            "these scores only tell the rank; use strategy='iranker' with an engine that reports label "
            "probabilities, several passes, or top_k",
        )
