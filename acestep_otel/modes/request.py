"""From options and an example to what the engine takes."""

from __future__ import annotations

from typing import cast

from acestep.checkpoints import TINY_DIT, TINY_LM, ModelSelection
from acestep.types import GenerationRequest, SamplingSettings, SongMetadata, TaskType
from acestep_otel.modes.example import Example
from acestep_otel.modes.options import Options


def build_request(example: Example, options: Options) -> GenerationRequest:
    """The example, with what the options override.

    What the language model is asked to decide is left open even though the example has it: otherwise there would be
    nothing to decide, and nothing to time. The duration always stays, so that runs are comparable.
    """
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
        duration=example.duration if options.duration is None else options.duration,
        task_type=cast(TaskType, options.task_type),
        batch_size=example.batch_size if options.batch_size is None else options.batch_size,
        # As everywhere in this model's tools, a negative seed asks for a random one.
        seeds=() if seed < 0 else (seed,),
        inference_steps=example.inference_steps if options.inference_steps is None else options.inference_steps,
        guidance_scale=options.guidance_scale,
        thinking=options.thinking,
        use_cot_metas=options.use_cot_metas,
        use_cot_caption=options.use_cot_caption,
        use_cot_language=options.use_cot_language,
        use_constrained_decoding=options.use_constrained_decoding,
        sampling=SamplingSettings(temperature=options.lm_temperature, guidance_scale=options.lm_cfg_scale),
        audio_format=options.audio_format,
    )


def select_models(options: Options, *, with_language_model: bool) -> ModelSelection:
    """The models that the options name; the language model only when it is asked something."""
    language_model = TINY_LM if options.tiny else options.lm_model
    return ModelSelection(
        dit=TINY_DIT if options.tiny else options.config_path,
        lm=language_model if with_language_model else None,
        weights=options.weights,
        device=options.device,
        lm_backend=options.lm_backend,
        checkpoint_root=options.checkpoint_dir,
    )
