"""Query Grafana of a running docker-compose.yml: metrics and trace of a run by its data sources, and its dashboards.

docker compose up --detach --wait && python -m tests.stack.query_grafana
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
GRAFANA = "http://localhost:3000"
SERVICE = "acestep-otel"
SERIES = f"{semconv.PROFILE_DURATION.name.replace('.', '_')}_seconds"
DASHBOARDS = {"benchmark", "production", "profile", "tiers"}
SECONDS = 90


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=10) as response:
        return json.load(response)


def wait_for(what: str, look: Callable[[], Any]) -> Any:
    """What a query finds, as soon as it finds anything."""
    deadline = time.monotonic() + SECONDS
    reason = ""
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


def spans() -> set[str]:
    """Names of the spans of the newest trace of a run, from the data source of traces."""
    query = urlencode({"service": SERVICE, "operation": semconv.GENERATE_MUSIC, "limit": 1})
    traces = get(f"{GRAFANA}/api/datasources/proxy/uid/jaeger/api/traces?{query}")["data"]
    return {span["operationName"] for span in traces[0]["spans"]}


def rows() -> list[Any]:
    """Rows of the breakdown, as a panel gets them from the data source of metrics."""
    query = {"refId": "A", "datasource": {"uid": "prometheus"}, "expr": SERIES, "instant": True}
    answer = get(f"{GRAFANA}/api/ds/query", {"queries": [query], "from": "now-1h", "to": "now"})
    return list(answer["results"]["A"]["frames"])


def dashboards() -> set[str]:
    return {board["uid"].removeprefix("acestep-") for board in get(f"{GRAFANA}/api/search?type=dash-db")}


def main() -> None:
    """Make a song that sends to the stack, then look for it in Grafana."""
    with TemporaryDirectory() as folder:
        command = ["--tiny", "--thinking", "--duration", "10", "--output-dir", folder, "--otlp-endpoint", OTLP]
        subprocess.run([sys.executable, "profile_inference.py", *command], check=True)
    wait_for(f"{SERIES} through Grafana", rows)
    wanted = {semconv.GENERATE_MUSIC, semconv.LM, semconv.DIT, semconv.VAE_DECODE, semconv.AUDIO_SAVE}
    wait_for(f"a trace with {', '.join(sorted(wanted))} through Grafana", lambda: wanted <= spans())
    wait_for(f"the dashboards {', '.join(sorted(DASHBOARDS))}", lambda: dashboards() >= DASHBOARDS)


if __name__ == "__main__":
    main()
