"""Model cards: what a checkpoint was made of, how, and how good it is, as a page to read."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import __version__
from ..checkpoint import EMBEDDED_HUB, RankerCard
from ..evaluation.comparison import compare
from ..evaluation.records import EvaluationRun
from .folder import StageResult
from .places import is_place, without_folders
from .recipe import LabelStage, Recipe
from .validation import REWARD, Validation


def model_card(
    *,
    name: str,
    recipe: Recipe,
    card: RankerCard,
    data: Sequence[Mapping[str, Any]],
    results: Sequence[StageResult],
    validations: Sequence[Validation | None],
    final: Validation | None,
    curves: str | None,
    adapter: bool,
) -> str:
    """The page.

    Args:
        name: Of the checkpoint.
        recipe: As run.
        card: How the model is asked.
        data: The data card of each stage.
        results: What each stage came to.
        validations: Before the first stage, and after each; None where there was none.
        final: That of the checkpoint as it was written.
        curves: File of the curves.
        adapter: It is an adapter, not a whole model.
    """
    parts = [
        *_head(name, card, adapter),
        *_use(name, card),
        *_quality(results, validations, final, chosen=any(stage.keep == "best" for stage in recipe.stages)),
        *(["", "## Curves", "", f"![Training curves]({curves})"] if curves else []),
        *_data(data),
        *_making(recipe, results),
    ]
    return "\n".join(parts) + "\n"


def _head(name: str, card: RankerCard, adapter: bool) -> Iterator[str]:
    yield "---"
    if not is_place(card.base.name):  # the hub knows only models of its own
        yield f"base_model: {card.base.name}"
    yield f"library_name: {'peft' if adapter else 'transformers'}"
    if card.base.name == EMBEDDED_HUB:
        yield "license: apache-2.0"
    yield from ("pipeline_tag: text-ranking", "tags: [r1-rerank, reranking]", "---", "", f"# {name}", "")
    what = "LoRA adapter of" if adapter else "fine-tuned"
    ways = {"iranker": "eliminates the worst candidate until one is left", "dranker": "writes the whole order at once"}
    how = ways[card.strategy] + "".join(f", and asked as {name} {ways[name]}" for name in card.also)
    thinking = f", after up to {card.thinking.budget} tokens of reasoning" if card.thinking.budget else ""
    base = without_folders(card.base.name)
    yield f"A ranker, {what} {base}, trained with r1-rerank {__version__}. It {how}{thinking}."


def _use(name: str, card: RankerCard) -> Iterator[str]:
    yield from ("", "## Use", "", "```python", "from r1_rerank import R1Reranker", "")
    yield from (f'reranker = R1Reranker.from_pretrained("{name}")', "result = reranker.rerank(query, documents)", "```")
    yield from ("", "`r1_rerank.json` holds the words in which it was trained; every engine asks in them.")


def _quality(
    results: Sequence[StageResult],
    validations: Sequence[Validation | None],
    final: Validation | None,
    *,
    chosen: bool,
) -> Iterator[str]:
    named = zip(["before", *(f"after {one.name}" for one in results)], validations, strict=True)
    shown = [(name, found) for name, found in named if found is not None]
    yield from ("", "## Held-out rows", "")
    if final is None:
        yield "None were ranked: the recipe wants no validation."
        return
    names, known = [*(name for name, _ in shown), "this checkpoint"], [*(found for _, found in shown), final]
    yield from (f"| MRR | rows | {' | '.join(names)} |", "|---|---|" + "---|" * len(names))
    for place, run in enumerate(final.runs):
        cells = [f"{found.runs[place].interval('mrr').mean:.3f}" for found in known]
        yield f"| {run.task} | {len(run.records)} | {' | '.join(cells)} |"
    together = [found.together() for found in known]
    if len(final.runs) > 1:
        yield f"| all | {len(together[-1].records)} | {' | '.join(_shown(run, 'mrr') for run in together)} |"
    if all(REWARD in run.metrics for run in together):
        cells = [_shown(run, REWARD) for run in together]
        yield f"| expected reward of the first elimination | {len(together[-1].records)} | {' | '.join(cells)} |"
    if validations[0] is None:  # as where weights are spread over processes
        yield from ("", "Intervals are 95% by query. Nothing was ranked before training: the gain is not known.")
        return
    gain = compare(together[0], together[-1])
    gap = gain.difference
    yield from (
        "",
        f"Intervals are 95% by query. Against the weights before, row by row: {gap.mean:+.3f} "
        f"[{gap.low:+.3f}, {gap.high:+.3f}], p = {gain.p:.4f}."
        + (
            " The best of several validations on these rows was kept, so the figures flatter the model a little: judge "
            "it on rows of your own."
            if chosen
            else ""
        ),
    )


def _data(cards: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("", "## Data", "")
    sources: dict[str, list[Mapping[str, Any]]] = {}
    for card in cards:
        for source in card["sources"]:
            sources.setdefault(source["name"], []).append(source)
    for name, found in sources.items():
        seen, rows = sum(source["examples"] for source in found), found[0]["rows"]
        if not seen:  # no phase took its rows
            continue
        yield f"- {name}: {seen} examples drawn from {rows} rows"
        built = found[0].get("card") or {}
        for part in built.get("sources", {}).get("train", ()):
            yield f"  - {part['name']}. Licence: {part['licence']}. {part['home']}"
    if any(source.get("card") for found in sources.values() for source in found):
        yield from ("", "The licences are those of the sources. `data.json` counts what each stage saw.")


def _making(recipe: Recipe, results: Sequence[StageResult]) -> Iterator[str]:
    yield from ("", "## How it was made", "", "| stage | method | examples | steps | minutes | kept |")
    yield "|---|---|---|---|---|---|"
    for stage, one in zip(recipe.stages, results, strict=True):
        kept = f"step {one.kept}" if one.kept != one.steps else "last step"
        yield f"| {one.name} | {one.method} | {stage.examples} | {one.steps} | {one.seconds / 60:.1f} | {kept} |"
    sampled = not all(isinstance(stage, LabelStage) for stage in recipe.stages)
    packages = ("torch", "transformers", "peft", "accelerate", *(("trl",) if sampled else ()))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    yield from ("", f"r1-rerank {__version__}, {versions}, Python {platform.python_version()}.")
    yield from ("", "```yaml", recipe.to_yaml().rstrip(), "```")


def _shown(run: EvaluationRun, metric: str) -> str:
    interval = run.interval(metric)
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
