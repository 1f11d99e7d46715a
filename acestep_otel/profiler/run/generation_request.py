"""The engine's request and models, from options and an example."""

from __future__ import annotations

from typing import cast

from acestep.checkpoints import TINY_BASE_DIT, TINY_DIT, TINY_LM, ModelSelection
from acestep.devices import resolve_device
from acestep.types import (
    BASE_TASKS,
    CorrectionMode,
    GenerationRequest,
    InferMethod,
    RepaintMode,
    SamplerMode,
    SamplerSettings,
    SamplingSettings,
    SongMetadata,
    TaskType,
)
from acestep_otel.errors import SetupError
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.example import Example
from acestep_otel.profiler.run.placement import choose_placement, engine_settings
from acestep_otel.profiler.run.weights import fetch_model, parse_adapter


def build_request(example: Example, options: Options) -> GenerationRequest:
    """The example with the values that options override.

    Values that the language model decides are left open even if the example has them: otherwise there would be
    nothing to decide and nothing to measure. The duration always stays, so that runs are comparable; only a source has
    a length of its own, which takes the place of the example's.
    """
    duration = example.duration if options.src_audio is None else None
    seed = example.seed if options.seed is None else options.seed
    return GenerationRequest(
        caption=example.caption,
        lyrics=example.lyrics,
        metadata=SongMetadata(
            bpm=None if options.use_cot_metas else example.bpm,
            keyscale=None if options.use_cot_metas else example.keyscale,
            timesignature=None if options.use_cot_metas else example.timesignature,
            language=None if options.use_cot_language else example.language,
        ),
        duration=duration if options.duration is None else options.duration,
        task_type=cast(TaskType, options.task_type),
        src_audio=options.src_audio,
        reference_audio=options.reference_audio,
        repainting_start=options.repainting_start,
        repainting_end=options.repainting_end,
        audio_cover_strength=options.audio_cover_strength,
        track_names=options.track,
        batch_size=example.batch_size if options.batch_size is None else options.batch_size,
        # As in all tools for this model, a negative seed selects a random one.
        seeds=() if seed < 0 else (seed,),
        inference_steps=example.inference_steps if options.inference_steps is None else options.inference_steps,
        guidance_scale=options.guidance_scale,
        guidance_interval=(options.cfg_interval_start, options.cfg_interval_end),
        use_adg=options.use_adg,
        shift=options.shift,
        timesteps=_times(options.timesteps),
        sampler=SamplerSettings(
            infer_method=cast(InferMethod, options.infer_method),
            sampler_mode=cast(SamplerMode, options.sampler_mode),
            dcw_enabled=options.dcw,
            dcw_mode=cast(CorrectionMode, options.dcw_mode),
            dcw_scaler=options.dcw_scaler,
            dcw_high_scaler=options.dcw_high_scaler,
        ),
        retake_seed=options.retake_seed,
        retake_variance=options.retake_variance,
        cover_noise_strength=options.cover_noise_strength,
        repaint_mode=cast(RepaintMode, options.repaint_mode),
        repaint_strength=options.repaint_strength,
        thinking=options.thinking,
        use_cot_metas=options.use_cot_metas,
        use_cot_caption=options.use_cot_caption,
        use_cot_language=options.use_cot_language,
        use_constrained_decoding=options.use_constrained_decoding,
        sampling=SamplingSettings(
            temperature=options.lm_temperature,
            guidance_scale=options.lm_cfg_scale,
            top_k=options.lm_top_k,
            top_p=options.lm_top_p,
            negative_prompt=options.lm_negative_prompt,
        ),
        audio_format=options.audio_format,
    )


def _times(given: str | None) -> tuple[float, ...]:
    if given is None:
        return ()
    try:
        return tuple(float(time) for time in given.split(","))
    except ValueError:
        raise SetupError(f"--timesteps {given!r} is not a list of numbers: 0.97,0.76,0.5,0.3,0") from None


def select_models(options: Options, *, with_language_model: bool, songs: int = 1) -> ModelSelection:
    """The models that the options name; the language model only if it is used.

    Args:
        options: of the command line.
        with_language_model: whether it is used.
        songs: largest number of songs that it generates at once.

    Raises:
        DeviceUnavailable: the device does not exist here.
        InvalidRequest: an environment variable of the engine is invalid.
    """
    settings = engine_settings()
    language_model = TINY_LM if options.tiny else options.lm_model
    tiny_dit = TINY_BASE_DIT if options.task_type in BASE_TASKS else TINY_DIT
    return ModelSelection(
        dit=tiny_dit if options.tiny else options.config_path,
        lm=language_model if with_language_model else None,
        weights=options.weights,
        device=options.renderer_device,
        lm_device=options.lm_device,
        lm_backend=options.lm_backend,
        max_batch_size=songs,
        checkpoint_root=options.checkpoint_dir,
        placement=choose_placement(options, resolve_device(options.renderer_device), settings),
        adapters=tuple(map(parse_adapter, options.lora)),
        decode=settings.decode,
        fused_decode=settings.fused_decode,
        fused_render=settings.fused_render,
        fetch=fetch_model if options.download else None,
    )
