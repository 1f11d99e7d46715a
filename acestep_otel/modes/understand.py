"""Mode ``understand``: one description of audio codes or of a recording, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acestep import blueprints
from acestep.audio import require_readable
from acestep.checkpoints import load_audio_encoder, load_planner
from acestep.planner.planner import Planner
from acestep.renderer.audio_encoder import AudioEncoder, require_encodable
from acestep.types import ProgressCallback, SongBlueprint, SongwritingSettings
from acestep.validation import validate_audio_codes, validate_songwriting
from acestep_otel import semconv
from acestep_otel.errors import SetupError
from acestep_otel.modes.audio_codes import parse_audio_codes
from acestep_otel.modes.example import Example
from acestep_otel.modes.measurement import measure, setup_errors
from acestep_otel.modes.options import Options
from acestep_otel.modes.request import select_models
from acestep_otel.modes.songwriting import Songwriting, language_model, songwriting_settings
from acestep_otel.providers import Telemetry


def understand(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (see ``acestep_otel.modes.measurement.measure``); without any input the model invents a song."""
    if options.src_audio is not None and options.audio_codes is not None:
        raise SetupError("--src-audio and --audio-codes are two inputs: give one of them")
    settings = songwriting_settings(options, default_seed=Example().seed)
    with setup_errors():
        validate_songwriting(settings)
    if options.src_audio is None:
        measure(options, telemetry, _of_codes(options, settings))
    else:
        measure(options, telemetry, _of_recording(options, options.src_audio, settings))


def _of_codes(options: Options, settings: SongwritingSettings) -> Songwriting[Planner]:
    codes = parse_audio_codes(options.audio_codes or "")
    with setup_errors():
        validate_audio_codes(codes)

    def verb(planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        return blueprints.understand_music(planner, codes, settings=settings, progress=progress)

    return Songwriting(semconv.UNDERSTAND_MUSIC, language_model(options), verb, options)


@dataclass(frozen=True, slots=True)
class _Listener:
    """What a recording needs: something that hears it, and something that describes it."""

    audio_encoder: AudioEncoder
    planner: Planner


def _of_recording(options: Options, recording: Path, settings: SongwritingSettings) -> Songwriting[_Listener]:
    with setup_errors():
        require_encodable(require_readable(recording))

    def load() -> _Listener:
        selection = select_models(options, with_language_model=True)
        return _Listener(load_audio_encoder(selection), load_planner(selection))

    def verb(models: _Listener, progress: ProgressCallback) -> SongBlueprint:
        return blueprints.understand_recording(
            models.planner, models.audio_encoder, recording, settings=settings, progress=progress
        )

    return Songwriting(semconv.UNDERSTAND_MUSIC, load, verb, options)
