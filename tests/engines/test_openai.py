"""`OpenAIEngine` against small servers on loopback: what each kind of server gets asked, and what goes wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1_rerank import DRanker, IRanker, R1Reranker
from r1_rerank.budget import Budget
from r1_rerank.engines.base import Engine, GenerationRequest
from r1_rerank.engines.openai import OpenAIEngine
from r1_rerank.errors import (
    ContextOverflowError,
    DeadlineError,
    EngineClosedError,
    EngineError,
    InputError,
    MissingExtraError,
)

Body = dict[str, Any]
DOCUMENTS = ["one", "two", "three", "four"]
KEY = "sk-very-secret-0123456789"


@dataclass(frozen=True)
class Reply:
    """What a server sends: a status with JSON or raw bytes.

    `hang` waits until the client goes away; `drip` sends a blank now and then meanwhile.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    drip: bool = False


HANG = Reply(hang=True)
DRIP = Reply(hang=True, drip=True)


class FakeServer:
    """An OpenAI-shaped server whose chat completions are a function of the request, and other paths likewise."""

    def __init__(self, chat: Callable[[Body], Any], **paths: Callable[[Body], Any]) -> None:
        self.chat = chat
        self.paths = paths
        self.card: Body = {"id": "m", "object": "model", "owned_by": "someone"}
        self.asked: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most = 0
        self.reached, self.dropped, self.released = threading.Event(), threading.Event(), threading.Event()
        self.lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                listed = self.path == "/v1/models" and fake.card
                self._send(Reply({"data": [fake.card]}) if listed else fake.other(self.path, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                chat = self.path.partition("?")[0] == "/v1/chat/completions"
                if not chat and self.path != "/v1/completions":
                    return self._send(fake.other(self.path, body))
                with fake.lock:
                    fake.asked.append(body)
                    fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                    fake.under_way += 1
                    fake.most = max(fake.most, fake.under_way)
                fake.reached.set()
                try:
                    reply = fake.chat(body) if chat else fake.other(self.path, body)
                    self._send(reply if isinstance(reply, Reply) else Reply(reply))
                finally:
                    with fake.lock:
                        fake.under_way -= 1

            def _send(self, reply: Reply) -> None:
                if reply.hang:
                    if reply.drip:
                        self.send_response(200)
                        self.send_header("Content-Length", "100000")
                        self.end_headers()
                    while not fake.released.is_set():
                        if reply.drip:
                            self.wfile.write(b" ")
                        if select.select([self.connection], [], [], 0.02)[0] and not self.connection.recv(1):
                            fake.dropped.set()
                            break
                    self.close_connection = True
                    return
                sent = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(sent))} | reply.headers
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: object) -> None: ...

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Listener(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def other(self, path: str, body: Body) -> Reply:
        name = path.strip("/").replace("v1/", "").replace("/", "_")
        if name not in self.paths or path == "/completions":  # only under /v1
            return Reply({"error": {"message": "Not Found"}}, 404)
        reply = self.paths[name](body)
        return reply if isinstance(reply, Reply) else Reply(reply)

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def said(text: str | None, **message: Any) -> Body:
    """A chat completion."""
    return {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text} | message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }


def follows_schema(body: Body) -> Body:
    """Answers with the first labels that a JSON schema allows."""
    properties = body["response_format"]["json_schema"]["schema"]["properties"]
    answer = properties["answer"]
    if answer["type"] == "string":
        told: Any = answer["enum"][0]
    else:
        told = answer["items"]["enum"][: answer.get("minItems", 99)]
    thinking = {"thinking": "because."} if "thinking" in properties else {}
    return said(json.dumps(thinking | {"answer": told}))


def free_or_schema(body: Body) -> Body:
    return follows_schema(body) if "response_format" in body else said("<answer>[B]</answer>")


def plain(body: Body) -> Body:
    """Knows no schema; names the last candidate."""
    return said("<answer>[B]</answer>")


Build = Callable[..., tuple[FakeServer, OpenAIEngine]]


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeServer]]:
    servers: list[FakeServer] = []

    def start(chat: Callable[[Body], Any], **paths: Callable[[Body], Any]) -> FakeServer:
        servers.append(FakeServer(chat, **paths))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def build(serve: Callable[..., FakeServer]) -> Iterator[Build]:
    """A server and an engine on it, which both end with the test."""
    engines: list[OpenAIEngine] = []

    def start(chat: Callable[[Body], Any], **options: Any) -> tuple[FakeServer, OpenAIEngine]:
        model = Letters(knows={"allowed", "ids"})
        vllm = {"tokenize": model.tokenize, "detokenize": model.detokenize, "completions": model.completions}
        server = serve(chat, **(vllm if options.get("dialect") == "vllm" else {}))
        options = {"base_url": server.base_url, "max_retries": 0, "timeout": 20, "dialect": "plain"} | options
        engines.append(OpenAIEngine("m", **options))
        if options["dialect"] == "vllm":  # what it can do is found: from now on the test answers
            server.paths["completions"] = chat
            server.asked.clear()
            server.reached.clear()
        return server, engines[-1]

    yield start
    for engine in engines:
        engine.close()


def request(**changes: Any) -> GenerationRequest:
    asked = GenerationRequest(messages=[{"role": "user", "content": "Which is worst?"}], labels=("A", "B"))
    return replace(asked, **changes)


def one(engine: OpenAIEngine, **changes: Any) -> Any:
    (completion,) = engine.generate([request(**changes)])
    return completion


# What each kind of server is asked


def test_a_plain_server_writes_freely_and_the_parser_reads(build: Build) -> None:
    server, engine = build(plain, dialect="auto")
    assert isinstance(engine, Engine)
    assert engine.capabilities == frozenset()
    result = R1Reranker(engine, thinking=40).rerank("q", DOCUMENTS)
    assert result.status == "ok"
    assert [hit.index for hit in result] == [0, 3, 2, 1]
    assert len(server.asked) == 1 + 3  # one to find out
    assert "response_format" not in server.asked[-1]
    assert server.asked[-1]["max_tokens"] > 40
    assert result.usage.calls == 3
    assert (result.usage.prompt_computed, result.usage.generated) == (30, 15)


def test_thinking_inside_the_text_is_told_apart(build: Build) -> None:
    _, engine = build(lambda body: said("<think>A is fine.</think><answer>[B]</answer>"))
    step = R1Reranker(engine, thinking=40).rerank("q", ["one", "two"]).steps[0]
    assert (step.thinking, step.picked) == ("A is fine.", (1,))
    assert 0 < step.usage.thinking < step.usage.generated


def test_a_server_that_keeps_to_a_schema_never_answers_badly(build: Build) -> None:
    server, engine = build(free_or_schema, dialect="auto")
    assert engine.capabilities == {"constrain", "thinking"}
    result = R1Reranker(engine, thinking=0).rerank("q", DOCUMENTS)
    assert (result.status, result.score_kind) == ("ok", "rank")
    assert [hit.index for hit in result] == [3, 2, 1, 0]
    assert {step.answer for step in result.steps} == {"<answer>[A]</answer>"}
    direct = R1Reranker(engine, strategy=DRanker(), thinking=0).rerank("q", DOCUMENTS)
    assert [hit.index for hit in direct] == [0, 1, 2, 3]
    assert server.asked[-1]["response_format"]["json_schema"]["strict"] is True


def test_a_server_that_knows_json_but_no_schema_is_not_credited_with_it(build: Build) -> None:
    _, engine = build(lambda body: said('{"answer": "A"}'), dialect="auto")
    assert engine.capabilities == frozenset()


def test_thinking_stands_before_the_answer_in_json(build: Build) -> None:
    server, engine = build(free_or_schema, dialect="structured")
    completion = one(engine, thinking_budget=100)
    assert (completion.text, completion.thinking) == ("<answer>[A]</answer>", "because.")
    assert list(server.asked[-1]["response_format"]["json_schema"]["schema"]["properties"]) == ["thinking", "answer"]
    assert 100 < server.asked[-1]["max_tokens"] < 250
    assert completion.usage.thinking <= 100


def test_thinking_that_uses_up_its_budget_is_followed_by_an_answer(build: Build) -> None:
    def chat(body: Body) -> Body:
        if "thinking" not in body["response_format"]["json_schema"]["schema"]["properties"]:
            return follows_schema(body)
        cut = said('{"thinking": "on and\\non and')
        cut["choices"][0]["finish_reason"] = "length"
        return cut

    server, engine = build(chat, dialect="structured")
    completion = one(engine, thinking_budget=10)
    assert (completion.text, completion.thinking) == ("<answer>[A]</answer>", "on and\non and")
    assert completion.finish_reason == "length"
    assert completion.usage.calls == 1
    assert completion.usage.generated == 10
    assert len(server.asked) == 2


def test_a_list_that_repeats_a_label_is_repaired(build: Build) -> None:
    _, engine = build(lambda body: said('{"answer": ["B", "B", "A", "D"]}'), dialect="structured")
    result = R1Reranker(engine, strategy=DRanker(), thinking=0).rerank("q", DOCUMENTS)
    assert result.status == "repaired"
    assert [hit.index for hit in result] == [1, 0, 3, 2]


def test_a_server_like_llama_cpp_tells_some_probabilities_and_none_are_made_up(build: Build) -> None:
    def chat(body: Body) -> Body:
        reply = free_or_schema(body)
        label = json.loads(reply["choices"][0]["message"]["content"])["answer"]
        top = [{"token": label, "logprob": -0.1}, {"token": "the", "logprob": -3.0}]
        entries = [{"token": '{"answer":"', "logprob": 0.0, "top_logprobs": []}]
        entries += [{"token": label, "logprob": -0.1, "top_logprobs": top}, {"token": '"}', "top_logprobs": []}]
        reply["choices"][0]["logprobs"] = {"content": entries}
        return reply

    server, engine = build(chat, dialect="auto")
    assert engine.capabilities == {"constrain", "thinking"}
    assert one(engine).label_logprobs is None
    assert "logprobs" not in server.asked[-1]


def test_probabilities_that_cover_all_labels_are_used(build: Build) -> None:
    def chat(body: Body) -> Body:
        reply = follows_schema(body)
        labels = body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"]
        top = [{"token": f' "{label}', "logprob": -1.0 - place} for place, label in enumerate(labels)]
        entries = [{"token": part, "top_logprobs": []} for part in ('{"', "a", 'nswer":')]
        entries += [{"token": f' "{labels[0]}', "logprob": -1.0, "top_logprobs": top[: body["top_logprobs"]]}]
        entries += [{"token": '"}', "top_logprobs": []}]
        reply["choices"][0]["logprobs"] = {"content": entries}
        return reply

    _, engine = build(chat, dialect="auto")
    assert engine.capabilities == {"constrain", "logprobs", "thinking"}
    logprobs = one(engine, labels=("a", "b", "C")).label_logprobs
    assert sum(map(math.exp, logprobs.values())) == pytest.approx(1.0)
    assert logprobs["a"] - logprobs["b"] == pytest.approx(1.0)
    assert R1Reranker(engine, thinking=0).rerank("q", DOCUMENTS).score_kind == "logprob"
    # More labels than the server tells probabilities of: none rather than some.
    many = one(engine, labels=tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    assert (many.text, many.label_logprobs) == ("<answer>[A]</answer>", None)


def test_a_reasoning_server_is_given_room_and_its_own_names(build: Build) -> None:
    def chat(body: Body) -> Any:
        for name in ("max_tokens", "temperature"):
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported. Use 'max_completion_tokens' instead."
                return Reply({"error": {"message": message, "param": name, "code": "unsupported_parameter"}}, 400)
        if "logprobs" in body:
            return Reply({"error": {"message": "You are not allowed to request logprobs from this model"}}, 403)
        reply = follows_schema(body)
        reply["choices"][0]["message"]["reasoning_content"] = "B is off topic."
        return reply

    server, engine = build(chat, dialect="auto")
    assert engine.capabilities == {"constrain"}
    found = len(server.asked)
    for budget in (0, 300):
        completion = one(engine, thinking_budget=budget)
        assert (completion.text, completion.thinking) == ("<answer>[A]</answer>", "B is off topic.")
        assert 0 < completion.usage.thinking < completion.usage.generated
    assert len(server.asked) == found + 2  # what was refused is remembered
    assert server.asked[-1]["max_completion_tokens"] > 300
    assert server.asked[-2]["max_completion_tokens"] > 1000


def test_reasoning_is_given_room_only_where_it_is_met(build: Build) -> None:
    def reasons(body: Body) -> Any:
        if body["max_tokens"] >= 1000:
            return follows_schema(body)
        cut = said(None, reasoning_content="Let me see.")
        cut["choices"][0]["finish_reason"] = "length"
        return cut

    def refuses(body: Body) -> Any:
        if "max_tokens" in body:
            return Reply({"error": {"message": "Use 'max_completion_tokens'", "param": "max_tokens"}}, 400)
        if body["max_completion_tokens"] >= 1000:
            return follows_schema(body)
        message = "Could not finish the message because max_tokens or model output limit was reached."
        return Reply({"error": {"message": message}}, 400)

    def writes_on(body: Body) -> Body:
        cut = said("So. " * body["max_tokens"])
        cut["choices"][0]["finish_reason"] = "length"
        return cut

    for chat, capabilities in ((reasons, {"constrain"}), (refuses, {"constrain", "thinking"}), (writes_on, set())):
        server, engine = build(chat, dialect="auto")
        assert engine.capabilities == capabilities
        asked = [body.get("max_tokens") or body["max_completion_tokens"] for body in server.asked]
        assert asked[0] < 200
        assert (max(asked) >= 1000) == bool(capabilities)


def test_a_server_too_slow_to_show_what_it_can_do_is_a_plain_one(
    build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    server, engine = build(lambda body: HANG if "response_format" in body else plain(body), dialect="auto", timeout=0.3)
    assert engine.capabilities == frozenset()
    assert "plain one" in caplog.text
    assert "within 0.3 s" in caplog.text
    assert one(engine).text == "<answer>[B]</answer>"
    assert "response_format" not in server.asked[-1]


@pytest.mark.parametrize(
    "refusal",
    [
        Reply({"error": {"message": "You are not allowed to request logprobs from this model"}}, 403),
        Reply({"error": {"message": "top_logprobs must be at most 5", "param": "top_logprobs"}}, 400),
        Reply({"error": {"message": "I do not like this."}}, 400),
    ],
)
def test_probabilities_that_are_refused_are_no_secret(build: Build, refusal: Reply) -> None:
    server, engine = build(lambda body: refusal if "logprobs" in body else follows_schema(body), dialect="auto")
    assert engine.capabilities == {"constrain", "thinking"}
    (note,) = engine.notes
    assert (note.step, note.kind) == (None, "no_logprobs")
    assert re.search("refuses.*top_logprobs=20.*choose a model or server", note.detail)
    result = R1Reranker(engine, thinking=0).rerank("q", DOCUMENTS)
    assert (result.status, result.score_kind, result.faults) == ("ok", "rank", (note,))
    assert "logprobs" not in server.asked[-1]


def test_a_server_that_refuses_nothing_has_no_notes(build: Build) -> None:
    assert [build(chat, dialect="auto")[1].notes for chat in (plain, free_or_schema)] == [(), ()]
    assert build(plain, dialect="vllm")[1].notes == ()
    # A plain server has no label probabilities to refuse.
    refusal = Reply({"error": {"message": "unknown field logprobs"}}, 400)
    assert build(lambda body: refusal if "logprobs" in body else plain(body), dialect="auto")[1].notes == ()


def test_a_temperature_that_was_asked_for_is_not_dropped(build: Build) -> None:
    refusal = Reply({"error": {"message": "temperature must be in [0, 2]", "param": "temperature"}}, 400)
    server, engine = build(lambda body: refusal if "temperature" in body else plain(body))
    assert "temperature must be" in str(one(engine, temperature=5.0).error)
    assert one(engine).text == "<answer>[B]</answer>"
    assert "temperature" not in server.asked[-1]


def test_lists_without_bounds_where_a_server_refuses_them(build: Build) -> None:
    def chat(body: Body) -> Any:
        if "minItems" in json.dumps(body):
            message = "Invalid schema for response_format: 'minItems' is not permitted."
            return Reply({"error": {"message": message, "param": "response_format"}}, 400)
        return follows_schema(body)

    server, engine = build(chat, dialect="structured")
    completions = engine.generate([request(pick=2)] * 6)  # all of them find out at once
    assert {completion.text for completion in completions} == {"<answer>[A] > [B]</answer>"}
    assert "constrain" in engine.capabilities
    asked = len(server.asked)
    assert one(engine, pick=2).error is None
    assert len(server.asked) == asked + 1


def test_a_schema_that_is_refused_after_all_is_no_capability_any_more(build: Build) -> None:
    refusal = Reply({"error": {"message": "unknown field response_format"}}, 422)
    _, engine = build(lambda body: refusal if "response_format" in body else plain(body), dialect="structured")
    assert "constrain" in engine.capabilities
    assert one(engine).text == "<answer>[B]</answer>"
    assert engine.capabilities == frozenset()


class Letters:
    """A server like vLLM whose tokens are bytes; it may ignore what newer versions know."""

    def __init__(self, *, knows: set[str], template_thinks: bool = False) -> None:
        self.knows = knows
        self.tail = "assistant:" + ("<think>" if template_thinks else "")
        self.prompts: list[str] = []

    def tokenize(self, body: Body) -> Body:
        text = body.get("prompt")
        if text is None:
            text = "".join(f"{turn['role']}:{turn['content']}\n" for turn in body["messages"]) + self.tail
        return {"tokens": list(text.encode()), "count": len(text.encode()), "max_model_len": 5000}

    def detokenize(self, body: Body) -> Body:
        return {"prompt": bytes(body["tokens"]).decode()}

    def completions(self, body: Body) -> Body:
        self.prompts.append(bytes(body["prompt"]).decode())
        allowed = body.get("allowed_token_ids") if "allowed" in self.knows else None
        if "stop" in body:
            return {
                "choices": [
                    {
                        "text": "Hm.",
                        "finish_reason": "stop",
                        "stop_reason": "</think>",
                        "token_ids": list(b"Hm.</think>"),
                    }
                ]
            }
        return self.names(body, chr(allowed[-1]) if allowed else "?")

    def names(self, body: Body, label: str) -> Body:
        token = ord(label)
        told = body.get("logprob_token_ids") if "ids" in self.knows else None
        top = {f"token_id:{token}": -1.0} | {f"token_id:{other}": -1.0 for other in told or ()}
        logprobs = {"tokens": [f"token_id:{token}"], "top_logprobs": [top]} if "logprobs" in body else None
        return {"choices": [{"text": label, "finish_reason": "length", "logprobs": logprobs}]}


def letters(serve: Callable[..., FakeServer], model: Letters, **paths: Callable[[Body], Any]) -> OpenAIEngine:
    own = {"tokenize": model.tokenize, "detokenize": model.detokenize, "completions": model.completions}
    server = serve(plain, **(own | paths))
    server.card |= {"owned_by": "vllm"}
    return OpenAIEngine("m", base_url=server.base_url, max_retries=0)


def test_an_older_vllm_is_not_credited_with_what_it_ignores(serve: Callable[..., FakeServer]) -> None:
    for knows, capabilities in (
        ({"allowed", "ids"}, {"constrain", "logprobs", "thinking"}),
        ({"allowed"}, {"constrain", "thinking"}),
    ):
        engine = letters(serve, Letters(knows=knows))
        assert engine.capabilities == capabilities
        assert engine.context_tokens == 5000
        assert one(engine).text == "<answer>[B]</answer>"
        engine.close()
    with pytest.raises(EngineError, match="allowed tokens"):
        letters(serve, Letters(knows=set()))


@pytest.mark.parametrize("most", [20, 5, 0])
def test_vllm_without_probabilities_ranks_and_says_what_would_give_them(
    serve: Callable[..., FakeServer], most: int
) -> None:
    asked = list[Body]()
    model = Letters(knows={"allowed"})

    def completions(body: Body) -> Any:
        asked.append(body)
        if body.get("logprobs", 0) > most:
            message = f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: {most}"
            return Reply({"error": {"message": message, "type": "BadRequestError", "param": "logprobs"}}, 400)
        return model.completions(body)

    engine = letters(serve, model, completions=completions)
    assert engine.capabilities == {"constrain", "thinking"}
    (note,) = engine.notes
    assert (note.step, note.kind) == (None, "no_logprobs")
    assert re.search("a newer vLLM, or start it with --max-logprobs 20", note.detail)
    result = R1Reranker(engine, thinking=0).rerank("q", DOCUMENTS)
    engine.close()
    assert (result.status, result.score_kind, result.faults) == ("ok", "rank", (note,))
    assert "logprobs" not in asked[-1]


def test_a_vllm_that_refuses_whatever_it_is_asked_is_no_engine(serve: Callable[..., FakeServer]) -> None:
    refusal = Reply({"error": {"message": "not today"}}, 400)
    with pytest.raises(EngineError, match="not today"):
        letters(serve, Letters(knows={"allowed", "ids"}), completions=lambda body: refusal)


@pytest.mark.parametrize("caches", [True, False])
def test_tokens_sampled_by_one_call_are_not_computed_again_by_the_next(
    serve: Callable[..., FakeServer], caches: bool
) -> None:
    """A server that has a prefix cache, but does not tell what came from it."""
    model = Letters(knows={"allowed", "ids"})

    def completions(body: Body) -> Body:
        reply = model.completions(body)
        sampled = len(reply["choices"][0].get("token_ids", "B"))
        return reply | {"usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": sampled}}

    metrics = Reply(f'cache{{enable_prefix_caching="{caches}"}} 1'.encode())
    engine = letters(serve, model, completions=completions, metrics=lambda body: metrics)
    assert ("reuse" in engine.capabilities) == caches
    for changes, sampled in (({"thinking_budget": 100}, [11, 1]), ({"labels": tuple("ABCD"), "pick": 3}, [1, 1, 1])):
        usage = one(engine, **changes).usage
        prompts = [len(prompt) for prompt in model.prompts[-len(sampled) :]]
        assert usage.generated == sum(sampled)
        assert usage.prompt_computed == (prompts[-1] - sum(sampled[:-1]) if caches else sum(prompts))
    engine.close()


def test_a_template_that_opens_the_thinking_is_not_opened_twice(serve: Callable[..., FakeServer]) -> None:
    model = Letters(knows={"allowed", "ids"}, template_thinks=True)
    engine = letters(serve, model)
    one(engine)
    assert model.prompts[-1].endswith("assistant:<think>\n</think>\n<answer>[")
    completion = one(engine, thinking_budget=10)
    engine.close()
    assert model.prompts[-2].endswith("assistant:<think>")
    assert model.prompts[-1].endswith("assistant:<think>Hm.</think>\n<answer>[")
    assert completion.thinking == "Hm."


def test_tokens_of_old_prompts_are_forgotten(build: Build) -> None:
    server, engine = build(plain, dialect="vllm")
    tokenize, asked = server.paths["tokenize"], list[str]()

    def counting(body: Body) -> Any:
        asked.append(body["messages"][0]["content"][0])
        return tokenize(body)

    server.paths["tokenize"] = counting
    prompts = [[{"role": "user", "content": letter * 2**17}] for letter in "ABCDE"]
    for prompt in (*prompts[:3], prompts[0], *prompts[3:]):
        assert engine.count_tokens(prompt) > 2**17
    assert "".join(asked) == "ABCDE"  # the second time, A is remembered
    engine.count_tokens(prompts[-1])
    engine.count_tokens(prompts[1])
    assert "".join(asked) == "ABCDEB"  # half a million tokens later, B is not


def test_a_list_near_the_context_is_counted_with_few_calls(serve: Callable[..., FakeServer]) -> None:
    model, counted, asked = Letters(knows={"allowed", "ids"}), list[str](), list[int]()

    def tokenize(body: Body) -> Body:
        reply = model.tokenize(body) | {"max_model_len": 8192}
        if "messages" in body:
            counted.append(body["messages"][0]["content"])
            reply["tokens"] = reply["tokens"][::4]
        return reply

    def completions(body: Body) -> Body:
        asked.append(len(counted))
        return model.completions(body)

    engine = letters(serve, model, tokenize=tokenize, completions=completions)
    reranker = R1Reranker(engine, thinking=0, strategy=DRanker())
    counted.clear()
    asked.clear()
    result = reranker.rerank("q", [f"{number} " + "word " * 80 for number in range(50)])
    engine.close()
    assert result.status == "ok"
    assert asked[0] == 3  # the frame twice, and the prompt, which is then known
    assert sum(len(text) for text in counted[:2]) < 5000 < len(counted[2])


def test_many_counts_go_side_by_side(build: Build) -> None:
    server, engine = build(plain, dialect="vllm", concurrency=4)
    tokenize, four = server.paths["tokenize"], threading.Barrier(4)

    def together(body: Body) -> Any:
        four.wait(5)  # one by one they would never meet
        return tokenize(body)

    server.paths["tokenize"] = together
    prompts = [[{"role": "user", "content": "x" * number}] for number in range(8)]
    assert engine.count_many(prompts) == [len("user:\nassistant:") + number for number in range(8)]


def test_a_count_does_not_wait_for_answers(build: Build) -> None:
    server, engine = build(lambda body: HANG, dialect="vllm", concurrency=1)
    future = engine.submit(request())
    assert server.reached.wait(5)  # by all that may be under way
    assert engine.count_tokens([{"role": "user", "content": "x"}]) == len("user:x\nassistant:")
    future.cancel()


# Faults


@pytest.mark.parametrize("dialect", ["auto", "vllm"])
def test_an_address_without_its_last_part(serve: Callable[..., FakeServer], dialect: Any) -> None:
    model = Letters(knows={"allowed", "ids"})
    server = serve(plain, tokenize=model.tokenize, detokenize=model.detokenize, completions=model.completions)
    with pytest.raises(InputError, match=r"has no /(chat/)?completions \(404\).* mostly ends in /v1") as caught:
        OpenAIEngine("m", base_url=server.base_url.removesuffix("/v1"), dialect=dialect)
    assert caught.value.argument == "base_url"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("r1-rerank-openai")]


def test_a_server_without_a_list_of_models(serve: Callable[..., FakeServer]) -> None:
    server = serve(free_or_schema)
    server.card = {}
    engine = OpenAIEngine("m", base_url=server.base_url)
    assert engine.capabilities == {"constrain", "thinking"}
    engine.close()


def test_a_schema_that_nobody_behind_the_address_takes(build: Build) -> None:
    nobody = Reply({"error": {"message": "No endpoints found that take these parameters"}}, 404)
    _, engine = build(lambda body: nobody if "response_format" in body else plain(body), dialect="auto")
    assert engine.capabilities == frozenset()
    assert one(engine).text == "<answer>[B]</answer>"


def test_no_server_at_all() -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9/v1 cannot be reached.*start the server, or mend base_url"):
        OpenAIEngine("m", base_url="http://127.0.0.1:9/v1", max_retries=0)


def test_a_model_that_the_server_does_not_have(serve: Callable[..., FakeServer]) -> None:
    server = serve(plain)
    with pytest.raises(InputError, match="does not have 'other'; it has: m"):
        OpenAIEngine("other", base_url=server.base_url)


def test_an_alias_that_the_list_does_not_show(serve: Callable[..., FakeServer]) -> None:
    server = serve(plain, models_alias=lambda body: {"id": "alias"})
    engine = OpenAIEngine("alias", base_url=server.base_url)
    assert engine.model == "alias"
    engine.close()


def test_a_key_is_needed_where_no_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        OpenAIEngine("m")


def test_the_extra_is_named_where_the_client_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"r1-rerank\[openai\]"):
        OpenAIEngine("m", base_url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("model", ""),
        ("base_url", "localhost:8000"),
        ("api_key", 3),
        ("timeout", 0),
        ("max_retries", -1),
        ("concurrency", 0),
        ("context_tokens", "many"),
        ("dialect", "vLLM"),
        ("client", object()),
    ],
)
def test_arguments_are_checked_before_anything_is_asked(argument: str, value: object) -> None:
    arguments: dict[str, Any] = {"model": "m"} | {argument: value}
    with pytest.raises(InputError) as caught:
        OpenAIEngine(**arguments)
    assert caught.value.argument == argument


def test_a_client_and_an_address_are_one_too_many() -> None:
    with pytest.raises(InputError, match="base_url"):
        OpenAIEngine("m", client=openai.OpenAI(api_key=KEY), base_url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI])
def test_a_client_of_ones_own_lends_its_settings(serve: Callable[..., FakeServer], kind: Any) -> None:
    server = serve(plain)
    client = kind(api_key=KEY, base_url=server.base_url, default_headers={"X-Team": "search"}, organization="org-1")
    engine = OpenAIEngine("m", client=client)
    assert one(engine).text == "<answer>[B]</answer>"
    engine.close()
    sent = server.headers[-1]
    assert (sent["authorization"], sent["x-team"]) == (f"Bearer {KEY}", "search")
    assert sent["openai-organization"] == "org-1"
    assert not client.is_closed()
    if kind is openai.OpenAI:
        client.close()


@pytest.mark.parametrize("options", [{"api_key": KEY}, {}], ids=["argument", "environment"])
def test_the_key_is_sent_and_never_told(
    build: Build, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "another" if options else KEY)
    statuses = iter([401, 403, 404, 400, 429, 500])
    server, engine = build(
        lambda body: Reply({"error": {"message": f"bad key {KEY} for you", "code": KEY}}, next(statuses)), **options
    )
    completions = [one(engine) for _ in range(6)]
    assert {sent["authorization"] for sent in server.headers} == {f"Bearer {KEY}"}
    told = "".join(map(repr, completions)) + "".join(str(completion.error) for completion in completions)
    assert all(completion.error is not None for completion in completions)
    assert "OPENAI_API_KEY" in str(completions[0].error)
    assert "***" in told
    for words in (told, repr(engine), str(engine), caplog.text):
        assert KEY not in words
    # The client's own exceptions hold the headers that were sent.
    assert all(completion.error.__cause__ is completion.error.__context__ is None for completion in completions)


@pytest.mark.parametrize("kind", [None, openai.OpenAI, openai.AsyncOpenAI])
def test_a_password_in_the_address_is_sent_and_never_told(
    serve: Callable[..., FakeServer], caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(plain)
    address = server.base_url.replace("http://", "http://me:hidden%21@")
    if kind is None:
        engine = OpenAIEngine("m", base_url=address, dialect="plain")
    else:
        engine = OpenAIEngine("m", client=kind(base_url=address, api_key=KEY), dialect="plain")
    assert one(engine).error is None
    assert server.headers[-1]["authorization"] == "Basic " + base64.b64encode(b"me:hidden!").decode()
    assert "hidden" not in repr(engine) + caplog.text
    engine.close()


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hidden@localhost:port/v1",
        "http://me:hidden@[::1/v1",
        "http://me:hidden@a\u2100b/v1",
        "http://me:hidden/2@localhost/v1",
        "http://me:12/hidden@localhost/v1",
        "http://me:12#hidden@localhost/v1",
        "http://me:12?hidden@localhost/v1",
    ],
)
def test_a_password_in_what_is_no_address_is_not_told(address: str) -> None:
    with pytest.raises(InputError, match=r"base_url: .*no address such as") as caught:
        OpenAIEngine("m", base_url=address)
    assert "hidden" not in str(caught.value)


def test_a_key_in_the_query_of_ones_own_client_is_not_told(serve: Callable[..., FakeServer]) -> None:
    words = "Cannot POST /v1/chat/completions?key=hid%2Fden, nor with hid/den"
    server = serve(lambda body: Reply({"error": {"message": words}}, 400))
    client = openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, default_query={"key": "hid/den"})
    engine = OpenAIEngine("m", client=client, dialect="plain")
    error = str(one(engine).error)
    assert "Cannot POST" in error
    assert "hid" not in error
    engine.close()


@pytest.mark.parametrize("status", [500, 501])
def test_a_server_that_fails_at_what_it_does_not_know_writes_freely(build: Build, status: int) -> None:
    failure = Reply({"error": {"message": "response_format type must be text"}}, status)
    _, engine = build(lambda body: failure if "response_format" in body else plain(body), dialect="auto")
    assert engine.capabilities == frozenset()
    assert one(engine).text == "<answer>[B]</answer>"


def test_a_server_that_fails_at_everything_is_no_plain_one(build: Build) -> None:
    with pytest.raises(EngineError, match=r"failed \(500"):
        build(lambda body: Reply({"error": {"message": "oops"}}, 500), dialect="auto")


def test_a_server_that_recovers_is_asked_again(build: Build) -> None:
    lost = Reply(b"{", headers={"Content-Length": "500", "Connection": "close"})
    replies = iter([Reply({"error": {"message": "oops"}}, 500), Reply({}, 429, {"Retry-After": "0.05"}), lost])
    server, engine = build(lambda body: next(replies, plain(body)), max_retries=3)
    assert one(engine).text == "<answer>[B]</answer>"
    assert len(server.asked) == 4


BOTH = pytest.mark.parametrize("dialect", ["plain", "vllm"])


@BOTH
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply({"error": {"message": "on fire"}}, 500), "failed.*1 tries.*on fire"),
        (Reply({"error": {"message": "slow down"}}, 429), "429.*lower concurrency.*slow down"),
        (Reply({"error": {"message": "no"}}, 401), "refused the key"),
        (Reply({"error": {"message": "The model `m` does not exist"}}, 404), "does not have the model 'm'; it has: m"),
        (Reply(b'{"choices": [{"mess'), "broken JSON"),
        (Reply(b"<html>"), "broken JSON"),
        (Reply([1]), "no JSON object"),
        (Reply(b"{}", headers={"Content-Length": "500"}), "cannot be reached or broke off"),
        (Reply({"choices": []}), "without choices"),
        (Reply({"choices": [{"message": None}]}), "without a message|did not keep to the allowed tokens"),
        (
            Reply({"choices": [{"message": None, "text": "B", "logprobs": {"tokens": [[]]}}]}),
            "without a message|did not keep to the allowed tokens",
        ),
        (
            Reply({"choices": [{"finish_reason": "content_filter", "message": {"content": None}}]}),
            "content filter",
        ),
        (
            Reply({"choices": [{"finish_reason": "abort", "message": {"content": "[A] is"}, "text": "B"}]}),
            "gave the request up: abort",
        ),
    ],
)
def test_a_failed_request_says_what_to_do(build: Build, reply: Reply, words: str, dialect: str) -> None:
    if "Content-Length" in reply.headers:
        reply = replace(reply, headers=reply.headers | {"Connection": "close"})
    _, engine = build(lambda body: reply, dialect=dialect)
    completion = one(engine)
    assert isinstance(completion.error, EngineError)
    assert re.search(words, str(completion.error))
    result = R1Reranker(engine, thinking=0).rerank("q", DOCUMENTS)
    assert (result.status, len(result)) == ("fallback", 4)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply({"error": {"message": "on fire"}}, 500), "failed.*on fire"),
        (Reply(b'{"tokens": [1, 2'), "broken JSON"),
        (Reply({}), "/tokenize answered without tokens"),
        (HANG, r"within 0\.5 s"),
    ],
)
def test_vllm_that_does_not_tell_tokens_any_more(build: Build, reply: Reply, words: str) -> None:
    server, engine = build(plain, dialect="vllm", timeout=0.5, concurrency=2)
    reranker = R1Reranker(engine, thinking=0)
    server.paths["tokenize"] = lambda body: reply
    assert re.search(words, str(one(engine).error))
    assert engine.count_tokens(request().messages) > 0  # an estimate
    result = reranker.rerank("q", DOCUMENTS)
    assert (result.status, len(result)) == ("fallback", 4)


@BOTH
@pytest.mark.parametrize(
    "error",
    [
        {"message": "This model's maximum context length is 10 tokens.", "code": "context_length_exceeded"},
        {"message": "the request exceeds the available context size", "type": "exceed_context_size_error"},
        {"message": "prompt is too long: 99 tokens"},
    ],
)
def test_a_prompt_that_is_too_long(build: Build, error: Body, dialect: str) -> None:
    _, engine = build(lambda body: Reply({"error": error}, 400), dialect=dialect)
    assert isinstance(one(engine).error, ContextOverflowError)


@pytest.mark.parametrize("dialect", ["plain", "structured"])
@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (said("I cannot say."), "fallback"),
        (said(None), "fallback"),
        (said(None, refusal="I won't."), "fallback"),
        (said("Drop [B], it is bad."), "repaired"),
        (said(None, content=[{"type": "text", "text": "<answer>[B]</answer>"}]), "ok"),
        (said('{"answer": ["B"'), "fallback"),
    ],
)
def test_answers_that_are_none_are_data(build: Build, reply: Body, status: str, dialect: str) -> None:
    _, engine = build(lambda body: reply, dialect=dialect)
    result = R1Reranker(engine, thinking=0).rerank("q", ["one", "two", "three"])
    assert result.status == status
    assert sorted(hit.index for hit in result) == [0, 1, 2]


@BOTH
def test_a_server_that_dies_in_mid_run_leaves_a_partial_ranking(build: Build, dialect: str) -> None:
    model = Letters(knows={"allowed", "ids"})

    def chat(body: Body) -> Any:
        # Gone with the third answer: the socket that listens, and the connection.
        if len(server.asked) > 2:
            threading.Thread(target=server.close).start()
            return HANG
        return plain(body) if "messages" in body else model.names(body, "B")

    server, engine = build(chat, dialect=dialect)
    result = R1Reranker(engine, thinking=0).rerank("q", DOCUMENTS)
    assert result.status == "partial"
    assert [hit.index for hit in result] == [0, 3, 2, 1]
    assert "start the server" in result.faults[-1].detail
    assert len(result.steps) == 2


@BOTH
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (HANG, "within 1 s"),
        (Reply({"error": {"message": "on fire"}}, 500), "on fire"),
        (Reply(b'{"choices": [{"mess'), "broken JSON"),
    ],
)
def test_a_server_that_fails_in_mid_run_leaves_a_partial_ranking(
    build: Build, dialect: str, reply: Reply, words: str
) -> None:
    model = Letters(knows={"allowed", "ids"})

    def chat(body: Body) -> Any:
        if len(server.asked) > 2:
            return reply
        return plain(body) if "messages" in body else model.names(body, "B")

    server, engine = build(chat, dialect=dialect, timeout=1)
    result = R1Reranker(engine, thinking=0).rerank("q", DOCUMENTS)
    assert result.status == "partial"
    assert [hit.index for hit in result] == [0, 3, 2, 1]
    assert (result.faults[-1].kind, len(result.steps)) == ("engine", 2)
    assert words in result.faults[-1].detail


@BOTH
def test_a_server_that_hangs(build: Build, dialect: str) -> None:
    _, engine = build(lambda body: HANG, timeout=0.5, dialect=dialect, concurrency=2)
    assert "within 0.5 s in 1 tries: raise timeout" in str(one(engine).error)


def test_a_server_that_drips_is_out_of_time_too(build: Build) -> None:
    server, engine = build(lambda body: DRIP, timeout=1, max_retries=1)
    assert "within 1 s in 2 tries" in str(one(engine, timeout=20).error)
    assert len(server.asked) == 2
    assert server.dropped.wait(5)


def test_a_server_that_hangs_over_a_count_holds_nobody_up(build: Build) -> None:
    server, engine = build(plain, dialect="vllm", timeout=100, max_retries=3)
    reranker = R1Reranker(engine, thinking=0)
    counted, hanging = list[Body](), threading.Event()

    def hang(body: Body) -> Reply:
        counted.append(body)
        hanging.set()
        return HANG

    server.paths["tokenize"] = hang
    started = time.monotonic()

    async def abandon() -> None:
        task = asyncio.create_task(reranker.arerank("q", DOCUMENTS))
        assert await asyncio.to_thread(hanging.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(abandon())  # which waits for the thread that counts
    found = len(counted)
    assert found == 2  # at once, and not again
    assert engine.count_tokens(request().messages) > 0
    assert len(counted) == found  # for a while it is left alone
    result = reranker.rerank("q", DOCUMENTS, budget=Budget(seconds=0.2))
    assert (result.status, result.faults[-1].kind) == ("fallback", "budget")
    assert time.monotonic() - started < 60  # of the minutes that a try may take


def test_after_a_while_a_server_is_asked_for_counts_again(build: Build) -> None:
    server, engine = build(plain, dialect="vllm", concurrency=2)
    engine._server.timeout = 0.3  # from now on
    before, after = request().messages, [{"role": "user", "content": "Later?"}]
    known, tokenize = engine.count_tokens(before), server.paths["tokenize"]
    server.paths["tokenize"] = lambda body: HANG
    exact = len("user:Later?\nassistant:")
    assert engine.count_tokens(after) != exact
    server.paths["tokenize"] = tokenize
    assert engine.count_tokens(after) != exact
    assert engine.count_tokens(before) == known  # what it said is remembered
    until = time.monotonic() + 30
    while engine.count_tokens(after) != exact:
        assert time.monotonic() < until
        time.sleep(0.05)


@BOTH
def test_a_request_ends_at_its_deadline_and_closes_its_connection(build: Build, dialect: str) -> None:
    server, engine = build(lambda body: HANG, dialect=dialect)
    assert isinstance(one(engine, timeout=0.2).error, DeadlineError)
    assert server.dropped.wait(5)


@given(
    reply=st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *("choices", "message", "content", "usage", "answer", "logprobs", "prompt_tokens_details"),
                        *("tokens", "top_logprobs", "token_id:65"),
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    wrapped=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_reply_whatever_raises(
    hypothesis_engine: tuple[FakeServer, OpenAIEngine], reply: Any, wrapped: bool
) -> None:
    server, engine = hypothesis_engine
    choice = {"message": reply, "text": reply, "token_ids": reply, "logprobs": reply}
    whole = {"choices": [choice], "usage": reply} if wrapped else reply
    server.chat = server.paths["completions"] = lambda body: Reply(whole)
    completion = one(engine, thinking_budget=5)
    assert isinstance(completion.text, str)
    assert completion.error is None or type(completion.error) is EngineError
    assert "Error: " not in str(completion.error)  # nor is it a mistake of ours, caught


@pytest.fixture(scope="module", params=["structured", "vllm"])
def hypothesis_engine(request: pytest.FixtureRequest) -> Iterator[tuple[FakeServer, OpenAIEngine]]:
    model = Letters(knows={"allowed", "ids"})
    server = FakeServer(plain, tokenize=model.tokenize, detokenize=model.detokenize, completions=model.completions)
    engine = OpenAIEngine("m", base_url=server.base_url, dialect=request.param, max_retries=0)
    yield server, engine
    engine.close()
    server.close()


# Running


def test_no_more_requests_are_under_way_than_allowed(build: Build) -> None:
    one_too_many = threading.Event()

    def chat(body: Body) -> Body:
        if server.under_way > 3:
            one_too_many.set()
        one_too_many.wait(0.2)  # time for one more to arrive
        return plain(body)

    server, engine = build(chat, concurrency=3)
    assert engine.batch_size == 3
    completions = engine.generate([request()] * 9)
    assert {completion.text for completion in completions} == {"<answer>[B]</answer>"}
    assert server.most == 3


def test_answers_come_in_the_order_of_the_requests(build: Build) -> None:
    _, engine = build(lambda body: said(body["messages"][0]["content"]))
    asked = [request(messages=[{"role": "user", "content": f"{number}"}]) for number in range(40)]
    assert [completion.text for completion in engine.generate(asked)] == [f"{number}" for number in range(40)]


def test_many_queries_at_once(build: Build) -> None:
    server, engine = build(plain)
    results = R1Reranker(engine, thinking=0).rerank_batch([f"q{number}" for number in range(30)], [DOCUMENTS] * 30)
    assert {tuple(hit.index for hit in result) for result in results} == {(0, 3, 2, 1)}
    assert len(server.asked) == 90


async def test_sync_and_async_in_a_running_loop(build: Build) -> None:
    _, engine = build(plain)
    reranker = R1Reranker(engine, thinking=0)
    assert reranker.rerank("q", DOCUMENTS).status == "ok"
    results = await asyncio.gather(*(reranker.arerank("q", DOCUMENTS) for _ in range(5)))
    assert {result.status for result in results} == {"ok"}
    other_loop = await asyncio.to_thread(lambda: asyncio.run(reranker.arerank("q", DOCUMENTS)))
    assert other_loop.status == "ok"


@BOTH
async def test_cancelling_closes_the_connection_and_leaves_no_task(build: Build, dialect: str) -> None:
    server, engine = build(lambda body: HANG, concurrency=1, dialect=dialect)
    before = asyncio.all_tasks()
    task = asyncio.create_task(R1Reranker(engine, thinking=0).arerank("q", DOCUMENTS))
    assert await asyncio.to_thread(server.reached.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(server.dropped.wait, 5)
    assert asyncio.all_tasks() == before
    model = Letters(knows={"allowed", "ids"})
    server.chat, server.paths["completions"] = plain, lambda body: model.names(body, "B")
    assert one(engine).text == "<answer>[B]</answer>"  # its place is free again


def test_a_submitted_request_can_be_cancelled(build: Build) -> None:
    server, engine = build(lambda body: HANG)
    future = engine.submit(request())
    assert server.reached.wait(5)
    assert future.cancel()
    assert server.dropped.wait(5)


def test_a_closed_engine_says_so(build: Build) -> None:
    _, engine = build(plain)
    threads = threading.active_count()
    engine.close()
    engine.close()
    assert threading.active_count() < threads
    assert isinstance(one(engine).error, EngineClosedError)
    assert isinstance(engine.submit(request()).result(0).error, EngineClosedError)
    assert isinstance(asyncio.run(engine.agenerate(request())).error, EngineClosedError)
    with pytest.raises(EngineClosedError):
        engine.count_tokens(request().messages)


@pytest.mark.parametrize("reply", [HANG, Reply({}, 429, {"Retry-After": "30"})])
def test_closing_ends_what_is_under_way_or_waits_to_try_again(build: Build, reply: Reply) -> None:
    server, engine = build(lambda body: reply, max_retries=2)
    futures = [engine.submit(request()) for _ in range(3)]
    assert server.reached.wait(5)
    engine.close()
    assert {type(future.result(5).error) for future in futures} == {EngineClosedError}


def test_tokens_are_estimated_rather_too_high(build: Build) -> None:
    _, engine = build(plain, context_tokens=400)
    assert engine.context_tokens == 400
    text = "The quick brown fox jumps over the lazy dog. " * 10
    assert engine.count_tokens([{"role": "user", "content": text}]) > 100
    result = R1Reranker(engine, thinking=0).rerank("q", [text] * 6)
    assert {fault.kind for fault in result.faults} >= {"shortened"}


def test_an_elimination_in_append_form_is_one_conversation(build: Build) -> None:
    server, engine = build(lambda body: said(f"<answer>[{'ABC'[len(body['messages']) // 2]}]</answer>"))
    result = R1Reranker(engine, strategy=IRanker(form="append"), thinking=0).rerank("q", DOCUMENTS)
    assert [hit.index for hit in result] == [3, 2, 1, 0]
    first, _, last = server.asked
    assert last["messages"][: len(first["messages"])] == first["messages"]
    assert [turn["role"] for turn in last["messages"]] == ["user", "assistant"] * 2 + ["user"]
