"""What `VLLMEngine` hands to vLLM, told by a stand-in for vLLM that only remembers it: no devices are needed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from r1_rerank.engines.vllm import VLLMEngine
from r1_rerank.errors import CheckpointError, InputError, InputTypeError


@dataclass
class AsyncEngineArgs:
    """Fields of vLLM's own."""

    model: str
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    data_parallel_size_local: int | None = None
    data_parallel_hybrid_lb: bool = False
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.92
    enable_prefix_caching: bool | None = None
    load_format: str = "auto"
    disable_log_stats: bool = False
    use_tqdm_on_load: bool = True
    block_size: int | None = None
    enforce_eager: bool = False


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[AsyncEngineArgs]:
    """With what vLLM was started; it never comes up."""
    arguments: list[AsyncEngineArgs] = []

    class AsyncLLMEngine:
        @staticmethod
        def from_engine_args(given: AsyncEngineArgs) -> Any:
            arguments.append(given)
            raise RuntimeError("no such devices")

    vllm = ModuleType("vllm")
    platform = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: False))
    vars(vllm).update(
        AsyncEngineArgs=AsyncEngineArgs, AsyncLLMEngine=AsyncLLMEngine, LLM=type("LLM", (), {}), platforms=platform
    )
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return arguments


def test_sizes_reach_vllm_under_its_own_names(started: list[AsyncEngineArgs]) -> None:
    sizes = {"batch_size": 24, "context_tokens": 3000, "tensor_parallel_size": 2, "data_parallel_size": 4}
    balanced = {"data_parallel_size_local": 2, "data_parallel_hybrid_lb": True}
    with pytest.raises(CheckpointError, match=r"some/model.*no such devices"):
        VLLMEngine("some/model", dtype="bfloat16", gpu_memory_utilization=0.5, **sizes, **balanced)
    assert started == [
        AsyncEngineArgs(
            "some/model",
            dtype="bfloat16",
            tensor_parallel_size=2,
            data_parallel_size=4,
            data_parallel_size_local=2,
            data_parallel_hybrid_lb=True,
            max_num_seqs=24,
            max_model_len=3000,
            gpu_memory_utilization=0.5,
            # Ours, where the user says nothing.
            enable_prefix_caching=True,
            load_format="safetensors",
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
    ]


def test_what_the_user_says_stands(started: list[AsyncEngineArgs]) -> None:
    with pytest.raises(CheckpointError):
        VLLMEngine("some/model", enable_prefix_caching=False, max_num_seqs=3)
    assert (started[0].enable_prefix_caching, started[0].max_num_seqs, started[0].max_model_len) == (False, 3, None)
    assert (started[0].tensor_parallel_size, started[0].data_parallel_size) == (1, 1)


@pytest.mark.parametrize(
    ("options", "error", "argument"),
    [
        ({"tensor_parallel_size": 0}, InputError, "tensor_parallel_size"),
        ({"data_parallel_size": 1.5}, InputError, "data_parallel_size"),
        ({"pipeline": 2}, InputTypeError, "pipeline"),
    ],
)
def test_nothing_is_started_with_what_cannot_be_used(
    started: list[AsyncEngineArgs], options: dict[str, Any], error: type[InputError], argument: str
) -> None:
    with pytest.raises(error) as caught:
        VLLMEngine("some/model", **options)
    assert caught.value.argument == argument
    assert started == []
