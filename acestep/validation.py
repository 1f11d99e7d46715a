"""Checks of a request, before any model runs: one error that names the value and the range."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import get_args

from acestep.audio import require_format, require_readable
from acestep.errors import InvalidRequest
from acestep.field_checks import require_types
from acestep.planner.metadata import DURATION_RANGE, normalise
from acestep.renderer.models import RendererModels
from acestep.renderer.source import window_samples
from acestep.types import (
    AUDIO_CODE_COUNT,
    BASE_TASKS,
    CODES_PER_SECOND,
    SAMPLE_RATE,
    TRACK_NAMES,
    WINDOW_TASKS,
    CorrectionMode,
    GenerationRequest,
    InferMethod,
    RepaintMode,
    SamplerMode,
    SamplingSettings,
    SongMetadata,
    SongwritingSettings,
    TaskType,
)

MAX_BATCH_SIZE = 8
MAX_INFERENCE_STEPS = 1_000
MAX_SEED = 2**32 - 1
MAX_LYRICS_TOKENS = 4_096
_SFT_NAME = re.compile(r"(?<![a-z])sft(?![a-z])", re.IGNORECASE)
"""Pattern of a supervised fine-tuned model's name: ``acestep-v15-sft``, ``acestep-v15-xl-sft``."""


def validate(request: GenerationRequest) -> None:
    """Reject what the models cannot do, reading only the headers of recordings; for use before queueing.

    ``generate_music`` checks its request by itself.

    Raises:
        InvalidRequest: the first value that is out of range.
        AudioReadError: the source or the reference is not a recording that can be read.
        AudioWriteError: the audio format is not available here.
    """
    checked_metadata(request)
    if request.src_audio is not None:
        seconds = require_readable(request.src_audio)
        if request.task_type in WINDOW_TASKS:
            window_samples(round(seconds * SAMPLE_RATE), request.repainting_start, request.repainting_end)
    if request.reference_audio is not None:
        require_readable(request.reference_audio)


def checked_metadata(request: GenerationRequest) -> SongMetadata:
    """Check every value of a request except its recordings.

    Returns:
        The user's metadata in the model's spelling.

    Raises:
        InvalidRequest: the first value that is out of range.
        AudioWriteError: the audio format is not available here.
    """
    require_types(request)
    _validate_task(request)
    metadata = normalise(request.metadata)
    if request.duration is not None:
        _require_between("`duration`", request.duration, *DURATION_RANGE, unit=" s")
    _require_between("`batch_size`", request.batch_size, 1, MAX_BATCH_SIZE)
    _require_between("`inference_steps`", request.inference_steps, 1, MAX_INFERENCE_STEPS)
    _require_between("`guidance_scale`", request.guidance_scale, 1, 100)
    start, end = request.guidance_interval
    _require_between("start of `guidance_interval`", start, 0, 1)
    _require_between("end of `guidance_interval`", end, start, 1)
    if request.peak_dbfs is not None:
        _require_between("`peak_dbfs`", request.peak_dbfs, -60, 0, unit=" dBFS")
    if request.shift is not None:
        _require_between("`shift`", request.shift, 0.01, 100)
    for seed in request.seeds:
        _require_between("`seeds`", seed, 0, MAX_SEED)
    if len(request.seeds) not in (0, 1, request.batch_size):
        raise InvalidRequest(f"{len(request.seeds)} `seeds` for {request.batch_size} songs: give one, or one per song")
    _validate_sampler(request)
    _validate_sampling(request.sampling)
    validate_audio_codes(request.audio_codes)
    require_format(request.audio_format)
    return metadata


def validate_audio_codes(codes: Sequence[int]) -> None:
    """Reject codes that do not exist, and more of them than the longest song has.

    Raises:
        InvalidRequest: the first code that is out of range, or their duration.
    """
    for code in codes:
        _require_between("`audio_codes`: code", code, 0, AUDIO_CODE_COUNT - 1)
    _require_between("duration of `audio_codes`", len(codes) / CODES_PER_SECOND, 0, DURATION_RANGE[1], unit=" s")


def validate_songwriting(settings: SongwritingSettings) -> None:
    """Reject settings that the language model does not support.

    Raises:
        InvalidRequest: the first value that is out of range.
    """
    require_types(settings)
    _validate_sampling(settings.sampling)
    _require_between("`lyrics_token_limit`", settings.lyrics_token_limit, 1, MAX_LYRICS_TOKENS)
    if settings.seed is not None:
        _require_between("`seed`", settings.seed, 0, MAX_SEED)


def _validate_sampler(request: GenerationRequest) -> None:
    sampler, times = request.sampler, request.timesteps
    choices = {
        "`sampler.infer_method`": (sampler.infer_method, get_args(InferMethod)),
        "`sampler.sampler_mode`": (sampler.sampler_mode, get_args(SamplerMode)),
        "`sampler.dcw_mode`": (sampler.dcw_mode, get_args(CorrectionMode)),
        "`repaint_mode`": (request.repaint_mode, get_args(RepaintMode)),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise InvalidRequest(f"no {name} {value!r}: choose one of {', '.join(known)}")
    _require_between("`sampler.dcw_scaler`", sampler.dcw_scaler, 0, 1)
    _require_between("`sampler.dcw_high_scaler`", sampler.dcw_high_scaler, 0, 1)
    _require_between("`sampler.velocity_norm_threshold`", sampler.velocity_norm_threshold, 0, 100)
    _require_between("`sampler.velocity_ema_factor`", sampler.velocity_ema_factor, 0, 1)
    _require_between("`cover_noise_strength`", request.cover_noise_strength, 0, 1)
    _require_between("`repaint_strength`", request.repaint_strength, 0, 1)
    _require_between("`retake_variance`", request.retake_variance, 0, 1)
    if request.retake_seed is not None:
        _require_between("`retake_seed`", request.retake_seed, 0, MAX_SEED)
    if (request.retake_seed is None) != (request.retake_variance == 0):
        raise InvalidRequest("`retake_variance` mixes in the noise of `retake_seed`: give both, or neither")
    if request.cover_noise_strength and request.src_audio is None:
        raise InvalidRequest("`cover_noise_strength` starts from a recording: give `src_audio`")
    for time in times:
        _require_between("`timesteps`", time, 0, 1)
    falling = all(later < earlier for earlier, later in itertools.pairwise(times))
    if times and not (falling and times[0] > 0):
        raise InvalidRequest(f"`timesteps` {', '.join(f'{time:g}' for time in times)} must decrease and start above 0")


def _validate_sampling(sampling: SamplingSettings) -> None:
    _require_between("`sampling.temperature`", sampling.temperature, 0, 2)
    _require_between("`sampling.top_p`", sampling.top_p, 0, 1)
    _require_between("`sampling.top_k`", sampling.top_k, 0, AUDIO_CODE_COUNT)
    _require_between("`sampling.guidance_scale`", sampling.guidance_scale, 1, 100)


def require_task_support(task: TaskType, models: RendererModels) -> None:
    """Reject a task that the loaded model was not trained for.

    The configuration identifies a turbo model. Base and sft models differ only in their weights, so the name decides.

    Raises:
        InvalidRequest: a task on single tracks, and a turbo or sft model.
    """
    if task not in BASE_TASKS:
        return
    kind = "a turbo model" if models.is_turbo else "an sft model" if _SFT_NAME.search(models.name) else None
    if kind is not None:
        raise InvalidRequest(f"`task_type` {task} needs a base model such as acestep-v15-base: {models.name} is {kind}")


def _validate_task(request: GenerationRequest) -> None:
    task = request.task_type
    if task not in get_args(TaskType):
        raise InvalidRequest(f"no `task_type` {task!r}: choose one of {', '.join(get_args(TaskType))}")
    limit = DURATION_RANGE[1]
    _require_between("`repainting_start`", request.repainting_start, -limit, limit, unit=" s")
    if request.repainting_end is not None:
        _require_between("`repainting_end`", request.repainting_end, -limit, limit, unit=" s")
    _validate_source(request)
    if task not in WINDOW_TASKS and (request.repainting_start, request.repainting_end) != (0.0, None):
        raise InvalidRequest(
            f"`repainting_start` and `repainting_end` are for {', '.join(sorted(WINDOW_TASKS))}, not for {task}"
        )
    _require_between("`audio_cover_strength`", request.audio_cover_strength, 0, 1)
    follows_codes = bool(request.audio_codes) or request.writes_audio_codes
    if request.audio_cover_strength != 1 and task != "cover" and not follows_codes:
        raise InvalidRequest(f"`audio_cover_strength` is for cover and for audio codes, not for {task} without codes")
    for name in request.track_names:
        if task not in BASE_TASKS:
            raise InvalidRequest(f"`track_names` ({name}) is for {', '.join(sorted(BASE_TASKS))}, not for {task}")
        if name not in TRACK_NAMES:
            raise InvalidRequest(f"no track {name!r}: choose one of {', '.join(TRACK_NAMES)}")
    if len(request.track_names) > 1 and task != "complete":
        raise InvalidRequest(f"{task} takes one of `track_names`, not {len(request.track_names)}")


def _validate_source(request: GenerationRequest) -> None:
    task = request.task_type
    if request.src_audio is None:
        if task != "text2music":
            raise InvalidRequest(f"task {task} works on a recording: give `src_audio`")
        return
    if task == "text2music":
        raise InvalidRequest("text2music takes no `src_audio`: choose another task, or give it as `reference_audio`")
    if request.audio_codes:
        raise InvalidRequest(f"task {task} follows `src_audio`: leave out `audio_codes`")
    if (request.duration, request.metadata.duration) != (None, None):
        raise InvalidRequest(f"task {task} is as long as `src_audio`: leave out `duration`")


def _require_between(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    # The comparison is written so that NaN fails it.
    if not low <= value <= high:
        # An integer is shown with all of its digits, unless it is longer than any sensible value.
        given = f"{value:.10g}" if isinstance(value, float) else str(value) if abs(value) < 10**15 else "of many digits"
        raise InvalidRequest(f"{name} {given}{unit} is out of range: {low:.10g} ... {high:.10g}{unit}")
