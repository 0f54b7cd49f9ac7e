"""`vllm serve`: prompts as tokens, answers over the live labels, and their exact distribution.

The server's own chat template and tokenizer are asked through `/tokenize`, and the model through `/v1/completions`:
what it reads is, token for token, what the same model reads in process. A chat completion with the last turn left
open would not be: templates rewrite it, and reasoning parsers look into it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from ..documents import Fault, Usage
from ..errors import EngineError
from ..prompts import (
    ANSWER_CLOSE,
    FIRST_LABEL,
    NEXT_LABEL,
    THINK_CLOSE,
    Message,
    close_thinking,
    open_turn,
    render_answer,
)
from ..strategies import ALPHABET
from .base import Completion, GenerationRequest, Probe, require_room
from .openai_replies import Body, first_choice, mapping, renormalise, usage_of
from .openai_server import AbsentError, RefusedError, Server
from .openai_tokens import RemoteTokenizer

_TOP = 20
"""Log-probabilities that servers give for a position without being asked for certain tokens."""

_Asked = Literal["by id", "by rank", "not"]
"""How the probabilities of labels are asked for, the most telling first."""


@dataclass
class _Job:
    """A request on its way: its prompt so far, and what came of it."""

    request: GenerationRequest
    tokens: list[int]
    labels: list[str] = field(default_factory=list)
    logprobs: dict[str, float] | None = None
    text: str = ""
    thinking: str = ""
    finish_reason: str = "stop"
    usage: Usage = Usage()
    known: int = 0
    """Tokens of the call before: what it was asked with, and what it sampled."""

    def count(self, call: Usage, cached: bool) -> None:
        """Adds what a call cost.

        Only the first can find tokens in the cache that this request did not put there.

        Args:
            call: As the server reports it.
            cached: The server has what was asked before in its cache, also where it does not report so.
        """
        if self.known:
            own = call.prompt_reused or (self.known if cached else 0)
            total = call.prompt_computed + call.prompt_reused
            call = replace(call, prompt_computed=max(0, total - own), prompt_reused=0)
        self.usage += call
        self.known = len(self.tokens) + call.generated


class VLLMDialect:
    """Asks a vLLM server; build it with `find`."""

    def __init__(self, server: Server) -> None:
        self.capabilities = frozenset({"constrain", "thinking"})
        self.context_tokens: int | None = None
        self.notes: tuple[Fault, ...] = ()
        self._server = server
        self._tokenizer = RemoteTokenizer(server)
        self._label_ids: dict[str, int] = {}
        self._between: list[int] = []
        self._tail = ""
        """How the chat template opens the model's turn, after a message of one letter."""
        self._logprobs: _Asked = "by id"

    @classmethod
    async def find(cls, server: Server) -> VLLMDialect | None:
        """Finds out what the server can do; None where it is none of vLLM's.

        Raises:
            EngineError: It is one, but cannot be used.
        """
        dialect = cls(server)
        sample = [{"role": "user", "content": ALPHABET[0]}]
        try:
            answer = await server.beside("/tokenize", {"messages": sample, "add_generation_prompt": True})
        except RefusedError:
            return None
        tokens, context = answer.get("tokens"), answer.get("max_model_len")
        if not isinstance(tokens, list) or not isinstance(context, int):
            return None
        dialect.context_tokens = context
        dialect._tail = str((await server.beside("/detokenize", {"tokens": tokens})).get("prompt", ""))
        await dialect._find_labels()
        await dialect._find_probabilities(tokens)
        if 'enable_prefix_caching="True"' in await server.metrics():
            dialect.capabilities |= {"reuse"}
        return dialect

    async def _find_labels(self) -> None:
        opening, *written = await asyncio.gather(
            self._tokenizer.encode(FIRST_LABEL), *(self._tokenizer.encode(FIRST_LABEL + label) for label in ALPHABET)
        )
        self._label_ids = {label: ids[-1] for label, ids in zip(ALPHABET, written, strict=True) if ids[:-1] == opening}
        first = await self._tokenizer.encode(f"{FIRST_LABEL}{ALPHABET[0]}")
        self._between = (await self._tokenizer.encode(f"{FIRST_LABEL}{ALPHABET[0]}{NEXT_LABEL}"))[len(first) :]

    async def _find_probabilities(self, tokens: list[int]) -> None:
        """Asks for one label of several, to see whether the answer keeps to them and tells all probabilities."""
        live = list(self._label_ids)[-_TOP:]
        if len(live) < 2:
            self.capabilities -= {"constrain"}
            return
        prompt = tokens + await self._opening(False, True)
        for self._logprobs in get_args(_Asked):
            job = _Job(GenerationRequest(messages=[], labels=tuple(live)), prompt)
            try:
                _, logprobs = await self._label(job, live)
            except RefusedError as error:
                if self._logprobs == "not" or error.field == "model" or isinstance(error, AbsentError):
                    raise
                continue
            if logprobs is not None:
                self.capabilities |= {"logprobs"}
                return
        detail = (
            f"{self._server.url} does not tell the probabilities of all labels, so scores tell only the rank: take a "
            f"newer vLLM, or start it with --max-logprobs {_TOP} --logprobs-mode processed_logprobs"
        )
        self.notes = (Fault(None, "no_logprobs", detail),)

    async def count(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, chat template included; an estimate where the server does not tell them at once."""
        return await self._tokenizer.count(messages)

    async def probe(self, turns: Sequence[Sequence[Message]], alphabet: Sequence[str], thinking: bool) -> Probe:
        """Compares the tokens of a conversation with those a step later, and the labels with the vocabulary."""
        # With thinking, a turn is taken up again where it opened: thinking and label are new each time.
        prompts = [
            await self._tokenizer.render(messages) if thinking else await self._prompt(messages, False, True)
            for messages in turns
        ]
        return Probe(
            append=all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(prompts)),
            labels=tuple(label for label in alphabet if label in self._label_ids),
        )

    async def answer(self, request: GenerationRequest) -> Completion:
        """Answers one request.

        Raises:
            EngineError: The server failed, or the request cannot be answered.
        """
        live = request.labels
        if live is not None and not 1 <= request.pick <= len(live):
            raise EngineError(f"cannot pick {request.pick} of the labels {list(live)}: there are not that many")
        constrain = live is not None
        job = _Job(request, await self._prompt(request.messages, request.thinking_budget > 0, constrain))
        answer = request.max_answer_tokens if live is None else 1 + (request.pick - 1) * (1 + len(self._between))
        require_room(len(job.tokens), request.thinking_budget + answer, self.context_tokens)
        if request.thinking_budget:
            await self._think(job, constrain)
        if live is None:
            await self._write(job)
        else:
            await self._pick(job, live)
        return Completion(
            text=job.text,
            thinking=job.thinking.strip(),
            label_logprobs=job.logprobs,
            usage=job.usage,
            finish_reason=job.finish_reason,
        )

    async def _think(self, job: _Job, constrain: bool) -> None:
        """Thinks up to the budget, then closes the thinking and opens the answer."""
        text, choice = await self._text(job, THINK_CLOSE, job.request.thinking_budget)
        job.usage += Usage(thinking=job.usage.generated)
        job.thinking, closed = text, choice.get("stop_reason") == THINK_CLOSE
        ids = choice.get("token_ids")
        if isinstance(ids, list):
            # A token that ends the turn is no part of the thinking.
            job.tokens += ids[:-1] if choice.get("finish_reason") == "stop" and not closed else ids
        else:
            job.tokens += await self._tokenizer.encode(text + THINK_CLOSE * closed)
        job.tokens += await self._tokenizer.encode(close_thinking(THINK_CLOSE * closed, constrain=constrain))

    async def _write(self, job: _Job) -> None:
        text, choice = await self._text(job, ANSWER_CLOSE, job.request.max_answer_tokens)
        job.text = (text + ANSWER_CLOSE * (choice.get("stop_reason") == ANSWER_CLOSE)).strip()

    async def _text(self, job: _Job, stop: str, limit: int) -> tuple[str, Body]:
        """What the model writes before the stop text, the end of its turn or the limit."""
        body: Body = {"max_tokens": limit, "stop": [stop], "return_token_ids": True}
        # A tag may be a special token of the model: hidden from the text, it would not be found there.
        body |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        choice = await self._complete(job, body)
        return str(choice.get("text") or ""), choice

    async def _pick(self, job: _Job, live: Sequence[str]) -> None:
        """Takes label after label out of those left."""
        left = list(live)
        picked: dict[str, float] | None = {}
        for _ in range(job.request.pick):
            if job.labels:
                job.tokens += [*await self._label_tokens(job.labels[-1]), *self._between]
            label, logprobs = await self._label(job, left) if len(left) > 1 else (left[0], {left[0]: 0.0})
            if job.request.pick == 1:
                picked = logprobs
            elif picked is not None:
                picked = picked | {label: logprobs[label]} if logprobs is not None else None
            job.labels.append(label)
            left.remove(label)
        job.logprobs = picked
        job.text = render_answer(job.labels)

    async def _label(self, job: _Job, live: Sequence[str]) -> tuple[str, dict[str, float] | None]:
        """One of the live labels, and the distribution over them where the server tells all of it."""
        if not all(label in self._label_ids for label in live):
            return await self._choose(job, live), None
        ids = {f"token_id:{self._label_ids[label]}": label for label in live}
        allowed = [self._label_ids[label] for label in live]
        asked: dict[_Asked, Body] = {
            "by id": {"logprobs": 1, "logprob_token_ids": allowed},
            "by rank": {"logprobs": _TOP},
        }
        choice = await self._complete(
            job,
            {
                "max_tokens": 1,
                "allowed_token_ids": allowed,
                "return_tokens_as_token_ids": True,
                **asked.get(self._logprobs, {}),
            },
        )
        found = mapping(choice.get("logprobs"))
        tokens, top = found.get("tokens"), found.get("top_logprobs")
        written = str(choice.get("text")).strip()
        label = ids.get(str(tokens[0]), "") if isinstance(tokens, list) and tokens else written
        if label not in live:
            raise EngineError("the server did not keep to the allowed tokens; is it vLLM?")
        first = top[0] if isinstance(top, list) and top else None
        if not isinstance(first, Mapping):
            return label, None
        return label, renormalise({ids[token]: value for token, value in first.items() if token in ids}, live)

    async def _label_tokens(self, label: str) -> list[int]:
        """Tokens of a label inside an answer."""
        if label in self._label_ids:
            return [self._label_ids[label]]
        return (await self._tokenizer.encode(FIRST_LABEL + label))[len(await self._tokenizer.encode(FIRST_LABEL)) :]

    async def _choose(self, job: _Job, live: Sequence[str]) -> str:
        """One of the live labels where some are several tokens."""
        longest = max(len(label.encode()) for label in live) + 1
        body: Body = {"max_tokens": longest, "structured_outputs": {"choice": list(live)}}
        label = str((await self._complete(job, body)).get("text") or "").strip()
        if label not in live:
            raise EngineError("the server did not keep to the choice of labels")
        return label

    async def _complete(self, job: _Job, body: Body) -> Body:
        request = job.request
        answer = await self._server.complete(
            {
                "prompt": job.tokens,
                "temperature": 0.0 if request.greedy else request.temperature,
                # Against defaults that a model's generation configuration brings to the server.
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                **({} if request.seed is None else {"seed": request.seed}),
                **body,
            }
        )
        choice = first_choice(answer)
        job.count(usage_of(answer), cached="reuse" in self.capabilities)
        if choice.get("finish_reason") == "length" and body["max_tokens"] > 1:
            job.finish_reason = "length"
        return choice

    async def _prompt(self, messages: Sequence[Message], thinking: bool, constrain: bool) -> list[int]:
        """Tokens of the prompt and of what opens the model's turn."""
        tokens, opening = await asyncio.gather(self._tokenizer.render(messages), self._opening(thinking, constrain))
        return tokens + opening

    async def _opening(self, thinking: bool, constrain: bool) -> list[int]:
        """Tokens that follow the chat template's prompt; the template ends each alike."""
        opening = open_turn(self._tail, thinking=thinking, constrain=constrain)
        if not opening:
            return []
        before, whole = await asyncio.gather(
            self._tokenizer.encode(self._tail), self._tokenizer.encode(self._tail + opening)
        )
        return whole[len(before) :] if whole[: len(before)] == before else await self._tokenizer.encode(opening)
