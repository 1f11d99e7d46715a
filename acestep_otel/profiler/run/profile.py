"""Mode ``profile``: one generation, and where its time went.

A warm-up of the same shape comes first, then a calibration of what guidance costs, then the measured run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from acestep.audio import check_output_directory
from acestep.checkpoints import Models, load_models
from acestep.inference import generate_music
from acestep.resolution import require_recordings_kept, resolve_seeds
from acestep.types import EffectiveSettings, GenerationRequest, ProgressCallback
from acestep.validation import validate
from acestep_otel import semconv
from acestep_otel.profiler.options import DEFAULTS, Options
from acestep_otel.profiler.run.example import load_example
from acestep_otel.profiler.run.generation_request import build_request, select_models
from acestep_otel.profiler.run.measurement import Outcome, measure, setup_errors
from acestep_otel.profiler.run.placement import (
    describe_adapters,
    describe_decoding,
    describe_models,
    describe_placement,
)
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.recording import GuidanceShare, measure_guidance_share


def profile(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (see ``acestep_otel.profiler.run.measurement.measure``)."""
    request = build_request(load_example(options.example), options)
    with setup_errors():
        validate(request)
        check_output_directory(options.output_dir)
        # Given seeds only; a random one is known in the run, which checks again.
        require_recordings_kept(request, options.output_dir, resolve_seeds(request) if request.seeds else ())
    measure(options, telemetry, _Generation(request, options))


@dataclass(frozen=True, slots=True)
class _Generation:
    """The measured call of ``generate_music``."""

    request: GenerationRequest
    options: Options
    root: str = semconv.GENERATE_MUSIC

    def load(self) -> Models:
        asked = self.request.needs_language_model
        return load_models(select_models(self.options, with_language_model=asked, songs=self.request.batch_size))

    def warm_up(self, models: Models, progress: ProgressCallback) -> None:
        with TemporaryDirectory() as folder:
            generate_music(models, self.request, save_dir=Path(folder), progress=progress)

    def measure_guidance(self, models: Models) -> GuidanceShare | None:
        return measure_guidance_share(models, self.request)

    def run(self, models: Models, progress: ProgressCallback) -> Outcome:
        result = generate_music(models, self.request, save_dir=self.options.output_dir, progress=progress)
        return Outcome(
            effective=result.effective,
            summary=_summary(self.request, result.effective, self.options),
            songs=tuple(song.path for song in result.songs if song.path is not None),
        )


def _summary(request: GenerationRequest, done: EffectiveSettings, options: Options) -> tuple[str, ...]:
    seeds = ", ".join(map(str, done.seeds))
    return (
        describe_models(done),
        f"{done.batch_size} x {done.duration:g} s, {done.steps} steps, seed {seeds}",
        *describe_adapters(done.adapters),
        *describe_placement(done.placement, options),
        describe_decoding(done.vae_decode),
        *_without_effect(request, done, options),
    )


def _without_effect(request: GenerationRequest, done: EffectiveSettings, options: Options) -> Iterator[str]:
    """A line about each flag that was given and changed nothing."""
    if request.thinking and not request.writes_audio_codes:
        yield f"--thinking has no effect: task {request.task_type} takes its structure from the recording"
    if not request.needs_language_model:
        asked = ("use_cot_metas", "use_cot_caption", "use_cot_language")
        for flag in (f"--{name.replace('_', '-')}" for name in asked if getattr(request, name)):
            yield f"{flag} has no effect: task {request.task_type} takes the text as it is"
        if options.lm_model != DEFAULTS.lm_model and not options.tiny:
            yield f"{options.lm_model} was not used: --thinking or a --use-cot flag enables the language model"
    if options.guidance_scale not in (DEFAULTS.guidance_scale, done.guidance_scale):
        yield f"--guidance-scale {options.guidance_scale:g} has no effect: {done.dit_model} runs without guidance"
