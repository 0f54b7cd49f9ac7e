"""The one parser: what a model wrote -> the labels it named, its thinking, and everything that was wrong.

Strict about what counts as well-formed, tolerant about what can still be used. Labels are matched by position,
never by text, and only in brackets: a letter or digit in prose is not an answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .prompts import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

_LABEL = re.compile(r"\[\s*([A-Za-z])\s*\]")
_STRICT = re.compile(r"\[[A-Za-z]\](?: > \[[A-Za-z]\])*")
_BARE = re.compile(r"\s*[A-Za-z](?:\s*[>,]\s*[A-Za-z])*\s*")
_FORMAT = re.compile(
    rf"{re.escape(THINK_OPEN)}.*{re.escape(THINK_CLOSE)}\s*{re.escape(ANSWER_OPEN)}.*{re.escape(ANSWER_CLOSE)}",
    re.DOTALL,
)
_BLOCK = re.compile(f"{re.escape(ANSWER_OPEN)}(.*?){re.escape(ANSWER_CLOSE)}", re.DOTALL)


@dataclass(frozen=True)
class ParsedAnswer:
    """What could be read of a completion.

    Args:
        labels: Live labels that it names, in order, each once, at most as many as asked.
        thinking: The reasoning before the answer.
        faults: (kind, detail) of everything that was wrong; empty exactly when the completion is well-formed.
    """

    labels: tuple[str, ...]
    thinking: str = ""
    faults: tuple[tuple[str, str], ...] = ()

    @property
    def well_formed(self) -> bool:
        """Nothing was wrong: exactly the labels asked for, in exactly the form asked for."""
        return not self.faults


def parse(completion: str, live: Sequence[str], pick: int = 1) -> ParsedAnswer:
    """Reads an answer.

    Well-formed is an optional `<think>…</think>` and then `<answer>[X] > [Y]</answer>` with `pick` different
    live labels and nothing else.

    Args:
        completion: What the model wrote, without the prompt.
        live: Labels that may be named.
        pick: How many labels were asked for.

    >>> parse("<think>B is off topic.</think><answer>[B]</answer>", "ABC").labels
    ('B',)
    >>> parse("I would drop [B] of 3.", "ABC").faults[0][0]
    'no_answer_tag'
    """
    faults: list[tuple[str, str]] = []
    thinking, rest = _split_thinking(completion, faults)
    body, tagged = _answer_body(rest, faults)
    named = _tagged_labels(body, faults) if tagged else _prose_labels(body, live, pick)
    return ParsedAnswer(_keep_live(named, live, pick, faults), thinking, tuple(faults))


def follows_format(completion: str) -> bool:
    """Whether it is `<think>…</think>`, then `<answer>…</answer>`, and nothing else.

    >>> follows_format("<think>B is off topic.</think> <answer>[B]</answer>")
    True
    """
    return _FORMAT.fullmatch(completion.strip()) is not None and set(count_tags(completion)) == {1}


def count_tags(completion: str) -> tuple[int, int, int, int]:
    """How often the tags that open and close thinking and answer stand in it."""
    opening, closing, first, last = map(completion.count, (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE))
    return opening, closing, first, last


def _split_thinking(completion: str, faults: list[tuple[str, str]]) -> tuple[str, str]:
    before, closed, after = completion.partition(THINK_CLOSE)
    if closed:
        lead, opened, thinking = before.rpartition(THINK_OPEN)
        # The opening tag may have been part of the prompt: then everything before the closing tag is thinking.
        if lead.strip() or THINK_OPEN in thinking or THINK_CLOSE in after or THINK_OPEN in after:
            faults.append(("repeated_tag", "thinking is not one block at the start"))
        return (thinking if opened else before).strip(), after
    lead, opened, thinking = completion.partition(THINK_OPEN)
    if opened:
        faults.append(("unclosed_thinking", "the thinking was not closed"))
        return thinking.strip(), lead
    return "", completion


def _answer_body(text: str, faults: list[tuple[str, str]]) -> tuple[str, bool]:
    """The inside of the answer tags and True, or the whole text and False where there is no tag."""
    blocks = list(_BLOCK.finditer(text))
    if blocks:
        last = blocks[-1]
        if len(blocks) > 1:
            faults.append(("repeated_tag", f"{len(blocks)} answers, the last one counts"))
        elif (text[: last.start()] + text[last.end() :]).strip():
            faults.append(("outside_text", "text outside the answer"))
        return last.group(1), True
    _, opened, tail = text.rpartition(ANSWER_OPEN)
    if opened:
        faults.append(("unclosed_answer", "the answer was not closed"))
        return tail, True
    faults.append(("no_answer_tag", "no answer tag" if text.strip() else "no answer was written"))
    return text, False


def _tagged_labels(body: str, faults: list[tuple[str, str]]) -> list[str]:
    if not _STRICT.fullmatch(body):
        faults.append(("answer_form", "the answer is not labels in brackets joined by ' > '"))
        if _BARE.fullmatch(body):
            return [letter for letter in body if letter.isalpha()]
    return _LABEL.findall(body)


def _prose_labels(text: str, live: Sequence[str], pick: int) -> list[str]:
    named = list(dict.fromkeys(_LABEL.findall(text)))
    # More labels mentioned than asked for: which ones are meant is anybody's guess.
    return [] if sum(label in live for label in named) > pick else named


def _keep_live(named: list[str], live: Sequence[str], pick: int, faults: list[tuple[str, str]]) -> tuple[str, ...]:
    kept: list[str] = []
    for label in named:
        if label not in live:
            faults.append(("unknown_label", f"[{label}] is not one of the live labels"))
        elif label in kept:
            faults.append(("repeated_label", f"[{label}] stands twice"))
        else:
            kept.append(label)
    if len(kept) > pick:
        faults.append(("too_many", f"{len(kept)} labels, {pick} asked for"))
    elif len(kept) < pick:
        faults.append(("too_few", f"{len(kept)} labels, {pick} asked for"))
    return tuple(kept[:pick])
