"""The HTTP server: uvicorn with bounds that a public service needs.

Connections that send no request, or do not read their answer, are closed in time. There are never more of them than the
process has files for: when all are in use, the one that has waited longest without a request is closed. Uvicorn itself
has neither.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger("examples.serving")

REQUEST_SECONDS: Final = 10.0
"""Seconds from the opening of a connection, or the first byte on a kept one, to the end of a request's headers."""
SEND_SECONDS: Final = 30.0
"""Seconds that a caller may leave a part of a response unread."""
GRACE_SECONDS: Final = 2
"""Seconds for open connections when the service stops."""
CONNECTIONS: Final = 512
_REPORT_SECONDS: Final = 60.0


def connection_limit() -> int:
    """Connections at once: half of the files that the process may open, the rest being for songs and telemetry."""
    try:
        from resource import RLIMIT_NOFILE, getrlimit
    except ImportError:
        return CONNECTIONS
    return max(1, min(CONNECTIONS, getrlimit(RLIMIT_NOFILE)[0] // 2))


class Closed:
    """Connections that were closed before a request came: one log line a minute with their number."""

    def __init__(self) -> None:
        self._count = 0
        self._reported: float | None = None

    def add(self) -> None:
        """Count one, and log the number if the last line is old enough."""
        self._count += 1
        now = time.monotonic()
        if self._reported is None or now - self._reported >= _REPORT_SECONDS:
            logger.warning("connections without a request: %d closed since the last such line", self._count)
            self._count, self._reported = 0, now


class BoundedProtocol(H11Protocol):
    """One connection, which has to send a request to stay."""

    limit = CONNECTIONS
    closed = Closed()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and close another connection if there is no room."""
        self._has_served = False
        self._waiting_since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if len(self.connections) > self.limit:
            idle = [other for other in self.connections if isinstance(other, BoundedProtocol) and other.is_idle]
            min(idle, key=lambda other: (other._has_served, other._waiting_since), default=self)._close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read, and watch how long a request takes to arrive."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._has_served = True
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Called when the caller reads too slowly."""
        super().pause_writing()
        self._unread = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Called when it has read."""
        self._unread.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_watching()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self.is_idle:
            self._stop_watching()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self._close)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        self.connections.discard(self)
        self.closed.add()
        self.transport.abort()


def _is_about_the_server(record: logging.LogRecord) -> bool:
    """Whether a log record is not about a response without an end, of which there may be any number."""
    return "without completing response" not in record.getMessage()


class Server(uvicorn.Server):
    """Serves an application and notifies it of the shutdown."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        stop: Callable[[], None],
        host: str,
        port: int,
        drain: Callable[[], None] | None = None,
    ) -> None:
        """Set up.

        Args:
            app: to serve.
            stop: called before the wait for open connections; ends the songs that they follow.
            host: address to listen on.
            port: to listen on.
            drain: waits for accepted songs, before anything is stopped.
        """
        limit = connection_limit()
        protocol = type("Protocol", (BoundedProtocol,), {"limit": limit, "closed": Closed()})
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=protocol,
                ws="none",
                loop="asyncio",
                # asyncio accepts this many at the same time before it handles any of them.
                backlog=max(1, limit // 4),
                timeout_graceful_shutdown=GRACE_SECONDS,
                # Its warnings are about single requests, so callers decide their number.
                log_level="error",
                server_header=False,
                # A caller's statement of its own address would be on its span.
                proxy_headers=False,
            )
        )
        self._stop = stop
        self._drain = drain
        logging.getLogger("uvicorn.error").addFilter(_is_about_the_server)

    async def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        if self._drain is not None:
            await asyncio.to_thread(self._drain)
        self._stop()
        await super().shutdown(*args, **kwargs)
