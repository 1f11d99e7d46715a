"""The load program: the state from the service decides whether a song has ended, not the stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from examples.serving.load import Report, _follow, shown_latency


class Events(httpx.AsyncByteStream):
    """A stream of states that ends, or breaks off."""

    def __init__(self, states: tuple[str, ...], breaks: bool) -> None:
        self._states = states
        self._breaks = breaks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for state in self._states:
            yield f"data: {json.dumps({'state': state})}\n\n".encode()
        if self._breaks:
            raise httpx.RemoteProtocolError("peer closed connection")


def ended(
    events: httpx.Response, states: tuple[str | None, ...], cancel: bool = False
) -> tuple[str, list[tuple[str, str]]]:
    """What a follower takes for the end of a song, and what it asked."""
    asked: list[tuple[str, str]] = []
    later: Iterator[str | None] = iter(states)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path))
        if request.url.path.endswith("/events"):
            return events
        if request.method == "DELETE":
            return httpx.Response(202)
        state = next(later)
        return httpx.Response(404) if state is None else httpx.Response(200, json={"state": state})

    async def follow() -> str:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service") as http:
            state, _, _ = await _follow(http, "/songs/1", cancel=cancel)
            return state

    return asyncio.run(follow()), asked


def stream(*states: str, breaks: bool = False) -> httpx.Response:
    return httpx.Response(200, stream=Events(states, breaks))


def test_the_last_event_contains_the_outcome_of_a_song() -> None:
    state, asked = ended(stream("waiting", "running", "done"), ())
    assert (state, asked) == ("done", [("GET", "/songs/1/events")])


def test_a_song_that_is_cancelled_is_cancelled_once_while_it_runs() -> None:
    state, asked = ended(stream("waiting", "running", "running", "cancelled"), (), cancel=True)
    assert (state, asked.count(("DELETE", "/songs/1"))) == ("cancelled", 1)


@pytest.mark.parametrize("breaks", [False, True])
def test_a_stream_that_ends_before_the_song_is_no_end_of_it(breaks: bool) -> None:
    """N23."""
    state, asked = ended(stream("waiting", "running", breaks=breaks), ("running", "failed"))
    assert state == "failed"
    assert asked.count(("GET", "/songs/1")) == 2


def test_a_refused_follower_queries_the_state() -> None:
    assert ended(httpx.Response(503), ("waiting", "done"))[0] == "done"


def test_a_missing_song_counts_as_lost() -> None:
    assert ended(stream("waiting", breaks=True), (None,))[0] == "lost"


def test_a_latency_of_no_songs_is_unknown_and_no_zero() -> None:
    assert Report().latency(0.95) is None
    assert (shown_latency(None), shown_latency(1.5)) == ("—", "1.50 s")
    assert Report(latencies=[3.0, 1.0, 2.0]).latency(0.5) == 2.0
