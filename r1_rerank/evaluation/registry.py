"""Systems by name, as the command line and protocols write them: `bm25`, `run:FILE`, `iranker:think=32,limit=50`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..prefilter import BM25_PARAMETERS
from ..rows import Row
from . import baselines
from .baselines import ConstantLLM, Popularity, digest
from .regression import TfidfRidge
from .retrieval import BM25, MINILM, CrossEncoderRanker, Embedding
from .rowsets import BadRows, RowSet
from .systems import FunctionSystem, Ranker, RerankerSystem, Settings, System
from .trec import run_system

if TYPE_CHECKING:
    from ..reranker import R1Reranker

BASELINES = ("random", "incoming", "popularity", "cheapest", "dearest", "best-single", "bm25")
"""What stands beside every model, where a task has use for it."""
BASE = "base"
"""As `model=`: the weights that the checkpoint was trained from."""

_SIMPLE: Mapping[str, Ranker] = {
    "random": baselines.random_order,
    "incoming": baselines.incoming_order,
    "oracle": baselines.oracle,
    "cheapest": baselines.cheapest_first,
    "dearest": baselines.dearest_first,
}
_FITTED: Mapping[str, Callable[[Sequence[Row]], Ranker]] = {
    "popularity": Popularity.fit,
    "best-single": ConstantLLM.fit,
    "tfidf-ridge": TfidfRidge.fit,
}
_NAMED = ("embedding", "cross-encoder", "run")
LLM = ("iranker", "dranker", "model")
_ONLY = {
    "cheapest": "routing",
    "dearest": "routing",
    "best-single": "routing",
    "tfidf-ridge": "routing",
    "popularity": "recommendation",
}
KINDS = (*_SIMPLE, "random-draw", *_FITTED, "bm25", MINILM, *_NAMED, *LLM)
_OF_LLM = ("think", "model", "prefilter", "keep")
_OPTIONS = ("name", "limit", "seed", *_OF_LLM)
PREFILTERS = ("bm25", MINILM)
"""What may hand an LLM the head of a list."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A system by name.

    Args:
        kind: One of `KINDS`.
        target: The file of a run, or the name of a model.
        name: What reports call it.
        limit: Only so many rows of each task.
        think: Thinking tokens of an LLM; None: as its card says.
        model: Hub name or folder of an LLM; `base`: the weights under the checkpoint; None: the checkpoint.
        prefilter: One of `PREFILTERS`, for an LLM; None: it sees the whole list.
        keep: How many candidates the prefilter hands on; None: as it likes.
        seed: Of a random draw.
        tasks: Only these tasks; empty: all.
    """

    kind: str
    target: str | None = None
    name: str
    limit: int | None = None
    think: int | None = None
    model: str | None = None
    prefilter: str | None = None
    keep: int | None = None
    seed: int = 0
    tasks: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Reads `KIND[:TARGET][,KEY=VALUE]...`, also with a colon before the first key.

        Raises:
            InputError: An unknown system or option, or a target too many or too few.

        Examples:
            >>> Spec.parse("iranker:think=32,limit=50").think
            32
            >>> Spec.parse("run:first.run,name=first stage").target
            'first.run'
        """
        kind = text.split(":")[0].split(",")[0].strip()
        if kind not in KINDS:
            raise InputError("system", f"{kind!r} is unknown: use one of {', '.join(KINDS)}")
        options: dict[str, str] = {}
        target: list[str] = []
        for part in text.strip()[len(kind) :].lstrip(":,").split(","):
            key, equals, value = part.partition("=")
            if equals and key.strip() in _OPTIONS:
                options[key.strip()] = value.strip()
            elif part:
                target.append(part)
        if bool(target) != (kind in _NAMED):
            detail = f"needs what it shall load: write {kind}:NAME" if kind in _NAMED else f"cannot use {target[0]!r}"
            raise InputError("system", f"{text!r}: {kind} {detail}; options are {', '.join(_OPTIONS)}")
        of_models = [key for key in _OF_LLM if key in options and kind not in LLM]
        if of_models:
            raise InputError("system", f"{text!r}: {of_models[0]} is for {', '.join(LLM)} alone")
        if options.get("prefilter", MINILM) not in PREFILTERS:
            detail = f"{options['prefilter']!r} is unknown: use {' or '.join(PREFILTERS)}"
            raise InputError("system", f"{text!r}: prefilter {detail}")
        if "keep" in options and "prefilter" not in options:
            raise InputError("system", f"{text!r}: keep needs a prefilter: add prefilter={' or '.join(PREFILTERS)}")
        return cls(
            kind=kind,
            target=",".join(target) or None,
            name=options.get("name") or text.strip(),
            limit=_whole(text, "limit", options, least=1),
            think=_whole(text, "think", options, least=0),
            model=options.get("model"),
            prefilter=options.get("prefilter"),
            keep=_whole(text, "keep", options, least=2),
            seed=_whole(text, "seed", options, least=0) or 0,
        )

    def unfit(self, rows: RowSet) -> str | None:
        """Why it has no use for a task; None where it has."""
        if self.tasks and rows.name not in self.tasks:
            return "is for other tasks"
        only = _ONLY.get(self.kind)
        return f"is for {only} alone" if only is not None and rows.rows[0].task != only else None


@dataclass(frozen=True, kw_only=True)
class Built:
    """A system that can be asked.

    Args:
        system: Itself.
        rows: What it ranks of a task, and what it cannot be asked about.
    """

    system: System
    rows: RowSet


class Builder:
    """Makes systems for tasks. Models are shared by all tasks, and loaded when there is something to rank.

    Args:
        llm: What loads the LLM of a spec, and everything that changes its answers.
        train: Gives the training rows of a task.
        bad_rows: What a run does that does not fit its rows.
        device: For embeddings and cross encoders.
    """

    def __init__(
        self,
        *,
        llm: Callable[[Spec], tuple[Callable[[], R1Reranker], Settings]],
        train: Callable[[RowSet], Sequence[Row]],
        bad_rows: BadRows = "refuse",
        device: str | None = None,
    ) -> None:
        self._llm = llm
        self._train = train
        self._bad_rows = bad_rows
        self._device = device
        self._models: dict[Spec, System] = {}

    def build(self, spec: Spec, rows: RowSet) -> Built:
        """Makes a system for a task.

        Raises:
            InputError: A file, a model or the training rows that cannot be used.
            MissingExtraError: It needs an extra that is not installed.
        """
        if spec.kind == "run":
            assert spec.target is not None
            system, covered, dropped = run_system(spec.target, rows.rows, name=spec.name, bad_rows=self._bad_rows)
            kept = RowSet(name=rows.name, rows=tuple(covered), dropped={**rows.dropped, **dropped})
            return Built(system=system, rows=kept)
        return Built(system=self._whole_task(spec, rows), rows=rows)

    def _whole_task(self, spec: Spec, rows: RowSet) -> System:
        if spec.kind in _SIMPLE:
            return FunctionSystem(_SIMPLE[spec.kind], spec.name, {"kind": spec.kind})
        if spec.kind == "random-draw":
            draw = baselines.RandomDraw(spec.seed)
            return FunctionSystem(draw, spec.name, {"kind": spec.kind, "seed": spec.seed})
        if spec.kind in _FITTED:
            train = self._train(rows)
            settings = {"kind": spec.kind, "train": digest(train)}
            return FunctionSystem(_FITTED[spec.kind](train), spec.name, settings)
        if spec.kind == "bm25":
            return FunctionSystem(BM25.fit(rows.rows), spec.name, {"kind": "bm25", **BM25_PARAMETERS})
        if spec not in self._models:
            self._models[spec] = self._model(spec)
        return self._models[spec]

    def _model(self, spec: Spec) -> System:
        if spec.kind in LLM:
            load, settings = self._llm(spec)
            return RerankerSystem(load, spec.name, {"kind": spec.kind, **settings})
        if spec.kind == "cross-encoder":
            return CrossEncoderRanker(spec.target or "", device=self._device, name=spec.name)
        return Embedding(spec.target or MINILM, device=self._device, name=spec.name)

    def release(self, spec: Spec) -> None:
        """Frees the model of a spec; its memory is for the next."""
        system = self._models.pop(spec, None)
        if isinstance(system, RerankerSystem):
            system.close()


def _whole(text: str, name: str, options: Mapping[str, str], *, least: int) -> int | None:
    if name not in options:
        return None
    try:
        value = int(options[name])
    except ValueError:
        value = least - 1
    if value < least:
        raise InputError("system", f"{text!r}: {name} needs a whole number from {least}, got {options[name]!r}")
    return value
