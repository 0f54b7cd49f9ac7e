"""What goes in and what comes out: documents, ranked documents, steps, usage, the result.

Plain frozen dataclasses. Every position (`index`, `shown`, `picked`, `standing`) counts from 0 into the
documents as they were passed; every rank counts from 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, overload

from .errors import InputError, InputTypeError

Status = Literal["ok", "repaired", "partial", "fallback", "failed"]
"""How far the ranking is the model's own. The worst thing that happened decides.

`ok`: every answer was well-formed. `repaired`: the parser dropped or completed something. `partial`: a budget
or an engine fault ended the run, the rest keeps its incoming order; of several passes, only those that finished
vote. `fallback`: no usable answer at all, incoming order. `failed`: an engine fault under `on_error="raise"` in one
row of a batch, no results.
"""
ScoreKind = Literal["rank", "logprob", "vote"]
"""`rank`: 1 - (rank - 1) / n. `logprob`: running minimum of each document's survival probability. `vote`: the
document's share of the votes of several passes."""


@dataclass(frozen=True)
class Document:
    """A candidate to be ranked.

    Args:
        text: What the model reads. May be empty.
        id: Your own identifier, unique within a list; returned, never shown to the model.
        title: Shown before the text.
        price: US dollars per million tokens of an LLM; shown in routing.
        metadata: Anything of yours; returned, never shown to the model.
    """

    text: str
    id: str | None = None
    title: str | None = None
    price: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, value in (("text", self.text), ("id", self.id), ("title", self.title)):
            if not isinstance(value, str) and (value is not None or name == "text"):
                raise InputTypeError(f"Document.{name}", f"expected a str, got {type(value).__name__}")
        if self.price is None:
            return
        if isinstance(self.price, bool) or not isinstance(self.price, int | float):
            raise InputTypeError("Document.price", f"expected a number, got {type(self.price).__name__}")
        if not self.price >= 0:
            raise InputError("Document.price", f"expected dollars per million tokens >= 0, got {self.price!r}")


@dataclass(frozen=True)
class RankedDocument:
    """A document in its place: `rank` from 1, `index` from 0 into the input, `score` in [0, 1]."""

    rank: int
    index: int
    score: float
    document: Document

    @property
    def text(self) -> str:
        """Text of the document."""
        return self.document.text


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a call or a whole ranking cost.

    Args:
        calls: Requests to the model.
        prompt_computed: Tokens fed forward, except those just sampled (padding is not counted).
        prompt_reused: Prompt tokens taken from a cache instead of computed.
        generated: Tokens sampled, thinking included.
        thinking: Tokens sampled while thinking.
        seconds: Time in the engine; the time of a batch is shared equally among its requests.
    """

    calls: int = 0
    prompt_computed: int = 0
    prompt_reused: int = 0
    generated: int = 0
    thinking: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            prompt_computed=self.prompt_computed + other.prompt_computed,
            prompt_reused=self.prompt_reused + other.prompt_reused,
            generated=self.generated + other.generated,
            thinking=self.thinking + other.thinking,
            seconds=self.seconds + other.seconds,
        )

    @property
    def tokens(self) -> int:
        """Tokens that had to be computed: prompt and generated."""
        return self.prompt_computed + self.generated


@dataclass(frozen=True)
class Fault:
    """Something that did not go as it should, or that the reader of a result should know.

    Args:
        step: Step number from 1; None where it concerns the whole run.
        kind: A short name for programs, such as `unknown_label` or `budget`.
        detail: A sentence for people.
        run: The pass that it belongs to, from 1.
    """

    step: int | None
    kind: str
    detail: str
    run: int = 1


@dataclass(frozen=True, kw_only=True)
class Step:
    """One question to the model and what became of it.

    Args:
        number: From 1, within its pass.
        ask: `rank` or `eliminate`.
        shown: Documents that were live in the prompt, in shown order.
        picked: `rank`: documents that the answer named, best first. `eliminate`: documents that fell, worst first,
            also those that the answer lacked.
        thinking: The model's reasoning, if it was asked to think.
        answer: The answer as the model wrote it.
        logprobs: Natural-log probability for each live document to be the answer, where the engine tells.
        usage: What this step cost.
        standing: The best order known after this step.
        run: The pass that it belongs to, from 1.
    """

    number: int
    ask: str
    shown: tuple[int, ...]
    picked: tuple[int, ...]
    thinking: str
    answer: str
    logprobs: Mapping[int, float] | None
    usage: Usage
    standing: tuple[int, ...]
    run: int = 1


@dataclass(frozen=True, kw_only=True)
class RerankResult:
    """A ranking: iterate over it, index it, or read how it came about.

    Args:
        query: The query, or the history of a recommendation as one line.
        ranking: Best first; every input exactly once, or the first `top_k` of them.
        status: See `Status`.
        score_kind: See `ScoreKind`.
        steps: One for each question to the model.
        usage: Sum over the steps.
        faults: Everything that went wrong or was adapted, with its step.
        malformed: Number of answers that were not well-formed.
        card: Where the prompt came from: `default` (no ranker card), `embedded`, `model` (the card came with it)
            or `given`.
        stability: How far the passes agree: mean Kendall's tau between any two, from -1 (reversed) to 1 (equal).
            None where fewer than two finished.
        error: What stopped a `failed` row.
    """

    query: str
    ranking: tuple[RankedDocument, ...]
    status: Status = "ok"
    score_kind: ScoreKind = "rank"
    steps: tuple[Step, ...] = ()
    usage: Usage = Usage()
    faults: tuple[Fault, ...] = ()
    malformed: int = 0
    card: str = "default"
    stability: float | None = None
    error: Exception | None = None

    def __iter__(self) -> Iterator[RankedDocument]:
        return iter(self.ranking)

    def __len__(self) -> int:
        return len(self.ranking)

    @overload
    def __getitem__(self, place: int) -> RankedDocument: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[RankedDocument, ...]: ...
    def __getitem__(self, place: int | slice) -> RankedDocument | tuple[RankedDocument, ...]:
        return self.ranking[place]

    def to_dict(self, *, id: str | None = None, trace: bool = False) -> dict[str, Any]:
        """The result as JSON-ready values.

        Args:
            id: Identifier of the query, written as it is.
            trace: Include the steps.
        """
        record: dict[str, Any] = {
            "id": id,
            "query": self.query,
            "status": self.status,
            "score_kind": self.score_kind,
            "card": self.card,
            "results": [
                {
                    "rank": hit.rank,
                    "index": hit.index,
                    "id": hit.document.id,
                    "score": hit.score,
                    "text": hit.text,
                }
                for hit in self.ranking
            ],
            "faults": [asdict(fault) for fault in self.faults],
            "malformed": self.malformed,
            "usage": asdict(self.usage),
        }
        if self.stability is not None:
            record["stability"] = self.stability
        if self.error is not None:
            record["error"] = str(self.error)
        if trace:
            record["steps"] = [_step_record(step) for step in self.steps]
        return record


def _step_record(step: Step) -> dict[str, Any]:
    """The step as JSON gives it back: lists, keys that are str, and null for the logarithm of zero."""
    record = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(step).items()}
    if step.logprobs is not None:
        record["logprobs"] = {
            str(index): value if math.isfinite(value) else None for index, value in step.logprobs.items()
        }
    return record


def as_documents(documents: Iterable[str | Document], argument: str = "documents") -> tuple[Document, ...]:
    """Checks and normalises a list of documents without changing it.

    Raises:
        InputTypeError: Not a list of str or Document.
        InputError: Two documents carry the same id.
    """
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise InputTypeError(
            argument,
            f"expected a list of str or Document, got {type(documents).__name__}; wrap one text as [text]",
        )
    normalised = []
    seen: dict[str, int] = {}
    for index, document in enumerate(documents):
        if isinstance(document, str):
            document = Document(document)
        elif not isinstance(document, Document):
            raise InputTypeError(f"{argument}[{index}]", f"expected a str or Document, got {type(document).__name__}")
        if document.id is not None and seen.setdefault(document.id, index) != index:
            raise InputError(
                f"{argument}[{index}]",
                f"id {document.id!r} is also that of {argument}[{seen[document.id]}]; make ids unique or omit them",
            )
        normalised.append(document)
    return tuple(normalised)
