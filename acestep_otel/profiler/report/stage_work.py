"""The work of each stage of one run against the roofline of its device, from the spans' own figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Component
from acestep_otel.profiler.report.spans import FinishedSpan, Run

STAGE_OF: Final[dict[Component, str]] = {
    "vae_encode": semconv.VAE_ENCODE,
    "audio_tokenization": semconv.AUDIO_TOKENIZE,
    "planner": semconv.LM,
    "diffusion": semconv.DIT,
    "step_average": semconv.DIT_STEP,
    "vae_decode": semconv.VAE_DECODE,
}
"""The span whose work is shown in a row of the breakdown. The wall time has none, because it includes host work."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """The total work of the spans of one name.

    Attributes:
        stage: the span's name without its namespace.
        spans: number of spans of that name.
        seconds: their total duration.
        operations: of matrix products, convolutions and attention.
        bytes: read and written by these.
        share: of the roofline, 0 ... 1; ``None`` without peaks of the device.
        bound: ``compute``, ``memory`` or ``launch``, the limit of most of the time; ``None`` without peaks.
    """

    stage: str
    spans: int
    seconds: float
    operations: float
    bytes: float
    share: float | None
    bound: str | None

    @classmethod
    def of(cls, name: str, spans: Sequence[FinishedSpan]) -> Self:
        """Add up spans of one name that have work."""

        def added(attribute: str) -> float:
            return sum(float(span.attributes[attribute]) for span in spans)

        seconds = sum(span.seconds for span in spans)
        known = all(semconv.ROOFLINE_SHARE in span.attributes for span in spans)
        limited: defaultdict[str, float] = defaultdict(float)
        for span in spans:
            limited[str(span.attributes.get(semconv.ROOFLINE_BOUND, ""))] += span.seconds
        ideal = sum(float(span.attributes.get(semconv.ROOFLINE_SHARE, 0.0)) * span.seconds for span in spans)
        return cls(
            stage=semconv.stage_of(name),
            spans=len(spans),
            seconds=seconds,
            operations=added(semconv.WORK_OPERATIONS),
            bytes=added(semconv.WORK_BYTES),
            share=ideal / seconds if known else None,
            bound=max(limited, key=limited.__getitem__) if known else None,
        )

    @property
    def operation_rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds

    @property
    def byte_rate(self) -> float:
        """Bytes per second."""
        return self.bytes / self.seconds

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes

    def to_json(self) -> dict[str, Any]:
        """The entry of a result file."""
        return {
            "stage": self.stage,
            "spans": self.spans,
            "seconds": self.seconds,
            "operations": self.operations,
            "bytes": self.bytes,
            "operation_rate": self.operation_rate,
            "byte_rate": self.byte_rate,
            "share": self.share,
            "bound": self.bound,
        }


@dataclass(frozen=True, slots=True)
class RunWork:
    """The work of one run.

    Attributes:
        stages: those that have any, by span name, in order of start.
        bandwidth: peak of the device in bytes per second, ``None`` where it is not known.
        rate: peak of the device in operations per second, in the type of the weights.
        source: ``measured``, ``datasheet`` or ``calculated``.
    """

    stages: dict[str, StageWork]
    bandwidth: float | None
    rate: float | None
    source: str | None

    @classmethod
    def of(cls, run: Run) -> Self:
        """Read the spans of a run; a failed run has the work up to its failure."""
        working: dict[str, list[FinishedSpan]] = {}
        for span in run.spans:
            if semconv.WORK_OPERATIONS in span.attributes and span.end_ns > span.start_ns:
                working.setdefault(span.name, []).append(span)
        root = run.root.attributes
        return cls(
            {name: StageWork.of(name, spans) for name, spans in working.items()},
            bandwidth=root.get(semconv.DEVICE_PEAK_BANDWIDTH),
            rate=root.get(semconv.DEVICE_PEAK_OPERATIONS),
            source=root.get(semconv.DEVICE_PEAK_SOURCE),
        )

    def row(self, component: Component) -> StageWork | None:
        """The work of a row of the breakdown; ``None`` if it has none."""
        return self.stages.get(STAGE_OF.get(component, ""))

    def to_json(self) -> dict[str, Any] | None:
        """The entry of a result file; ``None`` if no work is known."""
        if not self.stages:
            return None
        return {
            "peak_operations": self.rate,
            "peak_bandwidth": self.bandwidth,
            "peak_source": self.source,
            "stages": [work.to_json() for work in self.stages.values()],
        }
