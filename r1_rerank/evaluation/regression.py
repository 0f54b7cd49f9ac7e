"""A router that only counts words: what there is to be learned from questions without a language model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..rows import Row
from .baselines import routed, unseen_last
from .measures import objective_of, rewards
from .retrieval import eval_module, query_text

_PENALTY = 5.0
"""Ridge penalty: heavy, for outcomes of single answers are mostly noise to a question's words."""


@dataclass(frozen=True)
class TfidfRidge:
    """Ridge regression of each LLM's reward on the TF-IDF weights of a question's words and pairs of words.

    It needs `pip install "r1-rerank[eval]"`.

    Args:
        vectorizer: Gives the weights.
        models: Predicts a reward from them, by objective and id of the LLM.
    """

    vectorizer: Any
    models: Mapping[str, Mapping[str, Any]]

    @classmethod
    def fit(cls, train: Iterable[Row]) -> TfidfRidge:
        """Learns from every routing row with effects and prices.

        Raises:
            InputError: There is no such row.
            MissingExtraError: scikit-learn is not installed.
        """
        texts, ridge = eval_module("sklearn.feature_extraction.text"), eval_module("sklearn.linear_model").Ridge
        rows = routed(train)
        # Words of one character count too: 1 + 1 is a question.
        vectorizer = texts.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
        words = vectorizer.fit_transform([query_text(row) for row in rows])
        seen: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
        for place, row in enumerate(rows):
            for candidate, reward in zip(row.candidates, rewards(row), strict=True):
                seen[objective_of(row)][candidate.id].append((place, reward))
        return cls(
            vectorizer,
            {
                objective: {
                    name: ridge(alpha=_PENALTY).fit(words[[place for place, _ in pairs]], [gain for _, gain in pairs])
                    for name, pairs in sorted(by_name.items())
                }
                for objective, by_name in sorted(seen.items())
            },
        )

    def __call__(self, row: Row) -> Sequence[float]:
        """Predicts the rewards; LLMs that were never seen share the last place.

        Raises:
            InputError: None of them was seen under this objective.
        """
        words = self.vectorizer.transform([query_text(row)])
        models = self.models.get(objective_of(row), {})
        return unseen_last(row, {name: float(model.predict(words)[0]) for name, model in models.items()})
