"""What the driver says of the cards that requests run on, observed when metrics are collected."""

from __future__ import annotations

import sys
from typing import Any

import pynvml
import pytest
import torch

from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.recording.call import Call, LoadDefinition, ModelLoad, RequestDefinition, RequestStart
from acestep_otel.recording.gpu_metrics import GpuWatch
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.settings import Settings
from tests.nvml import GIB, Nvml
from tests.tracing import Traced

CUDA = torch.device("cuda", 0)
LOAD = LoadDefinition("renderer", lambda _: ModelLoad("model", CUDA))
CARD = {
    semconv.HW_ID: "GPU-abc",
    semconv.HW_MODEL: "NVIDIA H100",
    semconv.HW_VENDOR: "NVIDIA",
    semconv.HW_DRIVER_VERSION: "575.57",
}
ALL = (semconv.HW_GPU_UTILIZATION, semconv.HW_GPU_MEMORY_USAGE, semconv.HW_GPU_MEMORY_LIMIT)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    return Nvml(monkeypatch)


@pytest.fixture
def watch(traced: Traced) -> GpuWatch:
    return GpuWatch(traced.meter_provider.get_meter("test"))


def observed(traced: Traced) -> list[list[tuple[float, dict[str, Any]]]]:
    return [[(point.value, dict(point.attributes)) for point in traced.metric(metric)] for metric in ALL]


def test_a_card_in_use_is_read_at_each_collection(traced: Traced, watch: GpuWatch, nvml: Nvml) -> None:
    watch.add(CUDA)
    for nvml.busy, nvml.used in ((40, 3 * GIB), (100, 5 * GIB)):
        assert observed(traced) == [
            [(nvml.busy / 100, {**CARD, semconv.HW_GPU_TASK: "general"})],
            [(nvml.used, CARD)],
            [(80 * GIB, CARD)],
        ]


def test_two_names_of_a_device_are_one_card(traced: Traced, watch: GpuWatch, nvml: Nvml) -> None:
    watch.add(CUDA)
    watch.add(torch.device("cuda"))
    assert [len(points) for points in observed(traced)] == [1, 1, 1]


def test_what_a_card_does_not_tell_is_absent(traced: Traced, watch: GpuWatch, nvml: Nvml) -> None:
    watch.add(CUDA)
    nvml.busy = None
    assert [len(points) for points in observed(traced)] == [0, 1, 1]


@pytest.mark.parametrize("missing", ["driver", "package"])
def test_without_nvml_there_is_nothing(
    traced: Traced,
    watch: GpuWatch,
    nvml: Nvml,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: str,
) -> None:
    def fails() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    if missing == "driver":
        monkeypatch.setattr(pynvml, "nvmlInit", fails)
    else:
        monkeypatch.setitem(sys.modules, "pynvml", None)
    watch.add(CUDA)
    assert observed(traced) == [[], [], []]
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


def test_off_cuda_the_driver_is_not_asked(traced: Traced, tiny_models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from acestep.inference import generate_music
    from acestep.types import GenerationRequest

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: pytest.fail("the driver was asked"))
    traced.instrument()
    generate_music(tiny_models, GenerationRequest(caption="a song", duration=10, inference_steps=1))
    assert observed(traced) == [[], [], []]


def test_requests_and_loads_show_which_cards_are_in_use(traced: Traced, nvml: Nvml) -> None:
    def tracer() -> RequestTracer:
        meter = traced.meter_provider.get_meter("test")
        return RequestTracer(traced.tracer_provider.get_tracer("test"), meter, Settings(), "run")

    loading = tracer()
    assert observed(traced) == [[], [], []]
    loading.load(LOAD, Call(lambda: "model", None, (), {}))
    assert [len(points) for points in observed(traced)] == [1, 1, 1]
    loading.close()
    assert observed(traced) == [[], [], []]
    tracer().request(
        RequestDefinition("generate_music", lambda *_: RequestStart(CUDA, {}, ())), Call(lambda: "song", None, (), {})
    )
    assert [len(points) for points in observed(traced)] == [1, 1, 1]


def test_instrumentation_that_is_switched_off_observes_nothing(traced: Traced, nvml: Nvml) -> None:
    traced.instrument()
    tracer = AceStepInstrumentor()._tracer
    assert tracer is not None
    tracer.load(LOAD, Call(lambda: "model", None, (), {}))
    assert [len(points) for points in observed(traced)] == [1, 1, 1]
    AceStepInstrumentor().uninstrument()
    assert observed(traced) == [[], [], []]


def test_what_the_card_counts_is_observed_where_it_counts(traced: Traced, watch: GpuWatch, nvml: Nvml) -> None:
    watch.add(CUDA)
    gpu = {**CARD, semconv.HW_TYPE: "gpu"}
    assert traced.metric(semconv.HW_ENERGY) == traced.metric(semconv.HW_ERRORS) == []
    nvml.joules, nvml.corrected = 1234.5, 3
    ((joules, attributes),) = [(point.value, dict(point.attributes)) for point in traced.metric(semconv.HW_ENERGY)]
    assert (joules, attributes) == (1234.5, gpu)
    errors = {point.attributes[semconv.ERROR_TYPE]: point.value for point in traced.metric(semconv.HW_ERRORS)}
    assert errors == {"corrected": 3, "uncorrected": 0}
    (share,) = traced.metric(semconv.HW_GPU_MEMORY_UTILIZATION)
    assert share.value == pytest.approx(1 / 80)
