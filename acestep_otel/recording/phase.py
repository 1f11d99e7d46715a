"""Times inside a planner phase: one mark per decode pass, never one span per token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from acestep_otel.recording.clock import Mark

_LAUNCHING_LAG: Final = 0.25
"""Longest lag of the device behind the host, in times between two passes, at which the device waits for the host."""
WINDOW_TOKENS: Final = 64
"""Decode passes in one ``acestep.lm.tokens`` span."""


@dataclass(slots=True, eq=False)
class PhaseRecord:
    """Collected by the patches while the phase runs.

    Attributes:
        prefills: start and end marks of each prompt forward.
        passes: one mark at the end of each decode pass, which yields one token per song.
        constrained_ns: host time in the grammar; ``None`` while it has not been measured.
        counts: tokens and passes that were counted while the phase ran, by the name of their attribute.
        choices: places of the grammar at which a token was drawn.
        candidates: tokens that could be drawn there, over all of them.
    """

    prefills: list[tuple[Mark, Mark]] = field(default_factory=list)
    passes: list[Mark] = field(default_factory=list)
    constrained_ns: int | None = 0
    counts: Counter[str] = field(default_factory=Counter)
    choices: int = 0
    candidates: int = 0

    @property
    def mean_candidates(self) -> float | None:
        """Tokens that one was drawn from, on average; ``None`` where no grammar left a choice."""
        return self.candidates / self.choices if self.choices else None

    @property
    def marks(self) -> list[Mark]:
        """All marks, in the order that ``PhaseTimes.of`` expects their times."""
        return [mark for prefill in self.prefills for mark in prefill] + self.passes


@dataclass(frozen=True, slots=True)
class PhaseTimes:
    """The record resolved to Unix nanoseconds, with the figures derived from it. Durations are seconds.

    Attributes:
        prefills_ns: start and end of each prompt forward.
        constrained: duration in the grammar; ``None`` where it was not measured.
        passes_ns: end of each decode pass.
        lag: median time from when the host had enqueued a pass until the device had run it; ``None`` where the device
            has no clock of its own.
    """

    prefills_ns: tuple[tuple[int, int], ...]
    constrained: float | None
    passes_ns: tuple[int, ...]
    lag: float | None = None

    @classmethod
    def of(cls, record: PhaseRecord, times_ns: Sequence[int], host_offset_ns: int = 0) -> PhaseTimes:
        """Pair a record with the resolved times of its ``marks``.

        Args:
            record: what was collected.
            times_ns: Unix times of its marks, in order.
            host_offset_ns: from the host's clock to Unix time.
        """
        prefills = times_ns[: 2 * len(record.prefills)]
        lags = [
            reached - mark.host_ns - host_offset_ns
            for mark, reached in zip(record.passes, times_ns[len(prefills) :], strict=True)
            if mark.event is not None
        ]
        return cls(
            prefills_ns=tuple(zip(prefills[::2], prefills[1::2], strict=True)),
            constrained=None if record.constrained_ns is None else record.constrained_ns / 1e9,
            passes_ns=tuple(times_ns[len(prefills) :]),
            lag=median(lags) / 1e9 if lags else None,
        )

    @property
    def waits_for_host(self) -> bool:
        """Whether the device finishes a pass as soon as the host has enqueued it: launching is the bottleneck."""
        gaps = self.gaps
        return self.lag is not None and bool(gaps) and self.lag < _LAUNCHING_LAG * median(gaps)

    @property
    def prefill(self) -> float | None:
        """Duration of all prompt forwards; ``None`` if there was none."""
        return sum(end - start for start, end in self.prefills_ns) / 1e9 if self.prefills_ns else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between the ends of successive decode passes.

        Where songs are written one after the other, the first pass of each ends with its prompt and closes no gap.
        """
        firsts = {end for _, end in self._later_prefills}
        return [
            (later - earlier) / 1e9
            for earlier, later in zip(self.passes_ns, self.passes_ns[1:], strict=False)
            if not any(earlier < end <= later for end in firsts)
        ]

    @property
    def decode(self) -> float | None:
        """From the first sampled token to the last, without prompts in between; ``None`` if there was no pass."""
        if not self.passes_ns:
            return None
        return (self.passes_ns[-1] - self.passes_ns[0] - sum(end - start for start, end in self._later_prefills)) / 1e9

    @property
    def decode_passes(self) -> int:
        """Decode passes that took the decode duration: all but the first after each prompt."""
        return max(0, len(self.passes_ns) - 1 - len(self._later_prefills))

    @property
    def seconds_per_token(self) -> float | None:
        """Decode duration over the tokens after the first; ``None`` below two tokens."""
        return self.decode / self.decode_passes if self.decode is not None and self.decode_passes else None

    @property
    def _later_prefills(self) -> list[tuple[int, int]]:
        """Prompts of further songs, which ran after the first song's first token."""
        return [prefill for prefill in self.prefills_ns if prefill[0] >= self.passes_ns[0]] if self.passes_ns else []

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
