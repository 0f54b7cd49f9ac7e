"""Runs a model with vLLM: in this process's name, or the `vllm.LLM` that a program already has."""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..errors import EngineError, InputError, InputTypeError
from ..prompts import Message
from . import vllm_loading
from .adapters import check_adapter, weights_folder
from .background import BackgroundLoop
from .base import Completion, GenerationRequest, Probe
from .tokenization import ChatTokenizer
from .vllm_answers import Answer, Answering
from .vllm_runners import AsyncRunner, Runner, closed, failed, replicas
from .vllm_stepping import StepRunner, turn_of

_UNSET = {
    "batch_size": None,
    "context_tokens": None,
    "tensor_parallel_size": 1,
    "data_parallel_size": 1,
    "dtype": "auto",
}
"""Arguments that say something about a model that is loaded, as they are where nothing is said."""


class VLLMEngine:
    """A causal language model in vLLM, which schedules requests by itself and keeps the prompts that begin alike.

    vLLM starts processes of its own: a script that builds this engine needs `if __name__ == "__main__":`. Its log
    is turned down to errors unless `VLLM_LOGGING_LEVEL` is set. Each label is asked for with one short call on the
    cached prompt, so a constrained answer can neither repeat nor miss one. Safe to share between threads.

    Args:
        model: A hub name or local folder, which is loaded; or a `vllm.LLM` or `vllm.AsyncLLMEngine` that runs
            already, which stays open when this engine is closed. While requests are under way, a `vllm.LLM` must not
            be used otherwise; other engines of ours around it wait until none are, however long that is. An
            asynchronous engine that no event loop has used yet is served on a loop of ours until this engine is
            closed, and is then free for any other.
        adapter: Folder of a LoRA adapter of the model, whose files stay as they are while an engine uses them. A
            `vllm.AsyncLLMEngine` loads it before the first request, and all requests fail if it refuses it; a
            `vllm.LLM` does at once, when other engines of ours around it have nothing under way.
        dtype: `auto` (that of the weights), `float32`, `bfloat16` or `float16`.
        batch_size: Most requests that run together; vLLM's `max_num_seqs`.
        context_tokens: Longest prompt and answer together; vLLM's `max_model_len`. None: what the model can do.
        tensor_parallel_size: Devices over which each layer is split.
        data_parallel_size: Copies of the model, each on devices of its own.
        **options: Any other field of vLLM's `AsyncEngineArgs`, such as `gpu_memory_utilization` or
            `kv_cache_memory_bytes`: without them vLLM takes nearly all memory, on a CPU too. For label probabilities
            finer than bfloat16, at some cost: `hf_overrides={"head_dtype": "float32"}`.

    Raises:
        MissingExtraError: vLLM is not installed.
        InputError: An argument that cannot be used.
        CheckpointError: vLLM does not start with this model or adapter.

    Attributes:
        llm: The engine of vLLM, until this one is closed.
    """

    name = "vllm"

    def __init__(
        self,
        model: Any,
        *,
        adapter: str | PathLike[str] | None = None,
        dtype: str = "auto",
        batch_size: int | None = None,
        context_tokens: int | None = None,
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
        **options: Any,
    ) -> None:
        own = {
            "batch_size": batch_size,
            "context_tokens": context_tokens,
            "tensor_parallel_size": tensor_parallel_size,
            "data_parallel_size": data_parallel_size,
        }
        for argument, value in own.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(argument, f"expected an int of at least 1, got {value!r}")
        vllm = vllm_loading.import_vllm()
        folder = None if adapter is None else Path(fspath(adapter))
        self._lock = threading.Lock()
        self._closed = False
        self._at_exit: Callable[[], None] | None = None
        self._runner: Runner
        if isinstance(model, str | PathLike):
            name = fspath(model)
            sizes = {argument: value for argument, value in own.items() if value is not None}
            for argument, theirs in (("batch_size", "max_num_seqs"), ("context_tokens", "max_model_len")):
                if theirs in options and argument in sizes:
                    raise InputError(theirs, f"is the same as {argument}; pass one of the two")
                if argument in sizes:
                    sizes[theirs] = sizes.pop(argument)
            if folder is not None:
                check_adapter(folder, weights_folder(name, options.get("revision")))
            arguments = vllm_loading.engine_arguments(vllm, name, folder, {"dtype": dtype, **sizes, **options})
        elif not isinstance(model, vllm.LLM | vllm.AsyncLLMEngine):
            raise InputTypeError(
                "model",
                f"expected a name, a folder, a vllm.LLM or a vllm.AsyncLLMEngine, got {type(model).__name__}",
            )
        else:
            given = own | {"dtype": dtype}
            if changed := [*(name for name, value in given.items() if value != _UNSET[name]), *options]:
                raise InputError(changed[0], "belongs to a model that is loaded here; set it in your own vLLM")
            arguments = None
        lora = None if folder is None else vllm_loading.lora_request(folder)
        if arguments is None:
            self.llm = model
            config = model.llm_engine.vllm_config if isinstance(model, vllm.LLM) else model.vllm_config
            self._read(config, folder)
            if isinstance(model, vllm.LLM):
                if lora is not None:
                    with turn_of(model):
                        vllm_loading.add_adapter(model, lora)
                self._runner = StepRunner(model, self._open, lora)
            else:
                self._runner = AsyncRunner(model, self._open, lora, None)
            return
        loop = BackgroundLoop("r1-rerank-vllm")
        try:
            self.llm = loop.run(vllm_loading.start_engine(vllm, arguments, lora))
        except BaseException:
            loop.close()
            raise
        self._runner = AsyncRunner(self.llm, self._open, lora, loop)
        try:
            self._read(self.llm.vllm_config, folder)
        except BaseException:
            self._runner.close()
            raise
        # A program that ends without closing it would wait for vLLM's processes, which nobody has told to end.
        self._at_exit = functools.partial(_close, weakref.ref(self))
        atexit.register(self._at_exit)

    def _read(self, config: Any, adapter: Path | None) -> None:
        """What holds for the model that runs."""
        model = config.model_config
        if model.runner_type != "generate":
            raise InputError("model", f"vLLM runs it as a {model.runner_type} model, which writes no text")
        if model.skip_tokenizer_init:
            raise InputError("model", "it was started without its tokenizer; leave out skip_tokenizer_init")
        if adapter is not None and config.lora_config is None:
            raise InputError("adapter", "your vLLM was started without enable_lora=True")
        if adapter is not None:
            check_adapter(adapter, weights_folder(model.model, model.revision))
        if adapter is not None and config.lora_config.max_lora_rank < vllm_loading.lora_rank(adapter):
            raise InputError(
                "adapter", f"its rank is more than your vLLM's max_lora_rank of {config.lora_config.max_lora_rank}"
            )
        if model.logprobs_mode != "raw_logprobs":
            raise InputError("model", f"it was started with logprobs_mode={model.logprobs_mode!r}; leave that out")
        ends = (model.try_get_generation_config() or {}).get("eos_token_id")
        self._chat = ChatTokenizer(
            self.llm.get_tokenizer(), ends if isinstance(ends, list) else [] if ends is None else [ends]
        )
        self.batch_size: int = config.scheduler_config.max_num_seqs * replicas(config.parallel_config)
        self.context_tokens: int = model.max_model_len
        reuse = bool(config.cache_config.enable_prefix_caching)
        self.capabilities = frozenset({"constrain", "logprobs", "thinking"} | ({"reuse"} if reuse else set()))

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """Starts a request; see `Engine`. Cancelling the future takes it out of vLLM.

        What is called when it is done runs on the thread that asks vLLM, and must not wait for vLLM.
        """
        if self._runner.blocks():
            message = "your vLLM engine runs on this event loop, which cannot wait for itself: use the async methods"
            return _done(failed(EngineError(message)))
        return self._submit(request)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Answers every request, in order; see `Engine.generate`."""
        futures: list[Future[Completion]] = []
        try:
            futures += map(self.submit, requests)
            return [future.result() for future in futures]
        finally:
            for future in futures:  # left early: nobody waits for the others
                future.cancel()

    async def agenerate(self, request: GenerationRequest) -> Completion:
        """Answers one request on any event loop; cancelling takes it out of vLLM."""
        return await asyncio.wrap_future(self._submit(request))

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, chat template included."""
        return len(self._chat.encode(self._chat.render(messages)))

    def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """Finds out what holds for this tokenizer and chat template."""
        return self._chat.probe(turns, alphabet, thinking)

    def close(self) -> None:
        """Fails what is under way, and ends vLLM's processes unless they are the user's; requests from now on fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        self._runner.close()
        self.llm = None

    def _submit(self, request: GenerationRequest) -> Future[Completion]:
        with self._lock:
            if self._closed:
                return _done(closed())
            try:
                return self._runner.submit(request)
            except EngineError as error:  # the user's event loop has ended
                return _done(failed(error))

    def _open(self, request: GenerationRequest) -> Answering:
        tokens = self._chat.checked_prompt(request, self.context_tokens)
        return Answer(request, tokens, self._chat).write()


def _close(engine: weakref.ref[VLLMEngine]) -> None:
    if (still := engine()) is not None:
        still.close()


def _done(completion: Completion) -> Future[Completion]:
    future: Future[Completion] = Future()
    future.set_result(completion)
    return future
