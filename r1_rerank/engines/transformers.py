"""Runs any causal language model of the transformers library, on CUDA, MPS or CPU."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from ..documents import Usage
from ..errors import (
    ContextOverflowError,
    EngineClosedError,
    EngineError,
    InputError,
    InputTypeError,
    OutOfMemoryError,
)
from ..prompts import (
    ANSWER_CLOSE,
    FIRST_LABEL,
    NEXT_LABEL,
    THINK_CLOSE,
    Message,
    break_tokens,
    close_thinking,
    open_turn,
    plain_chat,
    render_answer,
)
from ..strategies import ALPHABET
from .base import Completion, GenerationRequest, Probe
from .kv_cache import MIN_SHARED, Batch, Prefix, PrefixCache, common_prefix, is_croppable
from .loading import load_model, stop_tokens, unquoted_control_tokens

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_BUCKET = 1.25
"""Rows share a batch while the longest has at most this many times the tokens of the shortest to compute."""


@dataclass
class _Job:
    """A request on its way through the model."""

    request: GenerationRequest
    tokens: list[int]
    cancelled: Callable[[], bool]
    prefix: Prefix | None = None
    thinking: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    logprobs: dict[str, float] = field(default_factory=dict)
    computed: int = 0
    shared: int = 0  # tokens of its prefix that were computed in its name
    finish_reason: str = "stop"
    generator: torch.Generator | None = None

    @property
    def to_compute(self) -> int:
        return len(self.tokens) - (len(self.prefix.tokens) if self.prefix else 0)


class TransformersEngine:
    """A causal language model in this process.

    Results do not depend on what else stands in a batch (up to rounding). Prompts that begin alike, such as the
    steps of one elimination or many queries over one pool of LLMs, are computed once as far as they agree.
    Safe to share between threads: one batch runs at a time.

    Args:
        model: A hub name, a local folder, or a loaded model.
        tokenizer: The tokenizer of a loaded model.
        adapter: Folder of a LoRA adapter to merge into the weights.
        device: `auto` (CUDA, MPS, CPU in this order) or a torch device. A loaded model stays where it is.
        dtype: `auto` (bfloat16 where the device has it) or `float32`, `bfloat16`, `float16`.
        batch_size: Most requests in one batch.
        cache_gib: Memory for prefixes between calls, in GiB; 0 computes every prompt whole.

    Raises:
        InputError: An argument that cannot be used.
        CheckpointError: The weights cannot be loaded.
    """

    name = "transformers"

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        adapter: str | PathLike[str] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        cache_gib: float = 4.0,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError("batch_size", f"expected an int of at least 1, got {batch_size!r}")
        if not cache_gib >= 0:
            raise InputError("cache_gib", f"expected 0 or more, got {cache_gib!r}")
        if isinstance(model, str | PathLike):
            model, tokenizer = load_model(str(model), adapter, device, dtype)
        elif tokenizer is None:
            raise InputTypeError("tokenizer", "a loaded model needs its tokenizer; pass both")
        self._model = model.eval()
        self._tokenizer = tokenizer
        self.batch_size = batch_size
        self.context_tokens: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        croppable = is_croppable(model)
        self.capabilities = frozenset({"constrain", "logprobs", "thinking"} | ({"reuse"} if croppable else set()))
        # Padding between two pieces would shift a sliding window: such models run one row at a time.
        self._rows = batch_size if croppable else 1
        self._prefixes = PrefixCache(int(cache_gib * 2**30) if croppable else 0)
        self._control_tokens = unquoted_control_tokens(tokenizer)
        self._stops = stop_tokens(model, tokenizer)
        opening = self._encode(FIRST_LABEL)
        self._label_ids = {
            label: ids[-1] for label in ALPHABET if (ids := self._encode(FIRST_LABEL + label))[:-1] == opening
        }
        first = f"{FIRST_LABEL}{ALPHABET[0]}"
        self._between = self._encode(first + NEXT_LABEL)[len(self._encode(first)) :]
        self._lock = threading.RLock()
        self._queue: deque[tuple[GenerationRequest, threading.Event, concurrent.futures.Future[Completion]]] = deque()
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="r1-rerank")
        self._closed = False

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self._model.device)

    @property
    def dtype(self) -> str:
        """Number format of the weights."""
        return str(self._model.dtype).removeprefix("torch.")

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Answers every request, in order; see `Engine.generate`."""
        return self._generate(requests, [_never] * len(requests))

    async def agenerate(self, request: GenerationRequest) -> Completion:
        """Answers one request; requests that arrive while a batch runs form the next one.

        Cancelling takes the request from the queue, or ends its thinking.
        """
        if self._closed:
            return _closed()
        future: concurrent.futures.Future[Completion] = concurrent.futures.Future()
        cancelled = threading.Event()
        self._queue.append((request, cancelled, future))
        self._worker.submit(self._drain)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, chat template included."""
        return len(self._encode(self._render(messages)))

    def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """Compares the tokens of a conversation with those a step later, and the labels with the vocabulary."""
        prompts = []
        for messages in turns:
            rendered = self._render(messages)
            prompts.append(self._encode(rendered + ("" if thinking else open_turn(rendered, thinking=False))))
        return Probe(
            append=all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(prompts)),
            labels=tuple(label for label in alphabet if label in self._label_ids),
        )

    def close(self) -> None:
        """Frees the model and its caches; requests from now on fail."""
        self._closed = True
        self._worker.shutdown(wait=False, cancel_futures=False)
        with self._lock:
            self._prefixes.clear()
            self._model = None

    def _drain(self) -> None:
        taken: list[tuple[GenerationRequest, threading.Event, concurrent.futures.Future[Completion]]] = []
        while self._queue and len(taken) < self.batch_size:
            request, cancelled, future = self._queue.popleft()
            if future.set_running_or_notify_cancel():
                taken.append((request, cancelled, future))
        if not taken:
            return
        try:
            completions = self._generate(
                [request for request, _, _ in taken], [cancelled.is_set for _, cancelled, _ in taken]
            )
        except BaseException as error:
            for _, _, future in taken:
                future.set_exception(error)
            raise
        for (_, _, future), completion in zip(taken, completions, strict=True):
            future.set_result(completion)

    def _generate(
        self, requests: Sequence[GenerationRequest], cancelled: Sequence[Callable[[], bool]]
    ) -> list[Completion]:
        import torch

        with self._lock, torch.inference_mode():
            if self._closed:
                return [_closed() for _ in requests]
            completions: dict[int, Completion] = {}
            jobs: dict[int, _Job] = {}
            for number, (request, is_cancelled) in enumerate(zip(requests, cancelled, strict=True)):
                try:
                    jobs[number] = self._job(request, is_cancelled)
                except EngineError as error:
                    completions[number] = Completion(error=error)
            self._share(list(jobs.values()))
            for job in jobs.values():
                job.prefix = self._prefixes.find(job.request.session, job.tokens)
            for bucket in _buckets(jobs, self._rows):
                completions.update(self._run_or_split({number: jobs[number] for number in bucket}))
            return [completions[number] for number in range(len(requests))]

    def _job(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> _Job:
        if request.labels is not None:
            unknown = [label for label in request.labels if label not in self._label_ids]
            if unknown or not 1 <= request.pick <= len(request.labels):
                raise EngineError(
                    f"cannot pick {request.pick} of {list(request.labels)}: "
                    f"{unknown or 'too few labels'}; a label must be one token of the model"
                )
        rendered = self._render(request.messages)
        thinking = request.thinking_budget > 0
        opening = open_turn(rendered, thinking=thinking, constrain=request.labels is not None)
        tokens = self._encode(rendered + opening)
        answer = request.max_answer_tokens
        if request.labels is not None:
            answer = 1 + (request.pick - 1) * (1 + len(self._between))
        longest = len(tokens) + request.thinking_budget + answer
        if self.context_tokens is not None and longest > self.context_tokens:
            raise ContextOverflowError(
                f"the prompt of {len(tokens)} tokens, with {longest - len(tokens)} for the answer, is longer than "
                f"the model's context of {self.context_tokens}; pass fewer or shorter documents, or think less"
            )
        job = _Job(request, tokens, cancelled)
        if request.temperature > 0:
            import torch

            job.generator = torch.Generator()
            job.generator.manual_seed(request.seed if request.seed is not None else torch.seed())
        return job

    def _share(self, jobs: Sequence[_Job]) -> None:
        """Computes once what several prompts of a call have in common and no cache holds yet."""
        shared: list[list[int]] = []
        for position, job in enumerate(jobs):
            lengths = [common_prefix(other.tokens, job.tokens) for other in jobs[:position]]
            prefix = job.tokens[: max(lengths, default=0)]
            known = self._prefixes.find(job.request.session, [*prefix, -1])
            gain = len(prefix) - (len(known.tokens) if known else 0)
            if gain >= MIN_SHARED and prefix not in shared and self._prefixes.max_bytes:
                shared.append(prefix)
        for prefix in sorted(shared, key=len):
            owner = next(job for job in jobs if job.tokens[: len(prefix)] == prefix)
            known = self._prefixes.find(None, [*prefix, -1])
            start = len(known.tokens) if known else 0
            if start == len(prefix):
                continue
            try:
                batch = Batch(self._model, [known])
                batch.feed([prefix[start:]])
            except Exception as error:
                if _out_of_memory(error):
                    return  # sharing only saves time: the jobs run on their own
                raise
            owner.shared += len(prefix) - start
            self._prefixes.store(f"shared/{hash(tuple(prefix))}", Prefix(prefix, batch.layers(0, len(prefix))))

    def _run_or_split(self, jobs: dict[int, _Job]) -> dict[int, Completion]:
        """Runs a batch; where memory runs out, forgets the caches, then halves the batch."""
        started = time.perf_counter()
        try:
            self._run(list(jobs.values()))
        except Exception as error:
            if not _out_of_memory(error):
                logger.exception("a batch of %d requests failed", len(jobs))
                failure = EngineError(f"{type(error).__name__}: {error}")
                return {number: Completion(error=failure) for number in jobs}
        else:
            seconds = (time.perf_counter() - started) / len(jobs)
            return {number: self._completion(job, seconds) for number, job in jobs.items()}
        fresh = {number: self._job(job.request, job.cancelled) for number, job in jobs.items()}
        _empty_allocator(self._model.device)
        if len(self._prefixes):
            logger.warning("out of memory: dropping %d cached prefixes", len(self._prefixes))
            self._prefixes.clear()
            return self._run_or_split(fresh)
        if len(jobs) == 1:
            message = "one request alone does not fit into memory; pass fewer or shorter documents, or a smaller model"
            return {number: Completion(error=OutOfMemoryError(message)) for number in jobs}
        self._rows = max(1, len(jobs) // 2)
        logger.warning("out of memory: going on with batches of %d", self._rows)
        numbers = list(fresh)
        halves = numbers[: self._rows], numbers[self._rows :]
        return {
            number: completion
            for half in halves
            for number, completion in self._run_or_split({number: fresh[number] for number in half}).items()
        }

    def _run(self, jobs: list[_Job]) -> None:
        batch = Batch(self._model, [job.prefix for job in jobs])
        for job in jobs:
            job.computed += job.to_compute
        logits = batch.feed([job.tokens[-job.to_compute :] for job in jobs])
        if any(job.request.thinking_budget for job in jobs):
            logits = self._think(batch, jobs, logits)
        constrained = [job.request.labels is not None for job in jobs]
        if any(constrained):
            self._pick(batch, jobs, logits)
        if not all(constrained):
            self._write(batch, jobs, logits)
        for row, job in enumerate(jobs):
            if job.request.session is not None and self._prefixes.max_bytes:
                # Thinking and answer are left out: the next prompt of the session does not contain them.
                self._prefixes.store(job.request.session, Prefix(job.tokens, batch.layers(row, len(job.tokens))))

    def _think(self, batch: Batch, jobs: list[_Job], logits: torch.Tensor) -> torch.Tensor:
        """Lets every row think up to its budget, then closes the thinking; returns the logits for the answer."""
        budgets = [job.request.thinking_budget for job in jobs]
        pending = self._decode(batch, jobs, logits, budgets, THINK_CLOSE, [job.thinking for job in jobs])
        rows = []
        for job, budget, tail in zip(jobs, budgets, pending, strict=True):
            forced = []
            if budget:
                text = self._decoded(job.thinking[-8:])
                forced = self._encode(
                    close_thinking(THINK_CLOSE if THINK_CLOSE in text else "", constrain=job.request.labels is not None)
                )
                job.computed += len(forced)
            rows.append([*tail, *forced])
        closed = batch.feed(rows)
        for row, budget in enumerate(budgets):
            if not budget:  # it was fed nothing: its first logits still hold
                closed[row] = logits[row]
        return closed

    def _decode(
        self,
        batch: Batch,
        jobs: list[_Job],
        logits: torch.Tensor,
        limits: Sequence[int],
        stop: str,
        written: Sequence[list[int]],
    ) -> list[list[int]]:
        """Samples into `written` until the stop text, an end token or the limit of each row.

        Returns:
            For each row the tokens that were sampled but not yet fed.
        """
        pending: list[list[int]] = [[] for _ in jobs]
        active = {row for row, limit in enumerate(limits) if limit > 0}
        while active:
            for row in sorted(active):
                job, tokens = jobs[row], written[row]
                token = _sample(logits[row], job)
                tokens.append(token)
                pending[row] = [] if token in self._stops else [token]
                if token in self._stops or job.cancelled() or stop in self._decoded(tokens[-8:]):
                    active.discard(row)
                elif len(tokens) >= limits[row]:
                    job.finish_reason = "length"
                    active.discard(row)
            if active:
                logits = batch.feed([pending[row] if row in active else [] for row in range(len(jobs))])
                for row in active:
                    pending[row] = []
        return pending

    def _pick(self, batch: Batch, jobs: list[_Job], logits: torch.Tensor) -> None:
        """Decodes `pick` labels for every constrained row, each over the labels still live."""
        import torch

        left = {row: list(job.request.labels) for row, job in enumerate(jobs) if job.request.labels is not None}
        while left:
            rows: list[list[int]] = [[] for _ in jobs]
            for row, live in list(left.items()):
                job = jobs[row]
                ids = [self._label_ids[label] for label in live]
                logprobs = torch.log_softmax(logits[row, ids], dim=0)
                choice = _sample(logits[row, ids], job)
                label = live.pop(choice)
                job.labels.append(label)
                if job.request.pick == 1:
                    names = job.request.labels or ()
                    job.logprobs = dict(zip(names, logprobs.tolist(), strict=True))
                else:
                    job.logprobs[label] = float(logprobs[choice])
                if len(job.labels) == job.request.pick:
                    del left[row]
                else:
                    rows[row] = [self._label_ids[label], *self._between]
                    job.computed += len(self._between)
            if left:
                logits = batch.feed(rows)

    def _write(self, batch: Batch, jobs: list[_Job], logits: torch.Tensor) -> None:
        """Lets every unconstrained row write its answer."""
        limits = [0 if job.request.labels is not None else job.request.max_answer_tokens for job in jobs]
        self._decode(batch, jobs, logits, limits, ANSWER_CLOSE, [job.answer for job in jobs])

    def _completion(self, job: _Job, seconds: float) -> Completion:
        thinking, _, after = self._decoded(job.thinking).partition(THINK_CLOSE)
        del after  # at most the end of the token that closed the tag
        text = render_answer(job.labels) if job.request.labels is not None else self._decoded(job.answer)
        head, closed, _ = text.partition(ANSWER_CLOSE)
        return Completion(
            text=(head + closed).strip(),
            thinking=thinking.strip(),
            label_logprobs=job.logprobs or None,
            finish_reason=job.finish_reason,
            usage=Usage(
                calls=1,
                prompt_computed=job.computed + job.shared,
                prompt_reused=max(0, len(job.tokens) - job.to_compute - job.shared),
                generated=len(job.thinking) + len(job.answer) + len(job.labels),
                thinking=len(job.thinking),
                seconds=seconds,
            ),
        )

    def _render(self, messages: Sequence[Message]) -> str:
        safe = [
            {"role": message["role"], "content": break_tokens(message["content"], self._control_tokens)}
            for message in messages
        ]
        if not getattr(self._tokenizer, "chat_template", None):
            return (self._tokenizer.bos_token or "") + plain_chat(safe)
        rendered: str = self._tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=True)
        return rendered

    def _encode(self, text: str) -> list[int]:
        # The chat template has written the special tokens already.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            [token for token in tokens if token not in self._stops], skip_special_tokens=False
        )
        return text


def _never() -> bool:
    return False


def _closed() -> Completion:
    return Completion(error=EngineClosedError("the engine was closed; build a new one"))


def _sample(logits: torch.Tensor, job: _Job) -> int:
    import torch

    if job.generator is None:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.cpu() / job.request.temperature, dim=0)
    return int(torch.multinomial(probabilities, 1, generator=job.generator))


def _buckets(jobs: dict[int, _Job], rows: int) -> list[list[int]]:
    """Groups requests of about equal length, so that little is spent on padding."""
    buckets: list[list[int]] = []
    shortest = 0
    for number in sorted(jobs, key=lambda number: jobs[number].to_compute):
        length = jobs[number].to_compute
        if not buckets or len(buckets[-1]) >= rows or length > _BUCKET * shortest + 8:
            buckets.append([])
            shortest = length
        buckets[-1].append(number)
    return buckets


def _out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        # CPU and MPS raise a bare RuntimeError.
        isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    )


def _empty_allocator(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
