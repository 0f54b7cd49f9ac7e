"""How TRL's own generation keeps to the form of an answer, by transformers or by vLLM."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..prompts import ANSWER_CLOSE
from .preflight import answer_tokens
from .processes import is_main
from .prompting import Prompts

if TYPE_CHECKING:
    from .recipe import PolicyStage, RationaleStage

logger = logging.getLogger(__name__)

_CERTAIN = 1e3
"""Added to a logit that is to win."""
_VLLM = "TRL 1.16 generates with vLLM 0.22 to 0.31"


def completion_tokens(stage: PolicyStage | RationaleStage, prompts: Prompts, most: int) -> int:
    """Most tokens of what a policy writes: its thinking, its answer, and the end of its turn.

    Args:
        stage: Who writes.
        prompts: For tokens.
        most: Candidates of its longest list.
    """
    return answer_tokens(stage, prompts.questions, prompts.chat, most) + (stage.max_completion_tokens is None)


def generation_arguments(
    stage: PolicyStage, prompts: Prompts, choices: int, *, longest: int, played: bool
) -> dict[str, Any]:
    """How TRL's own generation keeps to the form: it knows no stop text.

    Args:
        stage: Who generates.
        prompts: For tokens.
        choices: The answer is one of so many labels; 0: it is text.
        longest: Most tokens of an answer, see `completion_tokens`.
        played: A rollout generates the labels.
    """
    labels = [prompts.chat.label_ids[label] for label in prompts.questions.card.labels.alphabet[:choices]]
    if stage.vllm is None:
        # One of the labels; or else the end of the turn after an answer, which the model need not find by itself.
        certain = [[label] for label in labels] or [list(tokens) for tokens in prompts.endings()]
        bias = [[tokens, _CERTAIN] for tokens in certain]
        return {} if labels and played else {"generation_kwargs": {"sequence_bias": bias}}
    form: dict[str, Any] = {"stop": [ANSWER_CLOSE], "include_stop_str_in_output": True}
    if labels:
        form = {"allowed_token_ids": labels}
    place: dict[str, Any] = {"vllm_server_base_url": stage.vllm_server} if stage.vllm == "server" else {}
    if stage.vllm == "colocate":
        place = {"vllm_gpu_memory_utilization": stage.vllm_memory}
        if stage.max_prompt_tokens is not None:  # or else it makes room for the model's whole context
            place["vllm_max_model_length"] = stage.max_prompt_tokens + longest
    return {"use_vllm": True, "vllm_mode": stage.vllm, "generation_kwargs": form, **place}


def require_vllm() -> None:
    """Sees to it that TRL finds a vLLM; one that TRL was not made for is told.

    Raises:
        InputError: There is none.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from trl.import_utils import is_vllm_available

        if not is_vllm_available():
            raise InputError("vllm", f"is not installed: {_VLLM}; or leave it out, and transformers generates")
    for said in caught:
        if "vLLM" in str(said.message) and is_main():
            logger.warning("%s", said.message)
