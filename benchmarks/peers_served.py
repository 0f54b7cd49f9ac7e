"""LlamaIndex's rerankers over `vllm serve`, with the tokens that the server reports."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from peers_systems import Rank, Tally, complete
from serving import NAME, served

from r1_rerank.checkpoint import embedded_base

CHOICES = 10  # documents that LLMRerank shows at once


def readable(answer: str, count: int) -> bool:
    """Whether LlamaIndex's parser reads every line of an answer as a choice of another document."""
    from llama_index.core.indices.utils import default_parse_choice_select_answer_fn

    lines = [line for line in answer.splitlines() if line.strip()]
    try:
        numbers, _ = default_parse_choice_select_answer_fn("\n".join(lines), count, raise_error=True)
    except ValueError:
        return False
    return len(set(numbers)) == len(lines) > 0 and min(numbers) > 0


@functools.cache
def _connected(base_url: str) -> tuple[Any, Any]:
    """Client and tokenizer, made once, in the warm-up."""
    from openai import OpenAI
    from transformers import AutoTokenizer

    client = OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600)
    return client, AutoTokenizer.from_pretrained(embedded_base()[0])


def chat_model(base_url: str, tally: Tally, full_answer: str, judge: Callable[[str], bool]) -> Any:
    """LlamaIndex's view of the server, which keeps the books.

    Args:
        base_url: Of the server.
        tally: Where tokens and answers are counted.
        full_answer: A complete answer in the format asked for: twice its tokens may be written. Without a limit the
            server would write on until its context is full.
        judge: Whether an answer is well-formed.
    """
    from llama_index.core.llms import ChatMessage, ChatResponse, CustomLLM, LLMMetadata

    client, tokenizer = _connected(base_url)
    limit = 2 * len(tokenizer(full_answer)["input_ids"])

    class Served(CustomLLM):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(context_window=8192, num_output=limit, is_chat_model=True, model_name=NAME)

        def chat(self, messages: Sequence[ChatMessage], **options: Any) -> ChatResponse:
            turns: Any = [{"role": message.role.value, "content": message.content} for message in messages]
            tally.answers += 1
            reply = client.chat.completions.create(model=NAME, messages=turns, max_tokens=limit, temperature=0.0)
            text, usage = reply.choices[0].message.content or "", reply.usage
            cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
            tally.computed += usage.prompt_tokens - (cached or 0)
            tally.generated += usage.completion_tokens
            tally.malformed += not judge(text)
            return ChatResponse(message=ChatMessage(role="assistant", content=text))

        def complete(self, prompt: str, formatted: bool = False, **options: Any) -> Any:
            raise NotImplementedError("it is a chat model")

        stream_complete = complete

    return Served()


@contextlib.contextmanager
def llama_index() -> Iterator[dict[str, Rank]]:
    """`LLMRerank` in its batches of 10, and `RankGPTRerank`, which shows all documents in one conversation."""
    from llama_index.core.postprocessor import LLMRerank
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.postprocessor.rankgpt_rerank import RankGPTRerank

    with served(embedded_base()[0]) as base_url:

        def run(reranker: Any, query: str, documents: list[str]) -> None:
            nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in documents]
            reranker.postprocess_nodes(nodes, query_str=query)

        def choose(tally: Tally, query: str, documents: list[str]) -> None:
            answer = "\n".join(f"Doc: {number}, Relevance: 10" for number in range(1, CHOICES + 1))
            llm = chat_model(base_url, tally, answer, lambda text: readable(text, CHOICES))
            run(LLMRerank(llm=llm, choice_batch_size=CHOICES, top_n=len(documents)), query, documents)

        def permute(tally: Tally, query: str, documents: list[str]) -> None:
            count = len(documents)
            answer = " > ".join(f"[{number}]" for number in range(1, count + 1))
            llm = chat_model(base_url, tally, answer, lambda text: complete(text, count))
            run(RankGPTRerank(llm=llm, top_n=count), query, documents)

        yield {"LlamaIndex LLMRerank": choose, "LlamaIndex RankGPTRerank": permute}
