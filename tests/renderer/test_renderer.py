"""The renderer end to end on tiny models: what comes out, what was run for it, and how it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedTokenizerFast

from acestep.errors import InvalidOutput, InvalidRequest, OutOfMemory
from acestep.renderer.decode_fallbacks import DecodeStep
from acestep.renderer.diffusion import make_schedule
from acestep.renderer.models import RendererModels
from acestep.renderer.prompts import CODES_INSTRUCTION
from acestep.renderer.renderer import Renderer, RenderRequest, at_level
from acestep.renderer.vae import plan_tiles
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import Progress, SamplerSettings, SongMetadata

TOLERANCE = 1e-4
CPU = torch.device("cpu")
MODULES = ("transformer", "condition_encoder", "audio_tokenizer", "audio_token_detokenizer", "vae", "text_encoder")
CODES = tuple((i * 1237) % 64_000 for i in range(26))


@pytest.fixture
def turbo() -> Renderer:
    return Renderer(build_renderer_models("acestep-v15-tiny", device=CPU, dtype=torch.float32))


@pytest.fixture
def base() -> Renderer:
    return Renderer(build_renderer_models("acestep-v15-tiny-base", device=CPU, dtype=torch.float32))


def ask(**changes: Any) -> RenderRequest:
    seeds = changes.pop("seeds", (1,))
    return RenderRequest(
        **{
            "caption": "bright synth pop with a driving bass",
            "lyrics": "[Verse]\nSoft notes in the morning light",
            "metadata": SongMetadata(bpm=120, keyscale="C major", timesignature="4", language="en"),
            "duration": 5.2,
            "codes": ((),) * len(seeds),
            "seeds": seeds,
            "steps": 3,
            "shift": 3.0,
            **changes,
        }
    )


class Spy:
    """Replaces a callable, keeps the arguments of every call and passes it on."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return self.original(*args, **kwargs)


def spy_on(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Spy:
    spy = Spy(getattr(owner, name))
    monkeypatch.setattr(owner, name, spy)
    return spy


class TestAudio:
    """R34: one song per seed, ready to be saved."""

    def test_songs_are_float32_stereo_on_the_host_at_48_khz(self, turbo):
        audio = turbo.render(ask(seeds=(1, 2))).audio
        assert (audio.shape, audio.dtype, audio.device) == ((2, 2, 249_600), torch.float32, CPU)
        assert audio.std() > 0.01

    def test_the_loudest_sample_is_at_the_level_asked_for(self, turbo):
        audio = turbo.render(ask(seeds=(1, 2))).audio
        assert audio.abs().amax(dim=(1, 2)).tolist() == pytest.approx([10 ** (-1 / 20)] * 2)

    def test_without_a_level_only_clipping_is_prevented(self, turbo):
        free = turbo.render(ask(peak_dbfs=None)).audio
        assert free.abs().max() <= 1.0
        levelled = turbo.render(ask()).audio
        assert torch.allclose(levelled * free.abs().max() / levelled.abs().max(), free, atol=1e-6)

    def test_the_song_can_be_changed_in_place_by_its_owner(self, turbo):
        turbo.render(ask(peak_dbfs=None)).audio.mul_(0.5)

    @pytest.mark.parametrize(("duration", "frames"), [(5.2, 130), (5.21, 131), (16.44, 411), (2.0, 50)])
    def test_a_started_frame_counts_as_one(self, turbo, duration, frames):
        assert turbo.render(ask(duration=duration, steps=1)).audio.shape[-1] == frames * 1920

    @pytest.mark.parametrize("name", ["acestep-v15-tiny", "acestep-v15-tiny-base"])
    def test_bfloat16_gives_nearly_the_audio_of_float32(self, name):
        exact, rounded = (build_renderer_models(name, device=CPU, dtype=torch.float32) for _ in range(2))
        for role in MODULES:
            torch.nn.Module.to(getattr(rounded, role), torch.bfloat16)
        rounded = replace(rounded, dtype=torch.bfloat16)
        songs = [Renderer(models).render(ask(guidance_scale=7.0)).audio.flatten() for models in (exact, rounded)]
        assert torch.nn.functional.cosine_similarity(*songs, dim=0) > 0.95


class TestSeeds:
    def test_the_same_seed_gives_the_same_audio(self, turbo):
        assert torch.equal(turbo.render(ask()).audio, turbo.render(ask()).audio)

    def test_another_seed_gives_other_audio(self, turbo):
        first, second = turbo.render(ask(seeds=(1, 2))).audio
        assert (first - second).std() > 0.3 * first.std()

    @pytest.mark.parametrize("codes", [((), (), ()), (CODES, CODES[::-1], CODES)])
    @pytest.mark.parametrize("name", ["turbo", "base"])
    def test_a_song_of_a_batch_equals_that_song_alone(self, name, codes, request: pytest.FixtureRequest):
        renderer = request.getfixturevalue(name)
        batch = renderer.render(ask(seeds=(5, 6, 7), codes=codes, guidance_scale=7.0)).audio
        for song, seed in enumerate((5, 6, 7)):
            alone = renderer.render(ask(seeds=(seed,), codes=(codes[song],), guidance_scale=7.0)).audio[0]
            assert (batch[song] - alone).abs().max() < TOLERANCE

    def test_the_global_generator_is_not_touched(self, base):
        torch.manual_seed(3)
        state = torch.get_rng_state()
        base.render(ask(codes=(CODES,), guidance_scale=7.0))
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_noise_does_not_depend_on_the_models_dtype(self, turbo):
        half = Renderer(replace(turbo.models, dtype=torch.bfloat16))
        assert torch.equal(turbo.noise([9], 130), half.noise([9], 130))
        assert turbo.noise([9], 130).dtype == torch.float32


class TestConditions:
    @pytest.mark.parametrize(
        "change",
        [
            {"caption": "slow strings"},
            {"lyrics": "[Verse]\nother words"},
            {"metadata": SongMetadata(bpm=60, keyscale="C major", timesignature="4", language="en")},
            {"metadata": SongMetadata(bpm=120, keyscale="C major", timesignature="4", language="ja")},
            {"duration": 7.0},
        ],
    )
    def test_every_value_of_a_request_reaches_the_transformer(self, turbo, change):
        said, changed = turbo.condition(ask()), turbo.condition(ask(**change))
        shortest = min(said.encoder_hidden_states.shape[1], changed.encoder_hidden_states.shape[1])
        difference = said.encoder_hidden_states[:, :shortest] - changed.encoder_hidden_states[:, :shortest]
        assert difference.abs().max() > 0.01

    def test_without_codes_the_source_is_silence_and_every_frame_is_generated(self, turbo):
        source, mask = turbo.condition(ask()).context_latents.chunk(2, dim=-1)
        assert torch.equal(source, turbo.models.condition_encoder.silence_latent[:, :130])
        assert torch.equal(mask, torch.ones_like(mask))

    def test_text_is_encoded_once_however_many_songs_are_made(self, turbo, monkeypatch):
        text_encoder = spy_on(monkeypatch, turbo.models.text_encoder, "forward")
        condition_encoder = spy_on(monkeypatch, turbo.models.condition_encoder, "forward")
        turbo.render(ask(seeds=(1, 2, 3), steps=1))
        assert (len(text_encoder.calls), len(condition_encoder.calls)) == (1, 1)

    def test_codes_bring_their_length_their_latents_and_their_instruction(self, turbo):
        conditions = turbo.condition(ask(codes=(CODES,), duration=99.0))
        assert conditions.context_latents.shape == (1, 130, 8)
        plain = turbo.condition(ask(duration=99.0))
        assert conditions.encoder_hidden_states.shape != plain.encoder_hidden_states.shape
        assert not torch.equal(conditions.context_latents, plain.context_latents[:, :130])

    def test_other_codes_give_other_audio(self, turbo):
        first, second = turbo.render(ask(seeds=(1, 1), codes=(CODES, CODES[::-1]))).audio
        assert (first - second).std() > 0.1 * first.std()

    def test_a_short_song_is_padded_with_silence_for_the_transformer_and_then_cut(self, turbo, monkeypatch):
        transformer = spy_on(monkeypatch, turbo.models.transformer, "forward")
        audio = turbo.render(ask(codes=(CODES[:10],))).audio
        (_, inputs), *_ = transformer.calls
        assert inputs["hidden_states"].shape[1] == 128
        silence = turbo.models.condition_encoder.silence_latent
        assert torch.equal(inputs["context_latents"][:, 50:, :4], silence[:, :78])
        assert audio.shape[-1] == 50 * 1920

    def test_a_song_longer_than_the_model_renders_is_refused(self, turbo):
        with pytest.raises(InvalidRequest, match="15001 latent frames"):
            turbo.render(ask(duration=600.01))


class TestDiffusersAgrees:
    """The pipeline of diffusers, given the same modules and noise, generates the same song (fp32, one prompt)."""

    @pytest.mark.parametrize("name", ["turbo", "base"])
    @pytest.mark.parametrize("codes", [(), CODES])
    def test_same_song(self, name, codes, request: pytest.FixtureRequest):
        renderer = request.getfixturevalue(name)
        asked = ask(codes=(codes,), steps=4, guidance_scale=7.0, sampler=SamplerSettings(dcw_enabled=False))
        models = renderer.models
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=models.text_tokenizer, pad_token="<|endoftext|>")
        pipeline = AceStepPipeline(
            vae=models.vae,
            text_encoder=models.text_encoder,
            tokenizer=tokenizer,
            transformer=models.transformer,
            condition_encoder=models.condition_encoder,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
            audio_tokenizer=models.audio_tokenizer,
            audio_token_detokenizer=models.audio_token_detokenizer,
        )
        pipeline.set_progress_bar_config(disable=True)
        theirs = pipeline(
            prompt=asked.caption,
            lyrics=asked.lyrics,
            vocal_language="en",
            audio_duration=asked.duration,
            audio_codes="".join(f"<|audio_code_{code}|>" for code in codes) or None,
            instruction=CODES_INSTRUCTION if codes else None,
            bpm=120,
            keyscale="C major",
            timesignature="4",
            num_inference_steps=4,
            guidance_scale=1.0 if models.is_turbo else 7.0,
            shift=3.0,
            latents=renderer.noise(asked.seeds, asked.frames),
        ).audios
        assert (renderer.render(asked).audio - theirs).abs().max() < TOLERANCE


class TestSteps:
    """R35: the number of requested steps is the number executed."""

    @pytest.mark.parametrize("steps", [1, 8, 16])
    @pytest.mark.parametrize("name", ["turbo", "base"])
    def test_every_model_runs_as_many_steps_as_asked(self, name, steps, monkeypatch, request: pytest.FixtureRequest):
        renderer = request.getfixturevalue(name)
        transformer = spy_on(monkeypatch, renderer.models.transformer, "forward")
        rendering = renderer.render(ask(steps=steps))
        assert len(transformer.calls) == rendering.steps == steps

    def test_turbo_models_run_without_guidance(self, turbo, monkeypatch):
        transformer = spy_on(monkeypatch, turbo.models.transformer, "forward")
        rendering = turbo.render(ask(seeds=(1, 2), guidance_scale=7.0))
        assert {inputs["hidden_states"].shape[0] for _, inputs in transformer.calls} == {2}
        assert rendering.guidance_scale == 1.0

    def test_base_models_are_guided_within_the_interval_only(self, base, monkeypatch):
        transformer = spy_on(monkeypatch, base.models.transformer, "forward")
        rendering = base.render(ask(seeds=(1, 2), steps=4, shift=1.0, guidance_scale=7.0, guidance_interval=(0.4, 0.8)))
        assert [inputs["hidden_states"].shape[0] for _, inputs in transformer.calls] == [2, 4, 4, 2]
        assert rendering.guidance_scale == 7.0

    def test_base_models_without_guidance_run_one_prediction_per_song(self, base, monkeypatch):
        transformer = spy_on(monkeypatch, base.models.transformer, "forward")
        assert base.render(ask(guidance_scale=1.0)).guidance_scale == 1.0
        assert {inputs["hidden_states"].shape[0] for _, inputs in transformer.calls} == {1}

    def test_latents_stay_in_float32_between_the_steps(self, turbo, monkeypatch):
        step = spy_on(monkeypatch, turbo, "denoise_step")
        latents = turbo.denoise(
            turbo.condition(ask()), make_schedule(2, 1.0), None, turbo.noise([1], 130).to(torch.bfloat16)
        )
        assert {args[0].dtype for args, _ in step.calls} == {latents.dtype} == {torch.float32}

    @pytest.mark.parametrize("name", ["turbo", "base"])
    def test_latents_end_at_the_scale_that_the_vae_expects(self, name, request: pytest.FixtureRequest):
        renderer = request.getfixturevalue(name)
        conditions, noise = renderer.condition(ask()), renderer.noise([1], 130)
        latents = renderer.denoise(conditions, make_schedule(8, 3.0), renderer.guidance(ask(guidance_scale=7.0)), noise)
        assert 0.5 < latents.std() < 5.0

    def test_no_step_and_no_tile_reads_a_value_back_from_the_device(self, base):
        asked = ask(steps=2, guidance_scale=7.0)
        conditions, noise = base.condition(asked), base.noise(asked.seeds, asked.frames)
        with NoReadBack():
            latents = base.denoise(conditions, make_schedule(2, 1.0), base.guidance(asked), noise)
            base.decoder.decode(
                latents, [DecodeStep("cpu", plan_tiles(asked.frames, 50, 9))], None, partial(at_level, request=asked)
            )


class NoReadBack(TorchDispatchMode):
    """Fails on operations that wait for the device to read a value or a size."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


class TestStages:
    def test_every_stage_is_a_method_that_an_observer_can_wrap(self, turbo, monkeypatch):
        called: list[tuple[str, int | None]] = []

        def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                counted = kwargs.get("step") or kwargs.get("tile")
                called.append((name, None if counted is None else counted.index))
                return original(*args, **kwargs)

            return wrapped

        for name in ("condition", "noise", "denoise", "denoise_step"):
            monkeypatch.setattr(turbo, name, wrap(name, getattr(turbo, name)))
        for name in ("decode", "decode_tile"):
            monkeypatch.setattr(turbo.decoder, name, wrap(name, getattr(turbo.decoder, name)))
        turbo.render(ask(seeds=(1, 2), steps=2, duration=30.0))
        assert called == [
            ("condition", None),
            ("noise", None),
            ("denoise", None),
            ("denoise_step", 0),
            ("denoise_step", 1),
            ("decode", None),
            *(("decode_tile", index) for index in range(4)),
        ]

    def test_steps_and_tiles_are_given_by_name(self, turbo, monkeypatch):
        step, tile = spy_on(monkeypatch, turbo, "denoise_step"), spy_on(monkeypatch, turbo.decoder, "decode_tile")
        turbo.render(ask(steps=2, shift=1.0, duration=30.0))
        assert [kwargs["step"].timestep for _, kwargs in step.calls] == [1.0, 0.5]
        assert [kwargs["tile"] for _, kwargs in tile.calls] == list(plan_tiles(750, 512, 9).of_songs(1))

    def test_tiles_join_to_what_one_decode_gives(self, turbo):
        latents = turbo.noise([1, 2], 200)
        whole, tiled = (
            turbo.decoder.decode(latents, [DecodeStep("cpu", plan_tiles(200, length, 9))]) for length in (200, 64)
        )
        assert tiled.decoding.tiles == 2 * 4
        assert (tiled.audio - whole.audio).abs().max() < TOLERANCE

    def test_the_extremes_are_those_before_the_level_is_set(self, turbo):
        latents = turbo.noise([1, 2], 130)
        way = [DecodeStep("cpu", plan_tiles(130, 130, 9))]
        plain = turbo.decoder.decode(latents, way)
        silent = turbo.decoder.decode(latents, way, None, torch.zeros_like)
        assert not silent.audio.any()
        assert torch.equal(silent.extremes, torch.stack(torch.aminmax(plain.audio.flatten(1), dim=1), dim=1))

    def test_progress_is_reported_after_every_step_and_tile(self, turbo):
        reported: list[Progress] = []
        turbo.render(ask(seeds=(1, 2), steps=2), reported.append)
        assert reported == [
            Progress("dit", 1, 2),
            Progress("dit", 2, 2),
            Progress("vae.decode", 1, 2),
            Progress("vae.decode", 2, 2),
        ]

    @pytest.mark.parametrize("stage", ["dit", "vae.decode"])
    def test_an_exception_of_the_callback_stops_the_run_unchanged(self, turbo, stage):
        stop = KeyboardInterrupt("enough")

        def progress(report: Progress) -> None:
            if report.stage == stage:
                raise stop

        with pytest.raises(KeyboardInterrupt) as raised:
            turbo.render(ask(), progress)
        assert raised.value is stop
        assert turbo.render(ask()).audio.isfinite().all()


def fail_with(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


class TestFailures:
    @pytest.mark.parametrize(
        ("stage", "role", "method"),
        [
            ("condition", "text_encoder", "forward"),
            ("condition", "condition_encoder", "forward"),
            ("dit", "transformer", "forward"),
            ("vae.decode", "vae", "decode"),
        ],
    )
    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("tried to allocate 9 GiB"), MemoryError("host")])
    def test_out_of_memory_keeps_its_stage_and_its_cause(self, turbo, monkeypatch, stage, role, method, error):
        monkeypatch.setattr(getattr(turbo.models, role), method, fail_with(error))
        with pytest.raises(OutOfMemory) as raised:
            turbo.render(ask())
        assert raised.value.stage == stage
        assert raised.value.__cause__ is error

    def test_other_errors_pass_unchanged(self, turbo, monkeypatch):
        error = RuntimeError("a bug")
        monkeypatch.setattr(turbo.models.transformer, "forward", fail_with(error))
        with pytest.raises(RuntimeError) as raised:
            turbo.render(ask())
        assert raised.value is error

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize(
        ("stage", "role", "parameter"),
        [("dit", "transformer", "proj_out_conv.bias"), ("vae.decode", "vae", "decoder.conv1.bias")],
    )
    def test_a_song_that_is_not_finite_names_the_stage_that_made_it(self, turbo, stage, role, parameter, value):
        with torch.no_grad():
            getattr(turbo.models, role).get_parameter(parameter)[0] = value
        with pytest.raises(InvalidOutput, match="NaN or infinity") as raised:
            turbo.render(ask())
        assert raised.value.stage == stage


def test_models_are_only_read(turbo: Renderer):
    def values(models: RendererModels) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in models.transformer.state_dict().values()]

    before = values(turbo.models)
    turbo.render(ask())
    assert all(torch.equal(a, b) for a, b in zip(before, values(turbo.models), strict=True))
