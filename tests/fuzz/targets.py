"""Parsers of external files, as functions of bytes: each returns, or raises its documented error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Final

from acestep.audio import load_audio
from acestep.errors import AudioReadError, CheckpointInvalid
from acestep.weights.tensor_files import TensorFiles
from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.comparison import Comparison, IncomparableResults, ResultFile
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.run.example import load_example
from acestep_otel.sdk.answers import read_http_answer

_FOLDER: Final = Path(tempfile.mkdtemp(prefix="fuzz-"))
_TYPES: Final = ("application/x-protobuf", "application/json", "text/html", "text/plain", "")
_STATUSES: Final = (200, 202, 302, 400, 429, 503)


def _written(name: str, content: bytes) -> Path:
    path = _FOLDER / f"{os.getpid()}-{name}"
    path.write_bytes(content)
    return path


def example(content: bytes) -> None:
    """A song of ``--example``."""
    with suppress(SetupError), redirect_stderr(StringIO()):
        load_example(str(_written("song.json", content)))


def result(content: bytes) -> None:
    """A result file of ``compare``."""
    with suppress(IncomparableResults):
        read = ResultFile.read(_written("result.json", content))
        assert Comparison.of(read, read, 1.1).regressions is not None


def trace(content: bytes) -> None:
    """A trace file, or what a child process of a tier test writes."""
    with suppress(ValueError):
        for span in FinishedSpan.from_otlp_json(content.decode("utf-8", "replace").splitlines()):
            assert isinstance(span.name, str)
            assert span.seconds == span.seconds


def audio(content: bytes) -> None:
    """A recording of ``--src-audio``."""
    with suppress(AudioReadError):
        assert load_audio(_written("song.bin", content)).shape[0] == 2


def safetensors(content: bytes) -> None:
    """The header of a checkpoint."""
    folder = _FOLDER / str(os.getpid())
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    with suppress(CheckpointInvalid):
        assert TensorFiles.open(folder, "model").tensors is not None


def answer(content: bytes) -> None:
    """An answer of an OTLP receiver."""
    first = content[0] if content else 0
    signal = "traces" if first % 2 else "metrics"
    location = content[1:60].decode("utf-8", "replace")
    kind, status = _TYPES[first % len(_TYPES)], _STATUSES[first % len(_STATUSES)]
    found = read_http_answer(signal, status, "OK", kind, location, content[1:])
    assert str(found).isprintable()
    assert len(str(found)) < 1_000


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "example": example,
    "result": result,
    "trace": trace,
    "audio": audio,
    "safetensors": safetensors,
    "answer": answer,
}
