"""The tier table: every boundary, both kinds of limits, and what decides the tier (R37, R39, R45, R68–R75, R162)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.errors import InvalidRequest
from acestep.gpu_config import GPU_CONFIGS, detect_gpu_memory, gpu_config, needs_offload

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 1), torch.device("mps")


@pytest.mark.parametrize(
    ("memory", "tier"),
    [(4, "tier1"), (6, "tier2"), (8, "tier4"), (12, "tier5"), (16, "tier6a"), (20, "tier6b"), (24, "unlimited")],
)
def test_nominal_sizes_have_the_tier_of_the_guide(memory: float, tier: str) -> None:
    """R68 ... R74."""
    assert gpu_config(memory).tier == tier


@pytest.mark.parametrize(
    ("first", "tier", "last_below", "tier_below"),
    [
        (math.nextafter(4, 5), "tier2", 4, "tier1"),
        (math.nextafter(6, 7), "tier3", 6, "tier2"),
        (7.5, "tier4", math.nextafter(7.5, 0), "tier3"),
        (11.5, "tier5", math.nextafter(11.5, 0), "tier4"),
        (15.5, "tier6a", math.nextafter(15.5, 0), "tier5"),
        (19.5, "tier6b", math.nextafter(19.5, 0), "tier6a"),
        (23.5, "unlimited", math.nextafter(23.5, 0), "tier6b"),
    ],
)
def test_every_edge(first: float, tier: str, last_below: float, tier_below: str) -> None:
    assert gpu_config(first).tier == tier
    assert gpu_config(last_below).tier == tier_below


@pytest.mark.parametrize(
    ("reported", "tier"), [(7.6, "tier4"), (11.63, "tier5"), (15.7, "tier6a"), (23.6, "unlimited"), (79.1, "unlimited")]
)
def test_a_real_card_counts_as_its_nominal_size(reported: float, tier: str) -> None:
    assert gpu_config(reported).tier == tier


@pytest.mark.parametrize("memory", [0, -1, 0.1])
def test_no_gpu_is_the_smallest_tier(memory: float) -> None:
    assert gpu_config(memory).tier == "tier1"


def test_not_a_number_has_no_tier() -> None:
    with pytest.raises(InvalidRequest, match="nan"):
        gpu_config(math.nan)


@given(st.floats(0, 200), st.floats(0, 200))
def test_more_memory_never_means_a_smaller_tier_or_tighter_limits(one: float, other: float) -> None:
    tiers = [config.tier for config in GPU_CONFIGS]
    smaller, larger = (gpu_config(memory) for memory in sorted((one, other)))
    assert tiers.index(smaller.tier) <= tiers.index(larger.tier)
    for with_lm in (False, True):
        less, more = smaller.limits(with_lm=with_lm), larger.limits(with_lm=with_lm)
        assert (less.duration <= more.duration, less.batch_size <= more.batch_size) == (True, True)


@pytest.mark.parametrize(
    ("memory", "with_lm", "without_lm"),
    [
        (0, (240, 1), (360, 1)),
        (4, (240, 1), (480, 4)),
        (6, (480, 1), (600, 8)),
        (7, (480, 2), (600, 8)),
        (8, (480, 2), (600, 8)),
        (12, (480, 4), (600, 8)),
        (16, (480, 4), (600, 8)),
        (20, (480, 4), (600, 8)),
        (24, (600, 4), (600, 8)),
    ],
)
def test_limits(memory: float, with_lm: tuple[int, int], without_lm: tuple[int, int]) -> None:
    """R37, R39, R162."""
    config = gpu_config(memory)
    for expected, loaded in ((with_lm, True), (without_lm, False)):
        limits = config.limits(with_lm=loaded)
        assert (limits.duration, limits.batch_size) == expected


@pytest.mark.parametrize(
    ("memory", "size"), [(4, None), (6, None), (8, "0.6B"), (12, "1.7B"), (16, "1.7B"), (20, "1.7B"), (24, "4B")]
)
def test_the_language_model_of_each_tier(memory: float, size: str | None) -> None:
    """R75."""
    assert gpu_config(memory).recommended_lm == size


@pytest.mark.parametrize(
    ("memory", "offload", "offload_dit", "int8"),
    [(4, True, True, True), (8, True, True, True), (12, True, False, True), (16, True, False, True),
     (20, False, False, False), (24, False, False, False)],
)  # fmt: skip
def test_what_keeps_a_tier_within_its_memory(memory: float, offload: bool, offload_dit: bool, int8: bool) -> None:
    config = gpu_config(memory)
    assert (config.offload_to_cpu, config.offload_dit_to_cpu, config.int8) == (offload, offload_dit, int8)


@pytest.mark.parametrize(
    ("memory", "xl"),
    [(0, "no"), (4, "no"), (7, "no"), (8, "no"), (12, "marginal"), (16, "offload"), (20, "yes"), (24, "yes")],
)
def test_which_tiers_run_the_xl_models(memory: float, xl: str) -> None:
    config = gpu_config(memory)
    assert config.xl == xl
    for name in ("acestep-v15-xl-turbo", "models/ACE-Step-v15-XL-base", "xl"):
        assert config.supports(name) is (xl != "no")
    for name in ("acestep-v15-turbo", "xl/acestep-v15-base", "acestep-v15-axle"):
        assert config.supports(name)


def test_a_tier_recommends_what_fits_it() -> None:
    for config in GPU_CONFIGS:
        assert config.recommended_lm is None or config.recommended_lm in config.lm_sizes


def test_the_cpu_has_no_gpu_memory() -> None:
    assert detect_gpu_memory(CPU) == 0


def test_cuda_memory_is_that_of_the_device_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    totals = {0: 8 << 30, 1: 24 << 30}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=totals[device.index])
    )
    assert detect_gpu_memory(CUDA) == 24


def test_mps_memory_is_what_the_system_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    assert detect_gpu_memory(MPS) == 12


@pytest.mark.parametrize(
    ("memory", "offload"),
    [(0, False), (0.5, True), (4, True), (16, True), (math.nextafter(19.5, 0), True), (19.5, False), (20, False),
     (24, False), (80, False)],
)  # fmt: skip
def test_r80_r81_every_card_that_counts_as_less_than_20_gb_offloads_by_itself(memory: float, offload: bool) -> None:
    assert needs_offload(memory) is offload
