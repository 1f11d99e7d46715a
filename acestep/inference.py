"""``generate_music``: songs from a request.

The planner's language model decides open values and, with ``thinking``, writes audio codes; the renderer turns
text and codes into audio; the songs are saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.audio import save_audio
from acestep.cards import processors
from acestep.errors import InvalidRequest
from acestep.planner.metadata import DURATION_RANGE
from acestep.planner.plans import Plan, PlanRequest
from acestep.renderer.render_request import Rendering, RenderRequest
from acestep.resolution import ResolvedRequest, resolve_request, song_stems
from acestep.types import (
    CODES_PER_SECOND,
    SAMPLE_RATE,
    EffectiveSettings,
    GenerationRequest,
    GenerationResult,
    ProgressCallback,
    Song,
)

if TYPE_CHECKING:
    from acestep.checkpoints import Models

DEFAULT_DURATION = 30.0
"""Duration of a song in seconds when neither the user nor a planner has set one."""


def generate_music(
    models: Models,
    request: GenerationRequest,
    *,
    save_dir: Path | None = None,
    progress: ProgressCallback | None = None,
) -> GenerationResult:
    """Generate ``request.batch_size`` songs.

    Args:
        models: loaded models (``acestep.load_models``).
        request: description and settings of the songs.
        save_dir: folder that the songs are written to; ``None`` keeps them in memory only.
        progress: called with finished steps; an exception that it raises stops the run.

    Returns:
        The songs, the request and the settings that took effect.

    Raises:
        InvalidRequest: a value is out of range, or needs a model that was not loaded.
        AudioReadError: the source or the reference cannot be used.
        OutOfMemory: a stage did not fit; ``stage`` says which.
        InvalidOutput: a stage produced NaN or infinity.
        AudioWriteError: a song could not be written.
    """
    return MusicPipeline(models).generate(request, save_dir, progress)


class MusicPipeline:
    """Runs requests on loaded models.

    Methods are looked up when they are called, so an observer can wrap them, also for callers that imported
    ``generate_music`` before (docs/architecture.md).

    Args:
        models: loaded models.
    """

    def __init__(self, models: Models) -> None:
        self.models = models

    def generate(
        self, request: GenerationRequest, save_dir: Path | None, progress: ProgressCallback | None
    ) -> GenerationResult:
        """``generate_music``."""
        resolved = resolve_request(request, self.models.renderer, save_dir)
        plan = self._plan(resolved, progress)
        codes = plan.codes if plan and plan.codes else (request.audio_codes,) * request.batch_size
        metadata = plan.metadata if plan else resolved.metadata
        duration = len(codes[0]) / CODES_PER_SECOND if codes[0] else resolved.duration
        if duration is None:
            duration = DEFAULT_DURATION if metadata.duration is None else float(metadata.duration)
        rendered = self.models.renderer.render(
            RenderRequest(
                caption=(metadata.caption if request.use_cot_caption else None) or request.caption,
                lyrics=request.lyrics,
                metadata=metadata,
                duration=duration,
                codes=codes,
                seeds=resolved.seeds,
                steps=request.inference_steps,
                shift=resolved.shift,
                guidance_scale=request.guidance_scale,
                guidance_interval=request.guidance_interval,
                peak_dbfs=request.peak_dbfs,
                task=request.task_type,
                source=resolved.source,
                reference=resolved.reference,
                track_names=request.track_names,
                cover_strength=request.audio_cover_strength,
                retake_seeds=resolved.retake_seeds,
                retake_variance=request.retake_variance,
                cover_noise_strength=request.cover_noise_strength,
                timesteps=request.timesteps,
                use_adg=request.use_adg,
                sampler=request.sampler,
                repaint_mode=request.repaint_mode,
                repaint_strength=request.repaint_strength,
                adapters=resolved.adapters,
            ),
            progress,
        )
        songs = tuple(
            Song(audio=audio, seed=seed, audio_codes=series)
            for audio, seed, series in zip(rendered.audio, resolved.seeds, codes, strict=True)
        )
        if save_dir is not None:
            songs = self.save_songs(songs, save_dir, request.audio_format)
        return GenerationResult(songs, request, metadata, self._effective(resolved, plan, rendered))

    def save_songs(self, songs: Sequence[Song], directory: Path, audio_format: str) -> tuple[Song, ...]:
        """Write every song to ``directory``, all at once, and return the songs with their paths."""
        stems = song_stems(directory, [song.seed for song in songs])
        threads = processors()
        # libsndfile releases the interpreter lock while it encodes.
        with ThreadPoolExecutor(max_workers=min(len(songs), threads)) as pool:
            save = partial(save_audio, format=audio_format, threads=threads // len(songs))
            paths = pool.map(save, [song.audio for song in songs], stems)
            return tuple(replace(song, path=path) for song, path in zip(songs, paths, strict=True))

    def _plan(self, resolved: ResolvedRequest, progress: ProgressCallback | None) -> Plan | None:
        request, planner = resolved.request, self.models.planner
        if not request.needs_language_model:
            return None
        if planner is None:
            raise InvalidRequest("`thinking` and chain-of-thought need a language model: load one, named as `lm`")
        duration = resolved.metadata.duration if request.duration is None else request.duration
        if resolved.source is not None:
            # The planner has a minimum duration, so a shorter source is passed with that duration.
            duration = max(resolved.source.duration, DURATION_RANGE[0])
        with planner.on_device():
            return planner.plan(PlanRequest.of(request, resolved.metadata, duration, resolved.seeds), progress)

    def _effective(self, resolved: ResolvedRequest, plan: Plan | None, rendered: Rendering) -> EffectiveSettings:
        renderer = self.models.renderer.models
        planner = self.models.planner if plan else None
        return EffectiveSettings(
            device=str(self.models.device),
            dtype=str(renderer.dtype).removeprefix("torch."),
            dit_model=renderer.name,
            lm_model=planner.model_name if planner else None,
            lm_backend=planner.backend.name if planner else None,
            steps=rendered.steps,
            shift=resolved.shift,
            guidance_scale=rendered.guidance_scale,
            batch_size=len(resolved.seeds),
            duration=rendered.audio.shape[-1] / SAMPLE_RATE,
            seeds=resolved.seeds,
            weights=renderer.weights,
            placement=self.models.placement,
            vae_decode=rendered.vae_decode,
            adapters=resolved.adapters,
            lm_device=str(planner.device) if planner and planner.device != self.models.device else None,
        )
