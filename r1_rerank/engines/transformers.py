"""Runs any causal language model of the transformers library, on CUDA, MPS or CPU."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from ..errors import (
    DeadlineError,
    EngineClosedError,
    EngineError,
    InputError,
    InputTypeError,
    OutOfMemoryError,
)
from ..prompts import Message
from . import decoding
from .base import Completion, GenerationRequest, Probe
from .batching import buckets, empty_allocator, out_of_memory
from .decoding import Job
from .kv_cache import Batch, LabelHead, is_croppable
from .loading import choose_device, choose_dtype, load_model, quiet
from .prefixes import MIN_SHARED, PrefixCache, common_prefix
from .queueing import Deadline, RequestQueue
from .tokenization import ChatTokenizer

logger = logging.getLogger(__name__)

_SHARES = 4
"""Batches that fit into the memory for prefixes, at least, where their rows share memory."""


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

    Attributes:
        model: The loaded model.
        tokenizer: Its tokenizer.
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
        self.check_options(device=device, dtype=dtype, batch_size=batch_size, cache_gib=cache_gib)
        if isinstance(model, str | PathLike):
            model, tokenizer = load_model(str(model), adapter, device, dtype)
            _attend_on_cpu(model)
        elif not _writes(model):
            raise InputTypeError(
                "model", f"expected a name, a folder or a causal language model, got {type(model).__name__}"
            )
        elif tokenizer is None:
            raise InputTypeError("tokenizer", "a loaded model needs its tokenizer; pass both")
        elif adapter is not None:
            raise InputError("adapter", "a loaded model must have its adapter merged already; pass a folder or name")
        self.model = model.eval()
        self.tokenizer = tokenizer
        ends = getattr(model.generation_config, "eos_token_id", None)
        self._chat = ChatTokenizer(tokenizer, ends if isinstance(ends, list) else [] if ends is None else [ends])
        self.batch_size = batch_size
        self.context_tokens: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        croppable = is_croppable(model)
        reuse = croppable and cache_gib > 0
        self.capabilities = frozenset({"constrain", "logprobs", "thinking"} | ({"reuse"} if reuse else set()))
        # Padding between two pieces would shift a sliding window: such models run one row at a time.
        self._rows = batch_size if croppable else 1
        self._prefixes = PrefixCache(int(cache_gib * 2**30) if reuse else 0)
        self._head = LabelHead(self.model, list(self._chat.label_ids.values()))
        self._lock = threading.RLock()
        self._queue = RequestQueue(self._generate, batch_size)
        self._closed = False

    @staticmethod
    def check_options(
        *, device: str = "auto", dtype: str = "auto", batch_size: int = 8, cache_gib: float = 4.0
    ) -> None:
        """Refuses what can be known to be wrong before a model is loaded."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError("batch_size", f"expected an int of at least 1, got {batch_size!r}")
        if isinstance(cache_gib, bool) or not isinstance(cache_gib, int | float) or not cache_gib >= 0:
            raise InputError("cache_gib", f"expected 0 or more, got {cache_gib!r}")
        choose_dtype(dtype, choose_device(device))

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        """Number format of the weights."""
        return str(self.model.dtype).removeprefix("torch.")

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Answers every request, in order; see `Engine.generate`."""
        return self._generate(requests, [Deadline(request) for request in requests])

    async def agenerate(self, request: GenerationRequest) -> Completion:
        """Answers one request; requests that arrive while a batch runs form the next one.

        Cancelling takes the request from the queue, or ends its thinking.
        """
        return _closed() if self._closed else await self._queue.answer(request)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, chat template included."""
        return len(self._chat.encode(self._chat.render(messages)))

    def known_tokens(self, request: GenerationRequest) -> int:
        """Tokens of a request's prompt that would not be computed, if it came now."""
        thinking, constrain = request.thinking_budget > 0, request.labels is not None
        tokens = self._chat.prompt(request.messages, thinking=thinking, constrain=constrain)
        prefix = self._prefixes.find(request.session, tokens)
        return len(prefix.tokens) if prefix else 0

    def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """Finds out what holds for this tokenizer and chat template."""
        return self._chat.probe(turns, alphabet, thinking)

    def clear_cache(self) -> None:
        """Forgets all prompts, as after loading."""
        with self._lock:
            self._prefixes.clear()

    def close(self) -> None:
        """Frees the model and its caches; requests from now on fail."""
        if self._closed:
            return
        self._closed = True
        self._queue.close()
        with self._lock:
            self._prefixes.clear()
            del self.model, self._head

    def _generate(self, requests: Sequence[GenerationRequest], deadlines: Sequence[Deadline]) -> list[Completion]:
        patience = max((deadline.left() for deadline in deadlines), default=0.0)
        if not self._lock.acquire(timeout=min(patience, threading.TIMEOUT_MAX)):
            return [_given_up(request) for request in requests]
        try:
            return self._generate_alone(requests, deadlines)
        finally:
            self._lock.release()

    def _generate_alone(self, requests: Sequence[GenerationRequest], deadlines: Sequence[Deadline]) -> list[Completion]:
        """Answers requests while no other thread does."""
        import torch

        with torch.inference_mode():
            if self._closed:
                return [_closed() for _ in requests]
            started = time.perf_counter()
            completions: dict[int, Completion] = {}
            jobs: dict[int, Job] = {}
            for number, (request, deadline) in enumerate(zip(requests, deadlines, strict=True)):
                if deadline.passed():
                    completions[number] = _given_up(request)
                    continue
                try:
                    jobs[number] = self._job(request, deadline)
                except EngineError as error:
                    completions[number] = Completion(error=error)
                except Exception as error:  # such as a chat template that refuses
                    completions[number] = Completion(error=EngineError(f"{type(error).__name__}: {error}"))
            self._share(list(jobs.values()))
            for job in jobs.values():
                job.prefix = self._prefixes.find(job.request.session, job.tokens)
                job.shared = min(job.extra, job.known)  # less where the cache was too small to keep it
            for bucket in buckets(jobs, self._rows):
                completions.update(self._run_or_split({number: jobs[number] for number in bucket}))
            batches = sum(completion.usage.seconds for completion in completions.values())
            rest = max(0.0, time.perf_counter() - started - batches) / max(1, len(requests))
            return [_later(completions[number], rest) for number in range(len(requests))]

    def _job(self, request: GenerationRequest, deadline: Deadline) -> Job:
        tokens = self._chat.checked_prompt(request, self.context_tokens)
        job = Job(request, tokens, deadline)
        if not request.greedy:
            import torch

            job.generator = torch.Generator()
            if request.seed is None:
                job.generator.seed()
            else:
                job.generator.manual_seed(request.seed)
        return job

    def _share(self, jobs: Sequence[Job]) -> None:
        """Computes once what several prompts of a call have in common and no cache holds yet."""
        if not self._prefixes.max_bytes:
            return
        shared: list[list[int]] = []
        for position, job in enumerate(jobs):
            # Equal prompts share all but the last token, which each computes for its own logits.
            lengths = [
                min(common_prefix(other.tokens, job.tokens), len(other.tokens) - 1, len(job.tokens) - 1)
                for other in jobs[:position]
            ]
            prefix = job.tokens[: max(lengths, default=0)]
            if len(prefix) < MIN_SHARED or prefix in shared:
                continue
            if self._missing(prefix, job.request.session) >= MIN_SHARED:
                shared.append(prefix)
        for prefix in sorted(shared, key=len):
            owner = next(job for job in jobs if job.tokens[: len(prefix)] == prefix)
            missing = self._missing(prefix, None)
            if not missing:
                continue
            known = self._prefixes.find(None, [*prefix, -1])
            try:
                batch = Batch(self.model, [known], self._head)
                for start in range(len(prefix) - missing, len(prefix), decoding.PIECE):
                    if all(job.deadline.passed() for job in jobs):
                        return
                    piece = prefix[start : start + decoding.PIECE]
                    batch.feed([piece])
                    owner.extra += len(piece)
            except Exception:
                logger.debug("a common prefix of %d tokens was not shared", len(prefix), exc_info=True)
                return  # sharing only saves time: the requests go on without it
            self._prefixes.store(f"shared/{hash(tuple(prefix))}", batch.prefix(0, prefix))

    def _missing(self, prefix: list[int], session: str | None) -> int:
        """Tokens of a prefix that no cache holds."""
        # One more token, since `find` always leaves the last one to be computed.
        known = self._prefixes.find(session, [*prefix, -1])
        return len(prefix) - (len(known.tokens) if known else 0)

    def _run_or_split(self, jobs: dict[int, Job]) -> dict[int, Completion]:
        """Runs a batch; where memory runs out, forgets the caches, then halves the batch."""
        started = time.perf_counter()
        try:
            self._run(list(jobs.values()))
        except Exception as error:
            if isinstance(error, decoding.CancelledError):
                return {number: _given_up(job.request) for number, job in jobs.items()}
            if not out_of_memory(error):
                logger.exception("a batch of %d requests failed", len(jobs))
                failure = EngineError(f"{type(error).__name__}: {error}")
                return {number: Completion(error=failure) for number in jobs}
        else:
            seconds = (time.perf_counter() - started) / len(jobs)
            return {
                number: _given_up(job.request) if job.given_up else job.completion(self._chat, seconds)
                for number, job in jobs.items()
            }
        # Outside of the except clause: the exception would keep the failed batch in memory.
        for job in jobs.values():
            job.prefix = None  # it holds the memory of a whole batch
        empty_allocator(self.model.device)
        fresh = {number: self._job(job.request, job.deadline) for number, job in jobs.items()}
        if len(self._prefixes):
            logger.warning("out of memory: dropping %d cached prefixes", len(self._prefixes))
            self._prefixes.clear()
            return self._run_or_split(fresh)
        if len(jobs) == 1:
            message = "one request alone does not fit into memory; pass fewer or shorter documents, or a smaller model"
            return {number: Completion(error=OutOfMemoryError(message)) for number in jobs}
        self._rows = (len(jobs) + 1) // 2
        logger.warning("out of memory: going on with batches of %d", self._rows)
        numbers = list(fresh)
        completions = {}
        for half in (numbers[: self._rows], numbers[self._rows :]):
            completions.update(self._run_or_split({number: fresh[number] for number in half}))
        return completions

    def _run(self, jobs: list[Job]) -> None:
        jobs = sorted(jobs, key=lambda job: job.prefix.row if job.prefix else 0)  # as they stood the last time
        batch = Batch(self.model, [job.prefix for job in jobs], self._head)
        decoding.run(batch, jobs, self._chat)
        if not self._prefixes.max_bytes:
            return
        # Rows that share their memory are only forgotten together: not where hardly more than they would fit.
        alone = _SHARES * batch.nbytes > self._prefixes.max_bytes
        for row, job in enumerate(jobs):
            if job.request.session is not None:
                # Thinking and answer are left out: the next prompt of the session does not contain them.
                self._prefixes.store(job.request.session, batch.prefix(row, job.tokens, alone=alone))


def _writes(model: Any) -> bool:
    """Whether this is a model of transformers with a head for the next token."""
    return callable(getattr(model, "get_output_embeddings", None)) and model.get_output_embeddings() is not None


def _attend_on_cpu(model: Any) -> None:
    """Lets a model that was loaded here attend by `attention.attend`, where that is what it does already, but slower.

    Models whose caches are not plain do more than attend, some of them only under the name of `sdpa`.
    """
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa" and is_croppable(model):
        from . import attention

        with quiet():
            attention.use(model)


def _later(completion: Completion, seconds: float) -> Completion:
    """The completion with its share of the time outside of its batch."""
    usage = replace(completion.usage, seconds=completion.usage.seconds + seconds)
    return replace(completion, usage=usage)


def _given_up(request: GenerationRequest) -> Completion:
    """For a request that was cancelled, or took too long."""
    if request.timeout is None:
        return Completion(error=decoding.CancelledError("the request was cancelled"))
    return Completion(error=DeadlineError(f"no answer within {request.timeout:g} s"))


def _closed() -> Completion:
    return Completion(error=EngineClosedError("the engine was closed; build a new one"))
