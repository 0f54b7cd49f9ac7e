"""The cache of prefixes: finds the longest one that is known, and never holds more than it may."""

from __future__ import annotations

from collections import OrderedDict

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1_rerank.engines.growing import Buffer, Span
from r1_rerank.engines.kv_cache import _begin
from r1_rerank.engines.prefixes import MIN_SHARED, Prefix, PrefixCache


def prefix(tokens: list[int]) -> Prefix:
    """Tokens with keys and values in two layers."""
    states = torch.zeros(1, 1, len(tokens), 2)
    layers = []
    for _ in range(2):
        buffer = Buffer.with_room(states, states, len(tokens))
        buffer.append(states, states)
        layers.append(Span(buffer, len(tokens)))
    return Prefix(tokens, layers)


def shared(left: list[int], right: list[int]) -> int:
    length = min(len(left), len(right))
    return next((place for place in range(length) if left[place] != right[place]), length)


# A trunk, a branch of it, and a length: prompts that agree for a while, and then do not.
prompts = st.builds(
    lambda agreed, branch, length: [0] * agreed + [branch] * length,
    st.integers(0, 2 * MIN_SHARED),
    st.integers(0, 2),
    st.integers(2, MIN_SHARED),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), prompts), max_size=6), st.sampled_from([*"abcd", None]), prompts)
def test_the_longest_known_prefix_is_found(
    stored: list[tuple[str, list[int]]], session: str | None, tokens: list[int]
) -> None:
    cache = PrefixCache(2**30)
    entries: dict[str, list[int]] = {}
    for name, known in stored:
        cache.store(name, prefix(known))
        entries[name] = known
    # The last token is left to be computed; of others' prompts only what is worth it is taken.
    lengths = {name: min(shared(tokens, known), len(tokens) - 1) for name, known in entries.items()}
    worth = [length for name, length in lengths.items() if name == session or length >= MIN_SHARED]
    found = cache.find(session, tokens)
    assert (found.tokens if found else []) == tokens[: max(worth, default=0)]
    assert not found or {span.length for span in found.layers} == {len(found.tokens)}


class Sliced(list[int]):
    """Counts how much of it is compared."""

    tokens = 0

    def __getitem__(self, place):
        if isinstance(place, slice):
            Sliced.tokens += len(range(*place.indices(len(self))))
        return super().__getitem__(place)


def test_conversations_that_are_over_cost_nothing_to_pass_by() -> None:
    """As with many queries over one pool: all begin alike, and none but the own one goes on alike."""
    cache = PrefixCache(2**30)
    for number in range(100):
        cache.store(str(number), prefix(Sliced([0] * 200 + [number + 1] * 400)))
    Sliced.tokens = 0
    found = cache.find("7", [0] * 200 + [8] * 200 + [999, 999])
    assert found is not None
    assert len(found.tokens) == 400
    assert Sliced.tokens <= 4 * 600


class Watched(OrderedDict[str, Prefix]):
    """Remembers the most bytes it ever held."""

    peak = 0

    def __setitem__(self, name: str, entry: Prefix) -> None:
        super().__setitem__(name, entry)
        buffers = {id(span.buffer): span.buffer for prefix in self.values() for span in prefix.layers}
        self.peak = max(self.peak, sum(buffer.nbytes for buffer in buffers.values()))


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 900)), max_size=20))
def test_no_more_bytes_are_held_than_allowed_not_even_meanwhile(stored: list[tuple[str, int]]) -> None:
    most = 3 * prefix([0] * 500).nbytes
    cache = PrefixCache(most)
    cache._entries = watched = Watched()
    for name, length in stored:
        entry = prefix([0] * length)
        cache.store(name, entry)
        assert (name in watched) == (entry.nbytes <= most)
        assert cache._bytes == sum(entry.nbytes for entry in watched.values())
    assert watched.peak <= most


def batch(rows: list[list[int]], *, gap: int = 0) -> list[Prefix]:
    """What rows know that went through a model together, padded on the left, with a gap behind the first token."""
    width = max(map(len, rows)) + gap
    states = torch.randn(len(rows), 1, width, 2)
    layers = []
    for layer in range(2):
        buffer = Buffer.with_room(states, states, width)
        buffer.append(states + layer, states - layer)
        layers.append(Span(buffer, width))
    columns = [torch.arange(width - len(row) - gap, width) for row in rows]
    kept = [torch.cat([places[:1], places[1 + gap :]]) for places in columns]
    return [Prefix(row, layers, number, kept[number]) for number, row in enumerate(rows)]


def known_of(spans: list[Span], row: int, columns: torch.Tensor) -> list[torch.Tensor]:
    return [states[row][:, columns] for span in spans for states in (span.keys, span.values)]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), min_size=1, max_size=4),
    st.integers(0, 30),
)
def test_rows_take_along_what_they_know_wherever_it_stands(
    lengths: list[int], taken: list[tuple[int, int]], gap: int
) -> None:
    """Any rows of a batch, cut anywhere, in any order, beside one that knows nothing, and one with its own memory."""
    rows = batch([list(range(length)) for length in lengths], gap=gap)
    prefixes = [None if row >= len(rows) else rows[row].cut(min(length, lengths[row])) for row, length in taken]
    prefixes.append(prefix([1, 2, 3]))
    spans, columns = _begin(prefixes)
    for row, known in enumerate(prefixes):
        if known is None:
            assert len(columns[row]) == 0
            continue
        places = torch.arange(len(known.tokens)) if known.columns is None else known.columns
        expected = known_of(known.layers, known.row, places)
        found = known_of(spans, row, columns[row])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_the_same_rows_go_on_where_they_stand() -> None:
    rows = batch([[0] * 40, [0] * 30])
    assert _begin(rows)[0] is rows[0].layers
    assert _begin([rows[0].cut(38), rows[1]])[0] is rows[0].layers  # what was cut off stays as a gap
    for others in ([rows[1], rows[0]], rows[:1], [rows[0]] * 3, [*rows, None], batch([[0] * 40, [0] * 30], gap=11)):
        spans, columns = _begin(others)
        assert all(span.buffer is not rows[0].layers[0].buffer for span in spans)
        assert [len(places) for places in columns] == [len(known.tokens) if known else 0 for known in others]
    rows[0].layers[0].buffer.append(torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2))  # somebody else went on
    assert _begin(rows)[0] is not rows[0].layers


def test_rows_of_a_batch_count_their_memory_once_and_free_it_together() -> None:
    rows = batch([[0] * 40, [1] * 40])
    cache = PrefixCache(rows[0].nbytes)
    cache.store("a", rows[0])
    cache.store("b", rows[1])
    assert (len(cache), cache._bytes) == (2, rows[0].nbytes)
    cache.store("a", rows[0])
    assert (len(cache), cache._bytes) == (2, rows[0].nbytes)
    cache.store("c", prefix([2] * 40))
    assert (len(cache), cache._bytes) == (1, prefix([2] * 40).nbytes)
