"""Mode ``create_sample``: one blueprint of a song from a short wish, and where its time went."""

from __future__ import annotations

from typing import Final

from acestep import blueprints
from acestep.planner.planner import Planner
from acestep.types import ProgressCallback, SongBlueprint
from acestep.validation import validate_songwriting
from acestep_otel import semconv
from acestep_otel.modes.example import Example
from acestep_otel.modes.measurement import measure, setup_errors
from acestep_otel.modes.options import Options
from acestep_otel.modes.songwriting import Songwriting, language_model, songwriting_settings
from acestep_otel.providers import Telemetry

DEFAULT_QUERY: Final = "an unhurried song for a long train ride at night"
"""The wish when the command line has none, so that the mode runs as it is."""


def create_sample(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (see ``acestep_otel.modes.measurement.measure``)."""
    query = DEFAULT_QUERY if options.sample_query is None else options.sample_query
    settings = songwriting_settings(options, default_seed=Example().seed)
    with setup_errors():
        validate_songwriting(settings)

    def verb(planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        return blueprints.create_sample(
            planner, query, instrumental=options.instrumental, settings=settings, progress=progress
        )

    measure(options, telemetry, Songwriting(semconv.CREATE_SAMPLE, language_model(options), verb, options))
