"""Mode ``format_sample``: the example's caption and lyrics made into structured metadata, and where its time went."""

from __future__ import annotations

from acestep import songwriting
from acestep.planner.planner import Planner
from acestep.types import ProgressCallback, SongBlueprint
from acestep.validation import validate_songwriting
from acestep_otel import semconv
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.example import load_example
from acestep_otel.profiler.run.measurement import measure, setup_errors
from acestep_otel.profiler.songwriting.blueprint import Songwriting, language_model, songwriting_settings
from acestep_otel.profiler.telemetry.providers import Telemetry


def format_sample(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (see ``acestep_otel.profiler.run.measurement.measure``).

    The example's metadata stays out: it would be forced, and there would be nothing left to find.
    """
    example = load_example(options.example)
    settings = songwriting_settings(options, default_seed=example.seed)
    with setup_errors():
        validate_songwriting(settings)

    def verb(planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        return songwriting.format_sample(planner, example.caption, example.lyrics, settings=settings, progress=progress)

    measure(options, telemetry, Songwriting(semconv.FORMAT_SAMPLE, language_model(options), verb, options))
