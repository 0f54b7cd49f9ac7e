"""An evaluation from the command line: checked before a model runs, then measured, written and printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer

from .. import __version__
from ..errors import InputError, MissingExtraError
from ..evaluation.datasets.common import Dropped
from ..evaluation.datasets.leaks import LeakFilter
from ..evaluation.evaluator import RerankingEvaluator
from ..evaluation.measures import DEFAULT_METRICS, check_metrics
from ..evaluation.records import EvaluationRun, Record, read_records
from ..evaluation.reference import PAPER_TASKS
from ..evaluation.registry import Builder, Spec
from ..evaluation.report import build_report
from ..evaluation.report_text import routing
from ..evaluation.rowsets import BadRows, RowSet, find_tasks, read_task
from ..evaluation.systems import System
from ..evaluation.trec import write_qrels, write_run
from ..rows import Row, read_rows
from .console import FAILED, note
from .eval_models import llm_of
from .eval_plan import Plan, slug
from .eval_progress import progress
from .model_options import ModelOptions
from .resume import drop_lines, is_empty, read_finished, write_settings
from .stdout import write_json, write_text


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One system on one task."""

    spec: Spec
    system: System
    evaluator: RerankingEvaluator
    path: Path | None
    settings: dict[str, object]
    redo: set[int] = field(default_factory=set)
    done: tuple[Record, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that an evaluation does, beside the rows.

    Args:
        options: Which model, and how it is asked.
        plan: Which systems.
        metrics: Which ranking metrics; empty: the usual.
        limit: Rows of each task.
        shuffles: How often rows are ranked again, shuffled.
        seed: Of the limit, the shuffles and the intervals.
        bad_rows: What rows do that cannot be evaluated.
        out: Folder for everything; None: only the tables.
        resume: The folder may hold results.
        reference: Show the paper's figures.
        device: Where embeddings and cross encoders run; None: the best there is.
        json: Print JSON in place of tables.
    """

    options: ModelOptions
    plan: Plan
    metrics: tuple[str, ...]
    limit: int | None
    shuffles: int
    seed: int
    bad_rows: BadRows
    out: Path | None
    resume: bool
    reference: bool
    device: str | None
    json: bool

    def run(self, source: Path, *, tasks: Sequence[str], split: str, train: Path | None) -> None:
        """Measures, writes and prints.

        Args:
            source: A file of rows, or a folder of tasks.
            tasks: Only these; empty: all.
            split: Which rows of a task.
            train: Training rows in place of those beside the rows.

        Raises:
            typer.Exit: A system failed on a row.
        """
        metrics = check_metrics(self.metrics or DEFAULT_METRICS)
        paths = self._paths(source, tasks, split)
        sets = {name: read_task(path, name=name, bad_rows=self.bad_rows) for name, path in paths.items()}
        for rows in sets.values():
            for reason, count in rows.dropped.items():
                note(f"{rows.name}: {count} rows left out: {reason}")
        notes = [*self.plan.notes, f"r1-rerank {__version__}, seed {self.seed}, rows of {source}"]
        builder = Builder(
            llm=lambda spec: llm_of(self.options, spec),
            train=_training(paths, train, self.bad_rows, notes),
            bad_rows=self.bad_rows,
            device=None if self.device == "auto" else self.device,
        )
        jobs = self._jobs(builder, sets, metrics, notes)
        if self.out is not None:
            self._write_judgments(sets)
        runs = []
        for number, job in enumerate(jobs):
            runs.append(self._measure(job, metrics[0]))
            if all(later.spec != job.spec for later in jobs[number + 1 :]):
                builder.release(job.spec)
        report = build_report(
            runs,
            metric=metrics[0] if any(metrics[0] in run.metrics for run in runs) else None,
            against=self.plan.against,
            pairs=self.plan.pairs,
            notes=notes,
            reference=self.reference,
            seed=self.seed,
        )
        if self.out is not None:
            report.write(self.out)
            note(f"results and reports are in {self.out}")
        if self.json:
            write_json(report.to_dict(), indent=2)
        else:
            write_text("\n".join((report.overview(), routing(report))))
        if failed := sum(run.failed for run in runs):
            note(f"{failed} rows failed and are in no mean; the same command with --resume tries them again")
            raise typer.Exit(FAILED)

    def _paths(self, source: Path, tasks: Sequence[str], split: str) -> dict[str, Path]:
        """The files to be read, by task."""
        found = find_tasks(source, split)
        wanted = list(tasks)
        if not wanted and self.plan.tasks and source.is_dir():
            wanted = list(self.plan.tasks)
        if unknown := [name for name in wanted if name not in found]:
            detail = f"{', '.join(unknown)} not found in {source}; it has {', '.join(found)}"
            raise InputError("task", detail)
        places = {name: place for place, name in enumerate(PAPER_TASKS)}
        known = sorted(found, key=lambda name: (places.get(name, len(places)), name))
        return {name: found[name] for name in wanted or known}

    def _jobs(
        self, builder: Builder, sets: dict[str, RowSet], metrics: tuple[str, ...], notes: list[str]
    ) -> list[_Job]:
        """Everything to be done, checked as far as it can be without running a model."""
        jobs = []
        # A protocol may split a system by task: one of its parts is enough.
        fitting = {spec.name for spec in self.plan.systems if any(spec.unfit(rows) is None for rows in sets.values())}
        for spec in self.plan.systems:
            reasons = {name: spec.unfit(rows) for name, rows in sets.items()}
            if all(reasons.values()) and spec.name not in {*self.plan.implied, *fitting}:
                raise InputError("system", f"{spec.name} {next(iter(reasons.values()))}; there is no such task")
            for name, rows in sets.items():
                if reasons[name] is not None:
                    continue
                try:
                    built = builder.build(spec, rows)
                except (InputError, MissingExtraError) as error:
                    if spec.name not in self.plan.implied:
                        raise
                    notes.append(f"{spec.name} is not measured on {name}: {error}")
                    note(notes[-1])
                    continue
                evaluator = RerankingEvaluator(
                    built.rows,
                    metrics=metrics,
                    limit=spec.limit if spec.limit is not None else self.limit,
                    shuffles=self.shuffles,
                    seed=self.seed,
                )
                jobs.append(self._job(spec, built.system, evaluator))
        if not jobs:
            raise InputError("system", "nothing can be measured on these tasks; name a system, or another task")
        if self.plan.against is not None and all(job.spec.name != self.plan.against for job in jobs):
            raise InputError("against", f"{self.plan.against} cannot be measured on any of these tasks; name another")
        return jobs

    def _job(self, spec: Spec, system: System, evaluator: RerankingEvaluator) -> _Job:
        settings = {"version": __version__, **evaluator.settings(system)}
        if self.out is None:
            return _Job(spec=spec, system=system, evaluator=evaluator, path=None, settings=settings)
        path = self.out / evaluator.name / f"{slug(spec.name)}.jsonl"
        if not self.resume and not is_empty(path):
            raise InputError("out", f"{path} is not empty; pass --resume to go on with it, or another folder")
        # As JSON gives it back, or a tuple would not equal the list that it became.
        settings = json.loads(json.dumps(settings))
        try:
            finished = read_finished(path, settings)
        except InputError as error:
            message = str(error).removeprefix(f"{error.argument}: ").replace("--output-file", "--out")
            raise InputError(error.argument, message) from error
        done = [record for record in read_records(path) if record.scores is not None] if path.exists() else []
        return _Job(
            spec=spec,
            system=system,
            evaluator=evaluator,
            path=path,
            settings=settings,
            redo=finished.redo,
            done=tuple(done),
        )

    def _measure(self, job: _Job, metric: str) -> EvaluationRun:
        evaluator = job.evaluator
        with progress(f"{job.spec.name} on {evaluator.name}", metric, evaluator.count()) as advance:
            for record in job.done:
                advance(record)
            if job.path is None:
                return evaluator(job.system, done=job.done, on_record=advance)
            job.path.parent.mkdir(parents=True, exist_ok=True)
            drop_lines(job.path, job.redo)
            if is_empty(job.path):
                write_settings(job.path, job.settings)
            with job.path.open("ab") as file:

                def keep(record: Record) -> None:
                    file.write(f"{record.to_json()}\n".encode())
                    file.flush()
                    advance(record)

                try:
                    run = evaluator(job.system, done=job.done, on_record=keep)
                except KeyboardInterrupt:
                    note("interrupted; the same command with --resume goes on")
                    raise
            scores = {
                record.row: dict(zip(record.candidates, record.scores or (), strict=True)) for record in run.ranked
            }
            write_run(job.path.with_suffix(".run"), scores, job.spec.name)
            return run

    def _write_judgments(self, sets: dict[str, RowSet]) -> None:
        assert self.out is not None
        for name, rows in sets.items():
            folder = self.out / name
            folder.mkdir(parents=True, exist_ok=True)
            write_qrels(folder / "qrels.txt", rows.rows)


def _training(
    paths: dict[str, Path], train: Path | None, bad_rows: BadRows, notes: list[str]
) -> Callable[[RowSet], Sequence[Row]]:
    """Finds the training rows of a task without those that leak, and keeps them for the next system."""
    kept: dict[str, list[Row]] = {}

    def find(rows: RowSet) -> Sequence[Row]:
        path = train or paths[rows.name].with_name("train.jsonl")
        if path.resolve() == paths[rows.name].resolve():
            raise InputError("train", f"{path} holds the rows that are measured; pass others with --train FILE")
        if not path.is_file():
            raise InputError("train", f"{path} does not exist; pass training rows with --train FILE")
        if rows.name not in kept:
            kept[rows.name] = clean(path, rows)
        return kept[rows.name]

    def clean(path: Path, rows: RowSet) -> list[Row]:
        dropped = Dropped()
        found = list(LeakFilter(rows.rows, dropped=dropped)(read_rows(path)))
        if not dropped.counts:
            return found
        counted = "; ".join(f"{count} rows left out: {reason}" for reason, count in dropped.counts.items())
        if bad_rows == "refuse":
            detail = f"{path} leaks ({counted}); mend it, or leave them out with --bad-rows skip"
            raise InputError("train", detail)
        notes.append(f"Training rows of {rows.name}: {counted}.")
        note(notes[-1])
        return found

    return find
