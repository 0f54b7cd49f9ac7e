"""Any other server: chat completions, with answers held to a JSON schema where the server does that."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..documents import Fault, Usage
from ..errors import EngineError
from ..prompts import THINK_CLOSE, THINK_OPEN, Message, PromptTemplate, render_answer
from ..strategies import ALPHABET, IRanker
from ..tasks import PassageRanking
from .base import Completion, GenerationRequest, Probe
from .openai_replies import Body, estimate_tokens, first_choice, mapping, renormalise, usage_of
from .openai_server import AbsentError, FailedError, RefusedError, Server, SlowError

logger = logging.getLogger(__name__)

_ANSWER, _THINKING = "answer", "thinking"
"""Keys of an answer in JSON."""
_TOP = 20
"""Most log-probabilities that servers give for a position."""
_JSON_TOKENS = 48
"""Room for braces, keys and spaces of an answer in JSON."""
_PROBE_TOKENS = 128
"""Room for the answer that tells what a server can do: more only keeps those busy that write on and on."""
_REASONING_TOKENS = 1024
"""Room for the reasoning of a server that reasons whether it was asked to or not."""

_LOGPROBS = ("logprobs", "top_logprobs")
_OPTIONAL = ("max_tokens", "response_format", *_LOGPROBS, "temperature", "seed")
"""What a server may refuse; it is then asked without, from then on."""
_BOUNDS = ("minItems", "maxItems")
"""The same inside a schema."""


class ChatDialect:
    """Asks an OpenAI-compatible server.

    Args:
        server: Whom to ask.
        structured: Answers can be held to a JSON schema.
        context_tokens: Longest prompt and answer together, where it is known.
    """

    def __init__(self, server: Server, *, structured: bool, context_tokens: int | None) -> None:
        self.context_tokens = context_tokens
        self._server = server
        self._structured = structured
        self._logprobs = False
        self._reasons = False
        self._refused: set[str] = set()

    @property
    def capabilities(self) -> frozenset[str]:
        """What was found out so far."""
        if not self._constrains:
            return frozenset()
        # A server that reasons by itself cannot be made to stop and answer.
        return frozenset(
            {"constrain"} | ({"logprobs"} if self._logprobs else set()) | (set() if self._reasons else {"thinking"})
        )

    @property
    def notes(self) -> tuple[Fault, ...]:
        """What every result should say about the server."""
        if not self._constrains or self._refused.isdisjoint(_LOGPROBS):
            return ()
        detail = (
            f"{self._server.url} refuses label probabilities (logprobs with top_logprobs={_TOP}), so scores tell only "
            "the rank: choose a model or server that gives them, such as `vllm serve`"
        )
        return (Fault(None, "no_logprobs", detail),)

    @property
    def _constrains(self) -> bool:
        return self._structured and "response_format" not in self._refused

    @classmethod
    async def find(cls, server: Server, context_tokens: int | None) -> ChatDialect:
        """Asks one small question whose only allowed answers no model would give by itself.

        A server that does not answer in time is taken for one that can do nothing special.

        Raises:
            AbsentError: It has no chat completions.
            EngineError: The server failed.
        """
        dialect = cls(server, structured=True, context_tokens=context_tokens)
        allowed = tuple(ALPHABET[-_TOP:])
        request = GenerationRequest(messages=_question(), labels=allowed)
        for logprobs in (True, False):
            dialect._logprobs = logprobs
            try:
                choice = await dialect._first(request)
                break
            except (RefusedError, FailedError) as error:
                if isinstance(error, RefusedError) and error.field == "model":
                    raise
                unclear = isinstance(error, AbsentError | FailedError)
            except SlowError as error:
                logger.warning("taking the server for a plain one, which writes freely: %s", error)
                dialect._structured = dialect._logprobs = False
                return dialect
        else:
            dialect._structured = dialect._logprobs = False
            # Some that pass requests on have nobody for a schema, and some fail at one: only without one it is told
            # whether there is a server that answers.
            if unclear:
                await dialect._ask(request, _PROBE_TOKENS, constrain=False)
            return dialect
        labels = _labels(_text(choice)) or []
        dialect._structured = len(labels) == 1 and labels[0] in allowed
        if not logprobs:  # they were what it refused, without naming them
            dialect._refused |= set(_LOGPROBS)
        dialect._logprobs = dialect._structured and _distribution(choice, labels, allowed) is not None
        return dialect

    async def _first(self, request: GenerationRequest) -> Body:
        """The answer to the first question of all; reasoning is given room only where it is met."""
        try:
            choice, _ = await self._ask(request, _PROBE_TOKENS, constrain=True)
        except RefusedError as error:
            # OpenAI fails a request whose reasoning does not end within its limit.
            if error.mentions(("max_tokens", "max_completion_tokens")) is None:
                raise
        else:
            if choice.get("finish_reason") != "length" or not (self._reasons or not _text(choice)):
                return choice
        choice, _ = await self._ask(request, _REASONING_TOKENS, constrain=True)
        return choice

    async def count(self, messages: Sequence[Message]) -> int:
        """An estimate: nobody but the model's own tokenizer knows."""
        return estimate_tokens(messages)

    async def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """Nothing is known of the tokenizer: conversations are sent as they are, and labels as text."""
        return Probe(append=True, labels=tuple(alphabet))

    async def answer(self, request: GenerationRequest) -> Completion:
        """Answers one request.

        Raises:
            EngineError: The server failed, or its answer is none.
        """
        constrain = request.labels is not None and self._constrains
        thinks = constrain and request.thinking_budget > 0 and not self._reasons
        room = request.thinking_budget or (_REASONING_TOKENS if self._reasons else 0)
        choice, usage = await self._ask(request, room + _answer_tokens(request, constrain), constrain, thinks)
        thinking, overran = _thinking(choice), thinks and _labels(_text(choice)) is None
        if overran and self._constrains:
            # The budget went into thinking: now the answer alone.
            choice, more = await self._ask(request, _answer_tokens(request, True), constrain=True)
            usage += more
        text, logprobs = _text(choice), None
        labels = _labels(text) if request.labels is not None else None
        if labels is not None and request.labels is not None:
            text = render_answer(labels)
            if self._logprobs and request.pick == 1:
                logprobs = _distribution(choice, labels, request.labels)
        return Completion(
            text=text,
            thinking=thinking,
            label_logprobs=logprobs,
            usage=usage,
            finish_reason="length" if overran or choice.get("finish_reason") == "length" else "stop",
        )

    async def _ask(
        self, request: GenerationRequest, max_tokens: int, constrain: bool, thinks: bool = False
    ) -> tuple[Body, Usage]:
        """One call; a field that the server refuses is left out, now and from now on."""
        while True:
            body = self._body(request, max_tokens, constrain, thinks)
            try:
                reply = await self._server.chat(body)
                break
            except RefusedError as error:
                # A temperature that was asked for is the user's to change; 0 is only our default.
                fixed = {"temperature"} if request.temperature else set()
                inside = [name for name in _BOUNDS if f'"{name}"' in json.dumps(body.get("response_format"))]
                field = error.mentions(inside) or error.blames(
                    [name for name in _OPTIONAL if name in body if name not in fixed]
                )
                if field is None:
                    raise
                self._refuse(field)
        choice = first_choice(reply)
        if not isinstance(choice.get("message"), Mapping):
            raise EngineError("the server answered without a message")
        usage = usage_of(reply)
        self._reasons = self._reasons or bool(_reasoning(choice)) or usage.thinking > 0
        return choice, usage if usage.thinking else _share(usage, choice)

    def _body(self, request: GenerationRequest, max_tokens: int, constrain: bool, thinks: bool) -> Body:
        """A request, as far as the server takes it."""
        body: Body = {"messages": list(request.messages), "max_tokens": max_tokens, "temperature": request.temperature}
        if request.seed is not None:
            body["seed"] = request.seed
        if constrain and request.labels is not None:
            bounds = [name for name in _BOUNDS if name not in self._refused]
            body["response_format"] = _schema(request.labels, request.pick, thinks, bounds)
            if self._logprobs and request.pick == 1:
                body |= {"logprobs": True, "top_logprobs": _TOP}
        kept = {name: value for name, value in body.items() if name not in self._refused}
        if "max_tokens" in self._refused:
            # What newer models of OpenAI call it; others do not know this name.
            kept["max_completion_tokens"] = max_tokens
        return kept

    def _refuse(self, field: str) -> None:
        if field in self._refused:  # another request found out meanwhile
            return
        logger.warning("%s refuses %s: going on without it", self._server.url, field)
        self._refused |= set(_BOUNDS) if field in _BOUNDS else {field}
        if field in _LOGPROBS:
            self._logprobs = False


def _question() -> list[Message]:
    """A prompt of two passages."""
    task = PassageRanking("What is a probe?")
    return PromptTemplate.builtin(task.name).render(task, ["A device.", "A ship."], next(IRanker().run(2)))


def _answer_tokens(request: GenerationRequest, constrain: bool) -> int:
    return request.max_answer_tokens + (_JSON_TOKENS if constrain else 0)


def _schema(labels: Sequence[str], pick: int, thinks: bool, bounds: Sequence[str]) -> Body:
    """The JSON schema of an answer: a label, or a list of labels; with thinking, that stands before it."""
    label: Body = {"type": "string", "enum": list(labels)}
    answer: Body = label if pick == 1 else {"type": "array", "items": label, **dict.fromkeys(bounds, pick)}
    properties = ({_THINKING: {"type": "string"}} if thinks else {}) | {_ANSWER: answer}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": _ANSWER, "strict": True, "schema": schema}}


def _labels(text: str) -> list[str] | None:
    """Labels of an answer in JSON, None where it is none; whether they are live is the parser's to find."""
    named = _decoded(text).get(_ANSWER)
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(label, str) for label in named):
        return None
    return named


def _decoded(text: str) -> Mapping[str, object]:
    try:
        return mapping(json.loads(text))
    except ValueError:
        return {}


def _text(choice: Body) -> str:
    """What the model wrote; its reason where it declined to."""
    message = choice["message"]
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return str(content or message.get("refusal") or "").strip()


def _reasoning(choice: Body) -> str:
    message = choice["message"]
    return str(message.get("reasoning_content") or message.get("reasoning") or "").strip()


def _thinking(choice: Body) -> str:
    """The reasoning where the server, or the JSON, tells it apart; from JSON that was cut off, as far as it goes."""
    text = _text(choice)
    told = _decoded(text).get(_THINKING)
    if not isinstance(told, str):
        _, key, rest = text.partition(f'"{_THINKING}"')
        told = rest.lstrip(' :\n"').replace("\\n", "\n") if key else ""
    return _reasoning(choice) or told.strip()


def _share(usage: Usage, choice: Body) -> Usage:
    """The usage with the thinking's part of the text as its part of the tokens, where the server does not count it."""
    text, apart = _text(choice), _reasoning(choice)
    thinking = apart or _thinking(choice)
    if not thinking and (THINK_OPEN in text or THINK_CLOSE in text):
        thinking = text.partition(THINK_CLOSE)[0]
    whole = len(apart) + len(text)
    return replace(usage, thinking=usage.generated * min(len(thinking), whole) // whole) if whole else usage


def _distribution(choice: Body, labels: Sequence[str], live: Sequence[str]) -> dict[str, float] | None:
    """The distribution over the live labels where the answer's label stands, None unless it tells about each."""
    content = mapping(choice.get("logprobs")).get("content")
    if not isinstance(content, list) or len(labels) != 1:
        return None
    # From the end: the key before the label may be split into single letters.
    for entry in reversed([entry for entry in content if isinstance(entry, Mapping)]):
        token, top = str(entry.get("token")), entry.get("top_logprobs")
        if token.strip(' "\n') != labels[0] or not isinstance(top, list):
            continue
        before, _, after = token.partition(labels[0])
        told = {str(other.get("token")): other.get("logprob") for other in top if isinstance(other, Mapping)}
        return renormalise({label: told.get(before + label + after) for label in live}, live)
    return None
