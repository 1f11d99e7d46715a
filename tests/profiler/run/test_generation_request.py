"""The request to the engine: the example, overridden by options."""

from __future__ import annotations

import pytest

from acestep.types import GenerationRequest, SamplerSettings
from acestep_otel.errors import SetupError
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.example import Example
from acestep_otel.profiler.run.generation_request import build_request, select_models

EXAMPLE = Example(
    caption="rain", lyrics="[Verse]\ndrops", bpm=90, duration=120, keyscale="E minor", language="en",
    timesignature="3", batch_size=2, inference_steps=4, seed=7,
)  # fmt: skip


def request(**options: object) -> GenerationRequest:
    return build_request(EXAMPLE, Options(**options))


def test_the_example_is_the_default() -> None:
    """R102 ... R105."""
    built = request()
    assert (built.caption, built.lyrics) == ("rain", "[Verse]\ndrops")
    assert (built.duration, built.batch_size, built.inference_steps, built.seeds) == (120, 2, 4, (7,))
    assert (built.metadata.bpm, built.metadata.keyscale, built.metadata.timesignature) == (90, "E minor", "3")
    assert built.metadata.language == "en"
    assert (built.guidance_scale, built.sampling.temperature, built.sampling.guidance_scale) == (7.0, 0.85, 2.0)
    assert not built.needs_language_model


def test_options_win() -> None:
    built = request(duration=30.5, batch_size=1, inference_steps=16, seed=0, lm_temperature=0.5, lm_cfg_scale=1.5)
    assert (built.duration, built.batch_size, built.inference_steps, built.seeds) == (30.5, 1, 16, (0,))
    assert (built.sampling.temperature, built.sampling.guidance_scale) == (0.5, 1.5)


def test_the_sampler_is_the_one_that_the_options_name() -> None:
    built = request(
        shift=2.0, cfg_interval_start=0.1, cfg_interval_end=0.9, use_adg=True, timesteps="0.9, 0.5,0",
        infer_method="sde", sampler_mode="heun", dcw=False, dcw_mode="low", dcw_scaler=0.2,
        dcw_high_scaler=0.1, lm_top_k=5, lm_top_p=0.5,
        lm_negative_prompt="noise", cover_noise_strength=0.3, repaint_mode="conservative", repaint_strength=0.1,
    )  # fmt: skip
    assert (built.shift, built.guidance_interval, built.use_adg) == (2.0, (0.1, 0.9), True)
    assert built.timesteps == (0.9, 0.5, 0.0)
    assert built.sampler == SamplerSettings("sde", "heun", False, "low", 0.2, 0.1)
    assert (built.sampling.top_k, built.sampling.top_p, built.sampling.negative_prompt) == (5, 0.5, "noise")
    assert (built.cover_noise_strength, built.repaint_mode, built.repaint_strength) == (0.3, "conservative", 0.1)
    assert request().sampler == SamplerSettings()
    with pytest.raises(SetupError, match=r"--timesteps '0\.9;0\.5' is not a list of numbers"):
        request(timesteps="0.9;0.5")


def test_a_negative_seed_selects_a_random_one() -> None:
    assert request(seed=-1).seeds == ()


def test_values_that_the_language_model_decides_are_left_open() -> None:
    metas = request(use_cot_metas=True)
    assert (metas.metadata.bpm, metas.metadata.keyscale, metas.metadata.timesignature) == (None, None, None)
    assert (metas.metadata.language, metas.duration) == ("en", 120)
    assert request(use_cot_language=True).metadata.language is None


@pytest.mark.parametrize("flag", ["thinking", "use_cot_metas", "use_cot_caption", "use_cot_language"])
def test_the_language_model_is_loaded_only_when_it_is_asked_something(flag: str) -> None:
    for options, loaded in ((Options(), None), (Options(**{flag: True}), "acestep-5Hz-lm-1.7B")):
        asked = build_request(EXAMPLE, options).needs_language_model
        assert select_models(options, with_language_model=asked).lm == loaded


def test_named_models_are_selected() -> None:
    """R139 ... R141."""
    options = Options(config_path="acestep-v15-base", lm_model="acestep-5Hz-lm-4B", thinking=True, weights="synthetic")
    selection = select_models(options, with_language_model=True)
    assert (selection.dit, selection.lm, selection.weights) == ("acestep-v15-base", "acestep-5Hz-lm-4B", "synthetic")


def test_an_engine_makes_room_for_the_songs_that_are_made() -> None:
    assert select_models(Options(thinking=True), with_language_model=True).max_batch_size == 1
    assert select_models(Options(thinking=True), with_language_model=True, songs=4).max_batch_size == 4


def test_tiny_selects_the_built_in_models() -> None:
    options = Options(tiny=True, thinking=True)
    selection = select_models(options, with_language_model=True)
    assert (selection.dit, selection.lm) == ("acestep-v15-tiny", "acestep-5Hz-lm-tiny")
