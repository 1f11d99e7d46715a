"""Attributes and metrics of the work that a stage did: operations, bytes, and the share of its device's roofline."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, cast, get_args

from opentelemetry.context import Context

from acestep_otel import semconv
from acestep_otel.recording.instruments import Instruments, MetricAttributes
from acestep_otel.recording.trace_tree import AttributeValue, Stage
from acestep_otel.roofline.devices import device_key
from acestep_otel.roofline.peaks import Peaks, peaks_of
from acestep_otel.roofline.roofline import Bound, Roofline
from acestep_otel.roofline.work import Part, Precision

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("acestep_otel")

_PARTS_OF_STAGES: Final = frozenset({semconv.DIT_STEP, semconv.VAE_TILE})
"""Spans whose work is counted under their stage."""


class PeaksByDevice:
    """The peaks of the devices that requests run on, each looked up once."""

    def __init__(self) -> None:
        self._known: dict[torch.device, Peaks | None] = {}

    def of(self, device: torch.device) -> Peaks | None:
        """The peaks of a device; ``None`` where they are not known."""
        if device not in self._known:
            try:
                self._known[device] = peaks_of(device_key(device))
            except Exception as error:
                # An invalid file of peaks, or a driver that does not respond: there is no share.
                logger.warning("no share of the roofline: %s", error)
                self._known[device] = None
        return self._known[device]


def peak_attributes(peaks: Peaks | None, dtype: AttributeValue) -> Iterator[tuple[str, AttributeValue]]:
    """The peaks that the shares of this request refer to.

    Args:
        peaks: of the device.
        dtype: of the weights.
    """
    if peaks is None:
        return
    yield semconv.DEVICE_PEAK_BANDWIDTH, peaks.bandwidth
    yield semconv.DEVICE_PEAK_SOURCE, peaks.source
    if (rate := peaks.operations.get(cast("Precision", dtype))) is not None:
        yield semconv.DEVICE_PEAK_OPERATIONS, rate


def work_attributes(roofline: Roofline, bound: Bound | None) -> Iterator[tuple[str, AttributeValue]]:
    """Everything about the work of one span.

    Args:
        roofline: work against time.
        bound: what limits it.
    """
    yield semconv.WORK_OPERATIONS, float(roofline.work.operations)
    yield semconv.WORK_BYTES, float(roofline.work.bytes)
    yield semconv.WORK_OPERATION_RATE, roofline.operation_rate
    yield semconv.WORK_BYTE_RATE, roofline.byte_rate
    if roofline.share is not None and roofline.ceiling is not None and bound is not None:
        yield semconv.ROOFLINE_SHARE, roofline.share
        yield semconv.ROOFLINE_CEILING, roofline.ceiling
        yield semconv.ROOFLINE_BOUND, bound


def record_work(
    instruments: Instruments,
    roofline: Roofline,
    bound: Bound | None,
    attributes: MetricAttributes,
    context: Context,
) -> None:
    """Record the rates of a stage.

    Args:
        instruments: instruments that record the rates.
        roofline: work against time.
        bound: what limits the stage.
        attributes: stage and model.
        context: of the span, for exemplars.
    """
    instruments.record(semconv.WORK_OPERATION_RATE_LAST, roofline.operation_rate, attributes, context)
    instruments.record(semconv.WORK_BYTE_RATE_LAST, roofline.byte_rate, attributes, context)
    if roofline.share is None or bound is None:
        return
    for each in get_args(Bound):
        # Zero for the others, so that the bound of an earlier run does not remain beside that of the last.
        share = roofline.share if each == bound else 0.0
        instruments.record(semconv.ROOFLINE_SHARE_LAST, share, {**attributes, semconv.ROOFLINE_BOUND: each}, context)


def count_work(instruments: Instruments, parts: Sequence[Part], attributes: MetricAttributes, context: Context) -> None:
    """Count the operations and bytes of passes under the stage that they belong to."""
    operations = sum(part.work.operations for part in parts)
    if operations:
        instruments.record(semconv.WORK_OPERATIONS_COUNT, operations, attributes, context)
        instruments.record(semconv.WORK_BYTES_COUNT, sum(part.work.bytes for part in parts), attributes, context)


def own_stage(stage: Stage) -> bool:
    """Whether a span's work counts under its own name; that of steps and tiles counts under their stage's."""
    return stage.name not in _PARTS_OF_STAGES
