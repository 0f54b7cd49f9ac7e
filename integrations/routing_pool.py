"""LLMs to choose among: their profiles, files of them, and the hard limits that rule some out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..documents import Document
from ..errors import DataError, InputError, InputTypeError
from ..rows import Candidate


@dataclass(frozen=True, kw_only=True)
class LLMProfile:
    """What a router knows of an LLM. A name and a description are enough.

    Args:
        name: Unique in its pool; the model reads it.
        description: What the LLM is good at; the model reads it.
        input_price: US dollars per million input tokens.
        output_price: US dollars per million output tokens.
        context_length: Longest prompt and answer together, in tokens.
        tags: For `required_tags`; the model does not read them. Any iterable of str is taken.
        client: Whatever calls the LLM: a function, a framework's LLM. The router never touches it.
    """

    name: str
    description: str
    input_price: float | None = None
    output_price: float | None = None
    context_length: int | None = None
    tags: frozenset[str] = frozenset()
    client: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for argument in ("name", "description"):
            _require_text(argument, getattr(self, argument))
        for argument in ("input_price", "output_price"):
            _require_price(argument, getattr(self, argument))
        require_tokens("context_length", self.context_length)
        object.__setattr__(self, "tags", as_tags("tags", self.tags))

    @property
    def price(self) -> float | None:
        """US dollars per million tokens: the mean of the known prices."""
        known = [price for price in (self.input_price, self.output_price) if price is not None]
        # Rounded, so that a ceiling of 0.15 lets in the mean of 0.1 and 0.2.
        return round(sum(known) / len(known), 9) if known else None

    def document(self) -> Document:
        """The candidate that is ranked."""
        return Document(self.description, title=self.name, price=self.price)

    def candidate(self) -> Candidate:
        """The same in a training row: its text and price give the prompt that `document` gives."""
        return Candidate(id=self.name, text=f"{self.name}. {self.description}", price=self.price)


class NoEligibleLLMError(InputError):
    """The limits leave no LLM of the pool.

    Args:
        excluded: Why each LLM is out, by name.
    """

    def __init__(self, excluded: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in excluded.items())
        super().__init__("pool", f"no LLM is within the limits ({reasons}); loosen a limit or add an LLM")
        self.excluded = dict(excluded)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an LLM must keep to be asked about at all. One whose price or context is unknown keeps no limit on it.

    Args:
        max_price: Highest `LLMProfile.price`, in US dollars per million tokens.
        min_context: Least context length in tokens.
        required_tags: Tags that it must all have.
    """

    max_price: float | None = None
    min_context: int | None = None
    required_tags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _require_price("max_price", self.max_price)
        require_tokens("min_context", self.min_context)
        object.__setattr__(self, "required_tags", as_tags("required_tags", self.required_tags))

    def reason(self, profile: LLMProfile) -> str | None:
        """Names every limit that rules this LLM out; None where it may be chosen."""
        reasons = []
        if self.max_price is not None:
            if profile.price is None:
                reasons.append(f"price unknown, max_price is ${self.max_price:g}")
            elif profile.price > self.max_price:
                reasons.append(f"price ${profile.price:g} is over max_price ${self.max_price:g}")
        if self.min_context is not None:
            if profile.context_length is None:
                reasons.append(f"context length unknown, min_context is {self.min_context}")
            elif profile.context_length < self.min_context:
                reasons.append(f"context length {profile.context_length} is under min_context {self.min_context}")
        if missing := sorted(self.required_tags - profile.tags):
            reasons.append(f"lacks required_tags {', '.join(missing)}")
        return ", ".join(reasons) or None

    def split(self, pool: Sequence[LLMProfile]) -> tuple[tuple[LLMProfile, ...], dict[str, str]]:
        """The LLMs that may be chosen, in their order, and why each of the others may not.

        Raises:
            NoEligibleLLMError: None may be chosen.
        """
        reasons = {profile.name: self.reason(profile) for profile in pool}
        excluded = {name: reason for name, reason in reasons.items() if reason is not None}
        eligible = tuple(profile for profile in pool if profile.name not in excluded)
        if not eligible:
            raise NoEligibleLLMError(excluded)
        return eligible, excluded


def as_pool(profiles: Iterable[LLMProfile], argument: str = "pool") -> tuple[LLMProfile, ...]:
    """Checks a pool.

    Raises:
        InputTypeError: Not a list of profiles.
        InputError: No profile, or two of one name.
    """
    if isinstance(profiles, str | os.PathLike):
        raise InputTypeError(argument, f"expected a list of LLMProfile; read a file with load_pool({str(profiles)!r})")
    if not isinstance(profiles, Iterable):
        raise InputTypeError(argument, f"expected a list of LLMProfile, got {type(profiles).__name__}")
    pool = tuple(profiles)
    seen: dict[str, int] = {}
    for place, profile in enumerate(pool):
        where = f"{argument}[{place}]"
        if not isinstance(profile, LLMProfile):
            raise InputTypeError(where, f"expected an LLMProfile, got {type(profile).__name__}")
        if (first := seen.setdefault(profile.name, place)) != place:
            raise InputError(where, f"name {profile.name!r} is also that of {argument}[{first}]; make names unique")
    if not pool:
        raise InputError(argument, "is empty; pass at least one LLMProfile")
    return pool


def load_pool(path: str | os.PathLike[str]) -> tuple[LLMProfile, ...]:
    """Reads profiles from a file: a list of mappings, or such a list under `models`.

    The keys are the arguments of `LLMProfile` except `client`.

    Args:
        path: JSON where its name ends in `.json`, YAML otherwise.

    Raises:
        DataError: The file cannot be read, or an entry is no profile.
    """
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(name, None, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(name, None, f"is not UTF-8: {error.reason} at byte {error.start}") from error
    content = _parse(name, text)
    if isinstance(content, dict):
        if set(content) != {"models"}:
            raise DataError(name, None, f"expected a list, or the one key models; got {_listed(content)}")
        content = content["models"]
    if not isinstance(content, list):
        raise DataError(name, None, f"expected a list of models, got {type(content).__name__}")
    try:
        return as_pool([_profile(f"models[{place}]", entry) for place, entry in enumerate(content)], "models")
    except InputError as error:
        raise DataError(name, None, str(error)) from error


def as_tags(argument: str, tags: object) -> frozenset[str]:
    """Checks tags, in any iterable but a string.

    Raises:
        InputTypeError: Not an iterable of str.
    """
    if isinstance(tags, str | Mapping) or not isinstance(tags, Iterable):
        raise InputTypeError(argument, f"expected a list of str, got {type(tags).__name__}; wrap one tag as [tag]")
    found = tuple(tags)
    for place, tag in enumerate(found):
        if not isinstance(tag, str):
            raise InputTypeError(f"{argument}[{place}]", f"expected a str, got {type(tag).__name__}")
    return frozenset(found)


def require_tokens(argument: str, value: object) -> None:
    """Checks a number of tokens; None is fine."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(argument, f"expected a whole number of tokens, got {value!r}")
    if value < 1:
        raise InputError(argument, f"expected 1 token or more, got {value}")


def _parse(name: str, text: str) -> Any:
    if name.lower().endswith(".json"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(name, error.lineno, f"is not valid JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(name, None, f"is not valid JSON: {error}") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise DataError(name, line, f"is not valid YAML: {getattr(error, 'problem', error)}") from error


def _profile(where: str, entry: object) -> LLMProfile:
    if not isinstance(entry, dict):
        raise InputTypeError(where, f"expected keys and values, got {type(entry).__name__}")
    known = [item.name for item in fields(LLMProfile) if item.name != "client"]
    if unknown := [key for key in entry if key not in known]:
        raise InputError(where, f"unknown key {_listed(unknown)}; known are {', '.join(known)}")
    if missing := [key for key in ("name", "description") if entry.get(key) is None]:
        raise InputError(where, f"lacks {_listed(missing)}")
    try:
        return LLMProfile(**{key: value for key, value in entry.items() if value is not None})
    except InputError as error:
        raise InputError(f"{where}.{error.argument}", str(error).removeprefix(f"{error.argument}: ")) from error


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(map(str, keys)) or "nothing"


def _require_text(argument: str, value: object) -> None:
    if not isinstance(value, str):
        raise InputTypeError(argument, f"expected a str, got {type(value).__name__}")
    if not value.strip():
        raise InputError(argument, "is empty; the model has to read something")


def _require_price(argument: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputTypeError(argument, f"expected a number, got {value!r}")
    if not 0 <= value < math.inf:
        raise InputError(argument, f"expected US dollars per million tokens, 0 or more, got {value!r}")
