"""From one trial to what the engine takes."""

from __future__ import annotations

from dataclasses import replace

from acestep.checkpoints import ModelSelection
from acestep.types import GenerationRequest, Placement
from acestep_otel import semconv
from acestep_otel.modes.example import Example
from acestep_otel.modes.options import Options
from acestep_otel.modes.request import build_request, select_models
from acestep_otel.report.tiers import Trial


def trial_request(example: Example, options: Options, trial: Trial) -> GenerationRequest:
    """The example at the trial's size; with a language model, both of its phases have something to write."""
    thinks = trial.lm_model is not None
    return build_request(
        example,
        replace(
            options,
            duration=trial.duration,
            batch_size=trial.batch_size,
            inference_steps=trial.inference_steps,
            thinking=thinks,
            use_cot_metas=thinks,
        ),
    )


def trial_selection(options: Options, trial: Trial, placement: Placement, songs: int) -> ModelSelection:
    """The models of a trial: the language model is the tier's, whatever the command line names.

    Args:
        options: of the command line.
        trial: the first that uses them.
        placement: where they live.
        songs: most at once that a trial with these models makes.
    """
    selection = select_models(options, with_language_model=False, songs=songs)
    return replace(selection, lm=trial.lm_model, placement=placement)


def trial_attributes(trial: Trial) -> dict[str, str | int]:
    """What spans and metrics of a trial are found by."""
    return {
        semconv.TIER_NAME: trial.tier,
        semconv.TIER_MEMORY: trial.memory,
        semconv.TIER_VARIANT: trial.variant,
        semconv.TIER_LM: trial.lm_size or "none",
    }
