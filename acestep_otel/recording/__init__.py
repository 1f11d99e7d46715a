"""Spans with explicit times from the device's clock, memory peaks and metrics, without a wait for the device."""

from acestep_otel.recording.guidance_share import GuidanceShare, guidance_share, measure_guidance_share
from acestep_otel.recording.trace_tree import annotated, warmup

__all__ = ["GuidanceShare", "annotated", "guidance_share", "measure_guidance_share", "warmup"]
