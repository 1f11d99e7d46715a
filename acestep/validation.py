"""Checks of a request, before any model runs: one error that names the value and the range."""

from __future__ import annotations

import math
from collections.abc import Sequence

from acestep.audio import require_format
from acestep.errors import InvalidRequest
from acestep.planner.metadata import DURATION_RANGE, normalise
from acestep.types import (
    AUDIO_CODE_COUNT,
    CODES_PER_SECOND,
    GenerationRequest,
    SamplingSettings,
    SongwritingSettings,
)

MAX_BATCH_SIZE = 8
MAX_INFERENCE_STEPS = 1_000
MAX_SEED = 2**32 - 1
MAX_LYRICS_TOKENS = 4_096
SUPPORTED_TASKS = ("text2music",)


def validate(request: GenerationRequest) -> None:
    """Refuse what the models cannot do.

    Raises:
        InvalidRequest: the first value that is out of range.
        AudioWriteError: the audio format is not available here.
    """
    if request.task_type not in SUPPORTED_TASKS:
        raise InvalidRequest(f"task {request.task_type!r} is not available yet: use text2music")
    normalise(request.metadata)
    if request.duration is not None:
        _require_between("duration", request.duration, *DURATION_RANGE, unit=" s")
    _require_between("batch size", request.batch_size, 1, MAX_BATCH_SIZE)
    _require_between("inference steps", request.inference_steps, 1, MAX_INFERENCE_STEPS)
    _require_between("guidance scale", request.guidance_scale, 1, 100)
    start, end = request.guidance_interval
    _require_between("start of the guidance interval", start, 0, 1)
    _require_between("end of the guidance interval", end, start, 1)
    if request.peak_dbfs is not None:
        _require_between("peak level", request.peak_dbfs, -60, 0, unit=" dBFS")
    if request.shift is not None:
        _require_between("shift", request.shift, 0.01, 100)
    for seed in request.seeds:
        _require_between("seed", seed, 0, MAX_SEED)
    if len(request.seeds) not in (0, 1, request.batch_size):
        raise InvalidRequest(f"{len(request.seeds)} seeds for {request.batch_size} songs: give one, or one per song")
    _validate_sampling(request.sampling)
    validate_audio_codes(request.audio_codes)
    require_format(request.audio_format)


def validate_audio_codes(codes: Sequence[int]) -> None:
    """Refuse codes that do not exist, and more of them than the longest song has.

    Raises:
        InvalidRequest: the first code that is out of range, or their duration.
    """
    for code in codes:
        _require_between("audio code", code, 0, AUDIO_CODE_COUNT - 1)
    _require_between("duration of the audio codes", len(codes) / CODES_PER_SECOND, 0, DURATION_RANGE[1], unit=" s")


def validate_songwriting(settings: SongwritingSettings) -> None:
    """Refuse settings that the language model cannot write under.

    Raises:
        InvalidRequest: the first value that is out of range.
    """
    _validate_sampling(settings.sampling)
    _require_between("lyrics token limit", settings.lyrics_token_limit, 1, MAX_LYRICS_TOKENS)
    if settings.seed is not None:
        _require_between("seed", settings.seed, 0, MAX_SEED)


def _validate_sampling(sampling: SamplingSettings) -> None:
    _require_between("LM temperature", sampling.temperature, 0, 2)
    _require_between("LM top-p", sampling.top_p, 0, 1)
    _require_between("LM top-k", sampling.top_k, 0, AUDIO_CODE_COUNT)
    _require_between("LM guidance scale", sampling.guidance_scale, 1, 100)


def _require_between(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    # The comparison is written so that NaN fails it.
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequest(f"{name} {value:.10g}{unit} is out of range: {low:.10g} ... {high:.10g}{unit}")
