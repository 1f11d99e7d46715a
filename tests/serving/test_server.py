"""Connections that send no request: they are closed in time, bounded, and never block other callers."""

import asyncio
import logging
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest

from examples.serving import server as serving
from examples.serving.server import Server, connection_limit


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    if scope["path"] == "/large":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1_000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def running(monkeypatch, *, limit=16, seconds=60.0, stop=lambda: None, host="127.0.0.1"):
    monkeypatch.setattr(serving, "connection_limit", lambda: limit)
    monkeypatch.setattr(serving, "REQUEST_SECONDS", seconds)
    server = Server(application, stop=stop, host=host, port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def connect(port, text=b""):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(10)
    connection.sendall(text)
    return connection


def is_closed(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_half_open_connections_make_room_for_requests_and_are_one_log_line(monkeypatch, caplog):
    with running(monkeypatch) as port, ExitStack() as opened:
        for _ in range(200):
            opened.enter_context(connect(port, b"GET / HTTP/1.1\r\nx: "))
        for _ in range(5):
            assert httpx.get(f"http://127.0.0.1:{port}/").text == "ok"
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        "connections without a request: 1 closed since the last such line",
    )


def test_a_connection_that_had_a_request_makes_room_last(monkeypatch):
    with (
        running(monkeypatch) as port,
        ExitStack() as opened,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        client.get("/")
        kept = client._transport._pool.connections[0]
        # Quickly: uvicorn closes a connection that is kept without a request for five seconds.
        for _ in range(20):
            opened.enter_context(connect(port))
        assert client.get("/").text == "ok"
        assert client._transport._pool.connections == [kept]


def test_a_request_that_is_being_answered_is_not_closed_for_others(monkeypatch):
    with running(monkeypatch) as port, ExitStack() as opened:
        slow = opened.enter_context(connect(port, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"))
        for _ in range(100):
            opened.enter_context(connect(port))
        assert slow.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("text", [b"", b"GET / HTTP/1.1\r\nx: "], ids=["nothing", "half a request"])
def test_a_connection_that_sends_no_request_is_closed_in_time(monkeypatch, text):
    with running(monkeypatch, seconds=0.2) as port, connect(port, text) as connection:
        assert is_closed(connection)


def test_one_that_trickles_is_closed_as_well_also_after_a_first_request(monkeypatch):
    with running(monkeypatch, seconds=0.5) as port, connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"ok"):
            answer += connection.recv(1024)
        start = time.monotonic()
        closed = False
        while not closed and time.monotonic() - start < 5:
            try:
                connection.sendall(b"G")
                time.sleep(0.05)
            except OSError:
                closed = True
        assert closed


def test_a_caller_that_does_not_read_is_disconnected(monkeypatch, caplog):
    monkeypatch.setattr(serving, "SEND_SECONDS", 0.3)
    with running(monkeypatch) as port, connect(port, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n") as connection:
        time.sleep(1.5)
        received = 0
        with suppress(ConnectionResetError):
            while piece := connection.recv(1_000_000):
                received += len(piece)
        assert received < 90_000_000
    assert caplog.text == ""


def test_a_caller_that_reads_slowly_is_not(monkeypatch):
    monkeypatch.setattr(serving, "SEND_SECONDS", 2)
    with running(monkeypatch) as port, connect(port, b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n") as connection:
        received = 0
        while received < 99_000_000:
            received += len(connection.recv(4_000_000))
            time.sleep(0.01)


def test_a_kept_connection_serves_one_request_after_the_other(monkeypatch):
    with running(monkeypatch, seconds=0.3) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(4):
            assert client.get("/").text == "ok"
            time.sleep(0.15)


def test_the_application_is_stopped_before_waiting_for_open_connections(monkeypatch):
    told = []
    with running(monkeypatch, stop=lambda: told.append("stop")) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "ok"
        assert told == []
    assert told == ["stop"]


def test_it_listens_on_ipv6(monkeypatch):
    with running(monkeypatch, host="::1") as port:
        assert httpx.get(f"http://[::1]:{port}/").text == "ok"


def test_file_descriptors_remain_for_other_uses():
    from resource import RLIMIT_NOFILE, getrlimit

    assert 1 <= connection_limit() <= getrlimit(RLIMIT_NOFILE)[0] // 2
