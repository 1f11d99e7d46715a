"""Checks the steps and tiles of every finished request, and marks those that stalled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from acestep_otel import semconv
from acestep_otel.recording.energy import Readings
from acestep_otel.recording.instruments import Instruments
from acestep_otel.recording.outcomes import is_out_of_memory
from acestep_otel.recording.stalls import Evidence, RunningMedians, Stall
from acestep_otel.recording.timed_stage import TimedStage
from acestep_otel.recording.trace_tree import AttributeValue, Stage
from acestep_otel.recording.vram import VramReading


@dataclass(frozen=True, slots=True)
class Scene:
    """The circumstances of a request.

    Attributes:
        device: device that it ran on.
        model: model that it requested.
        card: readings of the card; ``None`` if it cannot be queried.
        is_measured: whether it counts in metrics.
    """

    device: str
    model: str
    card: Readings | None
    is_measured: bool


@dataclass(frozen=True, slots=True)
class _Allocations:
    """Growth of the allocator's counts during the stage of a step or a tile; never negative.

    Attributes:
        retries: times that it freed its cache and tried again.
        failed: allocations that failed, or ways to decode that ran out of memory.
        from_driver: allocations that the driver served.
    """

    retries: int
    failed: int
    from_driver: int


class StallWatch:
    """Keeps the usual durations of steps and tiles, and the allocator's counts.

    Args:
        instruments: instruments that count stalls.
    """

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._medians = RunningMedians()
        self._allocator: dict[str, VramReading] = {}

    def left(self, stage: Stage, device: str) -> None:
        """Store the allocator's counts at the end of a stage; called in the order of the ends.

        Args:
            stage: any stage.
            device: of its request.
        """
        if stage.vram is not None:
            self._allocator[str(stage.device or device)] = stage.vram

    def look_at(self, node: TimedStage, parent: TimedStage, scene: Scene, span: Span) -> None:
        """Mark a step or a tile that took many times as long as those of its shape before it.

        Args:
            node: any stage.
            parent: the stage that it is inside.
            scene: its request.
            span: gets the event; has not ended.
        """
        stall = self._stall(node, parent, scene)
        if stall is None:
            return
        cause, evidence = self._evidence(node, parent, scene).cause
        known: dict[str, AttributeValue] = {
            semconv.STALL_CAUSE: cause,
            semconv.STALL_EVIDENCE: evidence,
            semconv.STALL_RATIO: stall.ratio,
            semconv.STALL_USUAL: stall.usual,
        }
        span.add_event(semconv.STALL_EVENT, known, node.end_ns)
        if scene.is_measured:
            attributes: dict[str, AttributeValue] = {
                semconv.STAGE: semconv.stage_of(node.stage.name),
                semconv.REQUEST_MODEL: scene.model,
                semconv.STALL_CAUSE: cause,
            }
            self._instruments.record(semconv.STALLS, 1, attributes, trace.set_span_in_context(span, Context()))

    def _stall(self, node: TimedStage, parent: TimedStage, scene: Scene) -> Stall | None:
        stage = node.stage
        if stage.error is not None:
            return None
        if stage.name == semconv.DIT_STEP:
            sizes = tuple(noted.sizes for noted in stage.passes)
            return self._medians.observe((stage.name, scene.device, scene.model, sizes), node.seconds)
        frames = stage.attributes.get(semconv.VAE_TILE_FRAMES)
        if stage.name == semconv.VAE_TILE and frames:
            # A decode that fell back to the host is compared with those on the device.
            chosen = _on_host(parent, scene) and not self._allocations(node, parent, scene).failed
            shape = (stage.name, scene.device, scene.model, chosen)
            return self._medians.observe(shape, node.seconds, float(frames))
        return None

    def _evidence(self, node: TimedStage, parent: TimedStage, scene: Scene) -> Evidence:
        """Observations from the time of a step or a tile, from its stage and the card."""
        allocations = self._allocations(node, parent, scene)
        conditions = [] if scene.card is None else scene.card.conditions(node.start_ns, node.end_ns)
        inside = (*parent.children, *node.children)
        moved = [child.stage for child in inside if child.stage.name == semconv.OFFLOAD_MOVE]
        end = node.stage.end
        on_device = end is not None and None not in (node.stage.start.event, end.event)
        return Evidence(
            retries=allocations.retries,
            out_of_memory=allocations.failed,
            driver_allocations=allocations.from_driver,
            moved=tuple(dict.fromkeys(str(move.attributes.get(semconv.OFFLOAD_MODEL, "")) for move in moved)),
            on_host=_on_host(parent, scene),
            throttled=reduce(or_, (condition.reasons for condition in conditions), 0),
            memory_share=max((condition.memory_share for condition in conditions), default=None),
            host_share=node.host_seconds / node.seconds if on_device and node.seconds > 0 else None,
        )

    def _allocations(self, node: TimedStage, parent: TimedStage, scene: Scene) -> _Allocations:
        """From the last stage before a step or a tile to its own end if it was read there, else to its parent's."""
        failed = max(
            int(parent.stage.attributes.get(semconv.VAE_ATTEMPTS, 1)) - 1,
            sum(is_out_of_memory(child.stage.error) for child in parent.children),
        )
        before, after = self._allocator.get(scene.device), node.stage.vram or parent.stage.vram
        if before is None or after is None:
            return _Allocations(0, failed, 0)
        return _Allocations(
            retries=max(0, after.retries - before.retries),
            failed=max(failed, after.out_of_memory - before.out_of_memory),
            from_driver=max(0, after.driver_allocations - before.driver_allocations),
        )


def _on_host(decode: TimedStage, scene: Scene) -> bool:
    """Whether a decode ran on the host although the request has a device."""
    return decode.stage.attributes.get(semconv.VAE_RUNG) == "cpu" and not scene.device.startswith("cpu")
