"""Spans with explicit times from the device's clock, memory peaks and metrics; nothing here waits for the device."""

from acestep_otel.recording.annotations import annotated, warmup
from acestep_otel.recording.calibration import calibrate_guidance

__all__ = ["annotated", "calibrate_guidance", "warmup"]
