"""What a list costs to count before it is ranked: little where it fits, and what does not fit is counted together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from r1_rerank import DRanker, IRanker, PassageRanking, ScriptedEngine
from r1_rerank.fitting import Fit, fit
from r1_rerank.options import RankingOptions
from r1_rerank.prompts import Message, default_templates

CONTEXT = 1500


class Counting(ScriptedEngine):
    """Remembers which prompts were counted."""

    def __init__(self) -> None:
        super().__init__([], context_tokens=CONTEXT)
        self.counted: list[str] = []

    def count_tokens(self, messages: Sequence[Message]) -> int:
        self.counted.append(messages[0]["content"])
        return super().count_tokens(messages)


class Together(Counting):
    """Counts several prompts at once."""

    rounds = 0

    def count_many(self, prompts: Sequence[Sequence[Message]]) -> list[int]:
        self.rounds += 1
        return [self.count_tokens(prompt) for prompt in prompts]


def fitted(engine: ScriptedEngine, count: int, words: int, strategy: IRanker | DRanker) -> Fit:
    texts = [f"{number} " + "word " * (words - 1) for number in range(count)]
    options = RankingOptions(strategy=strategy, templates=default_templates(), thinking=0)
    return fit(PassageRanking("q"), texts, options, engine)


@pytest.mark.parametrize("strategy", [IRanker(), DRanker()])
def test_a_list_that_fits_is_counted_as_one_prompt(strategy: IRanker | DRanker) -> None:
    engine = Counting()
    assert fitted(engine, 12, 80, strategy).notes == ()
    assert len(engine.counted) == 3  # the frame of few and of many documents, and the whole
    assert all(f"{number} word" in engine.counted[-1] for number in range(12))


def test_a_short_list_is_not_even_counted() -> None:
    engine = Counting()
    assert fitted(engine, 12, 10, IRanker()).notes == ()
    assert len(engine.counted) == 2


@pytest.mark.parametrize(("count", "words"), [(12, 150), (12, 400), (60, 90)])
@pytest.mark.parametrize("strategy", [IRanker(), IRanker(form="append"), DRanker()])
def test_what_does_not_fit_as_a_whole_is_counted_by_document(
    count: int, words: int, strategy: IRanker | DRanker
) -> None:
    one_by_one, together = Counting(), Together()
    found = fitted(one_by_one, count, words, strategy)
    assert found == fitted(together, count, words, strategy)
    assert together.counted == one_by_one.counted
    if [note.kind for note in found.notes] == ["windowed"]:
        assert together.rounds == 2  # frames, and documents


def test_a_list_without_a_chance_is_not_counted_as_a_whole() -> None:
    engine = Counting()
    fitted(engine, 12, 400, IRanker())
    assert all(text.count("word word") < 400 for text in engine.counted)
