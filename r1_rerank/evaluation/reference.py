"""Figures that others published, to stand beside an evaluation, never in it: they are of other data.

From "R1-Ranker: Teaching LLM Rankers to Reason", arXiv 2506.21638v3, MRR x 100.
"""

from __future__ import annotations

from collections.abc import Mapping

PAPER_TASKS = (
    *("rec-movie", "rec-music", "rec-game"),
    *("router-performance", "router-cost", "router-balance"),
    *("passage-5", "passage-7", "passage-9"),
)
PAPER_NOTE = (
    "Published MRR x 100 of arXiv 2506.21638v3, on the paper's own data: other users, queries, pools and candidates "
    "than above, so no row of it can be compared with a row above."
)
_MRR = {
    "BM25": (17.56, 18.09, 14.96, 18.41, 13.52, 13.39, 53.63, 44.95, 39.69),
    "Contriever": (18.29, 17.04, 23.98, 20.75, 16.29, 16.74, 41.91, 36.41, 33.10),
    "Qwen2.5-3B-Instruct direct": (16.92, 16.68, 13.17, 10.00, 10.00, 10.00, 38.08, 22.47, 15.94),
    "Qwen2.5-3B-Instruct iterative": (22.01, 21.97, 29.49, 20.87, 20.22, 12.42, 57.74, 43.47, 39.40),
    "DRanker-3B": (18.71, 15.70, 15.77, 20.63, 9.06, 13.38, 43.85, 22.86, 16.11),
    "IRanker-3B": (34.69, 29.18, 42.49, 23.62, 30.39, 24.44, 60.98, 53.22, 49.96),
    "IRanker-3B zero-shot": (25.95, 23.21, 31.16, 20.41, 23.10, 21.89, 56.42, 51.19, 42.45),
}
PAPER_SIZES = dict(zip(PAPER_TASKS, (20, 20, 20, 10, 10, 10, 5, 7, 9), strict=True))
"""Candidates of a list."""
PAPER: Mapping[str, Mapping[str, float]] = {
    "random order (computed)": {
        task: 100 * sum(1 / rank for rank in range(1, size + 1)) / size for task, size in PAPER_SIZES.items()
    },
    **{system: dict(zip(PAPER_TASKS, values, strict=True)) for system, values in _MRR.items()},
}
"""MRR x 100, by system and task; the first is no figure of the paper but the n-th harmonic number over n."""
