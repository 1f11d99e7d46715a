"""Requests to the planner, with metadata in the model's spelling."""

from collections.abc import Sequence

from acestep.planner.metadata import normalise
from acestep.planner.plans import PlanRequest
from acestep.types import GenerationRequest


def asks(request: GenerationRequest, seeds: Sequence[int]) -> PlanRequest:
    metadata = normalise(request.metadata)
    duration = metadata.duration if request.duration is None else request.duration
    return PlanRequest.of(request, metadata, duration, seeds)
