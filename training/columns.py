"""Questions as the columns of TRL's data sets: the whole prompt, and what the rewards read."""

from __future__ import annotations

from typing import Any

from ..engines.tokenization import ChatTokenizer
from ..prompts import THINK_OPEN, open_turn
from .questions import Question


def columns_of(question: Question, tokenizer: ChatTokenizer, *, thinking: bool) -> dict[str, Any]:
    """What TRL and the rewards see of a question.

    Args:
        question: Any.
        tokenizer: Of the model that is trained.
        thinking: It reasons before it answers.

    Returns:
        `prompt` is all that stands before the completion, as at inference; its special tokens are written out, so it
        is to be tokenized without adding any. `prefill` is its end, which belongs to the model's turn.
    """
    rendered = tokenizer.render(question.messages)
    opening = open_turn(rendered, thinking=thinking, constrain=not thinking)
    # Some chat templates open the thinking themselves; it is the model's nevertheless.
    begun = THINK_OPEN if thinking and THINK_OPEN not in opening else ""
    return {
        "row": question.row,
        "prompt": rendered + opening,
        "prefill": begun + opening,
        "ask": question.ask,
        "labels": list(question.labels),
        "relevance": list(question.relevance),
    }
