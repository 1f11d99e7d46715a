"""The stages as ranges of ``torch.profiler``: the same seams and names as the spans, and nothing is recorded."""

from __future__ import annotations

from typing import Any, Final

from torch.profiler import record_function

from acestep_otel import semconv
from acestep_otel.recording.call import Call
from acestep_otel.settings import Settings


class ProfilerRanges:
    """Stands in for the tracing layer at the seams (``acestep_otel.recording.recorder.StageRecorder``).

    Attributes:
        settings: the defaults, which capture no content.
    """

    settings: Final = Settings()

    def request(self, name: str, call: Call, *_details: Any) -> Any:
        """Run a call in a range of its own."""
        with record_function(name):
            return call.run()

    def stage(self, name: str, call: Call, **_details: Any) -> Any:
        """Run a call in a range of its own."""
        return self.request(name, call)

    def load(self, call: Call, **_details: Any) -> Any:
        """Run a model's loading in a range of its own."""
        return self.request(semconv.MODEL_LOAD, call)

    def adopt(self, *_details: Any) -> bool:
        """Leave it to others: what a library measured by itself cannot become a range afterwards."""
        return False
