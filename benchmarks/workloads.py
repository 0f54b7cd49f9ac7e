"""Queries, documents and profiles of a set size, cut out of the example text, and engines to run them on."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r1_rerank import Usage
from r1_rerank.checkpoint import embedded_base
from r1_rerank.engines import Completion, GenerationRequest, TransformersEngine, engine_class

TEXT = Path(__file__).parents[1] / "examples" / "tides.jsonl"
EngineKind = Literal["transformers", "vllm"]


def documents_of(count: int, words: int, *, offset: int = 0) -> tuple[str, list[str]]:
    """The query, and running text cut into documents of equal length.

    Another offset starts elsewhere in the text, so that no cache knows the documents.
    """
    record = json.loads(TEXT.read_text(encoding="utf-8"))
    running = " ".join(document["text"] for document in record["documents"]).split()
    turned = itertools.cycle(running[offset % len(running) :] + running[: offset % len(running)])
    return record["query"], [" ".join(itertools.islice(turned, words)) for _ in range(count)]


def mixed_lists(queries: int, words: int, *, fewest: int = 5, most: int = 50) -> list[tuple[str, list[str]]]:
    """Queries with lists of mixed sizes, evenly spread and shuffled."""
    sizes = [fewest + (most - fewest) * number // max(1, queries - 1) for number in range(queries)]
    random.Random(0).shuffle(sizes)
    return [
        (f"{query} (question {number})", documents)
        for number, (query, documents) in enumerate(
            documents_of(size, words, offset=37 * number) for number, size in enumerate(sizes)
        )
    ]


def load(kind: EngineKind, *, cached: bool = True) -> Any:
    """An engine over the embedded weights, with or without a cache of prompts."""
    folder = str(embedded_base()[0])
    if kind == "transformers":
        return TransformersEngine(folder, cache_gib=4.0 if cached else 0)
    import vllm
    import vllm.platforms

    cpu = {"block_size": 32, "enforce_eager": True} if vllm.platforms.current_platform.is_cpu() else {}
    llm = vllm.LLM(folder, enable_prefix_caching=cached, kv_cache_memory_bytes=2**31, disable_log_stats=True, **cpu)
    return engine_class(kind)(llm)


def bare_pass(engine: Any, query: str, documents: Sequence[str]) -> Usage:
    """One pass over query and documents joined by newlines, without template or labels: the lower limit."""
    text = "\n".join([query, *documents])
    started = time.perf_counter()
    if isinstance(engine, TransformersEngine):
        import torch

        tokens = engine.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            engine.model(input_ids=tokens, logits_to_keep=1)
        count = tokens.shape[1]
    else:
        from vllm import SamplingParams

        (output,) = engine.llm.generate([text], SamplingParams(max_tokens=1, temperature=0.0), use_tqdm=False)
        count = len(output.prompt_token_ids)
    return Usage(calls=1, prompt_computed=count, seconds=time.perf_counter() - started)


class Watched:
    """An engine that knows how long it was waiting for requests.

    Attributes:
        idle: Seconds without any request under way since it was built, from the first request on.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._under_way = 0
        self._since: float | None = None
        self.idle = 0.0
        if not hasattr(engine, "submit"):
            self.submit = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Passes on, with the clock stopped."""
        self._begin()
        try:
            return self._engine.generate(requests)
        finally:
            self._end()

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """Passes on, with the clock stopped until the answer is there."""
        self._begin()
        future = self._engine.submit(request)
        future.add_done_callback(lambda _: self._end())
        return future

    def _begin(self) -> None:
        with self._lock:
            if self._under_way == 0 and self._since is not None:
                self.idle += time.perf_counter() - self._since
            self._under_way += 1

    def _end(self) -> None:
        with self._lock:
            self._under_way -= 1
            if self._under_way == 0:
                self._since = time.perf_counter()


@dataclass(frozen=True)
class Cost:
    """What a ranking took.

    Args:
        calls: Requests to the model.
        computed: Prompt tokens computed.
        reused: Prompt tokens out of a cache.
        generated: Tokens sampled.
        seconds: Wall time.
        mib: Peak memory above what stood before, in MiB.
    """

    calls: int
    computed: int
    reused: int
    generated: int
    seconds: float
    mib: float
