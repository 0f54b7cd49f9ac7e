"""`r1-rerank train`: teaches a model to rank, by a recipe, on rows of your own or on built tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..rows import TaskName
from .console import note
from .stdout import write_text

if TYPE_CHECKING:
    from ..training.folder import StageResult
    from ..training.recipe import Recipe
    from ..training.run import Preview, Training

DEFAULT = "embedded-cpu"
"""The recipe where none is named."""


def _data(*flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, rich_help_panel="Data", **settings)


def train(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the checkpoint; empty.")],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help=f"A recipe, or a built-in one: smoke-cpu, lora-24gb, qwen2.5-3b-paper (default: {DEFAULT}).",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        _data(metavar="DIR|FILE", help="Tasks, from r1-rerank data build; or rows of your own.", envvar="R1_BUILT"),
    ] = None,
    task: Annotated[
        list[str] | None,
        _data(metavar="NAME", help="Only passage, recommendation or routing; once for each (default: all)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show a prompt, its rewards, and the memory and time it would take.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also write the whole model, in DIR/merged, the adapter merged into it.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(metavar="NAME", help="Publish the checkpoint on the hub, such as you/ranker.")
    ] = None,
) -> None:
    """Train a model to rank.

    The checkpoint in DIR loads with R1Reranker.from_pretrained, and is asked in
    the words that it was trained with.

    On several GPUs: accelerate launch -m r1_rerank.training.grpo, and the same options.
    """
    from ..training.folder import RECIPE
    from ..training.outputs import check_publishing
    from ..training.processes import is_main, leave
    from ..training.run import Training

    written = out / RECIPE
    source = config or (str(written) if resume and written.is_file() else DEFAULT)
    recipe = _recipe(source, data, task or ())
    with _told(is_main()):
        training = Training(recipe, out)
        if dry_run:
            preview = training.dry_run()
            leave()
            if is_main():
                _print_preview(training, preview)
            return
        if merge and recipe.lora is None:
            raise InputError("merge", "the recipe trains whole weights: there is no adapter to merge")
        if push is not None and is_main():  # who pushes
            check_publishing(push)
        results = training.run(resume=resume)
        leave()
        if not is_main():
            return
        _finish(training, results, merge=merge, push=push)


def _recipe(source: str, data: Path | None, tasks: Sequence[str]) -> Recipe:
    from typing import cast, get_args

    from ..training.recipe import builtin_recipes, read_recipe
    from ..training.sources import read_sources

    if unknown := [task for task in tasks if task not in get_args(TaskName)]:
        raise InputError("task", f"{unknown[0]!r} is not one of {', '.join(get_args(TaskName))}")
    recipe, wanted = read_recipe(source), cast("Sequence[TaskName]", tasks)
    if data is not None and data.is_file():
        found = sorted({row.task for read in read_sources(data) for row in read.rows})
        return recipe.over(folder=str(data.parent), rows=data.name, tasks=wanted or found)
    if data is not None and not data.is_dir():
        raise InputError("data", f"{data} is no folder, nor a file of rows; r1-rerank data build writes one")
    # A recipe of ours names all tasks, of which not everyone has built all.
    absent: Any = "skip" if tasks or source in builtin_recipes() else None
    return recipe.over(folder=None if data is None else str(data), tasks=wanted, absent=absent)


def _finish(training: Training, results: Sequence[StageResult], *, merge: bool, push: str | None) -> None:
    from ..training.outputs import publish, write_outputs

    final = write_outputs(training, results, merge=merge)
    lines = [
        f"{one.name}: {one.steps} steps of {one.method}, {one.seconds:.0f} s"
        + (f", MRR {_interval(one.before, 'mrr')} -> {_interval(one.after, 'mrr')}" if one.after else "")
        for one in results
    ]
    if final is not None:
        lines.append(f"checkpoint: MRR {_interval(final.metrics(), 'mrr')} on held-out rows")
    write_text("\n".join(lines))
    note(f"the checkpoint is in {training.out}")
    if push is not None:
        note(f"published at {publish(training.out, push)}")


def _interval(figures: Any, metric: str) -> str:
    mean, low, high = (figures[f"eval_{metric}{bound}"] for bound in ("", "_low", "_high"))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _print_preview(training: Training, preview: Preview) -> None:
    from ..training.preflight import sample_rewards

    question = training.questions.first(preview.row)
    graded = training.recipe.stages[0].graded
    parts = ["prompt:", preview.prompt, "", "rewards:"]
    parts += [f"  {answer}  {value:+.3f}" for answer, value in sample_rewards(question, graded=graded)]
    share = preview.trained / preview.parameters
    parts += ["", f"trained parameters: {preview.trained:,} of {preview.parameters:,} ({share:.1%})"]
    for one in preview.estimates:
        parts.append(
            f"{one.stage}: {one.examples} examples in {one.steps} steps, {one.tokens:.0f} tokens an example, "
            f"longest prompt {one.longest}; every answer has the same reward in {one.alike:.0%} of first questions; "
            f"expected (an estimate from two timed steps, without validations, teachers and mining): "
            f"{_duration(one.seconds)}, {one.memory / 2**30:.1f} GiB"
        )
    write_text("\n".join(parts))


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


@contextmanager
def _told(main: bool) -> Iterator[None]:
    """Shows how the training goes: what the library logs of it, as notes."""
    logger = logging.getLogger("r1_rerank.training")
    level = logger.level
    logger.setLevel(logging.INFO if main else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
