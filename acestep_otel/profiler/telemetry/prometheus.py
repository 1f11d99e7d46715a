"""Metrics served over HTTP for Prometheus to scrape: the way without a collector.

Names are those that a collector's exporter gives the same instruments. Exemplars need OTLP: the exporter for Prometheus
has none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_PROMETHEUS_HOST
from prometheus_client import CollectorRegistry, make_wsgi_app

from acestep_otel.errors import SetupError

DEFAULT_HOST: Final = "localhost"
"""Interface that is listened on unless ``OTEL_EXPORTER_PROMETHEUS_HOST`` names another."""

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class PrometheusEndpoint:
    """An HTTP server with one page, ``/metrics``.

    Attributes:
        reader: to be given to the meter provider; collects when the page is asked for.
    """

    def __init__(self, port: int) -> None:
        """Start listening.

        Args:
            port: TCP port.

        Raises:
            SetupError: the port cannot be listened on.
        """
        host = os.environ.get(OTEL_EXPORTER_PROMETHEUS_HOST) or DEFAULT_HOST
        # Not the process-wide registry: what other code registers there is not this run's.
        registry = CollectorRegistry()
        self._scrapes = 0
        self._scraped = threading.Condition()
        try:
            self._server = make_server(
                host, port, self._counting(make_wsgi_app(registry)), server_class=_Server, handler_class=_Handler
            )
        except OSError as error:
            raise SetupError(
                f"--prometheus-port {port}: cannot listen on {host}:{port} ({error.strerror or error}): "
                "choose another port"
            ) from error
        self.reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Interface and port that are listened on."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def wait_for_last_scrape(self, seconds: float) -> None:
        """Wait until the page has been fetched once more, so that the last figures are seen.

        Args:
            seconds: the longest wait.
        """
        with self._scraped:
            before = self._scrapes
            self._scraped.wait_for(lambda: self._scrapes > before, timeout=seconds)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _counting(self, page: _Application) -> _Application:
        def counted(request: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
            return _Response(page(request, respond), self._count)

        return counted

    def _count(self) -> None:
        with self._scraped:
            self._scrapes += 1
            self._scraped.notify_all()


class _Response:
    """A page that says when it has been sent."""

    def __init__(self, body: Iterable[bytes], sent: Callable[[], None]) -> None:
        self._body = body
        self._sent = sent

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Called by the server after the last byte (PEP 3333)."""
        self._sent()


class _Server(ThreadingMixIn, WSGIServer):
    """One thread per request, none of which can keep the process alive."""

    daemon_threads = True


class _Handler(WSGIRequestHandler):
    """Without a line on standard error for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
