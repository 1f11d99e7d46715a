"""Tiles cover a song exactly once and, with the overlap that the decoder needs, cannot be distinguished from one
decode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequest
from acestep.renderer.vae import Tile, encode_tile, encoder_radius, plan_tiles, receptive_radius
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import SAMPLES_PER_FRAME


@pytest.fixture(scope="module")
def models():
    """The tiny models with their VAE in float64: its geometry is that of the real one, only the widths differ."""
    models = build_renderer_models("acestep-v15-tiny", device=torch.device("cpu"), dtype=torch.float32)
    torch.nn.Module.to(models.vae, torch.float64)
    return replace(models, dtype=torch.float64)


@pytest.fixture(scope="module")
def vae(models):
    return models.vae


@st.composite
def tilings(draw):
    overlap = draw(st.integers(0, 70))
    return draw(st.integers(1, 16_000)), draw(st.integers(2 * overlap + 1, 2_100)), overlap


@given(tilings())
def test_kept_ranges_cover_the_song_exactly_once(tiling):
    plan = plan_tiles(*tiling)
    edges = [0]
    for tile in plan.tiles:
        assert tile.kept[0] == edges[-1]
        assert tile.kept[0] < tile.kept[1]
        edges.append(tile.kept[1])
    assert edges[-1] == plan.frames


@given(tilings())
def test_every_window_has_one_length_and_context_on_each_inner_side(tiling):
    frames, tile_length, overlap = tiling
    plan = plan_tiles(*tiling)
    assert plan.tile_length == min(frames, tile_length)
    for tile in plan.tiles:
        start, stop = tile.window
        assert 0 <= start < stop <= frames
        assert stop - start == plan.tile_length
        assert start == 0 or tile.kept[0] - start >= overlap
        assert stop == frames or stop - tile.kept[1] >= overlap


@given(tilings())
def test_no_tile_could_be_left_out(tiling):
    frames, tile_length, overlap = tiling
    count = len(plan_tiles(*tiling).tiles)
    reach_with_one_less = tile_length + (count - 2) * (tile_length - 2 * overlap)
    assert count == 1 or reach_with_one_less < frames


def test_a_song_that_fits_is_one_tile():
    assert plan_tiles(512, 512, 9).tiles == (Tile((0, 512), (0, 512)),)
    assert plan_tiles(10, 512, 9).tiles == (Tile((0, 10), (0, 10)),)


@pytest.mark.parametrize(("frames", "tile_length", "overlap"), [(0, 512, 9), (100, 18, 9), (100, 512, -1)])
def test_a_plan_that_cannot_be_made_is_refused(frames, tile_length, overlap):
    with pytest.raises(InvalidRequest, match=r"tile length|latent frame"):
        plan_tiles(frames, tile_length, overlap)


def test_receptive_radius_is_what_the_decoder_really_reads(vae):
    radius = receptive_radius(vae.upsampling_ratios)
    frames, centre = 61, 30
    latents = torch.randn(1, 4, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, :, centre] += 1.0
    with torch.inference_mode():
        difference = (vae.decode(changed).sample - vae.decode(latents).sample).abs().sum(dim=(0, 1))
    touched = (difference.reshape(frames, SAMPLES_PER_FRAME).amax(dim=1) > 0).nonzero().flatten()
    assert max(centre - touched.min().item(), touched.max().item() - centre) == radius == 9


@pytest.mark.parametrize(("overlap", "equal"), [(9, True), (8, False)])
def test_nine_frames_of_overlap_are_enough_and_needed(vae, overlap, equal):
    latents = torch.randn(1, 4, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = vae.decode(latents).sample
        pieces = []
        for tile in plan_tiles(100, 40, overlap).tiles:
            decoded = vae.decode(latents[:, :, slice(*tile.window)]).sample
            start, stop = ((frame - tile.window[0]) * SAMPLES_PER_FRAME for frame in tile.kept)
            pieces.append(decoded[:, :, start:stop])
    assert torch.allclose(torch.cat(pieces, dim=-1), whole, rtol=0, atol=1e-12) == equal


def test_encoder_radius_is_what_the_encoder_really_reads(vae):
    radius = encoder_radius(vae.config.downsampling_ratios)
    frames, centre = 41, 20
    audio = torch.randn(
        1, 2, frames * SAMPLES_PER_FRAME, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    changed = audio.clone()
    changed[:, :, centre * SAMPLES_PER_FRAME : (centre + 1) * SAMPLES_PER_FRAME] += 1.0
    with torch.inference_mode():
        difference = (vae.encode(changed).latent_dist.mean - vae.encode(audio).latent_dist.mean).abs().sum(dim=(0, 1))
    touched = (difference > 0).nonzero().flatten()
    assert max(centre - touched.min().item(), touched.max().item() - centre) == radius == 7


@pytest.mark.parametrize(("overlap", "equal"), [(7, True), (6, False)])
def test_seven_frames_of_overlap_are_enough_and_needed_to_encode(models, overlap, equal):
    frames = 60
    audio = torch.randn(2, frames * SAMPLES_PER_FRAME - 700, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(audio, (0, 700)).double()
    with torch.inference_mode():
        whole = models.vae.encode(padded.unsqueeze(0)).latent_dist.mean.transpose(1, 2)
        tiles = plan_tiles(frames, 24, overlap).tiles
        tiled = torch.cat([encode_tile(models, audio, tile) for tile in tiles], dim=1)
    assert len(tiles) > 3
    assert torch.allclose(tiled, whole, rtol=0, atol=1e-12) == equal
