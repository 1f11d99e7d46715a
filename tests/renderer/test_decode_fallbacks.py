"""The fallbacks of the VAE's decode: what is tried, in which order, and that each gives the same audio (R65)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import OutOfMemory
from acestep.offloading import ModelOffloader
from acestep.renderer.decode_fallbacks import (
    TILE_LENGTHS,
    DecodeSettings,
    DecodeStep,
    decode_bytes_per_frame,
    decode_fallbacks,
    fitting_tile_length,
)
from acestep.renderer.decoder import VaeDecoder
from acestep.renderer.preparation import fold_weight_norm
from acestep.renderer.vae import plan_tiles
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import Placement, VaeDecoding

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30
PER_FRAME = decode_bytes_per_frame(128, torch.bfloat16)
FRAMES = 1500
TOLERANCE = 1e-4
"""Largest difference from one untiled decode, of audio within -1 ... 1, in float32."""


def fallbacks(frames: int = FRAMES, **settings) -> tuple[DecodeStep, ...]:
    return decode_fallbacks(
        frames, 9, device=CUDA, settings=DecodeSettings(**settings), free_bytes=80 * GIB, bytes_per_frame=PER_FRAME
    )


def shown(steps: tuple[DecodeStep, ...]) -> list[tuple[str, int]]:
    return [(step.location, step.plan.tile_length) for step in steps]


def test_shorter_tiles_come_before_the_host_buffer_and_that_before_the_host():
    assert shown(fallbacks()) == [
        *(("gpu", length) for length in (1024, 512, 256, 128, 64)),
        ("gpu+cpu buffer", 64),
        ("cpu", 512),
    ]


def test_a_short_song_is_not_tried_twice_in_the_same_tiling():
    assert shown(fallbacks(frames=200)) == [
        ("gpu", 200),
        ("gpu", 128),
        ("gpu", 64),
        ("gpu+cpu buffer", 64),
        ("cpu", 200),
    ]


def test_a_tile_length_that_was_asked_for_is_tried_first():
    assert shown(fallbacks(tile_length=300)) == [
        *(("gpu", length) for length in (300, 256, 128, 64)),
        ("gpu+cpu buffer", 64),
        ("cpu", 300),
    ]
    assert shown(fallbacks(tile_length=40)) == [("gpu", 40), ("gpu+cpu buffer", 40), ("cpu", 40)]


def test_decoding_on_the_host_can_be_asked_for():
    assert shown(fallbacks(on_cpu=True)) == [("cpu", 512)]


def test_the_cpu_has_one_way():
    assert shown(decode_fallbacks(FRAMES, 9, device=CPU, settings=DecodeSettings())) == [("cpu", 512)]


@given(st.integers(0, 200 * GIB), st.integers(1, 10 * 2**20))
def test_the_first_tile_fits_half_of_the_free_memory_unless_none_does(free: int, per_frame: int):
    length = fitting_tile_length(free, per_frame)
    assert length in TILE_LENGTHS
    assert length * per_frame <= free / 2 or length == TILE_LENGTHS[-1]
    longer = [other for other in TILE_LENGTHS if other > length]
    assert all(other * per_frame > free / 2 for other in longer)


@given(st.integers(1, 20_000), st.one_of(st.none(), st.integers(32, 5_000)), st.integers(0, 100 * GIB))
def test_every_fallback_needs_less_of_the_device_than_the_one_before(frames: int, tile_length: int | None, free: int):
    steps = decode_fallbacks(
        frames,
        9,
        device=CUDA,
        settings=DecodeSettings(tile_length=tile_length),
        free_bytes=free,
        bytes_per_frame=PER_FRAME,
    )
    assert len(set(steps)) == len(steps)
    assert [step.location for step in steps][-2:] == ["gpu+cpu buffer", "cpu"]
    for earlier, later in pairwise(step for step in steps if step.location == "gpu"):
        assert later.plan.tile_length < earlier.plan.tile_length


def test_memory_per_frame_follows_the_decoder():
    assert decode_bytes_per_frame(2, torch.float32) * 32 == decode_bytes_per_frame(128, torch.bfloat16)


LATENTS = torch.randn(2, 230, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models():
    """Models whose device is given as CUDA, but which are on the CPU."""
    models = build_renderer_models("acestep-v15-tiny", device=CPU, dtype=torch.float32)
    fold_weight_norm(models.vae)
    return replace(models, device=CUDA)


@pytest.fixture(scope="module")
def whole(models) -> torch.Tensor:
    with torch.inference_mode():
        return models.vae.decode(LATENTS.transpose(1, 2)).sample


class TestDecoding:
    """With an allocator that fails."""

    @pytest.fixture
    def decoder(self, models) -> VaeDecoder:
        return VaeDecoder(models, ModelOffloader(CPU, Placement()), DecodeSettings())

    @pytest.mark.parametrize("refused", range(5))
    def test_r65_whichever_fallback_has_the_memory_the_audio_is_that_of_one_whole_decode(
        self, decoder, whole, refused, monkeypatch
    ):
        ways = fallbacks(frames=230)
        assert len(ways) == 5
        tried: list[DecodeStep] = []
        original = VaeDecoder.decode_at

        def refusing(self, latents, step, *rest):
            tried.append(step)
            if len(tried) <= refused:
                raise torch.OutOfMemoryError("no room")
            return original(self, latents, step, *rest)

        monkeypatch.setattr(VaeDecoder, "decode_at", refusing)
        decoded = decoder.decode(LATENTS, ways)
        assert tried == list(ways[: refused + 1])
        plan = ways[refused].plan
        assert decoded.decoding == VaeDecoding(
            ways[refused].location, plan.tile_length, 9, tiles=2 * len(plan.tiles), attempts=refused + 1
        )
        assert decoded.audio.device == CPU
        assert decoded.audio.dtype == torch.float32
        assert (decoded.audio - whole).abs().max() < TOLERANCE

    @pytest.mark.parametrize(("room", "tile_length"), [(64, 64), (100, 64), (128, 128), (229, 128), (230, 230)])
    def test_tiles_shrink_until_one_fits(self, decoder, models, whole, room, tile_length, monkeypatch):
        original = models.vae.decode

        def allocate(window, **options):
            if window.shape[-1] > room:
                raise torch.OutOfMemoryError(f"{window.shape[-1]} frames")
            return original(window, **options)

        monkeypatch.setattr(models.vae, "decode", allocate)
        decoded = decoder.decode(LATENTS, fallbacks(frames=230))
        assert (decoded.decoding.rung, decoded.decoding.tile_length) == ("gpu", tile_length)
        assert (decoded.audio - whole).abs().max() < TOLERANCE

    def test_when_no_fallback_has_the_memory_the_stage_is_named(self, decoder, models, monkeypatch):
        def full(self, *args):
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(VaeDecoder, "decode_at", full)
        with pytest.raises(OutOfMemory) as caught:
            decoder.decode(LATENTS, fallbacks(frames=230))
        assert caught.value.stage == "vae.decode"

    def test_a_fault_that_is_not_about_memory_is_not_tried_again(self, decoder, monkeypatch):
        def broken(self, *args):
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(VaeDecoder, "decode_at", broken)
        with pytest.raises(ZeroDivisionError):
            decoder.decode(LATENTS, fallbacks(frames=230))

    @pytest.mark.parametrize(
        ("placement", "on_cpu", "moves"),
        [
            pytest.param(Placement(), True, ["host", "device"], id="asked for"),
            pytest.param(Placement(offload_to_cpu=True), True, [], id="asked for, and there already"),
            pytest.param(Placement(), False, ["host", "device"], id="the last fallback"),
            pytest.param(
                Placement(offload_to_cpu=True),
                False,
                ["device", "host", "device", "host"],
                id="the last fallback, offloaded",
            ),
        ],
    )
    def test_on_the_host_the_vae_is_off_the_device(self, models, whole, placement, on_cpu, moves, monkeypatch):
        seen: list[str] = []
        device = torch.device("cpu", 0)

        class Watched(ModelOffloader):
            def move(self, name, model, destination):
                seen.append("device" if destination == device else "host")
                return super().move(name, model, destination)

        decoder = VaeDecoder(models, Watched(device, placement), DecodeSettings(on_cpu=on_cpu))
        ways = fallbacks(frames=230, on_cpu=on_cpu)
        original = VaeDecoder._decode_tiles

        def only_on_the_host(self, latents, step, vae, progress):
            if step.location != "cpu":
                raise torch.OutOfMemoryError("no room")
            assert seen[-1:] != ["device"]
            assert vae is not models.vae
            return original(self, latents, step, vae, progress)

        monkeypatch.setattr(VaeDecoder, "_decode_tiles", only_on_the_host)
        with decoder.on_device():
            decoded = decoder.decode(LATENTS, ways)
        assert (decoded.decoding.rung, decoded.decoding.attempts) == ("cpu", len(ways))
        assert seen == moves
        assert (decoded.audio - whole).abs().max() < TOLERANCE

    def test_without_a_way_there_is_nothing_to_decode(self, decoder):
        with pytest.raises(ValueError, match="one way"):
            decoder.decode(LATENTS, ())

    def test_plans_of_the_fallbacks_are_those_of_the_song(self):
        assert {step.plan.frames for step in fallbacks(frames=230)} == {230}
        assert fallbacks(frames=230)[1].plan == plan_tiles(230, 128, 9)
