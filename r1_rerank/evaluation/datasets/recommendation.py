"""Recommendation data: what users chose, in order, and lists of the next item among others."""

from __future__ import annotations

import html
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal, get_args

from ...errors import DataError, InputError
from ...rows import Candidate, Row
from .common import Dropped, finite_number_of, held_out, normalised, shuffled, table, text_lines

Negatives = Literal["popularity", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """Who chose what.

    Args:
        sequences: User -> items, oldest first, each once.
        titles: Item -> title.
    """

    sequences: Mapping[str, Sequence[str]]
    titles: Mapping[str, str]


def read_recbole(inter: str | Path, item: str | Path, *, dropped: Dropped | None = None) -> Interactions:
    """Reads RecBole atomic files: an interaction a line, or a whole history a line.

    Interactions are put in the order of their timestamps (in that of the file where there are none). The title is the
    column `title`, or the first whose name ends so.

    Args:
        inter: `user_id item_id [timestamp]`, or `user_id item_id_list item_id`; other columns do not count.
        item: `item_id` and the title.
        dropped: Counts interactions that are left out: repeated ones, and those with items that have no title.

    Raises:
        DataError: A file is missing, truncated or of another shape.
    """
    inter, item, dropped = Path(inter), Path(item), Dropped() if dropped is None else dropped
    titles: dict[str, str] = {}
    named = ""
    for number, cells in _atoms(item, ("item_id",)):
        if not named:
            found = [name for name in cells if name == "title"] or [name for name in cells if name.endswith("title")]
            if not found:
                raise DataError(str(item), 1, "the header has no column whose name ends in title")
            named = found[0]
        if cells["item_id"] in titles:
            raise DataError(str(item), number, f"the item {cells['item_id']!r} stands twice")
        titles[cells["item_id"]] = _title(cells[named])
    chosen: dict[str, list[tuple[float, str]]] = {}
    for number, cells in _atoms(inter, ("user_id", "item_id")):
        mine = chosen.setdefault(cells["user_id"], [])
        if "item_id_list" in cells:
            mine += [(len(mine) + place, each) for place, each in enumerate(cells["item_id_list"].split())]
            mine.append((len(mine), cells["item_id"]))
        else:
            # Without a number there is no order of time, and a sort over NaN gives any.
            timed = "timestamp" in cells
            when = finite_number_of(inter, number, "timestamp", cells["timestamp"]) if timed else len(mine)
            mine.append((when, cells["item_id"]))
    return _interactions(
        {user: sorted(mine, key=lambda pair: pair[0]) for user, mine in chosen.items()}, titles, dropped
    )


def read_lastfm(folder: str | Path, *, dropped: Dropped | None = None) -> Interactions:
    """Reads `artists.dat` and `user_artists.dat` of HetRec 2011 Last.FM.

    The files do not say when: a history is a user's artists from the most to the least played.

    Raises:
        DataError: A file is missing, truncated or of another shape.
    """
    folder, dropped = Path(folder), Dropped() if dropped is None else dropped
    titles = {cells["id"]: _title(cells["name"]) for _, cells in table(folder / "artists.dat", ("id", "name"))}
    plays, path = dict[str, list[tuple[float, str]]](), folder / "user_artists.dat"
    for number, cells in table(path, ("userID", "artistID", "weight")):
        weight = finite_number_of(path, number, "weight", cells["weight"])
        plays.setdefault(cells["userID"], []).append((-weight, cells["artistID"]))
    return _interactions(
        {user: sorted(mine, key=lambda pair: pair[0]) for user, mine in plays.items()}, titles, dropped
    )


def recommendation_lists(
    data: Interactions,
    split: str,
    *,
    source: str,
    seed: int = 0,
    negatives: Negatives = "popularity",
    history: int = 20,
    candidates: int = 20,
    fewest: int = 1,
    test_share: float = 0.2,
    dropped: Dropped | None = None,
) -> Iterator[Row]:
    """A list for each user with a long enough history: the next item among items that the user never chose.

    Users are split, not lists. No two candidates of a list have the same title, and none but the next item has one of
    the user's own.

    Args:
        data: Who chose what.
        split: `train` or `test`.
        source: Name of the data set.
        seed: Decides on the split, the negatives and the order of the candidates.
        negatives: Drawn in proportion to how many users chose an item, or all alike, which lets popularity alone
            find the positive.
        history: Items shown.
        candidates: Items to rank.
        fewest: Users that must have chosen a negative.
        test_share: Share of the users that go to `test`.
        dropped: Counts users that are left out.

    Raises:
        InputError: Another split or kind of negatives, or a list too short.
    """
    for argument, value, allowed in (
        ("split", split, ("train", "test")),
        ("negatives", negatives, get_args(Negatives)),
    ):
        if value not in allowed:
            raise InputError(argument, f"{value!r} is not one of {', '.join(allowed)}")
    if history < 1 or candidates < 2:
        raise InputError("history" if history < 1 else "candidates", "is too small: at least 1 item, and 2 candidates")
    dropped = Dropped() if dropped is None else dropped
    long_enough = [user for user, items in data.sequences.items() if len(items) > history]
    dropped.add(f"a history of fewer than {history} items before the next", len(data.sequences) - len(long_enough))
    counts = Counter(item for items in data.sequences.values() for item in items)
    pool = _Pool({item: count for item, count in counts.items() if count >= fewest}, data.titles, negatives)
    test = held_out(long_enough, test_share, seed)
    for user in long_enough:
        if (user in test) != (split == "test"):
            continue
        items = data.sequences[user]
        rng = random.Random(f"{source}/{seed}/{user}")
        others = pool.draw(candidates - 1, {normalised(data.titles[item]) for item in items}, rng)
        if others is None:
            dropped.add("too few items that the user never chose")
            continue
        listed = [Candidate(id=item, text=data.titles[item]) for item in (items[history], *others)]
        yield Row(
            id=f"{source}-{user}",
            task="recommendation",
            history=tuple(data.titles[item] for item in items[:history]),
            split=split,
            source=source,
            **shuffled(listed, [1.0] + [0.0] * len(others), f"{source}/{seed}/{user}/order"),
        )


class _Pool:
    """Items to draw negatives from."""

    def __init__(self, counts: Mapping[str, int], titles: Mapping[str, str], negatives: Negatives) -> None:
        self._items = sorted(counts)
        self._keys = [normalised(titles[item]) for item in self._items]
        self._weights = [counts[item] if negatives == "popularity" else 1 for item in self._items]
        self._cumulative = list(accumulate(self._weights))

    def draw(self, count: int, taken: Collection[str], rng: random.Random) -> list[str] | None:
        """Items with different titles, none of them taken; None where there are too few."""
        taken, drawn = set(taken), list[str]()
        tries = range(20 * count) if self._items else range(0)
        for _ in tries:
            place = rng.choices(range(len(self._items)), cum_weights=self._cumulative)[0]
            if self._keys[place] not in taken:
                taken.add(self._keys[place])
                drawn.append(self._items[place])
                if len(drawn) == count:
                    return drawn
        # A small pool: go through all that is left, in a random order by weight.
        rest = [place for place, key in enumerate(self._keys) if key not in taken]
        rest.sort(key=lambda place: -(rng.random() ** (1 / self._weights[place])))
        for place in rest:
            if self._keys[place] not in taken and len(drawn) < count:
                taken.add(self._keys[place])
                drawn.append(self._items[place])
        return drawn if len(drawn) == count else None


def _interactions(
    chosen: Mapping[str, Sequence[tuple[float, str]]], titles: Mapping[str, str], dropped: Dropped
) -> Interactions:
    sequences: dict[str, list[str]] = {}
    for user, mine in chosen.items():
        items = [item for _, item in mine]
        unique = list(dict.fromkeys(items))
        known = [item for item in unique if titles.get(item)]
        dropped.add("an interaction that repeats an earlier one", len(items) - len(unique))
        dropped.add("an interaction with an item that has no title", len(unique) - len(known))
        sequences[user] = known
    return Interactions(sequences=sequences, titles=titles)


def _atoms(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of an atomic file, whose header says `name:type`."""
    _, header = next(text_lines(path))
    names = [cell.partition(":")[0] for cell in header.split("\t")]
    if missing := [column for column in columns if column not in names]:
        raise DataError(str(path), 1, f"the header lacks {', '.join(missing)}")
    for number, cells in table(path, ()):
        yield number, dict(zip(names, cells.values(), strict=True))


def _title(text: str) -> str:
    return " ".join(html.unescape(text).split())
