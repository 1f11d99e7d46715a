"""Requests are checked before any model runs; the error names the value and the range."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from acestep.checkpoints import TINY_BASE_DIT, ModelSelection, load_renderer_models
from acestep.errors import AudioReadError, AudioWriteError, InvalidRequest
from acestep.types import BASE_TASKS, GenerationRequest, SamplerSettings, SamplingSettings, SongMetadata
from acestep.validation import require_task_support, validate


@pytest.mark.parametrize("duration", [9.99, 600.1, 0, -1, float("nan"), float("inf")])
def test_a_duration_outside_10_to_600_seconds_is_refused(duration):
    with pytest.raises(InvalidRequest, match=r"`duration` .* s is out of range: 10 \.\.\. 600 s"):
        validate(GenerationRequest(duration=duration))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"timesteps": (0.5, 0.7)}, "`timesteps` 0.5, 0.7 must decrease"),
        ({"timesteps": (0.0,)}, "`timesteps` 0 must decrease and start above 0"),
        ({"timesteps": (1.5, 0.5)}, "`timesteps` 1.5 is out of range"),
        ({"sampler": SamplerSettings(infer_method="odd")}, "no `sampler.infer_method` 'odd': choose one of ode, sde"),
        ({"sampler": SamplerSettings(sampler_mode="rk4")}, "no `sampler.sampler_mode` 'rk4'"),
        ({"sampler": SamplerSettings(dcw_mode="all")}, "no `sampler.dcw_mode` 'all'"),
        ({"sampler": SamplerSettings(dcw_scaler=2.0)}, "`sampler.dcw_scaler` 2 is out of range: 0 ... 1"),
        ({"sampler": SamplerSettings(velocity_ema_factor=-0.1)}, "`sampler.velocity_ema_factor` -0.1"),
        ({"repaint_mode": "wild"}, "no `repaint_mode` 'wild'"),
        ({"retake_variance": 0.5}, "`retake_variance` mixes in the noise of `retake_seed`: give both, or neither"),
        ({"retake_seed": 5}, "`retake_variance` mixes in the noise of `retake_seed`"),
        ({"retake_seed": 5, "retake_variance": 1.5}, "`retake_variance` 1.5 is out of range: 0 ... 1"),
        ({"retake_seed": -1, "retake_variance": 0.5}, "`retake_seed` -1 is out of range"),
        ({"cover_noise_strength": 0.5}, "`cover_noise_strength` starts from a recording"),
    ],
)
def test_a_sampler_that_does_not_exist_or_cannot_start_is_refused(changes, named):
    with pytest.raises(InvalidRequest, match=re.escape(named)):
        validate(GenerationRequest(**changes))


@pytest.mark.parametrize("batch_size", [0, -1, 9])
def test_a_batch_outside_1_to_8_is_refused(batch_size):
    with pytest.raises(InvalidRequest, match=r"`batch_size` .* out of range: 1 \.\.\. 8"):
        validate(GenerationRequest(batch_size=batch_size))


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        (SongMetadata(keyscale="H# minor"), "H# minor"),
        (SongMetadata(bpm=999), "999"),
        (SongMetadata(timesignature="5/4"), "5/4"),
        (SongMetadata(language="klingon"), "klingon"),
    ],
)
def test_unknown_metadata_is_named(metadata, named):
    with pytest.raises(InvalidRequest, match=named):
        validate(GenerationRequest(metadata=metadata))


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest(inference_steps=0),
        GenerationRequest(guidance_scale=0.5),
        GenerationRequest(guidance_scale=float("nan")),
        GenerationRequest(guidance_interval=(-0.1, 1.0)),
        GenerationRequest(guidance_interval=(0.6, 0.2)),
        GenerationRequest(peak_dbfs=0.5),
        GenerationRequest(peak_dbfs=float("nan")),
        GenerationRequest(shift=0),
        GenerationRequest(seeds=(-1,)),
        GenerationRequest(seeds=(2**32,)),
        GenerationRequest(seeds=(1, 2), batch_size=3),
        GenerationRequest(audio_codes=(64_000,)),
        GenerationRequest(audio_codes=(-1,)),
        GenerationRequest(audio_codes=(0,) * 3_001),
        GenerationRequest(sampling=SamplingSettings(temperature=-0.1)),
        GenerationRequest(sampling=SamplingSettings(top_p=1.1)),
        GenerationRequest(sampling=SamplingSettings(top_k=-1)),
        GenerationRequest(sampling=SamplingSettings(guidance_scale=0.9)),
    ],
)
def test_values_that_no_model_accepts_are_refused(request_):
    with pytest.raises(InvalidRequest):
        validate(request_)


def test_an_unknown_audio_format_is_refused():
    with pytest.raises(AudioWriteError, match="wma"):
        validate(GenerationRequest(audio_format="wma"))


def test_the_limits_themselves_are_accepted():
    validate(GenerationRequest(duration=10, batch_size=1, inference_steps=1, seeds=(0,)))
    validate(GenerationRequest(duration=600, batch_size=8, inference_steps=1_000, seeds=(2**32 - 1,)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "source.wav", np.full((4_800, 2), 0.1), 48_000)
    return tmp_path / "source.wav"


@pytest.mark.parametrize("task", ["cover", "repaint", *sorted(BASE_TASKS)])
def test_every_task_on_a_recording_needs_one_and_takes_one(task, source):
    with pytest.raises(InvalidRequest, match=f"task {task} works on a recording: give `src_audio`"):
        validate(GenerationRequest(task_type=task))
    validate(GenerationRequest(task_type=task, src_audio=source, reference_audio=source))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task_type": "remix"},
            "no `task_type` 'remix': choose one of text2music, cover, repaint, lego, extract",
        ),
        ({"task_type": "text2music"}, "text2music takes no `src_audio`"),
        ({"audio_codes": (1, 2)}, "follows `src_audio`: leave out `audio_codes`"),
        ({"duration": 30}, "as long as `src_audio`: leave out `duration`"),
        ({"metadata": SongMetadata(duration=30)}, "as long as `src_audio`: leave out `duration`"),
        ({"audio_cover_strength": 1.1}, "`audio_cover_strength` 1.1 is out of range: 0 ... 1"),
        ({"audio_cover_strength": float("nan")}, "`audio_cover_strength` nan is out of range"),
        (
            {"task_type": "extract", "audio_cover_strength": 0.5},
            "`audio_cover_strength` is for cover and for audio codes",
        ),
        (
            {"repainting_start": 1.0},
            "`repainting_start` and `repainting_end` are for lego, repaint, not for cover",
        ),
        (
            {"task_type": "complete", "repainting_end": 1.0},
            "`repainting_start` and `repainting_end` are for lego, repaint, not for complete",
        ),
        ({"task_type": "repaint", "repainting_start": float("nan")}, "`repainting_start` nan s is out of range"),
        ({"task_type": "lego", "repainting_start": 0.05, "repainting_end": 0.04}, "window 0.05 ... 0.04 s is empty"),
        ({"task_type": "repaint", "repainting_start": 0.2}, "window 0.2 ... 0.1 s is empty"),
        ({"task_type": "repaint", "repainting_start": 0.2, "repainting_end": 1}, "does not touch the recording"),
        ({"task_type": "repaint", "repainting_end": 601}, "`repainting_end` 601 s is out of range"),
        ({"track_names": ("drums",)}, r"`track_names` \(drums\) is for complete, extract, lego, not for cover"),
        ({"task_type": "extract", "track_names": ("kazoo",)}, "no track 'kazoo': choose one of vocals, backing_vocals"),
        ({"task_type": "lego", "track_names": ("drums", "bass")}, "lego takes one of `track_names`, not 2"),
    ],
)
def test_what_a_task_cannot_use_is_refused(changes, message, source):
    with pytest.raises(InvalidRequest, match=message):
        validate(GenerationRequest(**{"task_type": "cover", "src_audio": source, **changes}))


def test_audio_codes_may_be_followed_in_part():
    validate(GenerationRequest(thinking=True, audio_cover_strength=0.5))
    validate(GenerationRequest(audio_codes=(1, 2), audio_cover_strength=0.5))
    with pytest.raises(InvalidRequest, match="not for text2music without codes"):
        validate(GenerationRequest(audio_cover_strength=0.5))


@pytest.mark.parametrize("field", ["src_audio", "reference_audio"])
def test_a_file_that_is_not_there_is_found_out_before_any_model_runs(field, source, tmp_path):
    request = {"task_type": "cover", "src_audio": source, field: tmp_path / "missing.flac"}
    with pytest.raises(AudioReadError, match=r"no audio file .*missing\.flac"):
        validate(GenerationRequest(**request))


def test_several_tracks_complete_a_song(source):
    validate(GenerationRequest(task_type="complete", src_audio=source, track_names=("drums", "bass")))


def test_tasks_on_single_tracks_need_a_base_model(tiny_models):
    turbo = tiny_models.renderer.models
    base = load_renderer_models(ModelSelection(dit=TINY_BASE_DIT), turbo.device, turbo.dtype)
    for task in BASE_TASKS:
        require_task_support(task, base)
        with pytest.raises(
            InvalidRequest, match=f"`task_type` {task} needs a base model .* acestep-v15-tiny is a turbo model"
        ):
            require_task_support(task, turbo)
    for task in ("text2music", "cover", "repaint"):
        require_task_support(task, turbo)


@pytest.mark.parametrize("name", ["acestep-v15-sft", "acestep-v15-xl-sft", "models/ACE-Step-v15-SFT", "sft"])
def test_fine_tuned_models_have_lost_the_tasks_on_single_tracks(name, tiny_models):
    """R135: only the name distinguishes them from base models."""
    sft = replace(tiny_models.renderer.models, name=name, is_turbo=False)
    for task in BASE_TASKS:
        with pytest.raises(InvalidRequest, match=r"needs a base model .* is an sft model"):
            require_task_support(task, sft)
    for task in ("text2music", "cover", "repaint"):
        require_task_support(task, sft)
    require_task_support("lego", replace(sft, name="acestep-v15-softsftening"))


@pytest.mark.parametrize(
    ("task", "asks", "writes"),
    [("text2music", True, True), ("cover", False, False), ("repaint", False, False), ("lego", True, False)],
)
def test_the_language_model_writes_no_codes_where_there_is_a_source(task, asks, writes, source):
    """A cover and a repaint do not use it."""
    request = GenerationRequest(task_type=task, src_audio=source, thinking=True, use_cot_metas=True)
    assert (request.needs_language_model, request.writes_audio_codes) == (asks, writes)
    assert not GenerationRequest(task_type=task, src_audio=source).needs_language_model


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (GenerationRequest(metadata=SongMetadata(bpm="120")), "`metadata.bpm` is '120', not a whole number or None"),
        (GenerationRequest(caption=None), "`caption` is None, not text"),
        (GenerationRequest(caption=b"song"), "`caption` is b'song', not text"),
        (GenerationRequest(batch_size=True), "`batch_size` is True, not a whole number"),
        (GenerationRequest(duration="30"), "`duration` is '30', not a number or None"),
        (GenerationRequest(inference_steps=8.0), "`inference_steps` is 8.0, not a whole number"),
        (GenerationRequest(seeds=[7]), "`seeds` is [7], not a tuple of a whole number"),
        (GenerationRequest(src_audio="song.wav"), "`src_audio` is 'song.wav', not a path (pathlib.Path) or None"),
        (GenerationRequest(guidance_interval=(0, 1, 2)), "`guidance_interval` is (0, 1, 2), not a tuple of a number"),
        (GenerationRequest(sampling=None), "`sampling` is None, not SamplingSettings"),
        (GenerationRequest(seeds=(10**6_000,)), "`seeds`"),
    ],
)
def test_a_value_of_another_type_is_one_error_that_names_it(request_, named):
    """N6."""
    with pytest.raises(InvalidRequest) as refusal:
        validate(request_)
    assert named in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("field", ["caption", "lyrics"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_half_a_character_is_no_text(field, text):
    """N6: a lone surrogate, from JSON or from a byte outside UTF-8."""
    with pytest.raises(InvalidRequest, match=f"`{field}` is not valid UTF-8"):
        validate(GenerationRequest(**{field: text}))


@pytest.mark.parametrize("metadata", [SongMetadata(caption="\ud800"), SongMetadata(keyscale="\ud800")])
def test_nor_is_it_in_metadata_or_in_the_negative_prompt(metadata):
    with pytest.raises(InvalidRequest, match=r"`metadata\."):
        validate(GenerationRequest(metadata=metadata))
    with pytest.raises(InvalidRequest, match=r"`sampling\.negative_prompt`"):
        validate(GenerationRequest(sampling=SamplingSettings(negative_prompt="\ud800")))
