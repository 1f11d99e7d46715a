"""The service's log records over OTLP, with ``OTEL_LOGS_EXPORTER=otlp``.

Every record that reaches the root logger is sent with the current trace and span of the thread, which link it to its
song. Records of OpenTelemetry itself are not sent, because sending them would create more of them. Of an exception
only the type is sent: its message and stack trace may quote what callers sent.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import get_current
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import AnyValue

from acestep_otel import __version__
from acestep_otel.sdk.otlp import OtlpTarget, log_exporter
from acestep_otel.sdk.variables import count, milliseconds

_OWN: Final = "opentelemetry"
_SEVERITIES: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (logging.NOTSET, SeverityNumber.DEBUG),
)


class ServiceLogs:
    """Sends the log records of the service.

    Args:
        target: the destination.
        resource: resource that the records are attributed to.

    Attributes:
        provider: provider of the SDK.
        exporter: its exporter.
    """

    def __init__(self, target: OtlpTarget, resource: Resource) -> None:
        self.exporter: LogRecordExporter = log_exporter(target)
        self.provider = LoggerProvider(resource, shutdown_on_exit=False)
        queue = count("OTEL_BLRP_MAX_QUEUE_SIZE", 2_048)
        self.provider.add_log_record_processor(
            BatchLogRecordProcessor(
                self.exporter,
                schedule_delay_millis=max(1, milliseconds("OTEL_BLRP_SCHEDULE_DELAY", 1_000)),
                max_export_batch_size=min(queue, count("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", 512)),
                max_queue_size=queue,
            )
        )
        self._handler = RecordHandler(self.provider)

    def start(self) -> None:
        """Start to send records that reach the root logger."""
        logging.getLogger().addHandler(self._handler)

    def shutdown(self) -> None:
        """Send queued records, and none after them."""
        logging.getLogger().removeHandler(self._handler)
        self.provider.shutdown()


class RecordHandler(logging.Handler):
    """Passes records of ``logging`` to the SDK.

    Args:
        provider: of the SDK's loggers.
    """

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, with the current trace and span."""
        if record.name.partition(".")[0] == _OWN:
            return
        try:
            self._provider.get_logger(record.name, __version__).emit(_translated(record))
        except Exception:
            self.handleError(record)


def _translated(record: logging.LogRecord) -> LogRecord:
    attributes: dict[str, AnyValue] = {
        "code.file.path": record.pathname,
        "code.function.name": record.funcName,
        "code.line.number": record.lineno,
    }
    if record.exc_info and record.exc_info[0] is not None:
        attributes["exception.type"] = record.exc_info[0].__qualname__
    return LogRecord(
        timestamp=int(record.created * 1e9),
        observed_timestamp=time.time_ns(),
        context=get_current(),
        severity_text=record.levelname,
        severity_number=next(number for level, number in _SEVERITIES if record.levelno >= level),
        body=record.getMessage(),
        attributes=attributes,
    )
