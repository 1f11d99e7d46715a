"""The trace as a file of OTLP JSON lines, which grows with every finished request."""

from __future__ import annotations

import io
import os
import threading
from contextlib import suppress
from pathlib import Path

from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExportResult

from acestep_otel.profiler.files import can_be_replaced, replacing


class TraceFile(SpanProcessor):
    """Writes a line when a request has ended: its root span, and all spans that ended before it.

    The file of a killed process therefore contains its completed requests. The first line replaces an existing file.
    A line that cannot be written is retried and never disturbs the request; ``finish`` reports it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._pending: list[ReadableSpan] = []
        self._is_ours = False
        self._written: _Identity | None = None
        # To a pipe or a device everything is written at once, at the end.
        self._grows = can_be_replaced(path)

    def on_end(self, span: ReadableSpan) -> None:
        """Take a finished span; if it is a root, or its parent is in another process, write the spans so far."""
        with self._lock:
            self._pending.append(span)
        if span.parent is None or span.parent.is_remote:
            self.write_ended()

    def write_ended(self) -> None:
        """Write the spans that ended so far."""
        if not self._grows:
            return
        with self._lock, suppress(OSError):
            # A full disk must not stop a song: finish() retries and reports it.
            if self._pending:
                self._write()

    def finish(self) -> None:
        """Write the remaining spans; a trace without spans is an empty file.

        Raises:
            OSError: the file could not be written.
        """
        with self._lock:
            if self._pending or not self._is_ours:
                self._write()

    def _write(self) -> None:
        line = _encoded(self._pending)
        if self._written is not None:
            _append(self._path, line, self._written)
        else:
            with replacing(self._path) as stream:
                stream.write(line)
            self._is_ours = True
            self._written = _identity(self._path.stat()) if self._grows else None
        self._pending.clear()


def _encoded(spans: list[ReadableSpan]) -> str:
    line = io.StringIO()
    if FileSpanExporter(stream=line).export(spans) is not SpanExportResult.SUCCESS:
        raise OSError("the export of spans failed")
    return line.getvalue()


_Identity = tuple[int, int]


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino


def _append(path: Path, line: str, written: _Identity) -> None:
    try:
        with path.open("r+b", buffering=0) as stream:
            if _identity(os.fstat(stream.fileno())) != written:
                raise OSError("another process has replaced the file, and spans are missing: use one file per run")
            end = stream.seek(0, io.SEEK_END)
            content = memoryview(line.encode())
            try:
                while content:
                    content = content[stream.write(content) or 0 :]
                os.fsync(stream.fileno())
            except OSError:
                # Half a line would make the whole file unreadable.
                stream.truncate(end)
                raise
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
