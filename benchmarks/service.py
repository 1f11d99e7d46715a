"""The serving example in a process of its own, and where the time of its songs goes, by its metrics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.collectors import free_port

START_SECONDS: Final = 120
_EXIT_SECONDS: Final = 60


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for the service.

    Raises:
        SystemExit: it ended, or did not start in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{url}/healthz").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("the service did not start")


@contextmanager
def running_service(options: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """The service on a free port; yields its URL once it is healthy.

    Args:
        options: of its command line, except the port.
        environment: variables in addition to those of this process.

    Raises:
        SystemExit: it ended, or did not start in time.
    """
    port = free_port()
    command = [sys.executable, "-m", "examples.serving", *options, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        process.wait(_EXIT_SECONDS)
    finally:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Reading:
    """Sums over all songs and all cards since the start of a service.

    Attributes:
        moment: by the monotonic clock, seconds.
        songs: requests that have ended on a card.
        generating: their seconds on the cards.
        stages: the same by stage.
        service: processor seconds of the service's process.
        workers: processor seconds of the processes of the cards.
    """

    moment: float
    songs: float
    generating: float
    stages: dict[str, float]
    service: float
    workers: float

    @classmethod
    def of(cls, text: str, moment: float) -> Reading:
        """From an answer of ``/metrics``."""
        songs = generating = service = workers = 0.0
        stages: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                match sample.name:
                    case "gen_ai_server_request_duration_seconds_count":
                        songs += sample.value
                    case "gen_ai_server_request_duration_seconds_sum":
                        generating += sample.value
                    case "acestep_stage_duration_seconds_sum":
                        stage = sample.labels["acestep_stage"]
                        stages[stage] = stages.get(stage, 0.0) + sample.value
                    case "process_cpu_seconds_total":
                        if "acestep_worker" in sample.labels:
                            workers += sample.value
                        else:
                            service += sample.value
        return cls(moment, songs, generating, stages, service, workers)

    @classmethod
    def now(cls, url: str) -> Reading:
        """Of a service that is running."""
        text = httpx.get(f"{url}/metrics", timeout=_EXIT_SECONDS).raise_for_status().text
        return cls.of(text, time.monotonic())


def seconds_per_song(before: Reading, after: Reading, cards: int) -> dict[str, Any]:
    """Where the time of a card and of the processors goes, as a mean over the songs between two readings.

    A song counts where it ends, so each end of the interval adds an error of up to a song per card.

    Args:
        before: at the beginning.
        after: at the end.
        cards: that were busy.

    Returns:
        Seconds per song: ``generating``, ``between_songs`` (a card without a song) and ``stages`` by name; of the
        processors, ``service`` and ``workers``.
    """
    songs = after.songs - before.songs
    generating = after.generating - before.generating
    stages = {name: (total - before.stages.get(name, 0.0)) / songs for name, total in after.stages.items()}
    return {
        "generating": generating / songs,
        "between_songs": ((after.moment - before.moment) * cards - generating) / songs,
        "stages": {name: seconds for name, seconds in stages.items() if seconds > 0},
        "processor": {
            "service": (after.service - before.service) / songs,
            "workers": (after.workers - before.workers) / songs,
        },
    }
