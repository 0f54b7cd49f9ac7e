"""HTTP to an OpenAI-compatible server through the openai client; its exceptions are translated here, and only here."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote, urlsplit, urlunsplit

from ..errors import ContextOverflowError, EngineError, InputError, InputTypeError, MissingExtraError
from .openai_replies import Body, mapping

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

KEY_VARIABLE = "OPENAI_API_KEY"
_EXAMPLE = "http://localhost:8000/v1"

_CONTEXT = re.compile(r"context[ _](length|size|window)|maximum context|(prompt|input) is too long", re.IGNORECASE)
_SECRET = re.compile(r"auth|key|token|secret|cookie", re.IGNORECASE)
_DETAIL = 300
"""Characters of a server's own words that go into an error."""


class RefusedError(EngineError):
    """The server will not take a request as it stands.

    Args:
        message: What to tell the user.
        detail: The server's own words.
        field: The field at fault, where the server names it.
    """

    def __init__(self, message: str, detail: str, field: str | None) -> None:
        super().__init__(message)
        self.detail = detail
        self.field = field

    def blames(self, fields: Collection[str]) -> str | None:
        """Which of these fields the server does not want."""
        named = self.field.split(".")[0] if self.field is not None else None
        return named if named in fields else self.mentions(fields)

    def mentions(self, fields: Collection[str]) -> str | None:
        """Which of these names stands first in the server's words."""
        found = [(match.start(), name) for name in fields if (match := re.search(rf"\b{name}\b", self.detail))]
        return min(found)[1] if found else None


class AbsentError(RefusedError):
    """The server has nothing at this path."""


class SlowError(EngineError):
    """The server did not answer in time."""


class FailedError(EngineError):
    """The server failed by its own account; some say so of a field that they do not know."""


def connect(
    client: OpenAI | AsyncOpenAI | None,
    base_url: str | None,
    api_key: str | None,
    timeout: float,
    max_retries: int,
) -> AsyncOpenAI:
    """A client with connections of its own, which belong to the loop that first uses them.

    Raises:
        MissingExtraError: `openai` is not installed.
        InputError: An argument that cannot be used, or no key.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("openai", "openai") from error
    ours = base_url or os.environ.get("OPENAI_BASE_URL")
    own = ours if client is None else str(getattr(client, "base_url", ""))
    address, login = _without_login(own) if own else (None, None)
    settings: dict[str, Any] = {
        "base_url": address,
        "timeout": timeout,
        "max_retries": max_retries,
        "http_client": _bounded(timeout, login),
    }
    if client is None:
        key = (api_key or os.environ.get(KEY_VARIABLE) or ("none" if own else "")).strip()
        if not key:
            raise InputError(
                "api_key", f"no key: pass api_key or set {KEY_VARIABLE}; for a server of your own pass base_url"
            )
        if not (key.isascii() and key.isprintable()):
            raise InputError("api_key", "holds characters that no key has; copy it again")
        try:
            return openai.AsyncOpenAI(api_key=key, **settings)
        except Exception as error:  # the HTTP client's own, for an address that is none
            raise InputError("base_url", f"{address!r} is no address such as {_EXAMPLE}") from error
    if base_url is not None or api_key is not None:
        name = "base_url" if base_url is not None else "api_key"
        raise InputError(name, "the client has its own; pass either the client or this")
    if isinstance(client, openai.AsyncOpenAI):
        return client.copy(**settings)
    if type(client) is not openai.OpenAI:
        kind = type(client).__name__
        fix = f"pass its asynchronous twin, Async{kind}" if isinstance(client, openai.OpenAI) else "pass one"
        raise InputTypeError("client", f"expected an openai.OpenAI or openai.AsyncOpenAI, got {kind}; {fix}")
    provider = getattr(client, "_api_key_provider", None)

    async def fresh_key() -> str:
        return str(await asyncio.to_thread(provider))  # type: ignore[arg-type]  # only passed where there is one

    return openai.AsyncOpenAI(
        api_key=fresh_key if provider is not None else client.api_key,
        organization=client.organization,
        project=client.project,
        default_headers=client._custom_headers,
        default_query=client.default_query,
        **settings,
    )


def _without_login(address: str) -> tuple[str, tuple[str, str] | None]:
    """An address without user and password, and the two: HTTP clients log the address of every request."""
    try:
        parts = urlsplit(address)
    except ValueError:  # whose words may hold the password
        raise InputError("base_url", f"is no address such as {_EXAMPLE}") from None
    login, _, host = parts.netloc.rpartition("@")
    if not login and ":" in host and "@" in address:  # a password that ends the address's first part
        raise InputError(
            "base_url", f"is no address such as {_EXAMPLE}: write /, ?, # and @ as %2F, %3F, %23 and %40 in a password"
        )
    user, _, password = login.partition(":")
    return urlunsplit(parts._replace(netloc=host)), (unquote(user), unquote(password)) if login else None


def _bounded(seconds: float, login: tuple[str, str] | None) -> Any:
    """An HTTP client of openai's kind in which a time-out bounds a whole try, and not each wait for more bytes."""
    import openai

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            try:
                async with asyncio.timeout(seconds):
                    return await super().send(request, **options)
            except TimeoutError:
                # Only the HTTP library's own time-out is one that openai tries again, and which that is depends on
                # openai's version.
                library: Any = sys.modules[type(request).__module__.partition(".")[0]]
                raise library.ReadTimeout(f"no answer within {seconds:g} s", request=request) from None

    return Bounded(auth=login)


class Server:
    """A server, and the one of its models that is asked.

    Args:
        client: From `connect`.
        model: Name under which the model is served.
        timeout: Of the client.
        concurrency: Most calls under way at a time; those beside /v1 are counted apart.
    """

    def __init__(self, client: AsyncOpenAI, model: str, timeout: float, concurrency: int) -> None:
        self.model = model
        self.timeout = timeout
        self._places = asyncio.Semaphore(concurrency)
        # Tokens are counted within a short time, while long answers may take all places.
        self._places_beside = asyncio.Semaphore(concurrency)
        self._client = client
        parts = urlsplit(str(client.base_url))
        self._root = urlunsplit(parts._replace(path=re.sub(r"/v1/?$", "", parts.path), query="")).rstrip("/")
        self.url = urlunsplit(parts._replace(query="")).rstrip("/")
        """For people."""

    async def models(self) -> list[Body] | None:
        """What the server says about each of its models; None where it has no such list."""
        try:
            listed = (await self._call("get", "/models", None)).get("data")
        except RefusedError:
            return None
        if not isinstance(listed, list):
            return None
        return [card for card in listed if isinstance(card, dict) and isinstance(card.get("id"), str)]

    async def knows_model(self) -> bool:
        """Whether the server has the model under a name that its list does not show."""
        try:
            await self._call("get", f"/models/{quote(self.model)}", None)
        except RefusedError:
            return False
        return True

    async def chat(self, body: Body) -> Body:
        """A chat completion."""
        return await self._call("post", "/chat/completions", {"model": self.model, **body})

    async def complete(self, body: Body) -> Body:
        """A completion of a prompt as it stands, without a chat template."""
        return await self._call("post", "/completions", {"model": self.model, **body})

    async def beside(self, path: str, body: Body, *, once: bool = False) -> Body:
        """An endpoint of the server's own, which stands beside /v1.

        Args:
            path: Its name.
            body: What to send.
            once: Do not try again.
        """
        return await self._call("post", self._root + path, {"model": self.model, **body}, once=once)

    async def metrics(self) -> str:
        """What the server reports for monitoring, empty where it does not."""
        try:
            return await self._client.get(f"{self._root}/metrics", cast_to=str)
        except Exception:  # whatever it is: there are none
            return ""

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    async def _call(self, method: str, path: str, body: Body | None, *, once: bool = False) -> Body:
        failure: EngineError
        try:
            async with self._places if path.startswith("/") else self._places_beside:
                if method == "get":
                    text = await self._client.get(path, cast_to=str)
                else:
                    text = await self._client.post(
                        path, cast_to=str, body=body, options={"max_retries": 0} if once else {}
                    )
            answer = json.loads(text)
            if isinstance(answer, dict):
                return answer
            failure = EngineError(f"{self.url} answered with no JSON object: {self._clean(text)}")
        except (json.JSONDecodeError, UnicodeDecodeError):
            failure = EngineError(
                f"{self.url} answered with broken JSON: is base_url that of an OpenAI-compatible API?"
            )
        except Exception as error:
            failure = self._translate(error, path.removeprefix(self._root))
        # Outside of the except clause: the original carries the request's headers, and the key among them.
        if isinstance(failure, RefusedError) and failure.field == "model" and not path.startswith("/models"):
            names = await self._names()
            raise RefusedError(f"{failure}{names}", failure.detail, "model")
        raise failure

    async def _names(self) -> str:
        try:
            cards = await self.models()
        except EngineError:
            cards = None
        return f"; it has: {', '.join(card['id'] for card in cards)}" if cards else ""

    def _translate(self, error: Exception, path: str) -> EngineError:
        """Our error for one of the client's."""
        import openai

        tries = f"{self._client.max_retries + 1} tries"
        if isinstance(error, openai.APITimeoutError):
            return SlowError(
                f"no answer from {self.url} within {self.timeout:g} s in {tries}: raise timeout, or lower concurrency"
            )
        if isinstance(error, openai.APIConnectionError):
            cause = type(error.__cause__).__name__ if error.__cause__ else "no connection"
            return EngineError(
                f"{self.url} cannot be reached or broke off ({cause}, {tries}): start the server, or mend base_url"
            )
        if not isinstance(error, openai.APIStatusError):
            return EngineError(self._clean(f"{type(error).__name__}: {error}"))
        status, body = error.status_code, error.body
        record = mapping(body)
        detail = self._clean(str(record.get("message") or body or error.message))
        # OpenAI forbids probabilities, not requests, to some of its models.
        if status == 401 or (status == 403 and "logprobs" not in detail):
            return EngineError(
                f"{self.url} refused the key ({status}): pass api_key, or set {KEY_VARIABLE} to a key that may use "
                f"{self.model!r}"
            )
        if status == 429:
            return EngineError(
                f"{self.url} is busy or the quota is used up (429, {tries}): lower concurrency, or raise max_retries; "
                f"it says: {detail}"
            )
        if status >= 500:
            return FailedError(f"{self.url} failed ({status}, {tries}): look at its log; it says: {detail}")
        if record.get("code") == "context_length_exceeded" or _CONTEXT.search(f"{record.get('type')} {detail}"):
            return ContextOverflowError(
                f"the prompt is longer than the model's context: pass fewer or shorter documents, or think less; "
                f"{self.url} says: {detail}"
            )
        field = record.get("param")
        if status == 404 and re.search(r"\bmodel\b", detail, re.IGNORECASE):
            return RefusedError(f"{self.url} does not have the model {self.model!r}", detail, "model")
        if status == 404:
            hint = "" if self.url.endswith("/v1") else ": the address of an OpenAI-compatible API mostly ends in /v1"
            return AbsentError(f"{self.url} has no {path} (404){hint}; it says: {detail}", detail, None)
        return RefusedError(
            f"{self.url} refused the request ({status}): {detail}", detail, field if isinstance(field, str) else None
        )

    def _clean(self, text: str) -> str:
        """A server's words, cut short and without our key, should it have echoed it."""
        headers = self._client.default_headers
        secrets = {str(value) for name, value in headers.items() if _SECRET.search(name)}
        # Those of the address come back as they stood there.
        asked = {str(value) for name, value in self._client.default_query.items() if _SECRET.search(name)}
        asked |= {form(secret) for form in (quote, quote_plus) for secret in asked}
        secrets |= asked | {secret.removeprefix("Bearer ") for secret in secrets} | {str(self._client.api_key)}
        for secret in sorted(secrets - {"", "none"}, key=len, reverse=True):
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return text if len(text) <= _DETAIL else f"{text[:_DETAIL]}…"
