"""Prompts: templates as data, their checks, quoting, and the tags that frame an answer.

Every word that a model reads is here or in `templates/*.yaml`. Training renders with the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any

from .errors import InputError, InputTypeError, TemplateError
from .rows import OBJECTIVES, TaskName
from .strategies import Window
from .tasks import TASKS, Task

Message = dict[str, str]
"""One chat turn: `{"role": ..., "content": ...}`."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
LABEL_OPEN, LABEL_CLOSE = "[", "]"
SEPARATOR = " > "
FIRST_LABEL = ANSWER_OPEN + LABEL_OPEN
"""Forced before the first label of an answer, so that the next token is a label."""
NEXT_LABEL = LABEL_CLOSE + SEPARATOR + LABEL_OPEN
"""Forced between two labels of an answer."""

_LONGEST_TURN = 8

# Half-width and full-width: some tokenizers fold the second into the first.
_LABEL_LIKE = re.compile(r"[\[［]\s*([A-Za-zＡ-Ｚａ-ｚ])\s*[\]］]")
# [INST], [/INST], [gMASK], [TOOL_CALLS]: control tokens of chat templates have two capitals or underscores in a row.
_BRACKETED = re.compile(r"[\[［]([/／]?\w{2,40})[\]］]")
_CAPITALS = re.compile(r"[A-Z_Ａ-Ｚ＿]{2}")
# <answer>, </think>, <|im_end|>, <s>, <<SYS>>: whatever opens a tag or a control token.
_TAG_OPEN = re.compile(r"[<＜](?=[A-Za-z/|_!<Ａ-Ｚａ-ｚ／｜＿！＜])")

# Half of a character, as cut by software that counts in UTF-16: no tokenizer takes it.
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@lru_cache(maxsize=2048)  # a document is shown in many steps
def quote(text: str) -> str:
    """Makes text harmless inside a prompt, still legible.

    It becomes one line, and nothing in it can be read as a label, a tag, a control token of a chat template or
    the end of its own quotation: `[A]` turns into `(A)`, `<answer>` into `< answer>`.
    """
    text = _SURROGATE.sub("\ufffd", " ".join(text.split()))
    text = _LABEL_LIKE.sub(r"(\1)", text)
    text = _BRACKETED.sub(lambda found: f"({found[1]})" if _CAPITALS.search(found[1]) else found[0], text)
    return _TAG_OPEN.sub("< ", text)


def break_tokens(text: str, tokens: Sequence[str]) -> str:
    """Splits every occurrence of the given control tokens with a space.

    For the control tokens of one tokenizer that `quote`, which knows none, leaves whole.
    """
    for token in tokens:
        text = text.replace(token, f"{token[:1]} {token[1:]}" if len(token) > 1 else " ")
    return text


def render_answer(labels: Sequence[str]) -> str:
    """The well-formed answer that names these labels, in order.

    >>> render_answer(["C", "A"])
    '<answer>[C] > [A]</answer>'
    """
    return FIRST_LABEL + NEXT_LABEL.join(labels) + LABEL_CLOSE + ANSWER_CLOSE


def open_turn(rendered: str, *, thinking: bool, constrain: bool = True) -> str:
    """What follows the chat template's generation prompt, so that the model goes on where we want it.

    A template that opens `<think>` by itself is not opened twice, and is closed at once where no thinking is
    wanted: otherwise a label would be scored inside the reasoning.

    Args:
        rendered: The prompt as the chat template wrote it.
        thinking: The model is to reason first.
        constrain: The label comes next (without thinking).
    """
    opened = rendered.rstrip().endswith(THINK_OPEN)
    if thinking:
        return "" if opened else f"{THINK_OPEN}\n"
    return (close_thinking("") if opened else "") + (FIRST_LABEL if constrain else "")


def close_thinking(thinking: str, *, constrain: bool = False) -> str:
    """What is forced after thinking that ended with `thinking`, up to the first label where it is constrained."""
    tail = "" if thinking.endswith(THINK_CLOSE) else f"\n{THINK_CLOSE}"
    return f"{tail}\n{FIRST_LABEL if constrain else ''}"


def plain_chat(messages: Sequence[Message]) -> str:
    """A prompt for models that have no chat template."""
    turns = "".join(f"{message['role'].capitalize()}: {message['content']}\n\n" for message in messages)
    return f"{turns}Assistant: "


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The words of one task, for both rankers.

    Placeholders: `layout` takes `{query}` (or `{history}`), `{candidates}`, `{ask}`, and may take `{think}` and
    `{objective}`; `candidate` takes `{label}` and `{text}`; `rank`, `eliminate` and `next` may take `{count}`;
    `eliminate_many` and `next_many` take `{pick}`.

    Args:
        task: Which task it words.
        layout: The first user turn.
        candidate: One candidate; its label should open and close it.
        rank: Asks for the whole order.
        eliminate: Asks for the worst candidate.
        eliminate_many: Asks for the `{pick}` worst candidates, worst first.
        next: The turn after each elimination in `append` form, at most 8 words.
        next_many: The same for several.
        think: Put into `{think}` when the model is to reason; empty otherwise.
        objectives: Wording of each routing objective.
    """

    task: TaskName
    layout: str
    candidate: str
    rank: str
    eliminate: str
    eliminate_many: str
    next: str
    next_many: str
    think: str = ""
    objectives: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise TemplateError("task", f"{self.task!r} is not one of {', '.join(TASKS)}")
        subject = "history" if self.task == "recommendation" else "query"
        asks_for: dict[str, tuple[set[str], set[str]]] = {
            "layout": (
                {subject, "candidates", "ask"},
                {"think", "count"} | ({"objective"} if self.task == "routing" else set()),
            ),
            "candidate": ({"label", "text"}, set()),
            "rank": (set(), {"count"}),
            "eliminate": (set(), {"count"}),
            "next": (set(), {"count"}),
            "eliminate_many": ({"pick"}, {"count"}),
            "next_many": ({"pick"}, {"count"}),
            "think": (set(), set()),
        }
        for name, (required, optional) in asks_for.items():
            _check_placeholders(name, getattr(self, name), required, optional)
        for name in ("next", "next_many"):
            turn = getattr(self, name)
            if len(turn.split()) > _LONGEST_TURN or len(turn) > 10 * _LONGEST_TURN:
                raise TemplateError(name, f"is too long: a turn of at most {_LONGEST_TURN} words keeps steps cheap")
        for name, wording in self.objectives.items():
            if self.task != "routing" or name not in OBJECTIVES or not isinstance(wording, str):
                raise TemplateError("objectives", f"{name!r} is not a wording of one of {', '.join(OBJECTIVES)}")

    @classmethod
    def builtin(cls, task: TaskName) -> PromptTemplate:
        """The template that comes with the package."""
        return _builtin(task)

    @classmethod
    def from_yaml(cls, path: str | Path) -> PromptTemplate:
        """Reads a template of your own; start from a copy of a built-in one.

        Raises:
            TemplateError: The file cannot be read, a key or a placeholder is missing or unknown.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateError(str(path), f"cannot be read: {error}") from error
        return cls._from_text(text, source=str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "template") -> PromptTemplate:
        """Builds a template from plain values, such as those of `to_dict`."""
        known = {item.name: item for item in fields(cls)}
        if unknown := sorted(map(str, set(values) - set(known))):
            raise TemplateError(source, f"unknown key {', '.join(unknown)}; known are {', '.join(known)}")
        needed = set(known) - {"think", "objectives"}
        if missing := sorted(needed - set(values)):
            raise TemplateError(source, f"lacks the key {', '.join(missing)}")
        for name, value in values.items():
            if not isinstance(value, Mapping if name == "objectives" else str):
                raise TemplateError(source, f"{name} is a {type(value).__name__}, expected text")
        try:
            return cls(**values)
        except TemplateError as error:
            raise TemplateError(source, str(error)) from error

    @classmethod
    def _from_text(cls, text: str, *, source: str) -> PromptTemplate:
        import yaml

        try:
            values = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
            mark = getattr(error, "problem_mark", None)
            where = f"{source}, line {mark.line + 1}" if mark else source
            raise TemplateError(where, f"is not YAML: {getattr(error, 'problem', error)}") from error
        if not isinstance(values, dict):
            raise TemplateError(source, f"expected keys and values, got a {type(values).__name__}")
        return cls.from_dict(values, source=source)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a ranker card stores them."""
        return asdict(self)

    def render(self, task: Task, texts: Sequence[str], window: Window, *, thinking: bool = False) -> list[Message]:
        """The messages that ask for a window's next answer.

        Args:
            task: What is ranked; must be the template's own task.
            texts: Text of every document of the run; `window.candidates` points into it.
            window: What the strategy wants to know.
            thinking: Ask the model to reason first.
        """
        if task.name != self.task:
            raise InputError("task", f"a {self.task} template cannot word a {task.name} task")
        first_pick = len(window.removed[0]) if window.removed else window.pick
        count = len(window.candidates)
        content = self.layout.format_map(
            self._subject(task)
            | {
                "candidates": "\n".join(
                    self.candidate.format(label=label, text=quote(texts[index]))
                    for label, index in zip(window.labels, window.candidates, strict=True)
                ),
                "think": self.think if thinking else "",
                "ask": self._ask(window, first_pick, count),
                "count": str(count),
            }
        )
        messages = [{"role": "user", "content": content}]
        picks = [len(group) for group in window.removed[1:]] + [window.pick]
        for steps, pick in enumerate(picks[: len(window.removed)], start=1):
            messages = self.extend(messages, replace(window, removed=window.removed[:steps], pick=pick))
        return messages

    def extend(self, messages: Sequence[Message], window: Window) -> list[Message]:
        """The messages of a conversation that is one step further: the last answer, and the next question.

        Args:
            messages: What was rendered for the step before.
            window: The same window after that step's answer.
        """
        count = len(window.candidates) - sum(map(len, window.removed))
        follow_up = self.next if window.pick == 1 else self.next_many
        return [
            *messages,
            {"role": "assistant", "content": render_answer(window.removed[-1])},
            {"role": "user", "content": follow_up.format(pick=window.pick, count=count)},
        ]

    def _subject(self, task: Task) -> dict[str, str]:
        values = {}
        for name, value in task.fields().items():
            values[name] = quote(value) if isinstance(value, str) else "; ".join(map(quote, value))
        if "objective" in values:
            values["objective"] = self.objectives.get(values["objective"], values["objective"])
        return values

    def _ask(self, window: Window, pick: int, count: int) -> str:
        if window.ask == "rank":
            return self.rank.format(count=count)
        return (self.eliminate if pick == 1 else self.eliminate_many).format(pick=pick, count=count)


def default_templates(own: Mapping[TaskName, PromptTemplate] | None = None) -> dict[TaskName, PromptTemplate]:
    """The built-in wording of every task, some of it replaced by one's own."""
    if own is not None and not isinstance(own, Mapping):
        raise InputTypeError("templates", f"expected a PromptTemplate for each task's name, got {type(own).__name__}")
    templates = {task: PromptTemplate.builtin(task) for task in TASKS}
    for task, template in (own or {}).items():
        if task not in TASKS:
            raise InputError("templates", f"{task!r} is not one of {', '.join(TASKS)}")
        if not isinstance(template, PromptTemplate) or template.task != task:
            raise InputTypeError("templates", f"{task} needs a PromptTemplate of this task")
        templates[task] = template
    return templates


@cache
def _builtin(task: TaskName) -> PromptTemplate:
    if task not in TASKS:
        raise InputError("task", f"{task!r} is not one of {', '.join(TASKS)}")
    source = resources.files(__package__) / "templates" / f"{task}.yaml"
    return PromptTemplate._from_text(source.read_text(encoding="utf-8"), source=source.name)


def _check_placeholders(name: str, text: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(text, str):
        raise TemplateError(name, f"expected text, got {type(text).__name__}")
    try:
        parts = [(part, spec, conversion) for _, part, spec, conversion in Formatter().parse(text) if part is not None]
    except ValueError as error:
        raise TemplateError(name, f"{error}; write {{{{ and }}}} for braces that are text") from error
    for part, spec, conversion in parts:
        if spec or conversion:
            raise TemplateError(name, f"the placeholder {{{part}}} takes no format; write it without ! and :")
    found = {part for part, _, _ in parts}
    if missing := sorted(required - found):
        raise TemplateError(name, f"lacks the placeholder {', '.join(f'{{{part}}}' for part in missing)}")
    if unknown := sorted(found - required - optional):
        allowed = ", ".join(f"{{{part}}}" for part in sorted(required | optional)) or "none"
        raise TemplateError(
            name, f"unknown placeholder {', '.join(f'{{{part}}}' for part in unknown)}; allowed: {allowed}"
        )
