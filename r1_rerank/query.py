"""One query on its way: what the prefilter hands on, the passes over it, and the result that they make together."""

from __future__ import annotations

import logging
import operator
import random
from collections.abc import Sequence
from dataclasses import replace

from .budget import NO_LIMIT, Ledger
from .documents import Document, Fault, RankedDocument, RerankResult, ScoreKind, Status, Usage
from .engines.base import Engine, notes_of
from .errors import R1RerankError
from .options import Cut, RankingOptions
from .ranking import Outcome, Ranking
from .tasks import Task
from .voting import stability, vote

logger = logging.getLogger(__name__)

_WORST_FIRST: tuple[Status, ...] = ("fallback", "partial", "repaired", "ok")


class Query:
    """The state of one query.

    Without limits all passes can be under way together. Within a budget one follows the other, so that those that
    finish are whole.

    Args:
        task: What is ranked.
        documents: Any number.
        options: How.
        engine: Asked for capabilities and token counts only.
        cut: What it may cost, and what comes back.
    """

    def __init__(
        self, task: Task, documents: Sequence[Document], options: RankingOptions, engine: Engine, cut: Cut
    ) -> None:
        self._task = task
        self._documents = documents
        self._options = options
        self._engine = engine
        self._cut = cut
        self._ledger = Ledger(cut.budget)
        self._head: Sequence[int] = range(len(documents))
        self._tail: Sequence[int] = ()
        self._notes: tuple[Fault, ...] = options.notes
        self._rankings: list[Ranking] = []
        if len(documents) > 1 and options.prefilter is not None:
            self._prefilter(options.prefilter.keep)

    @property
    def done(self) -> bool:
        """Nothing is left to ask, and no pass is left to start."""
        return self._passes_left() == 0 and all(ranking.done for ranking in self._rankings)

    @property
    def counts_tokens(self) -> bool:
        """The tokens of each request are counted, which can take the engine a while."""
        return self._cut.budget.tokens is not None

    def start(self) -> list[Ranking]:
        """Passes that can begin now; ask again when one is done."""
        left = self._passes_left()
        if self._cut.budget != NO_LIMIT:
            left = min(left, 1) if all(ranking.done for ranking in self._rankings) else 0
        started = [self._pass(len(self._rankings) + number) for number in range(1, left + 1)]
        self._rankings += started
        return started

    def result(self) -> RerankResult:
        """The ranking as it stands; no ranking but the error where the engine failed under `on_error="raise"`."""
        if len(self._documents) < 2:
            hits = tuple(RankedDocument(1, 0, 1.0, document) for document in self._documents)
            return RerankResult(query=str(self._task), ranking=hits[: self._cut.top_k], card=self._options.card)
        outcomes = [ranking.outcome() for ranking in self._rankings]
        error = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        places, kind, status, agreement = self._together(outcomes)
        faults = [*self._notes, *notes_of(self._engine), *(fault for outcome in outcomes for fault in outcome.faults)]
        if self._tail:
            if kind == "rank":
                count = len(self._documents)
                scores = [1.0 - place / count for place in range(count)]
            else:
                scores = [score for _, score in places] + [0.0] * len(self._tail)
            places = list(zip([index for index, _ in places] + list(self._tail), scores, strict=True))
        hits = tuple(
            RankedDocument(rank, index, score, self._documents[index])
            for rank, (index, score) in enumerate(places, start=1)
        )[: self._cut.top_k]
        threshold = self._cut.score_threshold
        if threshold is not None:
            if kind == "rank":
                detail = "no label probabilities came back, so no score was held against the threshold"
                faults.append(Fault(None, "threshold_skipped", detail))
            else:
                hits = tuple(hit for hit in hits if hit.score >= threshold)
        failed = error is not None and self._options.on_error == "raise"
        return RerankResult(
            query=str(self._task),
            ranking=() if failed else hits,
            status="failed" if failed else status,
            score_kind=kind,
            steps=tuple(step for outcome in outcomes for step in outcome.steps),
            usage=sum((outcome.usage for outcome in outcomes), Usage()),
            faults=tuple(faults),
            malformed=sum(outcome.malformed for outcome in outcomes),
            card=self._options.card,
            stability=agreement,
            error=error if failed else None,
        )

    def estimate(self) -> Usage:
        """What the whole query would cost at most, found by playing it without the model. Uses the query up.

        Raises:
            ContextOverflowError: No prompt fits into the model's context.
        """
        return sum((ranking.estimate() for ranking in self.start()), Usage())

    def _passes_left(self) -> int:
        if len(self._head) < 2 or any(ranking.stopped for ranking in self._rankings):
            return 0
        return self._options.passes - len(self._rankings)

    def _pass(self, run: int) -> Ranking:
        options, shown = self._options, list(self._head)
        if run > 1:  # the first one keeps the incoming order: it alone counts where no other finishes
            seed = f"{options.seed or 0}/{run}"
            random.Random(seed).shuffle(shown)
            options = replace(options, label_seed=random.Random(seed).randrange(2**31))
        return Ranking(self._task, self._documents, shown, options, self._engine, self._ledger, run)

    def _together(self, outcomes: Sequence[Outcome]) -> tuple[list[tuple[int, float]], ScoreKind, Status, float | None]:
        """Places with their scores, what the scores are, the status, and the agreement of the passes."""
        first = outcomes[0]
        if self._options.passes == 1:
            return list(zip(first.order, first.scores, strict=True)), first.score_kind, first.status, None
        voters = [outcome for outcome in outcomes if outcome.status in ("ok", "repaired")]
        # Where none finished, one that was cut off is better than nothing.
        counted = voters or [next((outcome for outcome in outcomes if outcome.status == "partial"), first)]
        orders = [outcome.order for outcome in counted]
        status = min((outcome.status for outcome in counted), key=_WORST_FIRST.index)
        if voters and len(voters) < self._options.passes:
            status = "partial"
        # Where votes are equal, the order of the stage before decides.
        incoming = {document: place for place, document in enumerate(self._head)}
        places = sorted(vote(orders, self._options.fusion), key=lambda hit: (-hit[1], incoming[hit[0]]))
        return places, "vote", status, stability(orders)

    def _prefilter(self, keep: int) -> None:
        prefilter = self._options.prefilter
        assert prefilter is not None
        if len(self._documents) <= keep:
            return
        texts = [self._task.candidate_text(document) for document in self._documents]
        problem = f"gave no order of the {len(texts)} documents"
        try:
            # Indices of numpy would go on into results, which JSON does not take.
            order = [operator.index(place) for place in prefilter.order(str(self._task), texts)]
        except R1RerankError:
            raise
        except Exception as error:  # it costs its query, not the whole batch
            logger.exception("prefilter %s raised", prefilter.name)
            order, problem = [], f"failed with {type(error).__name__}: {error}"
        if sorted(order) != list(range(len(texts))):
            self._notes = (
                *self._notes,
                Fault(None, "bad_prefilter", f"{prefilter.name} {problem}; all documents are ranked"),
            )
            return
        self._head, self._tail = order[:keep], order[keep:]
        detail = f"{prefilter.name} handed {keep} of {len(order)} documents on; the others follow in its order"
        self._notes = (*self._notes, Fault(None, "prefilter", detail))
