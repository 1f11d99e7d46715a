"""Query the stack of docker-compose.yml while it runs: a run's trace and metrics, from each server and through Grafana.

docker compose up --detach --wait && python -m tests.stack.query_running_stack
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from acestep_otel import semconv

OTLP = "http://localhost:4317"
JAEGER = "http://localhost:16686"
PROMETHEUS = "http://localhost:9090"
GRAFANA = "http://localhost:3000"
SERVICE = "acestep-otel"
SERIES = f"{semconv.PROFILE_DURATION.name.replace('.', '_')}_seconds"
BOARDS = {"benchmark", "production", "profile", "tiers"}
SECONDS = 90


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=10) as response:
        return json.load(response)


def wait_for(what: str, look: Callable[[], Any]) -> Any:
    """What a query finds, as soon as it finds anything."""
    deadline = time.monotonic() + SECONDS
    reason = "the answer is empty"
    while time.monotonic() < deadline:
        try:
            if found := look():
                print(f"found: {what}")
                return found
            reason = "the answer is empty"
        except (URLError, OSError, KeyError, IndexError) as error:
            reason = repr(error)
        time.sleep(1)
    sys.exit(f"error: not found within {SECONDS} s: {what} ({reason})")


def in_jaeger(base: str) -> list[str]:
    """Names of the spans of the newest trace of a run."""
    query = urlencode({"service": SERVICE, "operation": semconv.GENERATE_MUSIC, "limit": 1})
    return sorted(span["operationName"] for span in get(f"{base}/api/traces?{query}")["data"][0]["spans"])


def in_prometheus() -> list[Any]:
    """Rows of the breakdown, as Prometheus has them."""
    return list(get(f"{PROMETHEUS}/api/v1/query?{urlencode({'query': SERIES})}")["data"]["result"])


def through_grafana() -> list[Any]:
    """The same, as a panel gets them."""
    query = {"refId": "A", "datasource": {"uid": "prometheus"}, "expr": SERIES, "instant": True}
    answer = get(f"{GRAFANA}/api/ds/query", {"queries": [query], "from": "now-1h", "to": "now"})
    return list(answer["results"]["A"]["frames"])


def main() -> None:
    """Make a song that sends to the stack, then look everywhere."""
    with TemporaryDirectory() as folder:
        command = ["--tiny", "--thinking", "--duration", "10", "--output-dir", folder, "--otlp-endpoint", OTLP]
        subprocess.run([sys.executable, "profile_inference.py", *command], check=True)
    spans = wait_for("the run's trace in Jaeger", lambda: in_jaeger(JAEGER))
    missing = {semconv.GENERATE_MUSIC, semconv.LM, semconv.DIT, semconv.VAE_DECODE, semconv.AUDIO_SAVE} - set(spans)
    if missing:
        sys.exit(f"error: the trace lacks {', '.join(sorted(missing))}")
    rows = wait_for(f"{SERIES} in Prometheus", in_prometheus)
    frames = wait_for(f"{SERIES} through Grafana", through_grafana)
    if len(rows) != len(frames):
        sys.exit(f"error: Prometheus has {len(rows)} rows of the breakdown, and Grafana shows {len(frames)}")
    wait_for("the trace through Grafana", lambda: in_jaeger(f"{GRAFANA}/api/datasources/proxy/uid/jaeger") == spans)
    boards = wait_for("the dashboards in Grafana", lambda: get(f"{GRAFANA}/api/search?type=dash-db"))
    uids = {board["uid"].removeprefix("acestep-") for board in boards}
    if not uids >= BOARDS:
        sys.exit(f"error: Grafana lacks the dashboards {', '.join(sorted(BOARDS - uids))}")


if __name__ == "__main__":
    main()
