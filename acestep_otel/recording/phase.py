"""Times inside a planner phase: one mark per decode pass, never one span per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from acestep_otel.recording.clock import Mark

WINDOW_TOKENS: Final = 64
"""Decode passes in one ``acestep.lm.tokens`` span."""


@dataclass(slots=True, eq=False)
class PhaseRecord:
    """Collected by the patches while the phase runs.

    Attributes:
        prefills: start and end marks of each prompt forward.
        passes: one mark at the end of each decode pass, which yields one token per song.
        constrained_ns: host time in the grammar.
    """

    prefills: list[tuple[Mark, Mark]] = field(default_factory=list)
    passes: list[Mark] = field(default_factory=list)
    constrained_ns: int = 0

    @property
    def marks(self) -> list[Mark]:
        """All marks, in the order that ``PhaseTimes.of`` expects their times."""
        return [mark for prefill in self.prefills for mark in prefill] + self.passes


@dataclass(frozen=True, slots=True)
class PhaseTimes:
    """The same, resolved to Unix nanoseconds, with the figures drawn from it. Durations are seconds.

    Attributes:
        prefill: duration of all prompt forwards.
        constrained: duration in the grammar.
        passes_ns: end of each decode pass.
    """

    prefill: float
    constrained: float
    passes_ns: tuple[int, ...]

    @classmethod
    def of(cls, record: PhaseRecord, times_ns: Sequence[int]) -> PhaseTimes:
        """Pair a record with the resolved times of its ``marks``."""
        prefills = times_ns[: 2 * len(record.prefills)]
        return cls(
            prefill=sum(end - start for start, end in zip(prefills[::2], prefills[1::2], strict=True)) / 1e9,
            constrained=record.constrained_ns / 1e9,
            passes_ns=tuple(times_ns[len(prefills) :]),
        )

    @property
    def gaps(self) -> list[float]:
        """Seconds between the ends of successive decode passes."""
        return [(later - earlier) / 1e9 for earlier, later in zip(self.passes_ns, self.passes_ns[1:], strict=False)]

    @property
    def decode(self) -> float:
        """From the first sampled token to the last."""
        return (self.passes_ns[-1] - self.passes_ns[0]) / 1e9 if self.passes_ns else 0.0

    @property
    def seconds_per_token(self) -> float | None:
        """Decode duration over the tokens after the first; ``None`` below two tokens."""
        return self.decode / (len(self.passes_ns) - 1) if len(self.passes_ns) > 1 else None

    def windows(self) -> list[tuple[int, int, int, int]]:
        """``(first, count, start_ns, end_ns)`` of each window of decode passes after the first token."""
        ends = self.passes_ns
        return [
            (
                first,
                min(WINDOW_TOKENS, len(ends) - first),
                ends[first - 1],
                ends[min(first + WINDOW_TOKENS, len(ends)) - 1],
            )
            for first in range(1, len(ends), WINDOW_TOKENS)
        ]


def percentile_95(values: Sequence[float]) -> float:
    """The value that 95 % of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -(-95 * len(ranked) // 100) - 1)]


@dataclass(frozen=True, slots=True)
class GapSummary:
    """Median, 95th percentile and maximum of the time between decode passes, in seconds, and where the maximum was."""

    p50: float
    p95: float
    maximum: float
    maximum_index: int

    @classmethod
    def of(cls, gaps: Sequence[float]) -> GapSummary | None:
        """``None`` when there are no gaps."""
        if not gaps:
            return None
        longest = max(range(len(gaps)), key=gaps.__getitem__)
        return cls(median(gaps), percentile_95(gaps), gaps[longest], longest + 1)
