"""How good the router's choices are on the test questions of LLMRouter, beside rankers that know nothing.

    python benchmarks/routing_quality.py --data DIR [--limit 100] [--model NAME] [--think N]

DIR holds `train.json`, `test.json` and `default_llm.json`.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from r1_rerank import R1Reranker
from r1_rerank.evaluation.datasets import Dropped, read_llmrouter
from r1_rerank.integrations.router import LLMProfile, R1Router
from r1_rerank.rows import OBJECTIVES, Row
from r1_rerank.tasks import OBJECTIVE_WEIGHTS, Weights

BOOTSTRAP = 2000


def rewards(row: Row, weights: Weights) -> list[float]:
    """a * effect - b * cost of each LLM."""
    a, b = weights
    return [a * effect - b * cost for effect, cost in zip(row.effects or (), row.prices or (), strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% bootstrap interval of the mean, by query."""
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(values, k=len(values))) for _ in range(BOOTSTRAP))
    return means[int(0.025 * BOOTSTRAP)], means[int(0.975 * BOOTSTRAP) - 1]


def main(
    data: Annotated[Path, typer.Option(help="Folder of the LLMRouter files.")],
    limit: Annotated[int | None, typer.Option(help="Only the first questions.")] = None,
    model: Annotated[str | None, typer.Option(help="A model in place of the embedded one.")] = None,
    think: Annotated[int | None, typer.Option(help="Thinking tokens.")] = None,
) -> None:
    """Prints a table in Markdown for each objective."""
    reranker = R1Reranker.from_pretrained(model, thinking=think)
    for objective in OBJECTIVES:
        weights = OBJECTIVE_WEIGHTS[objective]
        dropped = Dropped()
        rows = list(read_llmrouter(data, "test", objective, dropped=dropped))[:limit]
        train = list(read_llmrouter(data, "train", objective))
        names = [candidate.id for candidate in rows[0].candidates]
        prices = [candidate.price or 0.0 for candidate in rows[0].candidates]
        pool = [
            LLMProfile(name=candidate.id, description=candidate.text, input_price=price, output_price=price)
            for candidate, price in zip(rows[0].candidates, prices, strict=True)
        ]
        decisions = R1Router(pool, reranker, objective=objective).route_batch([row.query or "" for row in rows])
        ours = {row.id: names.index(decision.profile.name) for row, decision in zip(rows, decisions, strict=True)}
        places = range(len(names))
        gains = [statistics.fmean(rewards(row, weights)[place] for row in train) for place in places]
        draw = random.Random(0)
        choices: dict[str, Callable[[Row], int]] = {
            "ours": lambda row, ours=ours: ours[row.id],
            "random (one draw)": lambda row, draw=draw, places=places: draw.choice(places),
            "cheapest": lambda row, prices=prices: prices.index(min(prices)),
            "dearest": lambda row, prices=prices: prices.index(max(prices)),
            "best single LLM on train": lambda row, gains=gains: gains.index(max(gains)),
            "oracle": lambda row: row.relevance.index(1.0),
        }
        print(f"\n**{objective}** (a, b = {weights[0]:g}, {weights[1]:g}), {len(rows)} questions")
        print(
            "\n| choice | effect | price, $ per million output tokens | reward | 95% interval |\n|---|---|---|---|---|"
        )
        for name, choose in choices.items():
            chosen = [(row, choose(row)) for row in rows]
            effect = statistics.fmean((row.effects or ())[place] for row, place in chosen)
            price = statistics.fmean(prices[place] for _, place in chosen)
            values = [rewards(row, weights)[place] for row, place in chosen]
            low, high = interval(values)
            print(f"| {name} | {effect:.3f} | {price:.2f} | {statistics.fmean(values):.3f} | {low:.3f} to {high:.3f} |")
        counted = ", ".join(f"{count} ({reason})" for reason, count in dropped.counts.items())
        statuses = {decision.result.status for decision in decisions}
        computed = sum(decision.result.usage.prompt_computed for decision in decisions) / len(decisions)
        print(
            f"\nLeft out: {counted}. Statuses: {', '.join(sorted(statuses))}. {computed:.0f} prompt tokens a decision."
        )


if __name__ == "__main__":
    typer.run(main)
