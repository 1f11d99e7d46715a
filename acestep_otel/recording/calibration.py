"""What classifier-free guidance costs inside a batched forward: measured, because it cannot be read off one pass.

With guidance on, conditional and unconditional rows go through the language model together. The share of such a
pass that the unconditional rows are to blame for depends on the device, the model, the number of rows and the
context: close to nothing when reading the weights is the bottleneck, half when arithmetic is. Calibration times
passes with and without the unconditional rows, at the run's own shape, outside the measured run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from acestep.checkpoints import Models
    from acestep.types import GenerationRequest


@dataclass(frozen=True, slots=True)
class GuidanceShare:
    """Share of a forward pass that the unconditional rows cost, 0 ... 1.

    Attributes:
        decode: of a decode pass (one token per row).
        prefill: of the pass over the prompts.
    """

    decode: float
    prefill: float


class CalibratedBackend(Protocol):
    """A backend that can time its own passes."""

    def measure_guidance_share(self, rows: int, context: int) -> float:
        """1 - time(rows) / time(2 * rows) of a decode pass."""

    def measure_prefill_guidance_share(self, tokens: int) -> float:
        """1 - time(conditional row) / time(both rows) of a prompt pass."""


class GuidanceCalibration:
    """Shares measured so far: per backend and number of conditional rows."""

    def __init__(self) -> None:
        self._shares: WeakKeyDictionary[object, dict[int, GuidanceShare]] = WeakKeyDictionary()

    def share_of(self, backend: object, rows: int) -> GuidanceShare | None:
        """The share for a backend running ``rows`` songs; ``None`` when it was not calibrated."""
        return self._shares.get(backend, {}).get(rows)

    def measure(self, backend: CalibratedBackend, rows: int, context: int, prompt: int) -> GuidanceShare:
        """Time the backend and remember the share.

        Args:
            backend: the planner's backend.
            rows: songs generated together.
            context: positions that lie in the cache half-way through the codes.
            prompt: tokens of the conditional prompt.
        """
        share = GuidanceShare(
            decode=backend.measure_guidance_share(rows, context),
            prefill=backend.measure_prefill_guidance_share(prompt),
        )
        self._shares.setdefault(backend, {})[rows] = share
        return share


CALIBRATION = GuidanceCalibration()
"""The process's calibration: a cache of measured facts about loaded backends, keyed by the backend itself."""


def calibrate_guidance(models: Models, request: GenerationRequest) -> GuidanceShare | None:
    """Calibrate for one request; ``None`` when it uses no guidance.

    Runs forward passes on the loaded language model for a fraction of a second; call it between the warm-up and the
    measured run.
    """
    planner = models.planner
    if planner is None or not request.writes_audio_codes or request.sampling.guidance_scale <= 1:
        return None
    shape = planner.codes_shape(request)
    with planner.present():
        return CALIBRATION.measure(planner.backend, request.batch_size, shape.middle_context, shape.prompt_tokens)
