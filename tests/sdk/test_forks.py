"""Forks of a process whose telemetry is being exported."""

import logging
import os
import signal
import threading

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from acestep_otel.sdk import forks
from acestep_otel.sdk.forks import ExportsBeforeForks
from acestep_otel.sdk.logs import RecordHandler


class SlowExport:
    """An exporter that holds a lock while it exports, as an HTTP client does; until an event where it is given one."""

    _preferred_temporality = None
    _preferred_aggregation = None

    def __init__(self, until=None):
        self.begun, self.until, self.lock = threading.Event(), until, threading.Lock()

    def export(self, _batch, **_):
        with self.lock:
            self.begun.set()
            if self.until is None:
                threading.Event().wait(0.2)
            else:
                self.until.wait(10)

    def shutdown(self, **_):
        pass

    def force_flush(self, **_):
        return True


def traces(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1))
    provider.get_tracer("test").start_span("song").end()
    return provider


def metrics(exporter):
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("test").create_counter("songs").add(1)
    return provider


def logs(exporter):
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, schedule_delay_millis=1))
    RecordHandler(provider).emit(logging.LogRecord("service", logging.INFO, __file__, 1, "song", (), None))
    return provider


@pytest.mark.parametrize("signal_of", [traces, metrics, logs])
def test_a_fork_waits_for_an_export_so_that_no_lock_is_inherited(signal_of):
    exporter = SlowExport()
    provider = signal_of(exporter)
    guard = ExportsBeforeForks([provider])
    assert exporter.begun.wait(10)
    child = os.fork()
    if not child:
        os._exit(0 if exporter.lock.acquire(timeout=0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The parent goes on exporting.
    exporter.begun.clear()
    assert signal_of is not metrics or exporter.begun.wait(10)
    provider.shutdown()
    assert guard is not None


def test_a_fork_waits_no_longer_than_its_bound_and_both_processes_go_on(monkeypatch):
    monkeypatch.setattr(forks, "_FORK_SECONDS", 0.01)
    over = threading.Event()
    exporter = SlowExport(until=over)
    provider = traces(exporter)
    guard = ExportsBeforeForks([provider])
    assert exporter.begun.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(5)
        provider.get_tracer("test").start_span("song").end()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    over.set()
    provider.shutdown()
    assert guard is not None


def test_providers_of_another_kind_are_left_alone():
    guard = ExportsBeforeForks([object(), TracerProvider(shutdown_on_exit=False)])
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert guard is not None
