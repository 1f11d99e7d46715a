"""Checks that every request passes before it reaches the service, its framework and its instrumentation.

A public service receives any kind of request: bodies without an end, invented hosts, methods and paths, headers full of
text. What the service does not read is not passed on, so it can neither fill memory, nor become a label of a metric,
nor appear in a span or a log line.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import Final

from opentelemetry import propagate
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from examples.serving.errors import refuse

BODY_BYTES: Final = 262_144
"""Maximum size of a body: lyrics and caption at their limits, in the longest encoding that JSON has."""
BODY_SECONDS: Final = 10.0
"""Seconds from the headers of a request to the end of its body."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE"})
READ: Final = frozenset({"accept", "content-length", "content-type", "if-range", "range"})
"""Headers that the service or its framework reads, beside those that carry a trace."""


class Door:
    """Rejects, limits and cleans requests before an application."""

    def __init__(self, app: ASGIApp, paths: re.Pattern[str]) -> None:
        """Wrap an application.

        Args:
            app: receives the requests that pass.
            paths: its paths.
        """
        self._app = app
        self._paths = paths
        self._headers = READ | {name.lower() for name in propagate.get_global_textmap().fields}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        if not self._paths.fullmatch(scope["path"]):
            await refuse(404, "there is no such path", scope, receive, send)
        elif scope["method"] not in METHODS:
            await refuse(405, f"choose {', '.join(sorted(METHODS))}", scope, receive, send)
        else:
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _body(scope, receive)
        except TimeoutError:
            await refuse(408, f"the body did not arrive within {BODY_SECONDS:g} s", scope, receive, send)
            return
        except _TooLarge:
            await refuse(413, f"the body has more than {BODY_BYTES} bytes", scope, receive, send)
            return
        if body is None:
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        clean = {**scope, "query_string": b"", "headers": self._cleaned(scope)}
        # The server cancels requests when it stops, and only then; the connection is closed.
        with suppress(asyncio.CancelledError):
            await self._app(clean, replay, send)

    def _cleaned(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1").lower() in self._headers]
        host, port = scope.get("server") or ("localhost", None)
        name = f"[{host}]" if ":" in host else str(host)
        return [(b"host", (f"{name}:{port}" if port else name).encode()), *kept]


class _TooLarge(Exception):
    """A body above the limit."""


async def _body(scope: Scope, receive: Receive) -> bytes | None:
    """The body of a request; ``None`` if its caller disconnected."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or len(declared) > 12 or int(declared) > BODY_BYTES:
        raise _TooLarge
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > BODY_BYTES:
            raise _TooLarge
        if not message.get("more_body", False):
            return bytes(body)
