"""The public verbs: what a caller does with loaded models.

``generate_music`` makes songs from a request: the planner's language model decides what was left open and writes
audio codes when asked to think; the renderer turns text and codes into audio; the songs are saved.
``understand_music``, ``understand_recording``, ``create_sample`` and ``format_sample`` live in ``acestep.blueprints``.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from acestep import audio
from acestep.blueprints import create_sample, format_sample, understand_music, understand_recording
from acestep.errors import InvalidRequest
from acestep.planner.metadata import DURATION_RANGE, normalise
from acestep.planner.planner import Plan
from acestep.renderer.renderer import RenderRequest
from acestep.renderer.source import Source
from acestep.types import (
    CODES_PER_SECOND,
    SAMPLE_RATE,
    WINDOW_TASKS,
    EffectiveSettings,
    GenerationRequest,
    GenerationResult,
    ProgressCallback,
    Song,
    SongMetadata,
)
from acestep.validation import MAX_SEED, require_task_support, validate

if TYPE_CHECKING:
    from acestep.checkpoints import Models

__all__ = [
    "create_sample",
    "format_sample",
    "generate_music",
    "require_recordings_kept",
    "resolve_seeds",
    "save_songs",
    "understand_music",
    "understand_recording",
]

DEFAULT_DURATION = 30.0
"""Seconds of a song when neither the user nor a planner said how long it should be."""


def generate_music(
    models: Models,
    request: GenerationRequest,
    *,
    save_dir: Path | None = None,
    progress: ProgressCallback | None = None,
) -> GenerationResult:
    """Make ``request.batch_size`` songs.

    Args:
        models: loaded models (``acestep.checkpoints.load_models``).
        request: what to make.
        save_dir: folder that the songs are written to; ``None`` keeps them in memory only.
        progress: told about finished steps; an exception that it raises stops the run.

    Returns:
        The songs, what was asked for and what was really run.

    Raises:
        InvalidRequest: a value is out of range, or needs a model that was not loaded.
        AudioReadError: the source or the reference cannot be used.
        OutOfMemory: a stage did not fit; ``stage`` says which.
        InvalidOutput: a stage produced NaN or infinity.
        AudioWriteError: a song could not be written.
    """
    # Looked up when called: instrumentation also reaches callers that imported this function before it.
    return _generate(models, request, save_dir=save_dir, progress=progress)


def _generate(
    models: Models, request: GenerationRequest, *, save_dir: Path | None, progress: ProgressCallback | None
) -> GenerationResult:
    validate(request)
    require_task_support(request.task_type, models.renderer.models)
    if save_dir is not None:
        audio.check_output_directory(save_dir)
    seeds = resolve_seeds(request)
    if save_dir is not None:
        require_recordings_kept(request, save_dir, seeds)
    source = _source(request)
    reference = None if request.reference_audio is None else audio.load_reference(request.reference_audio)
    plan = _plan(models, request, source, seeds, progress)
    codes = plan.codes if plan and plan.codes else (request.audio_codes,) * request.batch_size
    metadata = plan.metadata if plan else normalise(request.metadata)
    duration = _duration(request, source, metadata, codes)
    shift = models.renderer.models.default_shift if request.shift is None else request.shift

    rendered = models.renderer.render(
        RenderRequest(
            caption=(metadata.caption if request.use_cot_caption else None) or request.caption,
            lyrics=request.lyrics,
            metadata=metadata,
            duration=duration,
            codes=codes,
            seeds=seeds,
            steps=request.inference_steps,
            shift=shift,
            guidance_scale=request.guidance_scale,
            guidance_interval=request.guidance_interval,
            peak_dbfs=request.peak_dbfs,
            task=request.task_type,
            source=source,
            reference=reference,
            track_names=request.track_names,
            cover_strength=request.audio_cover_strength,
        ),
        progress,
    )
    songs = tuple(
        Song(audio=rendered.audio[item], seed=seed, audio_codes=codes[item]) for item, seed in enumerate(seeds)
    )
    if save_dir is not None:
        songs = save_songs(songs, save_dir, request.audio_format)
    return GenerationResult(
        songs=songs,
        request=request,
        metadata=metadata,
        effective=EffectiveSettings(
            device=str(models.device),
            dtype=str(models.renderer.models.dtype).removeprefix("torch."),
            dit_model=models.renderer.models.name,
            lm_model=models.planner.model_name if plan and models.planner else None,
            lm_backend=models.planner.backend.name if plan and models.planner else None,
            steps=rendered.steps,
            shift=shift,
            guidance_scale=rendered.guidance_scale,
            batch_size=len(songs),
            duration=songs[0].audio.shape[-1] / SAMPLE_RATE,
            seeds=seeds,
            weights=models.renderer.models.weights,
            placement=models.placement,
            vae_decode=rendered.vae_decode,
        ),
    )


def resolve_seeds(request: GenerationRequest) -> tuple[int, ...]:
    """One seed per song, decided once: as given, or counted up from a single one, or random."""
    if len(request.seeds) == request.batch_size:
        return request.seeds
    first = request.seeds[0] if request.seeds else secrets.randbelow(MAX_SEED + 1)
    return tuple((first + item) % (MAX_SEED + 1) for item in range(request.batch_size))


def save_songs(songs: Sequence[Song], directory: Path, audio_format: str) -> tuple[Song, ...]:
    """Write every song to ``directory`` and return the songs with their paths."""
    stems = _path_stems(directory, [song.seed for song in songs])
    return tuple(
        replace(song, path=audio.save_audio(song.audio, stem, audio_format))
        for song, stem in zip(songs, stems, strict=True)
    )


def _path_stems(directory: Path, seeds: Sequence[int]) -> list[Path]:
    return [directory / f"song-{number}-seed{seed}" for number, seed in enumerate(seeds, start=1)]


def require_recordings_kept(request: GenerationRequest, save_dir: Path, seeds: Sequence[int]) -> None:
    """A song of the same name replaces an earlier one, but never the recording that it is made from.

    Raises:
        InvalidRequest: a song would be written to the place of the source or the reference.
    """
    targets = {audio.song_path(stem, request.audio_format).resolve() for stem in _path_stems(save_dir, seeds)}
    for recording in (request.src_audio, request.reference_audio):
        if recording is not None and recording.resolve() in targets:
            raise InvalidRequest(f"the song would replace {recording}: choose another output directory")


def _source(request: GenerationRequest) -> Source | None:
    if request.src_audio is None:
        return None
    recording = audio.load_audio(request.src_audio)
    if request.task_type not in WINDOW_TASKS:
        return Source.whole(recording)
    return Source.with_window(recording, request.repainting_start, request.repainting_end)


def _plan(
    models: Models,
    request: GenerationRequest,
    source: Source | None,
    seeds: tuple[int, ...],
    progress: ProgressCallback | None,
) -> Plan | None:
    if not request.needs_language_model:
        return None
    if models.planner is None:
        raise InvalidRequest("`thinking` and chain-of-thought need a language model: load one, named as `lm`")
    if source is not None:
        # The planner knows whole songs only, so a shorter source is announced as the shortest of them.
        request = replace(request, duration=max(source.duration, DURATION_RANGE[0]))
    with models.planner.on_device():
        return models.planner.plan(request, seeds, progress)


def _duration(
    request: GenerationRequest, source: Source | None, metadata: SongMetadata, codes: Sequence[Sequence[int]]
) -> float:
    """Seconds of the song: a source or codes fix it, then the user, then the planner, then the default."""
    if source is not None:
        return source.duration
    if codes[0]:
        return len(codes[0]) / CODES_PER_SECOND
    if request.duration is not None:
        return request.duration
    if metadata.duration is not None:
        return float(metadata.duration)
    return DEFAULT_DURATION
