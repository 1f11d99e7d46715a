"""Head sampling with a way to force one request; needs the OpenTelemetry SDK."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER_ARG
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from acestep_otel import semconv
from acestep_otel.forced_sampling.propagator import is_forced


class ForcibleSampler(Sampler):
    """Samples forced requests and marks their spans with ``acestep.trace.force``; another sampler decides the rest."""

    def __init__(self, otherwise: Sampler) -> None:
        self._otherwise = otherwise

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Sample a forced request; otherwise return the decision of the other sampler."""
        if is_forced(parent_context):
            return SamplingResult(
                Decision.RECORD_AND_SAMPLE, {**(attributes or {}), semconv.TRACE_FORCE: True}, trace_state
            )
        return self._otherwise.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """Both names."""
        return f"ForcibleSampler{{{self._otherwise.get_description()}}}"


def forcible_traceidratio(argument: str | None = None) -> Sampler:
    """The sampler ``OTEL_TRACES_SAMPLER=acestep_forcible_traceidratio``.

    Args:
        argument: ``OTEL_TRACES_SAMPLER_ARG``, the share of traces to sample, 0 ... 1; everything when not given. A
            caller's own decision (the flag in ``traceparent``) comes first.

    Raises:
        ValueError: the argument is not a share; the message names the variable.
    """
    return ForcibleSampler(ParentBasedTraceIdRatio(share_of(argument)))


def share_of(argument: str | None) -> float:
    """The share that ``OTEL_TRACES_SAMPLER_ARG`` names; 1 when it is empty.

    Raises:
        ValueError: it is not a number from 0 to 1; the message names the variable.
    """
    try:
        share = float(argument) if argument and argument.strip() else 1.0
    except ValueError:
        share = math.nan
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{OTEL_TRACES_SAMPLER_ARG}={argument!r} is not a sampling ratio: give a number from 0 to 1")
    return share
