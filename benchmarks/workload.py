"""The song that the benchmarks make."""

from __future__ import annotations

import argparse

from acestep.checkpoints import TINY_DIT, TINY_LM, Models, ModelSelection, load_models
from acestep.errors import AceStepError
from acestep.types import GenerationRequest, Placement, SongMetadata
from acestep.validation import validate
from acestep_otel.profiler.flags import in_flags

CAPTION = "A driving synth-pop track with a warm analogue bass, gated drums and an airy female lead vocal."
LYRICS = "[Verse 1]\nCity lights are folding into morning\n[Chorus]\nRun with me until the colours fade"


def prepare(options: argparse.Namespace, placement: Placement | None = None) -> tuple[Models, GenerationRequest]:
    """The models and the song that the options name.

    Args:
        options: those of ``add_model_options``.
        placement: of the models; that of the options when not given.

    Raises:
        SystemExit: with one line, where there are no such models or the song cannot be made.
    """
    song = _request(options)
    try:
        validate(song)
        return _load(options, placement or Placement(compile=options.compile)), song
    except AceStepError as error:
        raise SystemExit(f"error: {in_flags(error)}") from None


def _load(options: argparse.Namespace, placement: Placement) -> Models:
    tiny = options.weights == "tiny"
    lm = TINY_LM if tiny else options.lm
    return load_models(
        ModelSelection(
            dit=TINY_DIT if tiny else options.dit,
            lm=lm if options.thinking else None,
            weights="synthetic",
            device=str(options.device),
            placement=placement,
            fused_render=not options.plain,
        )
    )


def _request(options: argparse.Namespace) -> GenerationRequest:
    """Songs with everything given but the caption's rewrite, so that both planner phases run when thinking."""
    return GenerationRequest(
        caption=CAPTION,
        lyrics=LYRICS,
        metadata=SongMetadata(bpm=112, keyscale="A minor", timesignature="4", language="en"),
        duration=options.duration,
        batch_size=options.batch_size,
        seeds=(42,),
        inference_steps=options.inference_steps,
        thinking=options.thinking,
        use_cot_metas=options.thinking,
        use_cot_caption=options.thinking,
    )
