"""`generate_music` end to end on the tiny models: results, recorded spans and failures."""

from dataclasses import replace

import pytest
import soundfile
import torch

from acestep.checkpoints import TINY_DIT, TINY_LM, Models, ModelSelection, load_models
from acestep.errors import InvalidOutput, InvalidRequest, OutOfMemory
from acestep.inference import generate_music
from acestep.renderer.renderer import Renderer
from acestep.resolution import resolve_seeds
from acestep.types import SAMPLE_RATE, GenerationRequest, SongMetadata

SONG = GenerationRequest(
    caption="bright synth pop",
    lyrics="[Verse]\nla la la",
    metadata=SongMetadata(bpm=120, keyscale="C major", timesignature="4", language="en"),
    duration=10,
    seeds=(7,),
)


def test_a_song_is_48_khz_stereo_of_the_length_asked_for(tiny_models, tmp_path):
    result = generate_music(tiny_models, SONG, save_dir=tmp_path)
    (song,) = result.songs
    assert song.audio.shape == (2, 10 * SAMPLE_RATE)
    assert song.audio.dtype == torch.float32
    assert song.audio.abs().max() == pytest.approx(10 ** (-1 / 20), rel=1e-3)
    data, rate = soundfile.read(song.path)
    assert (data.shape, rate) == ((10 * SAMPLE_RATE, 2), SAMPLE_RATE)


def test_thinking_writes_five_codes_a_second_and_renders_them(tiny_models):
    result = generate_music(tiny_models, replace(SONG, thinking=True))
    (song,) = result.songs
    assert len(song.audio_codes) == 50
    assert all(0 <= code < 64_000 for code in song.audio_codes)
    assert result.effective.lm_backend == "pt"
    assert song.audio.shape == (2, 10 * SAMPLE_RATE)


def test_without_thinking_the_language_model_is_not_used(tiny_models):
    result = generate_music(tiny_models, SONG)
    assert (result.effective.lm_model, result.effective.lm_backend) == (None, None)
    assert result.songs[0].audio_codes == ()


def test_the_same_seed_gives_the_same_audio_and_another_seed_another(tiny_models):
    request = replace(SONG, thinking=True)
    first, again = (generate_music(tiny_models, request).songs[0] for _ in range(2))
    other = generate_music(tiny_models, replace(request, seeds=(8,))).songs[0]
    assert torch.equal(first.audio, again.audio)
    assert first.audio_codes == again.audio_codes
    assert other.audio_codes != first.audio_codes
    assert (other.audio - first.audio).abs().max() > 0.1


def test_an_item_of_a_batch_equals_that_item_alone(tiny_models):
    together = generate_music(tiny_models, replace(SONG, batch_size=3, seeds=(5, 7, 9), thinking=True)).songs
    alone = generate_music(tiny_models, replace(SONG, thinking=True)).songs[0]
    assert together[1].audio_codes == alone.audio_codes
    torch.testing.assert_close(together[1].audio, alone.audio, atol=1e-4, rtol=0)


def test_planned_metadata_completes_what_the_user_left_open(tiny_models):
    request = replace(SONG, metadata=SongMetadata(bpm=120), duration=None, use_cot_metas=True)
    result = generate_music(tiny_models, request)
    assert result.metadata.bpm == 120
    assert result.metadata.keyscale is not None
    assert 10 <= result.effective.duration <= 600
    assert result.effective.duration == pytest.approx(result.metadata.duration, abs=0.2)


@pytest.mark.parametrize("steps", [1, 3, 16])
def test_every_step_count_is_executed_as_asked(tiny_models, steps, monkeypatch):
    executed = []
    original = Renderer.denoise_step
    monkeypatch.setattr(Renderer, "denoise_step", lambda *a, **k: executed.append(k["step"].index) or original(*a, **k))
    result = generate_music(tiny_models, replace(SONG, inference_steps=steps))
    assert executed == list(range(steps))
    assert result.effective.steps == steps


def test_thinking_without_a_language_model_is_an_error(tiny_models):
    with pytest.raises(InvalidRequest, match="language model"):
        generate_music(Models(tiny_models.renderer, None, tiny_models.device), replace(SONG, thinking=True))


def test_codes_given_by_the_user_are_rendered_as_they_are(tiny_models):
    codes = tuple(range(0, 60_000, 1_000))
    result = generate_music(tiny_models, replace(SONG, audio_codes=codes))
    assert result.songs[0].audio_codes == codes
    assert result.effective.duration == len(codes) / 5


def test_running_out_of_memory_keeps_the_stage_and_the_cause(tiny_models, monkeypatch):
    def exhausted(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Renderer, "denoise_step", exhausted)
    with pytest.raises(OutOfMemory) as caught:
        generate_music(tiny_models, SONG)
    assert caught.value.stage == "dit"
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_not_a_number_is_an_error_not_a_song(tiny_models, monkeypatch, tmp_path):
    original = Renderer.denoise_step
    monkeypatch.setattr(Renderer, "denoise_step", lambda *a, **k: original(*a, **k) * float("nan"))
    with pytest.raises(InvalidOutput) as caught:
        generate_music(tiny_models, SONG, save_dir=tmp_path)
    assert caught.value.stage == "dit"
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_to_the_end_and_may_stop_the_run(tiny_models):
    seen = []
    generate_music(tiny_models, replace(SONG, thinking=True), progress=seen.append)
    last = {p.stage: p for p in seen}
    assert set(last) == {"lm.codes", "dit", "vae.decode"}
    assert all(p.done == p.total for p in last.values())

    class Cancelled(Exception):
        pass

    def cancel(progress):
        if progress.stage == "dit":
            raise Cancelled

    with pytest.raises(Cancelled):
        generate_music(tiny_models, SONG, progress=cancel)


def test_the_global_random_state_is_neither_used_nor_moved(tiny_models):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = generate_music(tiny_models, replace(SONG, thinking=True)).songs[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(generate_music(tiny_models, replace(SONG, thinking=True)).songs[0].audio, first.audio)


def test_a_retake_leads_from_the_song_of_one_seed_to_that_of_another(tiny_models):
    songs = [
        generate_music(tiny_models, replace(SONG, batch_size=2, seeds=(3, 4), **changed)).songs
        for changed in ({}, {"retake_seed": 8, "retake_variance": 1.0}, {"retake_seed": 8, "retake_variance": 0.2})
    ]
    others = generate_music(tiny_models, replace(SONG, batch_size=2, seeds=(8, 9))).songs
    for plain, whole, part, other in zip(*songs, others, strict=True):
        assert torch.allclose(whole.audio, other.audio, atol=1e-4)
        assert not torch.allclose(part.audio, plain.audio, atol=1e-2)
        assert not torch.allclose(part.audio, other.audio, atol=1e-2)
        assert part.seed == plain.seed


def test_seeds_are_resolved_once():
    assert resolve_seeds(GenerationRequest(seeds=(3, 1), batch_size=2)) == (3, 1)
    assert resolve_seeds(GenerationRequest(seeds=(3,), batch_size=3)) == (3, 4, 5)
    assert resolve_seeds(GenerationRequest(seeds=(2**32 - 1,), batch_size=2)) == (2**32 - 1, 0)
    random = resolve_seeds(GenerationRequest(batch_size=2))
    assert random != resolve_seeds(GenerationRequest(batch_size=2))
    assert random[1] == (random[0] + 1) % 2**32


def test_the_tiny_models_are_the_turbo_and_the_language_model():
    models = load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))
    assert models.renderer.models.is_turbo
    assert models.planner.model_name == TINY_LM
