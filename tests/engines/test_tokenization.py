"""Tokens of a prompt: those of the tokenizer, however much of the prompt was seen before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from r1_rerank.engines.tokenization import ChatTokenizer

OPEN, CLOSE = "<|im_start|>", "<|im_end|>"
TURNS = ["A tide?", "<answer>[A]</answer>", "Which is worst of those left?", "<answer>[B]</answer>", "And now?"]


def conversation(turns: int) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(TURNS[:turns])]


def whole(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def sentence_pieces() -> PreTrainedTokenizerFast:
    """Puts a mark before the first word of a text, as Llama's does."""
    vocabulary = {chr(code): code - 32 for code in range(32, 127)} | {"▁": 95, "?": 96}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens([OPEN, CLOSE])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def greedy(weights: str, *tokens: AddedToken) -> Any:
    """The embedded tokenizer, some of whose added tokens look at what stands before them."""
    tokenizer = AutoTokenizer.from_pretrained(weights)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
    tokenizer.chat_template += "{# " + " ".join(str(token) for token in tokens if str(token).startswith("<")) + " #}"
    return tokenizer


@pytest.fixture(scope="module")
def chats(weights: str) -> list[tuple[ChatTokenizer, Any]]:
    """Each beside the tokenizer that it wraps."""
    marks = sentence_pieces()
    marks.chat_template = f"{OPEN}{CLOSE}"
    tokenizers = [
        AutoTokenizer.from_pretrained(weights),
        marks,
        greedy(weights, AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)),
        greedy(weights, AddedToken("<word>", single_word=True), AddedToken("<plain>", normalized=True)),
        greedy(weights, AddedToken("<|im_start|>system"), AddedToken("a<|im_"), AddedToken("||"), AddedToken("|>")),
    ]
    return [(ChatTokenizer(tokenizer), tokenizer) for tokenizer in tokenizers]


pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from([OPEN, CLOSE, "<left>", "<right>", "<word>", "<plain>", "||", "|>", "a<|im_", "system", " ", "\n"]),
)


@pytest.mark.model
@settings(deadline=None, max_examples=300)
@given(st.lists(pieces, max_size=12).map("".join))
@example(f"{OPEN}user\nे{CLOSE}\n{OPEN}assistant\n")
@example(f" {OPEN} {CLOSE}  <left> a <right>  {OPEN}")
@example("a<|im_start|>x<word>y <word> <|im_start|>system|>")
def test_a_text_has_the_tokens_of_the_tokenizer(chats: list[tuple[ChatTokenizer, Any]], text: str) -> None:
    for chat, tokenizer in chats:
        expected = whole(tokenizer, text)
        assert chat.encode(text) == expected
        assert chat.encode(text) == expected  # remembered


@pytest.mark.model
def test_a_step_encodes_its_new_turn_only(weights: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(weights)
    encoded: list[str] = []

    class Counting:
        def __call__(self, text: str, **options: Any) -> Any:
            encoded.append(text)
            return tokenizer(text, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    chat = ChatTokenizer(Counting())
    for turns in (1, 3, 5):
        encoded.clear()
        tokens = chat.prompt(conversation(turns), thinking=False, constrain=True)
        assert tokens == whole(tokenizer, chat.render(conversation(turns)) + "<answer>[")
        new = {text.strip() for text in encoded if TURNS[0] not in text}
        assert (TURNS[0] in "".join(encoded)) == (turns == 1)
    assert new == {f"{OPEN}assistant\n{TURNS[3]}", f"{OPEN}user\n{TURNS[4]}"}


@pytest.mark.model
def test_what_was_encoded_can_be_changed_by_whoever_asked(weights: str) -> None:
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(weights))
    text = f"{OPEN}user\nx{CLOSE}\n"
    first = chat.encode(text)
    first.clear()
    assert chat.encode(text)
