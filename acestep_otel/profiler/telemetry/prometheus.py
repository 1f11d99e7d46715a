"""Metrics served over HTTP for Prometheus to scrape, without a collector.

Names are those that a collector's exporter gives the same instruments. Exemplars need OTLP: the exporter for Prometheus
has none.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.client import METHOD_NOT_ALLOWED, NOT_FOUND
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_PROMETHEUS_HOST
from prometheus_client import CollectorRegistry, make_wsgi_app

from acestep_otel.errors import SetupError
from acestep_otel.sdk.variables import variable

DEFAULT_HOST: Final = "localhost"
"""Interface to listen on unless ``OTEL_EXPORTER_PROMETHEUS_HOST`` names another."""
_CLIENT_SECONDS: Final = 10.0
"""Seconds that a client may be silent, so that a lost connection does not occupy a thread."""
_LONGEST_TIMEOUT: Final = 3_600.0

_Respond = Callable[..., Any]
_Application = Callable[[dict[str, Any], _Respond], Iterable[bytes]]
_Scraper = tuple[str, str]
"""Address and user agent."""


class PrometheusEndpoint:
    """An HTTP server with one page, ``/metrics``.

    Attributes:
        reader: for the meter provider; collects when the page is requested.
    """

    def __init__(self, port: int) -> None:
        """Start listening.

        Args:
            port: TCP port.

        Raises:
            SetupError: the port cannot be listened on.
        """
        host = (variable(OTEL_EXPORTER_PROMETHEUS_HOST) or DEFAULT_HOST).removeprefix("[").removesuffix("]")
        # Not the process-wide registry, where other code may register metrics of its own.
        registry = CollectorRegistry()
        self._scrapes = _Scrapes()
        page = make_wsgi_app(registry, disable_compression=True)
        try:
            self._server = make_server(
                host, port, _only_metrics(page, self._scrapes), server_class=_server_class(host), handler_class=_Handler
            )
        except OSError as error:
            raise SetupError(
                f"--prometheus-port {port}: cannot listen on {_bracketed(host)}:{port} ({error.strerror or error}): "
                f"{_way_out(error)}"
            ) from error
        self.reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Interface and port of the server."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def wait_for_last_scrape(self, seconds: float) -> None:
        """Wait until every previous scraper has scraped once more and has the last values.

        When there was no scrape so far, the first one is waited for.

        Args:
            seconds: the longest wait.
        """
        self._scrapes.wait_for_all(seconds)

    def missed(self) -> str | None:
        """One line about scrapers that missed the last values; ``None`` without such."""
        return self._scrapes.missed()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Scrapes:
    """The scrapers that read the whole page, with times."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._fetched: dict[_Scraper, list[float]] = {}
        self._timeouts: dict[_Scraper, float] = {}
        self._recorded_until: float | None = None

    def note(self, scraper: _Scraper, began: float, timeout: float) -> None:
        """Note that the page created at ``began`` was sent completely."""
        with self._changed:
            self._fetched.setdefault(scraper, []).append(began)
            self._timeouts[scraper] = max(timeout, self._timeouts.get(scraper, 0.0))
            self._changed.notify_all()

    def wait_for_all(self, seconds: float) -> None:
        """Wait until each scraper has made a scrape that began after this call."""
        with self._changed:
            self._recorded_until = time.monotonic()
            self._changed.wait_for(lambda: bool(self._fetched) and not self._late(), timeout=seconds)

    def missed(self) -> str | None:
        """One line about scrapers that did not return; ``None`` if all did."""
        with self._changed:
            if not (late := self._late()):
                return None
        return (
            f"the last figures may be missing in Prometheus: {late} that scraped this run did not scrape again in time"
        )

    def _late(self) -> int:
        return sum(self._late_behind(scraper) for scraper in self._fetched)

    def _late_behind(self, scraper: _Scraper) -> int:
        """Replicas of one scraper that missed the last values.

        Replicas on one machine look alike. Each scrapes at most once in its interval, which is never shorter than the
        timeout that it sends along, so the most scrapes within that time are as many replicas.
        """
        until, times = self._recorded_until, self._fetched[scraper]
        if until is None:
            return 0
        window = 0.9 * self._timeouts[scraper]
        before = [time for time in times if time < until]
        replicas = max((max(1, sum(begin <= time < begin + window for time in before)) for begin in before), default=0)
        return max(0, replicas - (len(times) - len(before)))


def _only_metrics(page: _Application, scrapes: _Scrapes) -> _Application:
    def answer(request: dict[str, Any], respond: _Respond) -> Iterable[bytes]:
        if request["PATH_INFO"] != "/metrics":
            return _refuse(respond, f"{NOT_FOUND} Not Found", "only /metrics is served\n")
        if request["REQUEST_METHOD"] != "GET":
            return _refuse(respond, f"{METHOD_NOT_ALLOWED} Method Not Allowed", "only GET\n", ("Allow", "GET"))
        began = time.monotonic()
        body = page(request, respond)
        if request["QUERY_STRING"]:
            # A part of the page (?name[]=) is no scrape.
            return body
        scraper = request["REMOTE_ADDR"], request.get("HTTP_USER_AGENT", "")
        timeout = _seconds(request.get("HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS", ""))
        return _Response(body, lambda: scrapes.note(scraper, began, timeout))

    return answer


def _seconds(header: str) -> float:
    """The timeout that Prometheus sends along, in seconds; 0 if it is missing or invalid."""
    try:
        seconds = float(header)
    except ValueError:
        return 0.0
    return seconds if 0 < seconds < _LONGEST_TIMEOUT else 0.0


def _refuse(respond: _Respond, status: str, text: str, *headers: tuple[str, str]) -> list[bytes]:
    respond(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [text.encode()]


class _Response:
    """A page that reports when its last byte has been read."""

    def __init__(self, body: Iterable[bytes], sent: Callable[[], None]) -> None:
        self._body = body
        self._sent = sent

    def __iter__(self) -> Iterator[bytes]:
        # The server requests the next piece only after it has written the previous one, and never after a failure.
        yield from self._body
        self._sent()


class _Server(ThreadingMixIn, WSGIServer):
    """One thread per request, none of which can keep the process alive."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error: a lost client is no error of the run."""

    def server_bind(self) -> None:
        """Bind without resolving the host's full name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    """The same on an IPv6 address."""

    address_family = socket.AF_INET6


def _server_class(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _way_out(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno in _NOT_HERE:
        return f"correct {OTEL_EXPORTER_PROMETHEUS_HOST}, which names an interface of this machine"
    if isinstance(error, PermissionError):
        return "choose a port above 1023"
    return "choose another port"


_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class _Handler(WSGIRequestHandler):
    """Without a line on standard error for each request."""

    timeout = _CLIENT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
