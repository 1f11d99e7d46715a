"""The boundaries of a tier test as metrics, from the same reduction as its tables."""

from __future__ import annotations

from collections.abc import Sequence

from acestep_otel import semconv
from acestep_otel.profiler.tier_test.boundary import BatchBoundary, Capability
from acestep_otel.profiler.tier_test.trials import GIB
from acestep_otel.recording.instruments import Instruments


def record_boundary(instruments: Instruments, capabilities: Sequence[Capability]) -> None:
    """Record the smallest card of each capability."""
    for capability in capabilities:
        if (minimum := capability.minimum) is not None:
            attributes = {semconv.TIER_CAPABILITY: capability.name}
            instruments.record(semconv.TIER_BOUNDARY, minimum.trial.memory * GIB, attributes)


def record_batch_boundary(instruments: Instruments, cards: Sequence[BatchBoundary]) -> None:
    """Record the largest batch of each card, with and without the language model."""
    for card in cards:
        attributes: dict[str, str | bool | int | float] = {
            semconv.TIER_NAME: card.tier,
            semconv.TIER_MEMORY: card.memory,
        }
        for with_lm, largest in ((False, card.without_lm), (True, card.with_lm)):
            if largest.batch_size is not None:
                instruments.record(
                    semconv.TIER_BATCH, largest.batch_size, {**attributes, semconv.TIER_WITH_LM: with_lm}
                )
