"""Energy between two times from readings of a counter, and a meter that reads while requests run."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel import semconv
from acestep_otel.recording import energy, energy_meter
from acestep_otel.recording.call import Call, RequestDefinition, RequestStart
from acestep_otel.recording.energy import Reading, Readings
from acestep_otel.recording.energy_meter import EnergyMeter
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.recording.vram import VramTracker
from acestep_otel.settings import Settings
from tests.nvml import Nvml
from tests.tracing import Traced

CUDA = torch.device("cuda", 0)
SECOND = 1_000_000_000


def readings(watts: float, seconds: int, *, period: float | None = 0.02) -> Readings:
    """Of a card with constant power, ten a second."""
    found = Readings()
    found.period = period
    for tenth in range(seconds * 10 + 1):
        found.add(Reading(tenth * SECOND // 10, watts * tenth / 10))
    return found


@given(st.floats(1, 700), st.floats(0, 8), st.floats(2, 8))
def test_constant_power_is_power_times_time_wherever_the_interval_is(watts: float, start: float, length: float) -> None:
    joules = readings(watts, 20).between(round(start * SECOND), round((start + length) * SECOND))
    assert joules == pytest.approx(watts * length, rel=1e-3)


def test_an_interval_below_ten_resolutions_has_no_energy() -> None:
    found = readings(300, 20)
    assert found.resolution == pytest.approx(0.12)
    assert found.between(0, round(1.19 * SECOND)) is None
    assert found.between(0, round(1.21 * SECOND)) == pytest.approx(363)


def test_without_a_period_or_beyond_the_readings_there_is_none() -> None:
    assert readings(300, 20, period=None).between(0, 10 * SECOND) is None
    assert readings(300, 20).between(5 * SECOND, 25 * SECOND) is None
    assert readings(300, 20).between(-5 * SECOND, 5 * SECOND) is None
    assert Readings().between(0, SECOND) is None


def test_a_counter_that_starts_again_forgets_what_was_before() -> None:
    found = readings(300, 20)
    found.add(Reading(21 * SECOND, 5.0))
    assert found.between(0, 10 * SECOND) is None


class Counter:
    """A counter that the driver writes every 20 ms, at 500 W."""

    def __init__(self) -> None:
        self._begun = time.time()

    def __call__(self, _handle: Any) -> int:
        return round(1000 * 500 * ((time.time() - self._begun) // 0.02) * 0.02)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    found = Nvml(monkeypatch)
    # No device is there to count memory on.
    for name in ("begin", "read", "limit"):
        monkeypatch.setattr(VramTracker, name, lambda *_: None)
    return found


def request(traced: Traced, work: Any) -> RequestTracer:
    meter = traced.meter_provider.get_meter("test")
    tracer = RequestTracer(traced.tracer_provider.get_tracer("test"), meter, Settings(), "run")
    tracer._clocks.for_device = lambda _device, host: host  # type: ignore[method-assign]
    known = {semconv.AUDIO_DURATION: 30.0, semconv.BATCH_SIZE: 2, semconv.REQUEST_MODEL: "dit"}
    definition = RequestDefinition(semconv.GENERATE_MUSIC, lambda *_: RequestStart(CUDA, known, ()))
    tracer.request(definition, Call(work, None, (), {}))
    tracer.flush(2.0)
    return tracer


def test_a_request_has_its_energy_and_that_of_a_minute_of_music(
    traced: Traced, nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", Counter())
    for place in (energy, energy_meter):
        monkeypatch.setattr(place, "INTERVAL", 0.02)
    monkeypatch.setattr(energy_meter, "_LEARNING", 0.3)
    request(traced, lambda: time.sleep(1.2))
    (root,) = traced.spans
    seconds = (root.end_time - root.start_time) / 1e9
    assert root.attributes[semconv.ENERGY_RESOLUTION] == pytest.approx(0.04, abs=0.02)
    assert root.attributes[semconv.ENERGY] == pytest.approx(500 * seconds, rel=0.1)
    assert root.attributes[semconv.ENERGY_SHARED] is False
    # Two songs of half a minute are one minute.
    assert root.attributes[semconv.ENERGY_PER_MINUTE] == pytest.approx(root.attributes[semconv.ENERGY] / 3600)
    (used,) = traced.metric(semconv.ENERGY_USED)
    assert (used.value, used.attributes[semconv.STAGE]) == (root.attributes[semconv.ENERGY], "generate_music")
    (per_minute,) = traced.metric(semconv.AUDIO_ENERGY)
    assert per_minute.sum == pytest.approx(root.attributes[semconv.ENERGY])


def test_a_card_without_a_counter_has_no_energy_and_not_zero(traced: Traced, nvml: Nvml) -> None:
    request(traced, lambda: time.sleep(0.05))
    (root,) = traced.spans
    assert not {name for name in root.attributes if name.startswith("acestep.energy")}
    assert traced.metric(semconv.ENERGY_USED) == []


def test_requests_that_overlap_on_a_card_say_so(nvml: Nvml) -> None:
    meter = EnergyMeter()
    meter.begin(CUDA)
    meter.begin(CUDA)
    assert meter.end(CUDA)
    assert meter.end(CUDA)
    meter.begin(CUDA)
    assert not meter.end(CUDA)


def test_off_cuda_no_thread_is_started() -> None:
    meter = EnergyMeter()
    meter.begin(torch.device("cpu"))
    assert not meter.end(torch.device("cpu"))
    assert meter._thread is None
