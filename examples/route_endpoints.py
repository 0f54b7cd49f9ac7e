"""Routes three queries over three local chat endpoints, which this script starts itself."""

import json
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

from r1_rerank import R1Reranker
from r1_rerank.engines import GenerationRequest
from r1_rerank.integrations.router import LLMProfile, R1Router

LLMS = [
    ("chat-mini", "You chat in one short sentence.", "Tiny and fast: greetings and small talk.", 0.05),
    ("coder", "You answer with a line of Python code.", "Writes and explains programs.", 0.6),
    ("scholar", "You explain science carefully.", "Science, history and mathematics, at length.", 3.0),
]
QUERIES = ["Hello, how are you?", "Write a loop that prints 1 to 10.", "Why is the sky blue?"]


def serve(reranker: R1Reranker, system: str) -> ThreadingHTTPServer:
    """Starts an endpoint: the embedded weights under a system prompt of its own."""

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            messages = [{"role": "system", "content": system}, *body["messages"]]
            request = GenerationRequest(messages=messages, labels=None, max_answer_tokens=body["max_tokens"])
            (completion,) = reranker.engine.generate([request])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": completion.text}}]}).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def ask(port: int, query: str) -> str:
    """Sends a query to an endpoint."""
    body = json.dumps({"messages": [{"role": "user", "content": query}], "max_tokens": 24}).encode()
    with urlopen(Request(f"http://127.0.0.1:{port}/v1/chat/completions", body)) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


if __name__ == "__main__":
    with R1Reranker.from_pretrained() as reranker:
        servers = [serve(reranker, system) for _, system, _, _ in LLMS]
        pool = [
            LLMProfile(name=name, description=text, input_price=price, client=partial(ask, server.server_port))
            for (name, _, text, price), server in zip(LLMS, servers, strict=True)
        ]
        for decision in R1Router(pool, reranker, objective="balance", max_price=5.0).route_batch(QUERIES):
            scores = ", ".join(f"{ranked.profile.name} {ranked.score:.2f}" for ranked in decision.ranking)
            print(f"{decision.query} -> {decision.profile.name} (${decision.expected_price:g}) of {scores}")
            print(f"    {decision.profile.client(decision.query)}")
        for server in servers:
            server.shutdown()
            server.server_close()
