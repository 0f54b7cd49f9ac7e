"""Runs in an environment that has one extra alone: its adapter works, and every other one names the extra it needs.

python -I tests/extras/check.py EXTRA
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1_rerank import R1Reranker

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when Haystack is imported

QUERY = "which is best?"
TEXTS = ["good", "better", "best"]
ANSWER = "<answer>[C] > [B] > [A]</answer>"
BEST_FIRST = ["best", "better", "good"]


def reranker() -> R1Reranker:
    """Ranks three documents the other way round."""
    from r1_rerank import R1Reranker, ScriptedEngine

    return R1Reranker(ScriptedEngine(lambda request: ANSWER), strategy="dranker", thinking=0)


def check_none() -> None:
    """What needs no extra."""
    from r1_rerank.integrations.router import LLMProfile, R1Router
    from r1_rerank.integrations.sentence_transformers import R1CrossEncoder

    hits = R1CrossEncoder(reranker=reranker()).rank(QUERY, TEXTS, return_documents=True)
    assert [hit["text"] for hit in hits] == BEST_FIRST
    router = R1Router([LLMProfile(name=text, description=text) for text in TEXTS], reranker())
    assert router.route(QUERY).profile.name == "best"


def check_llama_index() -> None:
    """A postprocessor, a selector and a routing LLM."""
    from llama_index.core.llms import MockLLM
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    from r1_rerank.integrations.llama_index import R1RerankPostprocessor, R1RouterLLM, R1RouterSelector
    from r1_rerank.integrations.router import LLMProfile, R1Router

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
    postprocessor = R1RerankPostprocessor(reranker())
    for ranked in (
        postprocessor.postprocess_nodes(nodes, QueryBundle(QUERY)),
        asyncio.run(postprocessor.apostprocess_nodes(nodes, QueryBundle(QUERY))),
    ):
        assert [node.text for node in ranked] == BEST_FIRST
    assert R1RouterSelector(reranker()).select(TEXTS, QUERY).ind == 2
    pool = [LLMProfile(name=text, description=text, client=MockLLM()) for text in TEXTS]
    answer = R1RouterLLM(R1Router(pool, reranker())).complete(QUERY)
    assert (answer.text, answer.additional_kwargs["r1_router"]["answered_by"]) == (QUERY, "best")


def check_langchain() -> None:
    """A compressor and a routing chat model."""
    from langchain_core.documents import Document
    from langchain_core.language_models import FakeListChatModel

    from r1_rerank.integrations.langchain import R1RerankCompressor, R1RouterChatModel
    from r1_rerank.integrations.router import LLMProfile, R1Router

    documents = [Document(text) for text in TEXTS]
    compressor = R1RerankCompressor(reranker=reranker())
    for ranked in (
        compressor.compress_documents(documents, QUERY),
        asyncio.run(compressor.acompress_documents(documents, QUERY)),
    ):
        assert [document.page_content for document in ranked] == BEST_FIRST
    pool = [LLMProfile(name=text, description=text, client=FakeListChatModel(responses=[text])) for text in TEXTS]
    assert R1RouterChatModel(router=R1Router(pool, reranker())).invoke(QUERY).content == "best"


def check_haystack() -> None:
    """A component, in a pipeline."""
    from haystack import Document, Pipeline

    from r1_rerank.integrations.haystack import R1Ranker

    pipeline = Pipeline()
    pipeline.add_component("ranker", R1Ranker(reranker=reranker()))
    given = {"ranker": {"query": QUERY, "documents": [Document(content=text) for text in TEXTS]}}
    for result in (pipeline.run(given), asyncio.run(pipeline.run_async(given))):
        assert [document.content for document in result["ranker"]["documents"]] == BEST_FIRST


def check_openai() -> None:
    """An engine, and a server for it on this machine."""
    from r1_rerank import R1Reranker
    from r1_rerank.engines.openai import OpenAIEngine

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            message = {"role": "assistant", "content": ANSWER}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = {"id": "1", "object": "chat.completion", "created": 1, "model": "any", "choices": [choice]}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    with R1Reranker(OpenAIEngine("any", base_url=address, dialect="plain"), strategy="dranker", thinking=0) as ranker:
        assert [hit.text for hit in ranker.rerank(QUERY, TEXTS)] == BEST_FIRST
    server.shutdown()


def check_eval() -> None:
    """The plot of a calibration, and what baselines and figures are made with."""
    from r1_rerank.integrations.router import LLMProfile, R1Router

    for module in ("bm25s", "datasets", "ir_measures", "sentence_transformers"):
        importlib.import_module(module)
    pool = [LLMProfile(name=text, description=text, input_price=1) for text in TEXTS]
    calibration = R1Router(pool, reranker()).calibrate([QUERY], 1, tokens_per_call=(1, 1))
    with tempfile.TemporaryDirectory() as folder:
        plot = Path(folder, "plot.png")
        calibration.plot(plot)
        assert plot.stat().st_size


def check_prefilter() -> None:
    """A first stage hands its head on."""
    from r1_rerank import R1Reranker, ScriptedEngine
    from r1_rerank.prefilter import BM25Prefilter

    importlib.import_module("sentence_transformers")
    engine = ScriptedEngine(["<answer>[B] > [A]</answer>"])
    ranker = R1Reranker(engine, strategy="dranker", thinking=0, prefilter=BM25Prefilter(keep=2))
    result = ranker.rerank("tides", ["sheds", "the moon makes tides", "spring tides"])
    assert {hit.text for hit in result[:2]} == {"the moon makes tides", "spring tides"}


def check_train() -> None:
    """Recipes that can be read, and the trainers that they name."""
    from r1_rerank.training.recipe import builtin_recipes, read_recipe
    from r1_rerank.training.traces import require_trl

    require_trl()
    for module in ("label_trainer", "grpo", "sft", "curves"):
        importlib.import_module(f"r1_rerank.training.{module}")
    assert {read_recipe(name).base for name in builtin_recipes()} >= {"embedded"}


def require_trainers() -> None:
    """Asks for TRL."""
    from r1_rerank.training.traces import require_trl

    require_trl()


def plot_without_matplotlib() -> None:
    """Draws what cannot be drawn."""
    from r1_rerank.integrations.routing_calibration import Calibration

    Calibration(target_spend=1, settings=(), chosen=None).plot("plot.png")


def ask_without_openai() -> None:
    """Builds an engine that has no client."""
    from r1_rerank.engines.openai import OpenAIEngine

    OpenAIEngine("any", base_url="http://127.0.0.1:9/v1", dialect="plain")


def import_(module: str) -> Callable[[], Any]:
    """Imports a module of ours, later."""
    return lambda: importlib.import_module(module)


CHECKS = {
    "none": check_none,
    "llama-index": check_llama_index,
    "langchain": check_langchain,
    "haystack": check_haystack,
    "openai": check_openai,
    "eval": check_eval,
    "prefilter": check_prefilter,
    "train": check_train,
}

NEEDS: list[tuple[str, str, Callable[[], Any]]] = [
    ("llama-index", "llama_index", import_("r1_rerank.integrations.llama_index")),
    ("llama-index", "llama_index", import_("r1_rerank.integrations.llama_index_router")),
    ("langchain", "langchain_core", import_("r1_rerank.integrations.langchain")),
    ("langchain", "langchain_core", import_("r1_rerank.integrations.langchain_router")),
    ("haystack", "haystack", import_("r1_rerank.integrations.haystack")),
    ("openai", "openai", ask_without_openai),
    ("eval", "matplotlib", plot_without_matplotlib),
    ("train", "trl", require_trainers),
]
"""Extra, what it brings, and what cannot be done without."""


def check_missing(extra: str) -> None:
    """Whatever another extra brings is missed by name: nothing comes back as None, nothing is printed."""
    from r1_rerank.errors import MissingExtraError

    for needed, package, use in NEEDS:
        if importlib.util.find_spec(package) is not None:
            assert extra != "none", f"{package} is installed though no extra was asked for"
            continue
        assert needed != extra, f"the extra {extra} does not bring {package}"
        told = None
        try:
            use()
        except MissingExtraError as error:
            told = error
        assert told is not None, f"{package} is missing, and nobody says so"
        assert told.extra == needed, told
        assert f'pip install "r1-rerank[{needed}]"' in str(told), told


def main(extra: str) -> None:
    """Checks one extra."""
    import r1_rerank

    assert Path(r1_rerank.__file__).is_relative_to(sys.prefix), f"{r1_rerank.__file__} is not what was installed"
    check_missing(extra)
    CHECKS[extra]()


if __name__ == "__main__":
    main(sys.argv[1])
