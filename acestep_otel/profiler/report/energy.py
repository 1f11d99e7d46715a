"""The energy of one run and of its stages, from the spans' own figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import Run


@dataclass(frozen=True, slots=True)
class RunEnergy:
    """The energy that one run used on its card.

    Attributes:
        joules: from the call to its return.
        watts: on average.
        watt_hours_per_minute: of music; ``None`` if no music was generated, or the card was shared.
        resolution: seconds that an interval is uncertain by, at most.
        shared: whether another request ran on the card.
        stages: joules of those that are long enough, by name.
    """

    joules: float
    watts: float
    watt_hours_per_minute: float | None
    resolution: float
    shared: bool
    stages: dict[str, float]

    @classmethod
    def of(cls, run: Run) -> Self | None:
        """Read the spans; ``None`` if the card has no counter, or the run was too short."""
        root = run.root.attributes
        if semconv.ENERGY not in root or semconv.ENERGY_RESOLUTION not in root or not run.root.seconds:
            return None
        stages: dict[str, float] = {}
        for span in run.spans:
            if semconv.ENERGY in span.attributes:
                name = semconv.stage_of(span.name)
                stages[name] = stages.get(name, 0.0) + float(span.attributes[semconv.ENERGY])
        joules = float(root[semconv.ENERGY])
        return cls(
            joules=joules,
            watts=joules / run.root.seconds,
            watt_hours_per_minute=root.get(semconv.ENERGY_PER_MINUTE),
            resolution=float(root[semconv.ENERGY_RESOLUTION]),
            shared=bool(root.get(semconv.ENERGY_SHARED, False)),
            stages=stages,
        )

    def facts(self) -> Iterator[tuple[str, str]]:
        """Name and value of every figure, as text."""
        shared = ", another request on the card included" if self.shared else ""
        yield "Energy", f"{self.joules:,.0f} J, {self.watts:,.0f} W on average{shared}"
        if self.watt_hours_per_minute is not None:
            yield "Per minute of music", f"{self.watt_hours_per_minute:.3g} Wh"
        for stage, joules in self.stages.items():
            yield stage, f"{joules:,.0f} J"
        yield "Resolution", f"{1e3 * self.resolution:.0f} ms; stages below ten times that have no separate energy"

    def to_json(self) -> dict[str, Any]:
        """The entry of a result file."""
        return asdict(self)


def render_energy(energy: RunEnergy) -> str:
    """The figures as text, without a final newline."""
    return "\n".join(["ENERGY", "=" * 100, *(f"  {name:<35}{value}" for name, value in energy.facts())])
