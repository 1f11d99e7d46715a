"""The verbs that write a song in words: from audio codes, from a recording, from a wish, from a draft.

They take a planner (``acestep.checkpoints.load_planner``, or ``planner`` of loaded models) and load no renderer. A
recording also takes an audio encoder: ``load_audio_encoder``, or, of a renderer that is loaded,
``AudioEncoder(AudioEncoderModels.of(renderer.models), renderer.offloader)``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from acestep.audio import load_audio
from acestep.planner.planner import Planner
from acestep.planner.songwriter import Draft, Songwriter, SongwritingRequest
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
    """Describe the music that audio codes stand for.

    Args:
        planner: the loaded language model.
        audio_codes: five per second of audio, each 0 ... 63,999; without any the model invents a song.
        settings: how the model writes.
        progress: told about every token; an exception that it raises stops the run.

    Returns:
        Caption, metadata and lyrics.

    Raises:
        InvalidRequest: a code or a setting is out of range.
        BudgetExceeded: codes and lyrics together are too long for the model.
        OutOfMemory: a phase did not fit; ``stage`` says which.
        InvalidOutput: the model produced NaN, infinity, or nothing that can be read.
        BackendFailed: the device failed.
    """
    # Looked up when called, as in generate_music.
    return _understand(planner, audio_codes, settings, progress)


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
        progress: told about every token; an exception that it raises stops the run.

    Returns:
        Caption, metadata and lyrics, and the audio codes that the recording was heard as.

    Raises:
        AudioReadError: the recording cannot be used.
        InvalidRequest: a setting is out of range.
        BudgetExceeded: codes and lyrics together are too long for the model.
        OutOfMemory: a stage did not fit; ``stage`` says which.
        InvalidOutput: the model produced NaN, infinity, or nothing that can be read.
        BackendFailed: the device failed.
    """
    return _understand_recording(planner, audio_encoder, recording, settings, progress)


def create_sample(
    planner: Planner,
    query: str,
    *,
    instrumental: bool = False,
    language: str | None = None,
    settings: SongwritingSettings = _DEFAULTS,
    progress: ProgressCallback | None = None,
) -> SongBlueprint:
    """Make a blueprint of a song out of a short wish.

    Args:
        planner: the loaded language model.
        query: the wish, in any language; without one the model invents a song.
        instrumental: ask for a song without words; ``[Instrumental]`` when the model writes none.
        language: of the vocals (``acestep.planner.metadata.LANGUAGES``); ``None`` and ``unknown`` leave it open.
        settings: how the model writes.
        progress: told about every token; an exception that it raises stops the run.

    Returns:
        Caption, metadata and lyrics.

    Raises:
        InvalidRequest: the language is unknown or a setting is out of range.
        BudgetExceeded: query and lyrics together are too long for the model.
        OutOfMemory: a phase did not fit; ``stage`` says which.
        InvalidOutput: the model produced NaN, infinity, or nothing that can be read.
        BackendFailed: the device failed.
    """
    return _create(planner, query, instrumental, language, settings, progress)


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
        caption: what the music should be like; may be empty.
        lyrics: the words; empty for an instrumental.
        metadata: what is settled; these values are kept. The caption is not used here.
        settings: how the model writes.
        progress: told about every token; an exception that it raises stops the run.

    Returns:
        Caption, metadata and lyrics; the given lyrics when the model writes none.

    Raises:
        InvalidRequest: a value of the metadata or of the settings is not one that the model knows.
        BudgetExceeded: caption and lyrics together are too long for the model.
        OutOfMemory: a phase did not fit; ``stage`` says which.
        InvalidOutput: the model produced NaN, infinity, or nothing that can be read.
        BackendFailed: the device failed.
    """
    return _format(planner, caption, lyrics, metadata, settings, progress)


def _understand(
    planner: Planner,
    audio_codes: Sequence[int],
    settings: SongwritingSettings,
    progress: ProgressCallback | None,
) -> SongBlueprint:
    validate_audio_codes(audio_codes)
    blueprint = _write(planner, planner.prompts.understand(audio_codes), SongMetadata(), settings, progress)
    return replace(blueprint, audio_codes=tuple(audio_codes))


def _understand_recording(
    planner: Planner,
    audio_encoder: AudioEncoder,
    recording: Path,
    settings: SongwritingSettings,
    progress: ProgressCallback | None,
) -> SongBlueprint:
    # Before any model runs.
    validate_songwriting(settings)
    audio_codes = audio_encoder.codes(load_audio(recording))
    blueprint = _understand(planner, audio_codes, settings, progress)
    return replace(blueprint, effective=replace(blueprint.effective, audio_encoder=audio_encoder.models.name))


def _create(
    planner: Planner,
    query: str,
    instrumental: bool,
    language: str | None,
    settings: SongwritingSettings,
    progress: ProgressCallback | None,
) -> SongBlueprint:
    prompt = planner.prompts.inspire(query, instrumental)
    blueprint = _write(planner, prompt, SongMetadata(language=language), settings, progress)
    if instrumental and not blueprint.lyrics:
        return replace(blueprint, lyrics=INSTRUMENTAL)
    return blueprint


def _format(
    planner: Planner,
    caption: str,
    lyrics: str,
    metadata: SongMetadata,
    settings: SongwritingSettings,
    progress: ProgressCallback | None,
) -> SongBlueprint:
    blueprint = _write(planner, planner.prompts.rewrite(caption, lyrics), metadata, settings, progress)
    return blueprint if blueprint.lyrics else replace(blueprint, lyrics=lyrics)


def _write(
    planner: Planner,
    prompt: list[int],
    metadata: SongMetadata,
    settings: SongwritingSettings,
    progress: ProgressCallback | None,
) -> SongBlueprint:
    validate_songwriting(settings)
    seed = secrets.randbelow(MAX_SEED + 1) if settings.seed is None else settings.seed
    asked = SongwritingRequest(
        prompt=prompt,
        given=planner.given(metadata, metadata.duration),
        # Guidance ends captions early: it is for audio codes.
        sampling=replace(settings.sampling, guidance_scale=1.0),
        seed=seed,
        use_constrained_decoding=settings.use_constrained_decoding,
        lyrics_token_limit=settings.lyrics_token_limit,
    )
    with planner.on_device():
        draft = Songwriter(planner).write(asked, progress)
    return _blueprint(planner, draft, seed)


def _blueprint(planner: Planner, draft: Draft, seed: int) -> SongBlueprint:
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
