"""Load for the service: ``python -m examples.serving.load --clients 8 --seconds 60``.

Clients in a closed loop: each requests a song, follows its progress to the end, and requests the next. With more
clients than places in the queue the service rejects some, which try again after the time that it names.

The mix, drawn from a seed:

=====  ==================================  ==========================================
share  song                                how it ends
=====  ==================================  ==========================================
50 %   10 s of audio, 4 steps              one in ten is cancelled while it is made
30 %   20 s of audio, 8 steps              the same
10 %   two songs of 10 s, 4 steps          the same
10 %   10 s of audio, 4 steps, thinking    the same
=====  ==================================  ==========================================

Every request carries a ``traceparent``; one in twenty forces its trace with ``X-Force-Trace``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from examples.serving.arguments import duration, whole_number

MIX: Final[tuple[tuple[float, dict[str, Any]], ...]] = (
    (0.5, {"duration": 10, "inference_steps": 4}),
    (0.3, {"duration": 20, "inference_steps": 8}),
    (0.1, {"duration": 10, "inference_steps": 4, "songs": 2}),
    (0.1, {"duration": 10, "inference_steps": 4, "thinking": True}),
)
CANCELLED_SHARE: Final = 0.1
FORCED_SHARE: Final = 0.05
_FINAL: Final = ("done", "failed", "cancelled")
_ASK_SECONDS: Final = 0.5
"""Seconds between two queries of a song whose events were interrupted."""
CAPTION: Final = "A driving synth-pop track with a warm analogue bass and gated drums"


@dataclass
class Report:
    """Results of the clients.

    Attributes:
        ended: accepted requests by the state they ended in.
        turned_away: answers 429.
        latencies: seconds from the accepted request to the finished song.
        traces: trace id of each accepted request.
        waits: when a worker took each song, by the monotonic clock, and seconds since the accepted request.
        finished: when each finished song ended, by the monotonic clock, and the card that generated it; in the order of
            ``latencies``.
    """

    ended: Counter[str] = field(default_factory=Counter)
    turned_away: int = 0
    latencies: list[float] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    finished: list[tuple[float, str | None]] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """Requests that got a place in the queue."""
        return len(self.traces)

    def latency(self, share: float) -> float | None:
        """The latency that a share of the finished songs did not exceed; ``None`` without any."""
        return quantile(self.latencies, share) if self.latencies else None


def quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of all does not exceed; zero without any."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


async def run_load(
    url: str, *, clients: int, seconds: float, seed: int = 0, song: Mapping[str, Any] | None = None
) -> Report:
    """Keep clients busy for some time, then let the songs in progress end.

    Args:
        url: of the service.
        clients: number of clients at the same time.
        seconds: after which no client requests another song.
        seed: of the mix.
        song: the song that every client requests and follows to its end; the mix when not given.
    """
    report = Report()
    deadline = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(30, read=None)) as http:
        await asyncio.gather(*(client_of(http, report, deadline, seed, number, song) for number in range(clients)))
    return report


async def client_of(
    http: httpx.AsyncClient,
    report: Report,
    deadline: float,
    seed: int,
    number: int,
    fixed: Mapping[str, Any] | None = None,
) -> None:
    """Request one song after the other; a client of another seed draws other numbers."""
    draw = random.Random(f"{seed}/{number}")
    while time.monotonic() < deadline:
        drawn = draw.choices([song for _, song in MIX], [share for share, _ in MIX])[0]
        song = drawn if fixed is None else fixed
        headers = {"X-Force-Trace": "true"} if draw.random() < FORCED_SHARE else {}
        await request_song(
            http, report, song, headers, cancels=lambda: fixed is None and draw.random() < CANCELLED_SHARE
        )


async def request_song(
    http: httpx.AsyncClient,
    report: Report,
    song: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    cancels: Callable[[], bool] = lambda: False,
) -> str | None:
    """Request one song and follow it to its end; if the queue is full, wait as long as the service says.

    Args:
        http: connected to the service.
        report: gets the result.
        song: the body.
        headers: besides ``traceparent``.
        cancels: called for an accepted song: whether to cancel it while it is made.

    Returns:
        Trace id of the request; ``None`` if it was turned away.
    """
    # Not from a seed: two loads must not continue each other's traces.
    trace_id = secrets.token_hex(16)
    start = time.monotonic()
    answer = await http.post(
        "/songs",
        json={"caption": CAPTION, **song},
        headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01", **headers},
    )
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        report.turned_away += 1
        await asyncio.sleep(float(answer.headers["Retry-After"]))
        return None
    answer.raise_for_status()
    report.traces.append(trace_id)
    accepted = time.monotonic()
    state, taken, worker = await _follow(http, answer.headers["Location"], cancel=cancels())
    report.ended[state] += 1
    if taken is not None:
        report.waits.append((taken, max(0.0, taken - accepted)))
    if state == "done":
        report.latencies.append(time.monotonic() - start)
        report.finished.append((time.monotonic(), worker))
    return trace_id


async def _follow(http: httpx.AsyncClient, song: str, *, cancel: bool) -> tuple[str, float | None, str | None]:
    """The state that a song ended in, when a worker first took it, and which.

    The state is that of the last event, or queried if the events were interrupted or rejected.
    """
    state, taken, worker = "lost", None, None
    # The end of a stream does not prove that the song has ended.
    with suppress(httpx.ReadError, httpx.RemoteProtocolError):
        async with http.stream("GET", f"{song}/events") as events:
            async for line in events.aiter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                state = event["state"]
                if state == "running":
                    taken = time.monotonic() if taken is None else taken
                    worker = event.get("worker", worker)
                if cancel and state == "running":
                    cancel = False
                    await http.delete(song)
    while state not in _FINAL:
        answer = await http.get(song)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return "lost", taken, worker
        state = answer.raise_for_status().json()["state"]
        await asyncio.sleep(_ASK_SECONDS)
    return state, taken, worker


def shown_latency(seconds: float | None) -> str:
    """A latency as text; ``—`` for none."""
    return "—" if seconds is None else f"{seconds:.2f} s"


def main() -> None:
    """Load a service, and print the results of its clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--clients", type=whole_number(1, 10_000), default=8, help="concurrent clients")
    parser.add_argument("--seconds", type=duration(604_800), default=60, help="duration of the load")
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="seed of the requests")
    options = parser.parse_args()
    try:
        report = asyncio.run(run_load(options.url, clients=options.clients, seconds=options.seconds, seed=options.seed))
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        parser.error(f"--url {options.url!r}: {error}")
    except httpx.HTTPError as error:
        raise SystemExit(f"error: {options.url} does not respond as the service does: {error!r}") from None
    print(f"accepted {report.accepted}, turned away {report.turned_away}")
    print("ended: " + ", ".join(f"{state} {count}" for state, count in sorted(report.ended.items())))
    p50, p99 = (shown_latency(report.latency(share)) for share in (0.5, 0.99))
    print(f"latency of finished songs: p50 {p50}, p99 {p99}")


if __name__ == "__main__":
    main()
