"""Subcommand ``doctor``: whether telemetry arrives, and what to fix."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED

from acestep_otel.profiler.doctor.backends import (
    DOCTOR_SERIES,
    JAEGER_URL,
    PROMETHEUS_URL,
    Jaeger,
    Prometheus,
    require_url,
    wait_for,
)
from acestep_otel.profiler.doctor.send import Delivery, Sender
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.terminal import echo
from acestep_otel.sdk.answers import Signal
from acestep_otel.sdk.otlp import (
    OtlpTarget,
    default_target,
    differences_caveat,
    disabled,
    histogram_caveat,
    otlp_target,
)
from acestep_otel.sdk.variables import variable

_SIGNALS: tuple[Signal, ...] = ("traces", "metrics")


def doctor(
    *,
    endpoint: str | None = None,
    protocol: str | None = None,
    jaeger_url: str | None = None,
    prometheus_url: str | None = None,
    wait: float = 20.0,
) -> None:
    """Send a span and a metric, query the backends, and print the findings.

    Args:
        endpoint: OTLP endpoint; ``None`` leaves the decision to the environment.
        protocol: ``grpc`` or ``http/protobuf``; ``None`` leaves the decision to the environment.
        jaeger_url: Jaeger that must have the span; ``None`` queries the default address, if it answers.
        prometheus_url: the same for the metric.
        wait: seconds to wait for both.

    Raises:
        SetupError: a wrong endpoint, protocol, exporter or URL.
        RunFailed: something that should have arrived did not.
    """
    for option, url in (("--jaeger-url", jaeger_url), ("--prometheus-url", prometheus_url)):
        if url is not None:
            require_url(option, url)
    report = _Report()
    if disabled():
        report.problem(f"{OTEL_SDK_DISABLED}=true: a run sends nothing", f"unset {OTEL_SDK_DISABLED}")
        report.finish()
    targets = _targets(report, endpoint, protocol)
    if "metrics" in targets:
        for caveat in filter(None, (differences_caveat(), histogram_caveat())):
            report.note(caveat)
    sender = Sender()
    send = {"traces": sender.send_span, "metrics": sender.send_metric}
    delivered = {signal: send[signal](target) for signal, target in targets.items()}
    for delivery in delivered.values():
        report.delivery(delivery)
    if _arrived(delivered, "traces"):
        jaeger = Jaeger(jaeger_url or JAEGER_URL)
        report.store(
            f"Jaeger {jaeger.url}",
            f"trace {sender.probe.trace_id}",
            lambda: jaeger.has(sender.probe.trace_id),
            wait,
            "check the collector's traces exporter and its log",
            None if jaeger_url else "--jaeger-url",
        )
    if _arrived(delivered, "metrics"):
        prometheus = Prometheus(prometheus_url or PROMETHEUS_URL)
        report.store(
            f"Prometheus {prometheus.url}",
            DOCTOR_SERIES,
            lambda: prometheus.has(sender.probe.time),
            wait,
            "check Status > Targets there if it scrapes, otherwise the collector's metrics exporter and its log",
            None if prometheus_url else "--prometheus-url",
        )
    report.finish()


def _targets(report: _Report, endpoint: str | None, protocol: str | None) -> dict[Signal, OtlpTarget]:
    found = {signal: otlp_target(signal, endpoint=endpoint, protocol=protocol) for signal in _SIGNALS}
    targets = {signal: target for signal, target in found.items() if target is not None}
    if targets:
        for signal in found.keys() - targets.keys():
            report.note(f"{signal}: not sent, excluded by OTEL_{signal.upper()}_EXPORTER or the endpoints")
        return targets
    if endpoint is not None or _switched_off():
        report.problem("both signals are switched off: a run sends nothing", "unset OTEL_TRACES_EXPORTER")
        report.finish()
    # Nothing configured: a run sends nothing. The usual place may still have a collector.
    targets = {signal: default_target(signal, protocol) for signal in _SIGNALS}
    usual = targets["traces"].address
    address = f"{usual.scheme}://{usual.authority}"
    report.note(f"no endpoint is configured, so a run sends nothing: trying {address}")
    report.advise(f"set OTEL_EXPORTER_OTLP_ENDPOINT={address}, or give --otlp-endpoint {address}")
    return targets


def _switched_off() -> bool:
    return any(variable(f"OTEL_{signal.upper()}_EXPORTER") is not None for signal in _SIGNALS)


def _arrived(delivered: dict[Signal, Delivery], signal: Signal) -> bool:
    return signal in delivered and delivered[signal].problem is None


class _Report:
    """Prints findings as they come, and what to do at the end."""

    def __init__(self) -> None:
        self._fixes: list[str] = []
        self._problems = 0

    def note(self, text: str) -> None:
        """Print a line that is neither good nor bad."""
        echo(f"  ·  {text}")

    def advise(self, fix: str) -> None:
        """Note what to do, once."""
        if fix not in self._fixes:
            self._fixes.append(fix)

    def problem(self, text: str, fix: str) -> None:
        """Print what did not arrive."""
        self._problems += 1
        echo(f"  ✗  {text}")
        self.advise(fix)

    def delivery(self, delivery: Delivery) -> None:
        """Print the outcome of a signal."""
        if delivery.problem is None:
            echo(f"  ✓  {delivery.signal}: accepted by {delivery.address}")
        else:
            self.problem(f"{delivery.signal}: not accepted by {delivery.address}: {delivery.problem}", delivery.fix)

    def store(
        self, place: str, what: str, found: Callable[[], bool], seconds: float, fix: str, unasked: str | None
    ) -> None:
        """Query a store, and print the answer.

        Args:
            place: name and address of the store.
            what: what should be there.
            found: queries for it.
            seconds: how long to wait.
            fix: what to do if it is not found.
            unasked: the option that sets the address; ``None`` if it was given. A backend at the default address may
                belong to another stack, so a missing item is not a failure.
        """
        match wait_for(found, seconds):
            case "found":
                echo(f"  ✓  {place}: {what} found")
            case "unreachable" if unasked is not None:
                self.note(f"{place}: unreachable, or not the expected API; skipped ({unasked} sets another address)")
            case "unreachable":
                self.problem(
                    f"{place}: unreachable, or not the expected API",
                    "correct the address, or start the service (docker compose up -d)",
                )
            case "missing" if unasked is not None:
                self.note(f"{place}: {what} not found within {seconds:g} s; if it is expected there, {fix}")
            case "missing":
                self.problem(f"{place}: {what} not found within {seconds:g} s", fix)

    def finish(self) -> None:
        """Print what to do.

        Raises:
            RunFailed: something did not arrive.
        """
        for fix in self._fixes:
            echo(f"  →  {fix}")
        if self._problems:
            raise RunFailed("telemetry did not arrive; see above")
