"""The cost of classifier-free guidance inside a batched forward: measured, because a single pass does not show it.

With guidance on, conditional and unconditional rows go through the language model together. The share of such a
pass that the unconditional rows cost depends on the device, the model, the number of rows and the context: close to
nothing when reading the weights is the bottleneck, half when arithmetic is. It is measured by timing passes with and
without the unconditional rows, at the run's own shape, outside the measured run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


_current: ContextVar[GuidanceShare | None] = ContextVar("acestep_otel_guidance_share", default=None)


@contextmanager
def guidance_share(share: GuidanceShare | None) -> Iterator[None]:
    """Put a measured share on the language-model phases of the requests made inside the block.

    Args:
        share: measured at the shape of those requests; ``None`` where it was not measured.
    """
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def current_guidance_share() -> GuidanceShare | None:
    """The share of the enclosing block."""
    return _current.get()


def measure_guidance_share(models: Models, request: GenerationRequest) -> GuidanceShare | None:
    """Measure for one request; ``None`` when it uses no guidance.

    Runs forward passes on the loaded language model for a fraction of a second; call it between the warm-up and the
    measured run.
    """
    planner = models.planner
    if planner is None or not request.writes_audio_codes or request.sampling.guidance_scale <= 1:
        return None
    backend = planner.backend
    shape = planner.codes_shape(request)
    with planner.on_device():
        return GuidanceShare(
            decode=backend.measure_guidance_share(request.batch_size, shape.middle_context),
            prefill=backend.measure_prefill_guidance_share(shape.prompt_tokens),
        )
