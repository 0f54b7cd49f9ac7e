"""Data cards of trainings: what a model was shown, how often, and under which licences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..evaluation.baselines import digest
from ..evaluation.datasets.cards import CARD
from ..evaluation.datasets.common import load_json
from ..evaluation.datasets.leaks import question_key
from ..rows import Row
from .sources import Source

if TYPE_CHECKING:
    from .data import Mixture


def data_card(mixture: Mixture) -> dict[str, Any]:
    """What a mixture is made of, as JSON values.

    Every example is drawn for it once.

    Returns:
        `examples`, `seed`, `graded_routing`, `digest` of the examples, `phases` with their settings, `tasks`,
        `datasets` and `list_sizes` (each name or number -> examples), and `sources`. A source whose file has a card
        beside it, as `r1-rerank data build` writes it, brings that along, and `as_built` says whether these rows are
        still that file, whole and unchanged.

    Raises:
        DataError: The card beside a file is not JSON.
    """
    rows = list(mixture)
    shown = [mixture.source_of(place).name for place in range(len(mixture))]
    distinct = {(source, row.id.rpartition("#")[0]) for source, row in zip(shown, rows, strict=True)}
    stretches = Counter(mixture.phase_of(place) for place in range(len(mixture)))
    examples, used = Counter(shown), Counter(source for source, _ in distinct)
    return {
        "format": 1,
        "examples": len(rows),
        "seed": mixture.seed,
        "graded_routing": mixture.graded_routing,
        "digest": digest(rows),
        "phases": [{**asdict(phase), "examples": stretches[number]} for number, phase in enumerate(mixture.phases)],
        **_counts(rows),
        "sources": [
            {
                "name": source.name,
                "weight": source.weight,
                "examples": examples[source.name],
                "distinct_rows": used[source.name],
                **_source_card(source),
            }
            for source in mixture.sources
        ],
    }


def _source_card(source: Source) -> dict[str, Any]:
    own = digest(source.rows)
    described = {
        "rows": len(source.rows),
        "questions": len({question_key(row) for row in source.rows}),
        "digest": own,
        "splits": _counted(row.split for row in source.rows),
        "available": _counts(source.rows),
    }
    if source.path is None:
        return described
    beside = source.path.with_name(CARD)
    card = load_json(beside, dict) if beside.is_file() else None
    if card is not None:
        built = card.get("files", {}).get(source.path.stem, {}).get("sha256", "")
        described |= {"as_built": built.startswith(own) if built else False, "card": card}
    # Not the whole path: a card is published.
    return {"file": "/".join(source.path.parts[-2:]), **described}


def _counts(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    kept = list(rows)
    return {
        "tasks": _counted(row.task for row in kept),
        "datasets": _counted(row.source for row in kept),
        "list_sizes": _counted(str(size) for size in sorted(len(row.candidates) for row in kept)),
    }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values))
