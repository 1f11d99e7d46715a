"""Mode ``understand``: one description of audio codes, and where its time went."""

from __future__ import annotations

from acestep import songwriting
from acestep.planner.planner import Planner
from acestep.types import ProgressCallback, SongBlueprint
from acestep.validation import validate_audio_codes, validate_songwriting
from acestep_otel import semconv
from acestep_otel.modes.audio_codes import parse_audio_codes
from acestep_otel.modes.example import Example
from acestep_otel.modes.measurement import measure, setup_errors
from acestep_otel.modes.options import Options
from acestep_otel.modes.songwriting import Songwriting, songwriting_settings
from acestep_otel.providers import Telemetry


def understand(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (see ``acestep_otel.modes.measurement.measure``); without codes the model invents a song."""
    codes = parse_audio_codes(options.audio_codes or "")
    settings = songwriting_settings(options, default_seed=Example().seed)
    with setup_errors():
        validate_audio_codes(codes)
        validate_songwriting(settings)

    def verb(planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        return songwriting.understand_music(planner, codes, settings=settings, progress=progress)

    measure(options, telemetry, Songwriting(semconv.UNDERSTAND_MUSIC, verb, options))
