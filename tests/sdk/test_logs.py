"""A service's log records over OTLP: asked for by name, with the trace and the span that they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.receivers import Received, grpc_receiver, http_receiver
from tests.sdk.test_service import run

LOGGING = """
import json, logging, sys
import acestep_otel
from opentelemetry import trace
telemetry = acestep_otel.configure(service_name="songs")
log = logging.getLogger("my.service")
log.setLevel(logging.INFO)
with trace.get_tracer("test").start_as_current_span("request") as span:
    context = span.get_span_context()
    log.info("a song of %d s", 30)
    try:
        raise ValueError("what the user wrote")
    except ValueError:
        log.exception("it failed")
log.warning("outside")
logging.getLogger("opentelemetry.sdk").error("of the SDK itself")
telemetry.close()
log.warning("after the end")
print(json.dumps({"trace": f"{context.trace_id:032x}", "span": f"{context.span_id:016x}"}))
"""
Receiver = Callable[[], AbstractContextManager[Received]]


def logged(receiver: Receiver, protocol: str, **environment: str) -> tuple[list[Any], dict[str, str]]:
    with receiver() as received:
        done = run(
            LOGGING,
            OTEL_EXPORTER_OTLP_ENDPOINT=received.endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            **environment,
        )
    assert done.returncode == 0, done.stderr
    return received.log_records(), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("receiver", "protocol"), [(grpc_receiver, "grpc"), (http_receiver, "http/protobuf")])
def test_records_carry_the_trace_and_the_span_that_they_were_logged_in(receiver: Receiver, protocol: str) -> None:
    records, ids = logged(receiver, protocol, OTEL_LOGS_EXPORTER="otlp")
    assert [record.body.string_value for record in records] == ["a song of 30 s", "it failed", "outside"]
    inside, failed, outside = records
    for record in (inside, failed):
        assert (record.trace_id.hex(), record.span_id.hex()) == (ids["trace"], ids["span"])
    assert outside.trace_id.hex().strip("0") == ""
    assert [record.severity_text for record in records] == ["INFO", "ERROR", "WARNING"]
    attributes = {pair.key: pair.value.string_value for pair in failed.attributes}
    assert attributes["exception.type"] == "ValueError"
    # The message of an exception may quote what a caller sent.
    assert "what the user wrote" not in str(records)


def test_an_endpoint_alone_sends_no_log() -> None:
    assert logged(grpc_receiver, "grpc")[0] == []
    assert logged(grpc_receiver, "grpc", OTEL_LOGS_EXPORTER="none")[0] == []


def test_an_exporter_that_there_is_not_is_named() -> None:
    done = run("import acestep_otel; acestep_otel.configure()", OTEL_LOGS_EXPORTER="papyrus")
    assert done.returncode != 0
    assert "OTEL_LOGS_EXPORTER='papyrus' is not supported" in done.stderr
