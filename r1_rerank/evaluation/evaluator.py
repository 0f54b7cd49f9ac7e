"""RerankingEvaluator: rows and a system in, a run with a record for each row out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..errors import InputError
from ..rows import Row
from .baselines import digest
from .measures import DEFAULT_METRICS, check_metrics, measure
from .records import EvaluationRun, Record, sorted_records
from .rowsets import BadRows, RowSet, check_rows, choose, cluster_of
from .systems import Outcome, Ranker, System, as_system, permuted

if TYPE_CHECKING:
    from ..reranker import R1Reranker


class RerankingEvaluator:
    """Measures rankers on labelled rows.

    The same object serves a comparison, a training callback and a test: it is asked with a system and answers with
    an `EvaluationRun`.

    Args:
        rows: What is ranked, or a set that was read with `read_task`.
        name: Of the task.
        metrics: Names of ranking metrics; those of routing come by themselves.
        limit: Only so many rows, over as many queries as there are.
        shuffles: How often each row is ranked again with its candidates shuffled, to see how stable the order is.
        seed: Of the choice under a limit and of the shuffles.
        bad_rows: What a row does that cannot be evaluated; `skip` leaves it out and counts it.

    Raises:
        InputError: An argument that cannot be used, or a row that cannot be evaluated.

    Examples:
        >>> from r1_rerank.rows import Candidate, Row
        >>> candidates = (Candidate(id="a", text="Cats."), Candidate(id="b", text="The Moon."))
        >>> row = Row(id="1", task="passage", query="tides?", candidates=candidates, relevance=(0, 1), split="test",
        ...           source="example")
        >>> run = RerankingEvaluator([row])(lambda row: [len(candidate.text) for candidate in row.candidates])
        >>> run.interval("mrr").mean
        1.0
    """

    def __init__(
        self,
        rows: Iterable[Row] | RowSet,
        *,
        name: str | None = None,
        metrics: Sequence[str] = DEFAULT_METRICS,
        limit: int | None = None,
        shuffles: int = 0,
        seed: int = 0,
        bad_rows: BadRows = "refuse",
    ) -> None:
        if isinstance(shuffles, bool) or not isinstance(shuffles, int) or shuffles < 0:
            raise InputError("shuffles", f"{shuffles!r} is no number of shuffles: pass 0 or more")
        self._set = rows if isinstance(rows, RowSet) else check_rows(rows, name=name or "rows", bad_rows=bad_rows)
        self.name = name or self._set.name
        self.metrics = check_metrics(metrics)
        self.rows = choose(self._set.rows, limit, seed)
        self._shuffles = shuffles
        self._seed = seed

    def settings(self, system: System) -> dict[str, object]:
        """Everything that changes the records of a system, as JSON values. Limit and shuffles only add records."""
        return {
            "task": self.name,
            "system": system.name,
            "rows": digest(self._set.rows),
            "metrics": list(self.metrics),
            "seed": self._seed,
            "settings": dict(system.settings()),
        }

    def __call__(
        self,
        system: System | R1Reranker | Ranker,
        *,
        name: str | None = None,
        done: Iterable[Record] = (),
        on_record: Callable[[Record], None] | None = None,
    ) -> EvaluationRun:
        """Ranks every row.

        Args:
            system: A `System`, an `R1Reranker`, or a function from a row to one number per candidate.
            name: What reports call it.
            done: Records of an earlier run under the same settings; they are not ranked again.
            on_record: Is given each new record as soon as it is known.

        Returns:
            The records, those of earlier among them.
        """
        asked = as_system(system, name)
        trials = [(row, shuffle) for shuffle in range(self._shuffles + 1) for row in self.rows]
        wanted = {_id(row, shuffle) for row, shuffle in trials}
        records = {record.id: record for record in done if record.id in wanted}
        left = [(row, shuffle) for row, shuffle in trials if _id(row, shuffle) not in records]
        shown = [self._shuffled(row, shuffle) for row, shuffle in left]
        for number, outcome in asked.rank_iter(shown):
            record = self._record(*left[number], shown[number], outcome)
            records[record.id] = record
            if on_record is not None:
                on_record(record)
        return EvaluationRun(
            task=self.name,
            system=name or asked.name,
            records=sorted_records(records.values()),
            dropped=self._set.dropped,
            settings=self.settings(asked),
        )

    def count(self) -> int:
        """How many records a run has."""
        return len(self.rows) * (self._shuffles + 1)

    def _shuffled(self, row: Row, shuffle: int) -> Row:
        if not shuffle:
            return row
        places = range(len(row.candidates))
        return permuted(row, random.Random(f"{self._seed}:{shuffle}:{row.id}").sample(places, len(places)))

    def _record(self, row: Row, shuffle: int, shown: Row, outcome: Outcome) -> Record:
        return Record(
            id=_id(row, shuffle),
            row=row.id,
            shuffle=shuffle,
            query=cluster_of(row),
            status=outcome.status,
            candidates=tuple(candidate.id for candidate in shown.candidates),
            relevance=shown.relevance,
            scores=outcome.scores,
            metrics={} if outcome.scores is None else measure(shown, outcome.scores, self.metrics),
            faults=outcome.faults,
            malformed=outcome.malformed,
            usage=outcome.usage,
            error=outcome.error,
        )


def _id(row: Row, shuffle: int) -> str:
    return f"{row.id}#shuffle-{shuffle}" if shuffle else row.id
