"""The integral that the layer's energy is compared with."""

from __future__ import annotations

import pytest

from benchmarks.energy import Power, integral

SECOND = 1_000_000_000


def test_constant_power_is_integrated_between_the_times_only() -> None:
    samples = [Power(number * SECOND // 10, 300.0) for number in range(101)]
    assert integral(samples, 2 * SECOND, 5 * SECOND) == pytest.approx(900)
    assert integral(samples, 2 * SECOND + 30_000_000, 2 * SECOND + 80_000_000) == pytest.approx(15)


def test_a_ramp_is_its_mean_times_its_time() -> None:
    samples = [Power(number * SECOND, 100.0 * number) for number in range(5)]
    assert integral(samples, 0, 4 * SECOND) == pytest.approx(800)
    assert integral([], 0, SECOND) == 0
