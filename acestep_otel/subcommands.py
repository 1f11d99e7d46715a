"""Commands beside the modes: what they take, and the module that does it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import cloup
from cloup import option

_FILE: Final = click.Path(path_type=Path)


@cloup.command("compare", short_help="Compare two result files: the regression gate.")
@cloup.argument("baseline", type=_FILE, metavar="A.json", help="Result file to compare with.")
@cloup.argument("candidate", type=_FILE, metavar="B.json", help="Result file to be judged.")
@option(
    "--threshold",
    type=click.FloatRange(min=0, min_open=True),
    default=1.10,
    show_default="1.10",
    help="Largest ratio B/A that passes.",
)
@option("--output", type=_FILE, show_default="none", help="Save the ratios to JSON file.")
def compare_command(baseline: Path, candidate: Path, threshold: float, output: Path | None) -> None:
    """Compare two result files cell by cell: exit code 1 when B is slower than the threshold allows."""
    # Imported here like the modes: --help needs none of it.
    from acestep_otel.modes.compare import compare

    compare(baseline, candidate, threshold=threshold, output=output)


@cloup.command("doctor", short_help="Send one span and one metric, and say where they arrived.")
@option(
    "--otlp-endpoint",
    show_default="OTEL_EXPORTER_OTLP_ENDPOINT, else http://localhost:4317",
    help="Where to send.",
)
@option(
    "--otlp-protocol",
    type=click.Choice(["grpc", "http/protobuf"]),
    show_default="grpc, or OTEL_EXPORTER_OTLP_PROTOCOL",
    help="How to send.",
)
@option(
    "--jaeger-url",
    show_default="http://localhost:16686, if it answers",
    help="Jaeger that must show the span.",
)
@option(
    "--prometheus-url",
    show_default="http://localhost:9090, if it answers",
    help="Prometheus that must show the metric.",
)
@option(
    "--wait",
    type=click.FloatRange(min=0, max=600),
    default=20.0,
    show_default="20",
    help="Seconds that Jaeger and Prometheus are given to show them.",
)
def doctor_command(
    otlp_endpoint: str | None,
    otlp_protocol: str | None,
    jaeger_url: str | None,
    prometheus_url: str | None,
    wait: float,
) -> None:
    """Send one span and one metric, and say where they arrived and what to fix: exit code 1 when nothing arrives."""
    from acestep_otel.modes.doctor import doctor

    doctor(
        endpoint=otlp_endpoint,
        protocol=otlp_protocol,
        jaeger_url=jaeger_url,
        prometheus_url=prometheus_url,
        wait=wait,
    )
