"""Tasks on a recording: what the transformer receives for each, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution
from transformers import PreTrainedTokenizerFast

from acestep.errors import OutOfMemory
from acestep.renderer import renderer as renderer_module
from acestep.renderer.conditioning import TIMBRE_FRAMES, timbre_excerpt
from acestep.renderer.context import cover_latents
from acestep.renderer.renderer import Renderer, RenderRequest
from acestep.renderer.source import Source
from acestep.renderer.vae import plan_encoding
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import BASE_TASKS, SAMPLES_PER_FRAME, SongMetadata
from tests.renderer.test_renderer import CODES, MODULES, TOLERANCE, spy_on

CPU = torch.device("cpu")
FRAMES = 140
SAMPLES = FRAMES * SAMPLES_PER_FRAME - 1_000


@pytest.fixture(scope="module")
def base() -> Renderer:
    return Renderer(build_renderer_models("acestep-v15-tiny-base", device=CPU, dtype=torch.float32))


def recording(samples: int = SAMPLES, seed: int = 0) -> torch.Tensor:
    return (torch.randn(2, samples, generator=torch.Generator().manual_seed(seed)) * 0.2).clamp(-1, 1)


def ask(task: str, source: Source | None, **changes: Any) -> RenderRequest:
    seeds = changes.pop("seeds", (1,))
    return RenderRequest(
        **{
            "caption": "bright synth pop with a driving bass",
            "lyrics": "[Verse]\nSoft notes in the morning light",
            "metadata": SongMetadata(bpm=120, keyscale="C major", timesignature="4", language="en"),
            "duration": 5.2 if source is None else source.duration,
            "codes": ((),) * len(seeds),
            "seeds": seeds,
            "steps": 2,
            "shift": 3.0,
            "task": task,
            "source": source,
            **changes,
        }
    )


def source_and_mask(renderer: Renderer, request: RenderRequest) -> tuple[torch.Tensor, torch.Tensor]:
    return renderer.condition(request).context_latents.chunk(2, dim=-1)


def encoded(renderer: Renderer, audio: torch.Tensor) -> torch.Tensor:
    return renderer.encode(audio, plan_encoding(renderer.models.vae, audio.shape[-1]))


class TestContext:
    """Which frames are to be generated, and from what."""

    def test_a_cover_follows_what_is_left_of_the_source_as_audio_codes(self, base):
        source = Source.whole(recording())
        latents, mask = source_and_mask(base, ask("cover", source))
        heard = encoded(base, source.audio)
        assert torch.equal(latents, cover_latents(base.models, heard))
        assert not torch.allclose(latents, heard, atol=0.1)
        assert mask.eq(1).all()

    @pytest.mark.parametrize("task", ["extract", "complete"])
    def test_extract_and_complete_receive_the_source_as_it_is_and_generate_every_frame(self, base, task):
        source = Source.whole(recording())
        latents, mask = source_and_mask(base, ask(task, source))
        assert torch.equal(latents, encoded(base, source.audio))
        assert mask.eq(1).all()

    def test_repaint_receives_silence_inside_the_window_and_the_source_outside(self, base):
        source = Source.with_window(recording(), 2.0, 4.0)
        latents, mask = source_and_mask(base, ask("repaint", source))
        heard, silence = encoded(base, source.audio), base.models.condition_encoder.silence_latent
        assert torch.equal(latents[:, 50:100], silence[:, 50:100])
        assert torch.equal(latents[:, :50], heard[:, :50])
        assert torch.equal(latents[:, 100:], heard[:, 100:])
        assert mask[:, 50:100].eq(1).all()
        assert mask.sum() == 50 * mask.shape[-1]

    def test_lego_receives_the_source_inside_the_window_too(self, base):
        source = Source.with_window(recording(), 2.0, 4.0)
        latents, mask = source_and_mask(base, ask("lego", source))
        assert torch.equal(latents, encoded(base, source.audio))
        assert mask.sum() == mask[:, 50:100].sum() == 50 * mask.shape[-1]

    def test_frames_beyond_a_short_source_are_silence(self, base):
        source = Source.with_window(recording(50 * SAMPLES_PER_FRAME), 1.0, 2.0)
        latents, mask = source_and_mask(base, ask("repaint", source))
        assert latents.shape[1] == 128
        assert torch.equal(latents[:, 50:], base.models.condition_encoder.silence_latent[:, :78])
        assert mask[:, 50:].eq(0).all()

    def test_encoding_is_deterministic_and_leaves_the_global_generator_alone(self, base):
        """The same source is the same latents, whatever the state of the global generator."""
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = encoded(base, recording())
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(encoded(base, recording()), first)
        assert first.std() > 0.01

    def test_running_out_of_memory_while_encoding_belongs_to_the_conditions(self, base, monkeypatch):
        def exhausted(*_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")

        monkeypatch.setattr(base.models.vae, "encode", exhausted)
        with pytest.raises(OutOfMemory) as raised:
            base.condition(ask("cover", Source.whole(recording())))
        assert raised.value.stage == "condition"


class TestInstructions:
    @pytest.mark.parametrize(
        ("task", "tracks", "line"),
        [
            ("text2music", (), "Fill the audio semantic mask based on the given conditions:"),
            ("cover", (), "Generate audio semantic tokens based on the given conditions:"),
            ("repaint", (), "Repaint the mask area based on the given conditions:"),
            ("lego", (), "Generate the track based on the audio context:"),
            ("lego", ("drums",), "Generate the DRUMS track based on the audio context:"),
            ("extract", (), "Extract the track from the audio:"),
            ("extract", ("backing_vocals",), "Extract the BACKING_VOCALS track from the audio:"),
            ("complete", (), "Complete the input track:"),
            ("complete", ("bass", "drums"), "Complete the input track with BASS | DRUMS:"),
        ],
    )
    def test_every_task_is_announced_by_its_own_line(self, base, task, tracks, line, monkeypatch):
        source = None if task == "text2music" else Source.whole(recording())
        prompts = spy_on(monkeypatch, renderer_module, "encode_prompt")
        base.condition(ask(task, source, track_names=tracks))
        assert [args[2] for args, _ in prompts.calls] == [line]
        theirs = AceStepPipeline._get_task_instruction(
            task_type=task,
            track_name=tracks[0] if tracks else None,
            complete_track_classes=list(tracks) or None,
        )
        assert line == theirs


class TestSongs:
    @pytest.mark.parametrize("task", ["cover", "repaint", *sorted(BASE_TASKS)])
    def test_every_task_makes_songs_as_long_as_the_source_to_the_sample(self, base, task):
        source = Source.whole(recording())
        audio = base.render(ask(task, source, seeds=(1, 2), guidance_scale=7.0)).audio
        assert audio.shape == (2, 2, SAMPLES)
        assert audio.isfinite().all()
        assert audio.abs().max() <= 1
        assert (audio[0] - audio[1]).std() > 0.01

    @pytest.mark.parametrize("task", ["cover", "repaint"])
    def test_bfloat16_gives_nearly_the_audio_of_float32(self, base, task, monkeypatch):
        # oneDNN 3.12 computes strided bfloat16 convolutions of 8 channels, the tiny encoder's width, wrongly.
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        rounded = build_renderer_models("acestep-v15-tiny-base", device=CPU, dtype=torch.float32)
        for role in MODULES:
            torch.nn.Module.to(getattr(rounded, role), torch.bfloat16)
        request = ask(task, Source.whole(recording()), steps=3, guidance_scale=7.0)
        songs = [
            renderer.render(request).audio.flatten()
            for renderer in (base, Renderer(replace(rounded, dtype=torch.bfloat16)))
        ]
        assert torch.nn.functional.cosine_similarity(*songs, dim=0) > 0.9

    @pytest.mark.parametrize("task", ["cover", *sorted(BASE_TASKS)])
    def test_the_source_is_audible_in_the_song(self, base, task):
        songs = [base.render(ask(task, Source.whole(recording(seed=seed)))).audio for seed in (0, 1)]
        assert (songs[0] - songs[1]).std() > 0.01

    @pytest.mark.parametrize(("start", "end"), [(1.0, 3.3), (0.0, 2.0), (3.0, None)])
    def test_repaint_leaves_the_audio_outside_the_window_as_it_was(self, base, start, end):
        source = Source.with_window(recording(), start, end)
        audio = base.render(ask("repaint", source, seeds=(1, 2), guidance_scale=7.0)).audio
        first, last = source.window
        for song in audio:
            assert torch.equal(song[:, :first], source.audio[:, :first])
            assert torch.equal(song[:, last:], source.audio[:, last:])
            assert (song - source.audio)[:, first:last].std() > 0.05
        assert (audio[0] - audio[1])[:, first:last].std() > 0.05

    def test_repaint_extends_a_song_on_both_sides(self, base):
        original = recording(50 * SAMPLES_PER_FRAME)
        source = Source.with_window(original, 1.0, 3.0)
        right = base.render(ask("repaint", source)).audio[0]
        assert right.shape == (2, 75 * SAMPLES_PER_FRAME)
        assert torch.equal(right[:, :48_000], original[:, :48_000])
        assert right[:, 50 * SAMPLES_PER_FRAME :].std() > 0.05
        left = base.render(ask("repaint", Source.with_window(original, -1.0, 0.5))).audio[0]
        assert left.shape == (2, 75 * SAMPLES_PER_FRAME)
        assert torch.equal(left[:, 72_000:], original[:, 24_000:])
        assert left[:, :48_000].std() > 0.05

    def test_the_decoder_finds_the_sources_latents_outside_the_window(self, base, monkeypatch):
        source = Source.with_window(recording(), 2.0, 4.0)
        decode = spy_on(monkeypatch, base.decoder, "decode")
        base.render(ask("repaint", source, repaint_mode="balanced", repaint_strength=0.5))
        ((latents, *_), _) = decode.calls[0]
        heard = encoded(base, source.audio)
        # A strength of 0.5 fades into the source over 12 frames outside the window.
        assert torch.equal(latents[:, :38], heard[:, :38])
        assert torch.equal(latents[:, 112:], heard[:, 112:])
        assert not torch.allclose(latents[:, 50:100], heard[:, 50:100], atol=0.1)


class TestCoverStrength:
    @pytest.mark.parametrize(("strength", "switched_at"), [(1.0, 5), (0.5, 2), (0.39, 1), (0.0, 0)])
    def test_the_source_is_followed_for_the_first_share_of_the_steps(self, base, strength, switched_at, monkeypatch):
        transformer = spy_on(monkeypatch, base.models.transformer, "forward")
        source = Source.whole(recording())
        request = ask("cover", source, steps=5, cover_strength=strength, guidance_scale=7.0)
        base.render(request)
        silence = base.models.condition_encoder.silence_latent[:, :FRAMES]
        is_silence = [torch.equal(inputs["context_latents"][:1, :, :4], silence) for _, inputs in transformer.calls]
        assert is_silence == [False] * switched_at + [True] * (5 - switched_at)
        # Guidance goes on after the switch, with the text's own conditions.
        assert {inputs["hidden_states"].shape[0] for _, inputs in transformer.calls} == {2}
        received = {inputs["encoder_hidden_states"][0].sum().item() for _, inputs in transformer.calls}
        assert len(received) == (1 if switched_at in (0, 5) else 2)

    def test_after_the_switch_the_text_is_encoded_as_for_text_alone(self, base):
        source = Source.whole(recording())
        switch = base.condition(ask("cover", source, steps=4, cover_strength=0.5)).switch
        alone = base.condition(ask("text2music", None, duration=source.duration))
        assert switch.step == 2
        assert torch.equal(switch.conditions.encoder_hidden_states, alone.encoder_hidden_states)
        assert torch.equal(switch.conditions.context_latents, alone.context_latents)

    def test_audio_codes_can_be_followed_for_a_share_of_the_steps_too(self, base):
        songs = [
            base.render(ask("text2music", None, codes=(CODES,), cover_strength=strength)).audio for strength in (1, 0.5)
        ]
        assert (songs[0] - songs[1]).std() > 0.01


class TestReference:
    def test_the_timbre_of_a_reference_reaches_the_transformer(self, base, monkeypatch):
        condition_encoder = spy_on(monkeypatch, base.models.condition_encoder, "forward")
        reference = recording(1_200_000)
        base.condition(ask("text2music", None, reference=reference))
        base.condition(ask("text2music", None))
        (_, with_reference), (_, without) = condition_encoder.calls
        name = "refer_audio_acoustic_hidden_states_packed"
        assert with_reference[name].shape == without[name].shape == (1, TIMBRE_FRAMES, 4)
        assert torch.equal(with_reference[name], encoded(base, timbre_excerpt(reference)))
        assert torch.equal(without[name], base.models.condition_encoder.silence_latent[:, :TIMBRE_FRAMES])

    def test_the_excerpt_is_the_middle_of_each_third(self):
        seconds = torch.arange(120 * 48_000).div(48_000, rounding_mode="floor").expand(2, -1)
        excerpt = timbre_excerpt(seconds)[0].unique_consecutive().tolist()
        assert excerpt == [*range(15, 25), *range(55, 65), *range(95, 105)]

    @pytest.mark.parametrize("samples", [1, 48_000, 480_000, 1_439_999, 1_440_000, 1_440_001])
    def test_the_excerpt_is_half_a_minute_and_the_same_every_time(self, samples):
        reference = recording(samples)
        excerpt = timbre_excerpt(reference)
        assert excerpt.shape == (2, 1_440_000)
        assert torch.equal(timbre_excerpt(reference), excerpt)

    def test_a_reference_of_half_a_minute_is_read_whole(self):
        reference = recording(1_440_000)
        assert torch.equal(timbre_excerpt(reference), reference)


class TestDiffusersAgrees:
    """The pipeline of diffusers gives the same song for the same source, once its encoder takes the mean as well."""

    def render(self, renderer: Renderer, request: RenderRequest, source: Source, **settings: Any) -> torch.Tensor:
        models = renderer.models
        pipeline = AceStepPipeline(
            vae=models.vae,
            text_encoder=models.text_encoder,
            tokenizer=PreTrainedTokenizerFast(tokenizer_object=models.text_tokenizer, pad_token="<|endoftext|>"),
            transformer=models.transformer,
            condition_encoder=models.condition_encoder,
            scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
            audio_tokenizer=models.audio_tokenizer,
            audio_token_detokenizer=models.audio_token_detokenizer,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            prompt=request.caption,
            lyrics=request.lyrics,
            vocal_language="en",
            task_type=request.task,
            src_audio=source.audio,
            audio_duration=None,
            bpm=120,
            keyscale="C major",
            timesignature="4",
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            shift=request.shift,
            latents=renderer.noise(request.seeds, request.frames),
            **settings,
        ).audios

    @pytest.fixture(autouse=True)
    def take_the_mean(self, monkeypatch):
        monkeypatch.setattr(OobleckDiagonalGaussianDistribution, "sample", OobleckDiagonalGaussianDistribution.mode)

    @pytest.mark.parametrize("task", ["cover", *sorted(BASE_TASKS)])
    def test_same_song(self, base, task):
        source = Source.whole(recording(FRAMES * SAMPLES_PER_FRAME))
        request = ask(task, source, guidance_scale=7.0)
        theirs = self.render(base, request, source)
        assert (base.render(request).audio - theirs).abs().max() < TOLERANCE

    @pytest.mark.parametrize("task", ["repaint", "lego"])
    def test_same_latents_inside_a_window(self, base, task, monkeypatch):
        source = Source.with_window(recording(FRAMES * SAMPLES_PER_FRAME), 2.0, 4.0)
        request = ask(task, source, guidance_scale=7.0, repaint_mode="aggressive")
        window = {"repainting_start": 2.0, "repainting_end": 4.0}
        theirs = self.render(base, request, source, output_type="latent", **window)
        decode = spy_on(monkeypatch, base.decoder, "decode")
        base.render(request)
        ((latents, *_), _) = decode.calls[0]
        assert (latents - theirs)[:, 50:100].abs().max() < TOLERANCE
