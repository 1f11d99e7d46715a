"""Summaries of a tier test: the smallest card for a capability, the largest batch on a card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from acestep_otel.profiler.tier_test.trials import GIB, Kind, TierResult

NO_QUANTISATION: Final = "No INT8 Quantization"
NO_OFFLOAD: Final = "No CPU Offload (all models on GPU)"


@dataclass(frozen=True, slots=True)
class Capability:
    """The smallest card that supports something.

    Attributes:
        name: name of the capability.
        tried: every conclusive row, by memory.
    """

    name: str
    tried: tuple[TierResult, ...]

    @property
    def minimum(self) -> TierResult | None:
        """The smallest card such that it and every larger one pass; ``None`` if the largest one does not pass."""
        smallest = None
        for result in reversed(self.tried):
            if not result.passed:
                break
            smallest = result
        return smallest

    @property
    def highest_failure(self) -> TierResult | None:
        """The largest card that does not pass."""
        return next((result for result in reversed(self.tried) if not result.passed), None)

    @property
    def below_a_failure(self) -> tuple[TierResult, ...]:
        """Cards that pass although a larger one does not: the result is not monotone."""
        failure = self.highest_failure
        return () if failure is None else tuple(r for r in self.tried[: self.tried.index(failure)] if r.passed)

    def to_json(self) -> dict[str, Any]:
        """The entry of the result file."""
        minimum, failure = self.minimum, self.highest_failure
        return {
            "capability": self.name,
            "minimum_tier": None if minimum is None else minimum.trial.tier,
            "minimum_gb": None if minimum is None else minimum.trial.memory,
            "peak_vram_gb": None if minimum is None else _gib(minimum),
            "highest_failure_gb": None if failure is None else failure.trial.memory,
            "passed_below_a_failure_gb": [result.trial.memory for result in self.below_a_failure],
            "tried": [{"tier_gb": result.trial.memory, "status": result.status} for result in self.tried],
        }


def boundary(results: Sequence[TierResult]) -> tuple[Capability, Capability]:
    """The smallest card that runs without quantisation, and without quantisation and offload.

    A tier's own settings count if they already omit them.
    """
    return (
        Capability(NO_QUANTISATION, _tried(results, "no-quant", needs_offload_off=False)),
        Capability(NO_OFFLOAD, _tried(results, "no-offload", needs_offload_off=True)),
    )


def _tried(results: Sequence[TierResult], kind: Kind, *, needs_offload_off: bool) -> tuple[TierResult, ...]:
    def tells(result: TierResult) -> bool:
        placement = result.trial.placement
        bare = placement.quantization is None and not (needs_offload_off and placement.offload_to_cpu)
        return result.tried and (result.trial.kind == kind or (result.trial.kind == "default" and bare))

    return tuple(sorted(filter(tells, results), key=lambda result: result.trial.memory))


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """How many songs a card generates at once, with or without the language model.

    Attributes:
        configured: the tier's own limit.
        tried: rows by batch size; empty if none was tried.
    """

    configured: int
    tried: tuple[TierResult, ...]

    @property
    def passing(self) -> TierResult | None:
        """The largest batch such that it and every smaller one that was tried pass; ``None`` if the smallest fails."""
        largest = None
        for result in self.tried:
            if not result.passed:
                break
            largest = result
        return largest

    @property
    def batch_size(self) -> int | None:
        """Songs of ``passing``; 0 if none passes, ``None`` if none was tried."""
        if not self.tried:
            return None
        return 0 if self.passing is None else self.passing.trial.batch_size

    @property
    def above_a_failure(self) -> tuple[int, ...]:
        """Batch sizes that pass although a smaller one does not: the result is not monotone."""
        failed = next((index for index, result in enumerate(self.tried) if not result.passed), len(self.tried))
        return tuple(result.trial.batch_size for result in self.tried[failed:] if result.passed)

    def to_json(self) -> dict[str, Any]:
        """The entry of the result file."""
        return {
            "configured": self.configured,
            "tested": self.batch_size,
            "peak_vram_gb": None if self.passing is None else _gib(self.passing),
            "passed_above_a_failure": list(self.above_a_failure),
        }


@dataclass(frozen=True, slots=True)
class BatchBoundary:
    """One card's largest batches.

    Attributes:
        memory: GiB that the card has.
        tier: its tier.
        without_lm: songs at once without the language model.
        with_lm: songs at once with it.
    """

    memory: int
    tier: str
    without_lm: LargestBatch
    with_lm: LargestBatch

    @property
    def recommendation(self) -> str:
        """The proposed change of the tier table, or ``OK``; rows without a cap are no evidence about a card."""
        rows = (*self.without_lm.tried, *self.with_lm.tried)
        if any(result.observation is not None and not result.capped for result in rows):
            return "none: cap not enforced"
        changes = [
            f"{name}: {largest.configured}→{largest.batch_size}"
            for name, largest in (("no_lm", self.without_lm), ("lm", self.with_lm))
            if largest.batch_size is not None and largest.batch_size != largest.configured
        ]
        return ", ".join(changes) or "OK"

    def to_json(self) -> dict[str, Any]:
        """The entry of the result file."""
        return {
            "tier_gb": self.memory,
            "tier": self.tier,
            "without_lm": self.without_lm.to_json(),
            "with_lm": self.with_lm.to_json(),
            "recommendation": self.recommendation,
        }


def batch_boundary(
    results: Sequence[TierResult], configured: Mapping[str, tuple[int, int]]
) -> tuple[BatchBoundary, ...]:
    """The largest batches of every card that was tried with several songs, in the given order.

    Args:
        results: rows.
        configured: limits of each tier, without and with a language model.
    """
    rows = [result for result in results if result.trial.is_batch]
    cards = dict.fromkeys((result.trial.memory, result.trial.tier) for result in rows)

    def largest(memory: int, limit: int, kind: Kind) -> LargestBatch:
        tried = [
            result for result in rows if result.tried and (result.trial.memory, result.trial.kind) == (memory, kind)
        ]
        return LargestBatch(limit, tuple(sorted(tried, key=lambda result: result.trial.batch_size)))

    return tuple(
        BatchBoundary(
            memory,
            tier,
            without_lm=largest(memory, configured[tier][0], "batch-noLM"),
            with_lm=largest(memory, configured[tier][1], "batch-LM"),
        )
        for memory, tier in cards
    )


def _gib(result: TierResult) -> float | None:
    return None if result.peak is None else round(result.peak / GIB, 3)
