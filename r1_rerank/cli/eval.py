"""`r1-rerank eval`: measures rankers on labelled rows, beside the baselines that every model has to beat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..budget import Budget
from ..errors import InputError
from .eval_plan import Plan
from .eval_run import Evaluation
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


def _rows(*flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, rich_help_panel="Rows", **settings)


def _systems(*flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, rich_help_panel="Systems", **settings)


def _output(*flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, rich_help_panel="Output", **settings)


def evaluate(
    source: Annotated[
        Path, typer.Argument(metavar="ROWS", help="A file of rows, or a folder from r1-rerank data build.")
    ],
    task: Annotated[
        list[str] | None, _rows(metavar="NAME", help="Only this task of the folder; once for each (default: all).")
    ] = None,
    split: Annotated[str, _rows(metavar="NAME", help="Which rows of a task of the folder.")] = "test",
    train: Annotated[
        Path | None,
        _rows(
            metavar="FILE",
            help="Rows to fit popularity, best-single and tfidf-ridge on (default: the task's train.jsonl).",
        ),
    ] = None,
    limit: Annotated[
        int | None, _rows(min=1, metavar="N", help="A quick look at N rows of a task, over as many queries as it has.")
    ] = None,
    bad_rows: Annotated[
        Literal["refuse", "skip"], _rows(help="What rows do that cannot be evaluated: end it, or be counted.")
    ] = "refuse",
    system: Annotated[
        list[str] | None,
        _systems("--system", "-s", metavar="NAME", help="What to measure; once for each (default: model)."),
    ] = None,
    protocol: Annotated[
        str | None,
        _systems(metavar="NAME", help="An experiment of the paper: main, direct-iterative, rl or zero-shot."),
    ] = None,
    cold_start: Annotated[
        Path | None, _systems("--cold-start", metavar="DIR", help="For rl: the weights that a stage of training left.")
    ] = None,
    checkpoints: Annotated[
        Path | None, _systems(metavar="DIR", help="For zero-shot: a checkpoint without each scenario.")
    ] = None,
    baselines: Annotated[bool, _systems(help="Put the baselines beside.")] = True,
    against: Annotated[
        str | None, _systems(metavar="NAME", help="The system that others are compared with (default: a baseline).")
    ] = None,
    metric: Annotated[
        list[str] | None,
        _systems(metavar="NAME", help="mrr, map, ndcg@K, hit@K; the first leads (default: mrr ndcg@10 hit@1 map)."),
    ] = None,
    shuffles: Annotated[
        int, _systems(min=0, metavar="N", help="Rank each row N times more, its candidates shuffled.")
    ] = 0,
    seed: Annotated[int, _systems(metavar="N", help="Of the limit, the shuffles and the intervals.")] = 0,
    model: ModelName = None,
    engine: Engine = "transformers",
    engine_option: EngineOption = None,
    think: Think = None,
    passes: Passes = 1,
    template: Templates = None,
    label_seed: LabelSeed = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: BatchSize = None,
    out: Annotated[
        Path | None, _output("--out", "-o", metavar="DIR", help="Write results row by row, runs and reports there.")
    ] = None,
    resume: Annotated[
        bool, _output("--resume", help="Go on with the results in --out; redo a torn last line.")
    ] = False,
    reference: Annotated[
        Literal["paper"] | None, _output(help="Show the paper's figures beside, which are of other data.")
    ] = None,
    output: Annotated[Literal["table", "json"], _output(help="What stdout shows.")] = "table",
) -> None:
    """Measure rankers on labelled rows.

    Systems: random, random-draw, incoming, oracle, bm25, minilm, popularity, cheapest,
    dearest, best-single, tfidf-ridge, embedding:NAME, cross-encoder:NAME, run:FILE (TREC), and the LLM:
    iranker, dranker, model (as its card says). Options follow behind commas:
    iranker:think=32,limit=50, dranker:model=NAME,name=direct (model=base: the weights
    under the checkpoint), or iranker:prefilter=minilm,keep=5 (the head of its order; or of bm25's).
    """
    options = ModelOptions(
        model=model,
        engine=engine,
        strategy=None,
        think=think,
        templates=read_templates(template or []),
        budget=Budget(),
        on_error="partial",
        label_seed=label_seed,
        engine_options=read_engine_options(engine_option or (), device=device, dtype=dtype, batch_size=batch_size),
        passes=passes,
    )
    options.check()
    if resume and out is None:
        raise InputError("resume", "goes on with results in a folder; pass --out DIR too")
    if checkpoints is not None and protocol != "zero-shot":
        raise InputError("checkpoints", "is for --protocol zero-shot alone")
    if cold_start is not None and protocol != "rl":
        raise InputError("cold_start", "is for --protocol rl alone")
    if train is not None and not train.is_file():
        raise InputError("train", f"{train} is no file; pass a file of training rows")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError("out", f"{out} is a file; pass a folder")
    plan = Plan.checked(
        system or (),
        protocol,
        model=model,
        cold_start=cold_start,
        checkpoints=checkpoints,
        built=source if any(source.glob("*/train.jsonl")) else None,
        think=think,
        baselines=baselines,
        against=against,
    )
    Evaluation(
        options=options,
        plan=plan,
        metrics=tuple(metric or ()),
        limit=limit,
        shuffles=shuffles,
        seed=seed,
        bad_rows=bad_rows,
        out=out,
        resume=resume,
        reference=reference is not None,
        device=device,
        json=output == "json",
    ).run(source, tasks=task or (), split=split, train=train)
