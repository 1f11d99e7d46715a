"""Start and end of the service and its load: a wrong setting is one line and exit code 2, SIGTERM an orderly end."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref

import httpx
import pytest

from benchmarks.collectors import free_port
from benchmarks.service import wait_until_healthy
from examples.serving import __main__ as service
from examples.serving import load
from examples.serving.models import freeze_objects
from tests.services import INSTRUMENT, ROOT

WRONG = [
    ("OTEL_TRACES_SAMPLER_ARG", "abc"),
    ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
    ("OTEL_TRACES_SAMPLER_ARG", "-1"),
    ("OTEL_TRACES_SAMPLER_ARG", "nan"),
    ("OTEL_TRACES_SAMPLER", "sometimes"),
    ("OTEL_METRICS_EXPORTER", "zipkin"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "not a url"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c"),
    ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
]


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_a_wrong_variable_is_one_line_with_its_name(monkeypatch, capsys, variable, value):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["serving", "--tiny"])
    with pytest.raises(SystemExit) as left:
        service.main()
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.startswith(f"error: {variable}")
    assert error.count("\n") == 1


def test_a_variable_that_libraries_read_while_they_are_imported_is_one_as_well():
    done = subprocess.run(
        [sys.executable, "-m", "examples.serving", "--tiny"],
        cwd=ROOT, env={**os.environ, "OTEL_PROPAGATORS": "pigeon"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert next(line for line in done.stderr.splitlines() if "torch" not in line).startswith(
        "error: OTEL_PROPAGATORS='pigeon' is not supported: choose from "
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (service.main, ["--port", "65536"]),
        (service.main, ["--queue", "0"]),
        (service.main, ["--kept", "-1"]),
        (service.main, ["--dit", "no-such-model", "--weights", "synthetic", "--device", "cpu"]),
        (load.main, ["--seconds", "nan"]),
        (load.main, ["--seconds", "inf"]),
        (load.main, ["--clients", "0"]),
        (load.main, ["--seed", "9" * 6_000]),
        (load.main, ["--url", "file:///etc/passwd"]),
        (load.main, ["--url", "http://[::1"]),
    ],
)
def test_a_wrong_argument_is_exit_code_2(monkeypatch, capsys, main, arguments):
    monkeypatch.setattr(service, "set_up", lambda: None)
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    error = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert "error: " in error[-1]
    assert len(error[-1]) < 400


def test_a_service_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["load", "--seconds", "1", "--url", f"http://127.0.0.1:{free_port()}"])
    with pytest.raises(SystemExit, match=r"error: http://127.0.0.1:\d+ does not respond as the service does"):
        load.main()


def test_two_loads_send_traces_of_their_own():
    sent = []

    async def run(seed):
        async def answer(request):
            sent.append(request.headers["traceparent"])
            if len(sent) % 3 == 0:
                raise httpx.ConnectError("enough")
            return httpx.Response(429, headers={"Retry-After": "0"})

        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service") as http:
            with pytest.raises(httpx.ConnectError):
                await load.client_of(http, load.Report(), time.monotonic() + 5, seed, 0)

    for seed in (1, 2):
        asyncio.run(run(seed))
    assert len(set(sent)) == 6


@pytest.mark.parametrize("launcher", [[], [str(INSTRUMENT)]], ids=["alone", "agent"])
def test_sigterm_ends_followers_with_cancelled_and_the_process_without_a_word(tmp_path, launcher):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    nowhere = {f"OTEL_{signal_}_EXPORTER": "none" for signal_ in ("TRACES", "METRICS", "LOGS")}
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*launcher, sys.executable, "-m", "examples.serving", "--tiny", "--port", str(port)],
            cwd=ROOT, env={**os.environ, **nowhere}, stdout=out, stderr=out,
        )  # fmt: skip
        try:
            wait_until_healthy(url, process)
            song = {"caption": "PLANTED", "duration": 60, "inference_steps": 100}
            songs = [httpx.post(f"{url}/songs", json=song).json()["id"] for _ in range(2)]
            with (
                httpx.stream("GET", f"{url}/songs/{songs[0]}/events", timeout=60) as running,
                httpx.stream("GET", f"{url}/songs/{songs[1]}/events", timeout=60) as waiting,
            ):
                lines = running.iter_lines()
                while '"running"' not in next(lines):
                    pass
                start = time.monotonic()
                process.send_signal(signal.SIGTERM)
                ends = [[line for line in follower if line][-1] for follower in (lines, waiting.iter_lines())]
            assert [json.loads(end.removeprefix("data: "))["state"] for end in ends] == ["cancelled", "cancelled"]
            assert process.wait(30) in (-signal.SIGTERM, 128 + signal.SIGTERM)
            assert time.monotonic() - start < 20
        finally:
            process.kill()
            process.wait()
    said = [line for line in log.read_text().splitlines() if "torch" not in line]
    assert said == []


class InACycle:
    """An object that only a garbage collection frees."""

    def __init__(self):
        self.itself = self


def test_objects_that_stay_are_left_out_of_garbage_collections_and_later_ones_are_not():
    try:
        gc.disable()
        dead = weakref.ref(InACycle())
        before = InACycle()
        freeze_objects()
        frozen = weakref.ref(before)
        del before
        later = weakref.ref(InACycle())
        gc.collect()
        assert (dead(), later()) == (None, None)
        assert frozen() is not None
    finally:
        gc.enable()
        gc.unfreeze()
    gc.collect()
    assert frozen() is None
