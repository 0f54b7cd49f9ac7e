"""`r1-rerank rerank`: one query from the command line, or a file with a query a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..budget import Budget
from ..errors import InputError
from ..prefilter import BM25Prefilter
from ..rows import Objective, TaskName
from .console import note
from .model_options import (
    BatchSize,
    Device,
    Dtype,
    Engine,
    EngineOption,
    LabelSeed,
    ModelName,
    ModelOptions,
    Passes,
    Templates,
    Think,
    read_engine_options,
    read_templates,
)
from .queries import Query, from_arguments, read_queries
from .results import Format
from .runs import Destination, Run, Selection


def input_option(*flags: str, **settings: Any) -> Any:
    """An option that says what is ranked."""
    return typer.Option(*flags, rich_help_panel="Input", **settings)


def model_option(*flags: str, **settings: Any) -> Any:
    """An option that says which model ranks, and how."""
    return typer.Option(*flags, rich_help_panel="Model", **settings)


def budget_option(*flags: str, **settings: Any) -> Any:
    """An option that limits what a query may cost."""
    return typer.Option(*flags, rich_help_panel="Limits for each query", **settings)


def output_option(*flags: str, **settings: Any) -> Any:
    """An option that says what results look like."""
    return typer.Option(*flags, rich_help_panel="Output", **settings)


def rerank(
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="What the documents are ranked for.")] = None,
    documents: Annotated[list[str] | None, typer.Argument(metavar="DOCUMENTS", help="Texts to rank.")] = None,
    input: Annotated[
        str | None,
        input_option("--input", "-i", metavar="FILE", help="A query a line as JSON, see above; - is standard input."),
    ] = None,
    history: Annotated[
        list[str] | None,
        input_option(metavar="ITEM", help="In place of QUERY: what a user chose, oldest first; once for each."),
    ] = None,
    task: Annotated[TaskName, input_option(help="What is ranked. A history makes it a recommendation.")] = "passage",
    objective: Annotated[Objective | None, input_option(help="What routing goes by (default: performance).")] = None,
    model: ModelName = None,
    engine: Engine = "transformers",
    engine_option: EngineOption = None,
    strategy: Annotated[
        str | None,
        model_option(
            metavar="NAME", help="iranker (worst out, step by step) or dranker (one answer) (default: the model's own)."
        ),
    ] = None,
    think: Think = None,
    template: Templates = None,
    label_seed: LabelSeed = None,
    passes: Passes = 1,
    prefilter: Annotated[
        int | None, model_option(min=2, metavar="N", help="Order by BM25 first, and rank only the best N.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    budget_calls: Annotated[int | None, budget_option(min=1, metavar="N", help="Calls of the model.")] = None,
    budget_tokens: Annotated[int | None, budget_option(min=1, metavar="N", help="Tokens computed.")] = None,
    budget_thinking: Annotated[int | None, budget_option(min=1, metavar="N", help="Tokens of thinking.")] = None,
    budget_seconds: Annotated[float | None, budget_option(metavar="N", help="Seconds.")] = None,
    on_error: Annotated[
        Literal["partial", "raise"],
        budget_option(help="If the engine fails: the best order so far, or a failed query (exit code 1)."),
    ] = "partial",
    top_k: Annotated[
        int | None, output_option(min=1, metavar="N", help="How many documents come back (default: all).")
    ] = None,
    score_threshold: Annotated[
        float | None, output_option(metavar="SCORE", help="Leave out what scores lower, from 0 to 1.")
    ] = None,
    trace: Annotated[bool, output_option("--trace", help="Show every step with its reasoning.")] = False,
    output: Annotated[
        Format | None, output_option(help="What results look like (default: table on a terminal, else jsonl).")
    ] = None,
    output_file: Annotated[
        Path | None, output_option("--output-file", "-o", metavar="FILE", help="Write results there.")
    ] = None,
    resume: Annotated[
        bool,
        output_option("--resume", help="Go on with a file that was cut off; redo a torn last line."),
    ] = False,
    dry_run: Annotated[
        bool, output_option("--dry-run", help="Print the calls and tokens that it would take at most; ask nothing.")
    ] = False,
) -> None:
    """Put documents in order, best first.

    A line of an input file:
    {"id": "q1", "query": "…", "documents": ["text", {"id": "d1", "text": "…"}]}
    Optional: "id", "history" in place of "query", a document's "title"; for
    routing "objective", and a document's "price".
    """
    options = ModelOptions(
        model=model,
        engine=engine,
        strategy=strategy,
        think=think,
        templates=read_templates(template or []),
        budget=Budget(
            calls=budget_calls, tokens=budget_tokens, thinking_tokens=budget_thinking, seconds=budget_seconds
        ),
        on_error=on_error,
        label_seed=label_seed,
        engine_options=read_engine_options(engine_option or (), device=device, dtype=dtype, batch_size=batch_size),
        passes=passes,
        prefilter=None if prefilter is None else BM25Prefilter(prefilter),
    )
    options.check()
    selection = Selection(top_k=top_k, score_threshold=score_threshold, trace=trace)
    selection.check(options)
    destination = Destination.checked(output, output_file, resume=resume, dry_run=dry_run, from_file=input is not None)
    words = [word for word in (query, *(documents or [])) if word is not None]
    queries = _queries(input, words, history or [], task, objective)
    run = Run(options=options, selection=selection, destination=destination, task=(task, objective))
    if dry_run:
        run.estimate(queries)
    else:
        run.rank(queries)


def _queries(
    source: str | None, words: Sequence[str], history: Sequence[str], task: TaskName, objective: Objective | None
) -> list[Query]:
    if source is None:
        return from_arguments(words, history, task, objective)
    for name, values in (("query", words), ("history", history)):
        if values:
            raise InputError(name, "stands beside --input, which brings its own; pass one of the two")
    if objective is not None and task != "routing":
        raise InputError("objective", "is for routing alone; pass --task routing, or leave it out")
    queries, unused = read_queries(source, task, objective)
    if unused:
        note(f"{source}: not used: {', '.join(unused)}")
    if not queries:
        note(f"{source}: holds no queries")
    return queries
