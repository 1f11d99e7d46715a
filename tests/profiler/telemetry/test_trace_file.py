"""The trace file grows with every finished request, and survives what ends the process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan, runs
from acestep_otel.profiler.telemetry.trace_file import TraceFile

KILLED_DURING_THE_THIRD_SONG = """
import os, signal, sys
from acestep.renderer.decoder import VaeDecoder
from acestep_otel.profiler.cli import main

decode, calls = VaeDecoder.decode_tile, []

def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*arguments, **options)

VaeDecoder.decode_tile = killed
main(sys.argv[1:])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def names(path: Path) -> list[list[str]]:
    """Names of the spans, by line."""
    lines = path.read_text("utf-8").splitlines()
    return [[span.name for span in FinishedSpan.from_otlp_json([line])] for line in lines]


def provider(*files: TraceFile) -> TracerProvider:
    made = TracerProvider(shutdown_on_exit=False)
    for file in files:
        made.add_span_processor(file)
    return made


def request(tracer: trace.Tracer, *children: str) -> None:
    with tracer.start_as_current_span(semconv.GENERATE_MUSIC):
        for child in children:
            tracer.start_span(child).end()


def test_a_killed_run_leaves_every_request_that_it_finished(path: Path) -> None:
    arguments = [
        "--tiny", "--device", "cpu", "--mode", "benchmark", "--duration", "10", "--batch-size", "1", "--no-warmup",
        "--inference-steps", "2", "--audio-format", "wav", "--repeat", "3", "--trace-output", str(path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_DURING_THE_THIRD_SONG, *arguments],
        capture_output=True, cwd=path.parent, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    with path.open(encoding="utf-8") as lines:
        spans = list(FinishedSpan.from_otlp_json(lines))
    finished = runs(spans)
    assert [run.root.attributes[semconv.BENCHMARK_REPEAT] for run in finished] == [0, 1]
    for run in finished:
        assert len(run.named(semconv.DIT_STEP)) == 2
        assert run.named(semconv.AUDIO_SAVE)
    assert [span.name for span in spans if span.parent_id is None] == [
        semconv.MODEL_LOAD, semconv.GENERATE_MUSIC, semconv.GENERATE_MUSIC,
    ]  # fmt: skip


def test_every_root_ends_a_line_and_the_first_replaces_what_was_there(path: Path) -> None:
    path.write_text("old")
    file = TraceFile(path)
    tracer = provider(file).get_tracer("test")
    child = tracer.start_span(semconv.DIT, trace.set_span_in_context(_elsewhere(remote=False)))
    child.end()
    # Nothing has ended yet that could stand alone.
    assert path.read_text() == "old"
    request(tracer, semconv.DIT)
    assert names(path) == [[semconv.DIT, semconv.DIT, semconv.GENERATE_MUSIC]]
    request(tracer)
    assert names(path) == [[semconv.DIT, semconv.DIT, semconv.GENERATE_MUSIC], [semconv.GENERATE_MUSIC]]
    file.finish()
    assert len(names(path)) == 2


def test_a_request_of_another_process_ends_a_line_too(path: Path) -> None:
    tracer = provider(TraceFile(path)).get_tracer("test")
    context = trace.set_span_in_context(_elsewhere(remote=True))
    tracer.start_span(semconv.GENERATE_MUSIC, context).end()
    assert names(path) == [[semconv.GENERATE_MUSIC]]


def _elsewhere(*, remote: bool) -> NonRecordingSpan:
    return NonRecordingSpan(SpanContext(1, 2, is_remote=remote, trace_flags=TraceFlags(TraceFlags.SAMPLED)))


def test_what_has_no_root_yet_is_written_at_the_end(path: Path) -> None:
    file = TraceFile(path)
    tracer = provider(file).get_tracer("test")
    tracer.start_span(semconv.DIT, trace.set_span_in_context(_elsewhere(remote=False))).end()
    file.finish()
    assert names(path) == [[semconv.DIT]]


def test_without_spans_an_old_trace_is_not_taken_for_the_new_one(path: Path) -> None:
    path.write_text("old")
    TraceFile(path).finish()
    with path.open(encoding="utf-8") as lines:
        assert list(FinishedSpan.from_otlp_json(lines)) == []


def test_a_file_that_another_process_has_put_in_its_place_is_left_alone_and_told(path: Path) -> None:
    """N23: that a file was opened does not mean that it is the one that was written."""
    file, other = (TraceFile(path) for _ in range(2))
    request(provider(file).get_tracer("first"))
    request(provider(other).get_tracer("second"), semconv.DIT)
    content = path.read_bytes()
    request(provider(file).get_tracer("first"))
    assert path.read_bytes() == content
    with pytest.raises(OSError, match=r"cannot write .*trace\.jsonl: another process has replaced the file"):
        file.finish()
    other.finish()
    assert names(path) == [[semconv.DIT, semconv.GENERATE_MUSIC]]


def test_a_full_disk_disturbs_no_request_leaves_no_partial_line_and_is_reported_at_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TraceFile(path)
    tracer = provider(file).get_tracer("test")
    request(tracer)
    full = _FullDisk(monkeypatch)
    request(tracer, semconv.DIT)
    assert full.failures == 1
    assert names(path) == [[semconv.GENERATE_MUSIC]]
    with pytest.raises(OSError, match=r"cannot write .*trace\.jsonl: No space left on device"):
        file.finish()
    full.is_full = False
    file.finish()
    assert names(path) == [[semconv.GENERATE_MUSIC], [semconv.DIT, semconv.GENERATE_MUSIC]]


class _FullDisk:
    """Takes ten bytes of each write and no more, while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        self.failures = 0
        opened = Path.open

        def open_full(path: Path, *arguments: object, **options: object) -> object:
            stream = opened(path, *arguments, **options)  # type: ignore[call-overload]
            return _FullStream(stream, self) if self.is_full else stream

        monkeypatch.setattr(Path, "open", open_full)


class _FullStream:
    def __init__(self, stream, disk: _FullDisk) -> None:  # type: ignore[no-untyped-def]
        self._stream, self._disk, self._room = stream, disk, 10

    def write(self, content: bytes) -> int:
        if not self._room:
            self._disk.failures += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written, self._room = self._stream.write(content[: self._room]), 0
        return int(written)

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self

    def __exit__(self, *_error: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
