"""Whether a trace is in Jaeger and a metric in Prometheus, by their HTTP APIs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from acestep.documents import LARGEST, parse_document
from acestep_otel import semconv
from acestep_otel.errors import SetupError

Answer = Literal["found", "missing", "unreachable"]

JAEGER_URL: Final = "http://localhost:16686"
"""Default address of Jaeger's API."""
PROMETHEUS_URL: Final = "http://localhost:9090"
"""Default address of Prometheus."""
DOCTOR_SERIES: Final = f"{semconv.DOCTOR_TIME.name.replace('.', '_')}_seconds"
"""The doctor's metric by its name in Prometheus."""
_ANSWER_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Jaeger:
    """Jaeger's query interface at a URL."""

    url: str

    def has(self, trace_id: str) -> bool:
        """Whether it has the trace.

        Raises:
            OSError: unreachable, or not this API.
        """
        answer = _fetch(f"{self.url.rstrip('/')}/api/traces/{trace_id}")
        return answer is not None and bool(answer.get("data"))


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Prometheus's query interface at a URL."""

    url: str

    def has(self, sent: float) -> bool:
        """Whether it has the doctor's metric with this value or a later one.

        Raises:
            OSError: unreachable, or not this API.
        """
        answer = _fetch(f"{self.url.rstrip('/')}/api/v1/query?query={quote(f'max({DOCTOR_SERIES})')}")
        if answer is None:
            raise OSError(f"{self.url} has no query interface of Prometheus")
        samples = answer.get("data", {}).get("result", [])
        # A scrape keeps all digits of a value; a millisecond allows for rounding on the way.
        return any(float(sample["value"][1]) >= sent - 0.001 for sample in samples)


def wait_for(found: Callable[[], bool], seconds: float) -> Answer:
    """Query until the item is found or the time is over; an unreachable service is queried once.

    Args:
        found: the query.
        seconds: the longest wait.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found():
                return "found"
        except OSError:
            return "unreachable"
        if time.monotonic() >= deadline:
            return "missing"
        time.sleep(_PAUSE_SECONDS)


def require_url(option: str, url: str) -> None:
    """Refuse an invalid HTTP address.

    Raises:
        SetupError: naming the option and the value.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SetupError(f"{option} {url!r} is not a URL such as {JAEGER_URL}")


def _fetch(url: str) -> dict[str, Any] | None:
    """The JSON object behind a URL; ``None`` for "not found"."""
    try:
        with urlopen(url, timeout=_ANSWER_SECONDS) as response:
            content = parse_document(response.read(LARGEST + 1), url)
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    except (URLError, HTTPException, ValueError) as error:
        raise OSError(str(error)) from error
    if not isinstance(content, dict):
        raise OSError(f"{url} did not respond with a JSON object")
    return content
