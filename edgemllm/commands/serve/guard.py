"""What every request passes first: the key, the host it names, and the size of its body."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgemllm.commands.serve.metrics import Metrics
from edgemllm.commands.serve.refusal import GONE, Refusal, told

OPEN = ("/", "/health", "/docs", "/openapi.json", "/page/", "/static-offline-docs/")
"""Paths without a key: they say nothing of what is watched."""
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")
BODY_S = 60.0
"""A body that is not complete by then is not waited for."""
SMALL = 1 << 16
"""Bytes of a body that is read although it is refused: a client still sending would find a closed connection and no reason."""


@dataclass(frozen=True)
class Rules:
    """Who may ask, and how much."""

    keys: Sequence[str]
    """None: everybody who reaches this machine's own address."""
    most_bytes: int
    """Of one body; four of them may be held at once."""


class Guard:
    """An ASGI middleware that refuses before anything is read or loaded, and reports each refusal in one line."""

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics, say: Callable[[str], None], every: bool = False) -> None:
        self.app, self.rules, self.metrics, self.say, self.every = app, rules, metrics, say, every
        self._keys = [_digest(key) for key in rules.keys]
        self._held = 0
        """Bytes of all bodies that are being answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, scope, receive)
        record = _Record(scope, send, body)
        try:
            self._check(scope)
            await self.app(scope, body.receive, record.send)
        except Refusal as error:
            record.reason = error.message
            await _refuse(error, record.send)
        finally:
            self._held -= body.size
            self._report(record)

    def _check(self, scope: Scope) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if self._keys:
            if not (path in OPEN or path.startswith(tuple(each for each in OPEN[1:] if each.endswith("/")))):
                self._check_key(headers)
        else:
            _check_host(headers)
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self.rules.most_bytes:
            raise self.too_large()

    def _check_key(self, headers: dict[bytes, str]) -> None:
        kind, _, key = headers.get(b"authorization", "").partition(" ")
        given = _digest(key.strip())
        # All are compared, each in constant time: how long it takes says nothing.
        if kind.lower() != "bearer" or not sum(hmac.compare_digest(given, each) for each in self._keys):
            raise Refusal(
                401, "a key is needed that is one of this server's", "Authorization: Bearer KEY", code="invalid_api_key"
            )

    def too_large(self) -> Refusal:
        """Return the refusal of a body that is too long."""
        return Refusal(
            413, f"a body of more than {self.rules.most_bytes:,} bytes", "edgemllm serve --max-body", code="body_too_large"
        )

    def hold(self, size: int) -> None:
        """Count bytes of a body. Raises Refusal where all bodies together are too many."""
        if self._held + size > 4 * self.rules.most_bytes:
            raise Refusal(503, "too much is being sent at once", "again in a while", code="overloaded")
        self._held += size

    def _report(self, record: _Record) -> None:
        route = record.scope.get("route")
        path, status, method = getattr(route, "path", "other"), record.status or GONE, record.scope["method"]
        # Paths and methods that nobody serves are one label: each would be kept indefinitely.
        self.metrics.requests.labels(path, method if method in METHODS else "other", str(status)).inc()
        if self.every or status >= 400:
            client = (record.scope.get("client") or ("?",))[0]
            line = f"{status} {method[:10]} {record.scope['path'][:100]!r} {client} {record.seconds:.2f} s"
            self.say(f"{time.strftime('%H:%M:%S')} {line}{f': {record.reason}' if record.reason else ''}")


class _Body:
    """The body of one request, counted as it comes."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive) -> None:
        self.guard, self._receive = guard, receive
        self.size, self._ends = 0, time.monotonic() + BODY_S
        headers = {name.lower(): value for name, value in scope["headers"]}
        self.whole = not headers.keys() & {b"content-length", b"transfer-encoding"}
        length = headers.get(b"content-length", b"")
        self._small = length.isdigit() and int(length) <= SMALL

    async def receive(self) -> Message:
        """Return the next message. Raises HTTPException for too many bytes, and where they come too slowly."""
        if self.whole:
            return await self._receive()
        try:
            return await self._next()
        except Refusal as error:  # as that, FastAPI would call it a body that cannot be parsed
            raise HTTPException(error.status, told(error)) from error

    async def drain(self) -> None:
        """Read the rest of a small body that comes soon."""
        with contextlib.suppress(HTTPException, asyncio.TimeoutError):
            while self._small and not self.whole:
                await asyncio.wait_for(self.receive(), 1.0)

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._ends - time.monotonic()))
        except asyncio.TimeoutError:
            raise Refusal(408, f"the body was not complete after {BODY_S:g} s", code="timeout") from None
        more = len(message.get("body", b""))
        if self.size + more > self.guard.rules.most_bytes:
            raise self.guard.too_large()
        self.guard.hold(more)
        self.size += more
        self.whole = not message.get("more_body", False)
        return message


class _Record:
    """What was answered."""

    def __init__(self, scope: Scope, send: Send, body: _Body) -> None:
        self.scope, self._send, self._body = scope, send, body
        self.status, self.reason, self._began = 0, "", time.monotonic()

    @property
    def seconds(self) -> float:
        """Return how long it took."""
        return time.monotonic() - self._began

    async def send(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.reason = str(self.scope.get("state", {}).get("refused", self.reason))[:300]
            await self._body.drain()
            if not self._body.whole:  # what is still to come would be read to its end, however long it is
                message["headers"] = [*message["headers"], (b"connection", b"close")]
        await self._send(message)


async def _refuse(error: Refusal, send: Send) -> None:
    content = json.dumps(told(error)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _check_host(headers: dict[bytes, str]) -> None:
    """Refuse what a web page elsewhere makes a browser of this machine send: without a key, only this machine may ask."""
    host = headers.get(b"host", "localhost")
    origin = headers.get(b"origin")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise Refusal(403, "this server answers only to this machine's own name", "edgemllm serve --api-key", code="wrong_host")
    if origin is not None and urlsplit(origin).netloc != host:
        raise Refusal(403, "a page of another origin asked", "edgemllm serve --cors ORIGIN --api-key", code="wrong_origin")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address means this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
