"""Functions that describe a song as text: from audio codes, a recording, a query or a draft.

They take a planner (``acestep.load_planner``, or ``planner`` of loaded models) and load no renderer. A
recording also takes an audio encoder: ``load_audio_encoder``, or, of a renderer that is loaded,
``AudioEncoder(AudioEncoderModels.of(renderer.models), renderer.offloader)``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from acestep.audio import load_audio
from acestep.field_checks import require_text, require_types
from acestep.planner.metadata import normalise
from acestep.planner.planner import Planner
from acestep.planner.plans import forced_metadata
from acestep.planner.songwriter import Songwriter, SongwritingRequest
from acestep.renderer.audio_encoder import AudioEncoder
from acestep.types import (
    INSTRUMENTAL,
    EffectivePlannerSettings,
    ProgressCallback,
    SongBlueprint,
    SongMetadata,
    SongwritingSettings,
)
from acestep.validation import MAX_SEED, validate_audio_codes, validate_songwriting

_DEFAULTS = SongwritingSettings()


def understand_music(
    planner: Planner,
    audio_codes: Sequence[int],
    *,
    settings: SongwritingSettings = _DEFAULTS,
    progress: ProgressCallback | None = None,
) -> SongBlueprint:
    """Describe the music of audio codes.

    Args:
        planner: the loaded language model.
        audio_codes: five per second of audio, each 0 ... 63,999; without any the model invents a song.
        settings: how the model writes.
        progress: called with every token; an exception that it raises stops the run.

    Returns:
        Caption, metadata and lyrics.

    Raises:
        InvalidRequest: a code or a setting is out of range.
        BudgetExceeded: codes and lyrics together are too long for the model.
        OutOfMemory: a phase did not fit; ``stage`` says which.
        InvalidOutput: the model produced NaN, infinity, or nothing that can be read.
        BackendFailed: the device failed.
    """
    return BlueprintWriter(planner).understand(audio_codes, settings, progress)


def understand_recording(
    planner: Planner,
    audio_encoder: AudioEncoder,
    recording: Path,
    *,
    settings: SongwritingSettings = _DEFAULTS,
    progress: ProgressCallback | None = None,
) -> SongBlueprint:
    """Describe the music of a recording: VAE encode, audio tokenizer, then ``understand_music`` of its audio codes.

    Args:
        planner: the loaded language model.
        audio_encoder: turns the recording into codes.
        recording: file of any format, rate and number of channels that libsndfile reads, 0.2 ... 600 s.
        settings: how the model writes.
        progress: called with every token; an exception that it raises stops the run.

    Returns:
        Caption, metadata and lyrics, and the audio codes of the recording.

    Raises:
        AudioReadError: the recording cannot be used.
        InvalidRequest: a setting is out of range.
        BudgetExceeded: codes and lyrics together are too long for the model.
        OutOfMemory: a stage did not fit; ``stage`` says which.
        InvalidOutput: the model produced NaN, infinity, or nothing that can be read.
        BackendFailed: the device failed.
    """
    return BlueprintWriter(planner).understand_recording(audio_encoder, recording, settings, progress)


def create_sample(
    planner: Planner,
    query: str,
    *,
    instrumental: bool = False,
    language: str | None = None,
    settings: SongwritingSettings = _DEFAULTS,
    progress: ProgressCallback | None = None,
) -> SongBlueprint:
    """Create the blueprint of a song from a short description.

    Args:
        planner: the loaded language model.
        query: the description, in any language; without one the model invents a song.
        instrumental: request a song without vocals; ``[Instrumental]`` when the model writes none.
        language: of the vocals (``acestep.planner.metadata.LANGUAGES``); ``None`` and ``unknown`` leave it open.
        settings: how the model writes.
        progress: called with every token; an exception that it raises stops the run.

    Returns:
        Caption, metadata and lyrics.

    Raises:
        InvalidRequest: the language is unknown or a setting is out of range.
        BudgetExceeded: query and lyrics together are too long for the model.
        OutOfMemory: a phase did not fit; ``stage`` says which.
        InvalidOutput: the model produced NaN, infinity, or nothing that can be read.
        BackendFailed: the device failed.
    """
    return BlueprintWriter(planner).create(query, instrumental, language, settings, progress)


def format_sample(
    planner: Planner,
    caption: str,
    lyrics: str,
    metadata: SongMetadata = SongMetadata(),  # noqa: B008 (immutable)
    *,
    settings: SongwritingSettings = _DEFAULTS,
    progress: ProgressCallback | None = None,
) -> SongBlueprint:
    """Turn a draft into a detailed caption, structured metadata and ordered lyrics.

    Args:
        planner: the loaded language model.
        caption: description of the music; may be empty.
        lyrics: the text; empty for an instrumental.
        metadata: given values, which are kept. The caption is not used here.
        settings: how the model writes.
        progress: called with every token; an exception that it raises stops the run.

    Returns:
        Caption, metadata and lyrics; the given lyrics when the model writes none.

    Raises:
        InvalidRequest: a value of the metadata or of the settings is not supported by the model.
        BudgetExceeded: caption and lyrics together are too long for the model.
        OutOfMemory: a phase did not fit; ``stage`` says which.
        InvalidOutput: the model produced NaN, infinity, or nothing that can be read.
        BackendFailed: the device failed.
    """
    return BlueprintWriter(planner).format(caption, lyrics, metadata, settings, progress)


class BlueprintWriter:
    """Writes blueprints with one planner.

    Methods are looked up when they are called, so an observer can wrap them (docs/architecture.md).

    Args:
        planner: the loaded language model.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner = planner

    def understand(
        self,
        audio_codes: Sequence[int],
        settings: SongwritingSettings,
        progress: ProgressCallback | None,
    ) -> SongBlueprint:
        """``understand_music``."""
        validate_audio_codes(audio_codes)
        prompt = self.planner.prompts.understand(audio_codes)
        blueprint = self._write(prompt, SongMetadata(), settings, progress)
        return replace(blueprint, audio_codes=tuple(audio_codes))

    def understand_recording(
        self,
        audio_encoder: AudioEncoder,
        recording: Path,
        settings: SongwritingSettings,
        progress: ProgressCallback | None,
    ) -> SongBlueprint:
        """``understand_recording``."""
        # Before any model runs.
        validate_songwriting(settings)
        blueprint = self.understand(audio_encoder.codes(load_audio(recording)), settings, progress)
        return replace(blueprint, effective=replace(blueprint.effective, audio_encoder=audio_encoder.models.name))

    def create(
        self,
        query: str,
        instrumental: bool,
        language: str | None,
        settings: SongwritingSettings,
        progress: ProgressCallback | None,
    ) -> SongBlueprint:
        """``create_sample``."""
        require_text("query", query)
        prompt = self.planner.prompts.inspire(query, instrumental)
        blueprint = self._write(prompt, SongMetadata(language=language), settings, progress)
        if instrumental and not blueprint.lyrics:
            return replace(blueprint, lyrics=INSTRUMENTAL)
        return blueprint

    def format(
        self,
        caption: str,
        lyrics: str,
        metadata: SongMetadata,
        settings: SongwritingSettings,
        progress: ProgressCallback | None,
    ) -> SongBlueprint:
        """``format_sample``."""
        require_text("caption", caption)
        require_text("lyrics", lyrics)
        blueprint = self._write(self.planner.prompts.rewrite(caption, lyrics), metadata, settings, progress)
        return blueprint if blueprint.lyrics else replace(blueprint, lyrics=lyrics)

    def _write(
        self,
        prompt: list[int],
        metadata: SongMetadata,
        settings: SongwritingSettings,
        progress: ProgressCallback | None,
    ) -> SongBlueprint:
        planner = self.planner
        validate_songwriting(settings)
        require_types(metadata, "metadata.")
        planner.require_duration(metadata.duration)
        seed = secrets.randbelow(MAX_SEED + 1) if settings.seed is None else settings.seed
        asked = SongwritingRequest(
            prompt=prompt,
            given=forced_metadata(normalise(metadata), metadata.duration),
            # Guidance ends captions early: it is for audio codes.
            sampling=replace(settings.sampling, guidance_scale=1.0),
            seed=seed,
            use_constrained_decoding=settings.use_constrained_decoding,
            lyrics_token_limit=settings.lyrics_token_limit,
        )
        with planner.on_device():
            draft = Songwriter(planner).write(asked, progress)
        return SongBlueprint(
            metadata=draft.metadata,
            lyrics=draft.lyrics,
            lyrics_complete=draft.lyrics_complete,
            effective=EffectivePlannerSettings(
                device=str(planner.device),
                dtype=str(planner.dtype).removeprefix("torch."),
                lm_model=planner.model_name,
                lm_backend=planner.backend.name,
                seeds=(seed,),
                weights=planner.weights,
                placement=planner.offloader.placement,
            ),
        )
