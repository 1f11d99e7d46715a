"""Tiles cover a song exactly once and, with the overlap that the decoder needs, cannot be told from one decode."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequest
from acestep.renderer.vae import Tile, plan_tiles, receptive_radius
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import SAMPLES_PER_FRAME


@pytest.fixture(scope="module")
def vae():
    """The tiny VAE in float64: its geometry is that of the real one, only the widths differ."""
    vae = build_renderer_models("acestep-v15-tiny", device=torch.device("cpu"), dtype=torch.float32).vae
    return torch.nn.Module.to(vae, torch.float64)


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


def test_receptive_radius_is_what_the_decoder_really_sees(vae):
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
