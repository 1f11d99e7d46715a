"""Malicious requests: each has one answer, and none of its text passes the door."""

import asyncio
import json
import logging

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from examples.serving import door
from examples.serving.app import CAPTION_CHARACTERS, LYRICS_CHARACTERS, PATHS, SongRequest, create_app
from examples.serving.door import BODY_BYTES, Door
from examples.serving.errors import ContainErrors
from examples.serving.makers import OwnMaker
from tests.serving.test_service import SONG, InMemory, ask, follow, wait_until

PLANTED = "PLANTED"


@pytest.fixture(scope="module")
def app(tiny_models):
    from tests.tracing import Traced

    return create_app([OwnMaker(tiny_models)], InMemory(Traced()), capacity=2)


@pytest.fixture(scope="module")
def service(app):
    with TestClient(Door(app, PATHS), raise_server_exceptions=False) as client:
        yield client


def post(service, body, **headers):
    return service.post("/songs", content=body, headers={"content-type": "application/json", **headers})


BODIES = {
    "not a number": b'{"duration": NaN, "caption": "PLANTED"}',
    "infinity": b'{"duration": 1e999, "caption": "PLANTED"}',
    "text for a number": b'{"duration": "PLANTED"}',
    "half a surrogate pair": rb'{"caption": "PLANTED \ud83d"}',
    "the other half": rb'{"lyrics": "\udc00 PLANTED"}',
    "a key that is not there": b'{"PLANTED": 1}',
    "a list": b'["PLANTED"]',
    "nothing": b"",
    "half of it": b'{"caption": "PLANTED',
    "no UTF-8": b'{"caption": "PLANTED \xff"}',
    "too deep": b"[" * 200_000,
    "too many digits": b'{"seed": ' + b"9" * 6_000 + b"}",
    "a seed beyond range": b'{"seed": 4294967296}',
    "a long caption": json.dumps({"caption": "P" * (CAPTION_CHARACTERS + 1)}).encode(),
    "long lyrics": json.dumps({"lyrics": "P" * (LYRICS_CHARACTERS + 1)}).encode(),
    "an object for text": b'{"caption": {"PLANTED": "PLANTED"}}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_that_is_not_the_schema_is_refused_and_not_quoted(service, body, caplog):
    answer = post(service, body)
    assert answer.status_code in (400, 422), answer.text
    assert PLANTED not in answer.text
    assert caplog.text == ""


def test_the_refusal_says_which_field_and_what_it_should_be(service):
    answer = post(service, b'{"duration": 700, "songs": 0}')
    assert answer.json() == {
        "detail": [
            {"field": "body.duration", "message": "Input should be less than or equal to 600"},
            {"field": "body.songs", "message": "Input should be greater than or equal to 1"},
        ]
    }
    fields = post(service, b'{"length": 3}').json()["detail"][-1]["message"]
    assert all(name in fields for name in SongRequest.model_fields)


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-(2**70), 2**70) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*SongRequest.model_fields]) | st.text(max_size=3), values, max_size=4))
def test_any_json_is_a_song_or_a_refusal(service, fields):
    # Never so long that making songs takes the test's time: what is accepted is cancelled.
    answer = post(service, json.dumps(fields).encode("utf-8", "surrogatepass"))
    assert answer.status_code in (202, 400, 422, 429), answer.text
    if answer.status_code == 202:
        assert service.delete(answer.headers["Location"]).status_code == 202


def chunks(size):
    for _ in range(size // 1024):
        yield b"x" * 1024


def test_a_body_is_bounded_whether_it_says_its_size_or_not(service):
    said = post(service, b"x" * (BODY_BYTES + 1))
    unsaid = service.post("/songs", content=chunks(BODY_BYTES + 1024))
    lied = post(service, b"{}", **{"content-length": "1e9"})
    assert [answer.status_code for answer in (said, unsaid, lied)] == [413, 413, 413]
    assert said.headers["connection"] == "close"


def test_the_largest_song_passes_in_the_longest_spelling(service):
    body = json.dumps({**SONG, "caption": "\u8bf7" * CAPTION_CHARACTERS, "lyrics": "\u8bf7" * LYRICS_CHARACTERS})
    assert len(body) > 120_000
    answer = post(service, body.encode())
    assert answer.status_code == 202
    assert follow(service, answer.json()["id"])[-1]["state"] == "done"


def test_every_path_of_the_service_passes_and_no_other(app):
    paths = [route.path.replace("{job_id}", "0" * 32).replace("{number}", "1") for route in app.routes]
    assert [path for path in paths if not PATHS.fullmatch(path)] == ["/docs/oauth2-redirect"]
    for path in (
        "/",
        "/songs/",
        "/songs/PLANTED",
        "/songs/" + "0" * 32 + "/audio/9",
        "/metrics/x",
        "/redoc",
        "/songs\n",
    ):
        assert not PATHS.fullmatch(path), path


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/PLANTED", 404), ("PLANTED", "/songs", 405), ("OPTIONS", "/songs", 405)]
)
def test_other_paths_and_methods_are_refused_at_the_door(service, method, path, status):
    answer = service.request(method, path)
    assert answer.status_code == status
    assert PLANTED not in answer.text


def asgi(received, path="/songs", method="POST", headers=(), body=()):
    """One request, given to the door piece by piece; what the application got, and the status of the answer."""

    async def application(scope, receive, send):
        received.append((scope, await receive()))
        await JSONResponse({})(scope, receive, send)

    statuses = []

    async def go():
        pieces = list(body)

        async def receive():
            if not pieces:
                await asyncio.sleep(60)
            piece = pieces.pop(0)
            return piece if isinstance(piece, dict) else {"type": "http.request", "body": piece, "more_body": True}

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http", "method": method, "path": path, "query_string": b"PLANTED=PLANTED",
            "headers": list(headers), "server": ("10.0.0.1", 8000), "http_version": "1.1",
        }  # fmt: skip
        await Door(application, PATHS)(scope, receive, send)

    asyncio.run(go())
    return statuses


END = {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize(
    ("server", "host"),
    [
        (("10.0.0.1", 80), b"10.0.0.1:80"),
        (("::1", 80), b"[::1]:80"),
        (("/run/s", None), b"/run/s"),
        (None, b"localhost"),
    ],
)
def test_the_host_is_the_one_that_was_connected_to(server, host):
    (found,) = Door(None, PATHS)._cleaned({"server": server, "headers": [(b"host", b"PLANTED")]})
    assert found == (b"host", host)


def test_only_what_the_service_reads_comes_in():
    received = []
    headers = [
        (b"host", b"PLANTED"), (b"user-agent", b"PLANTED"), (b"cookie", b"PLANTED"), (b"x-forwarded-for", b"PLANTED"),
        (b"content-type", b"application/json"), (b"traceparent", b"00-1"), (b"baggage", b"a=1"),
    ]  # fmt: skip
    assert asgi(received, headers=headers, body=[b"{}", END]) == [200]
    ((scope, message),) = received
    assert scope["headers"] == [
        (b"host", b"10.0.0.1:8000"), (b"content-type", b"application/json"), (b"traceparent", b"00-1"),
        (b"baggage", b"a=1"),
    ]  # fmt: skip
    assert scope["query_string"] == b""
    assert message == {"type": "http.request", "body": b"{}", "more_body": False}


def test_a_body_that_does_not_arrive_in_time_is_given_up(monkeypatch):
    monkeypatch.setattr(door, "BODY_SECONDS", 0.1)
    received = []
    assert asgi(received, body=[b"{"]) == [408]
    assert received == []


def test_a_caller_that_goes_away_before_the_end_gets_no_answer():
    received = []
    assert asgi(received, body=[b"{", {"type": "http.disconnect"}]) == []
    assert received == []


@pytest.fixture
def failing():
    app = FastAPI()
    app.add_middleware(ContainErrors)

    @app.get("/metrics")
    async def fail(request: Request):
        raise ValueError("PLANTED")

    @app.get("/healthz")
    async def break_off(request: Request):
        async def stream():
            yield b"begun"
            raise ValueError("PLANTED")

        return StreamingResponse(stream())

    return TestClient(Door(app, PATHS), raise_server_exceptions=False)


def test_an_error_of_the_service_is_a_line_with_its_class_and_place(failing, caplog):
    answer = failing.get("/metrics")
    assert (answer.status_code, answer.json()) == (500, {"detail": "the service failed"})
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"ValueError at {__file__}:")
    assert PLANTED not in caplog.text


def test_an_answer_that_breaks_off_says_no_more(failing, caplog):
    with pytest.raises(Exception, match="ValueError") as caught:
        TestClient(failing.app).get("/healthz")
    assert PLANTED not in str(caught.value)
    assert caught.value.__suppress_context__
    assert PLANTED not in caplog.text


def test_followers_are_bounded_and_make_room(service, app, monkeypatch):
    song = ask(service).json()["id"]
    follow(service, song)
    wait_until(lambda: app.state.followers == 0)
    monkeypatch.setattr("examples.serving.app.FOLLOWERS", 0)
    answer = service.get(f"/songs/{song}/events")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"
