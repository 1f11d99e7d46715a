"""Mode ``format_sample``: the example's caption and lyrics made into structured metadata, and where its time went."""

from __future__ import annotations

from acestep import blueprints
from acestep.planner.planner import Planner
from acestep.types import ProgressCallback, SongBlueprint
from acestep.validation import validate_songwriting
from acestep_otel import semconv
from acestep_otel.modes.example import load_example
from acestep_otel.modes.measurement import measure, setup_errors
from acestep_otel.modes.options import Options
from acestep_otel.modes.songwriting import Songwriting, language_model, songwriting_settings
from acestep_otel.providers import Telemetry


def format_sample(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (see ``acestep_otel.modes.measurement.measure``).

    The example's metadata stays out: it would be forced, and there would be nothing left to find.
    """
    example = load_example(options.example)
    settings = songwriting_settings(options, default_seed=example.seed)
    with setup_errors():
        validate_songwriting(settings)

    def verb(planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        return blueprints.format_sample(planner, example.caption, example.lyrics, settings=settings, progress=progress)

    measure(options, telemetry, Songwriting(semconv.FORMAT_SAMPLE, language_model(options), verb, options))
