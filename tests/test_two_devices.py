"""A language model on a separate device: where it is loaded, its trace, and which memory counters are read.

A second device is stood in for: the machine that tests run on has one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from acestep import (
    TINY_DIT,
    TINY_LM,
    DeviceUnavailable,
    GenerationRequest,
    ModelSelection,
    Placement,
    checkpoints,
    generate_music,
)
from acestep.checkpoints import load_models, load_planner, require_language_model
from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.spans import FinishedSpan, Run
from acestep_otel.profiler.report.statistics import memory_peaks, peak_by_device
from acestep_otel.profiler.report.terminal import render_peaks
from acestep_otel.recording.clock import HostClock, host_mark
from acestep_otel.recording.trace_tree import RequestRecording, Stage
from acestep_otel.recording.vram import VramPeak, VramReading
from acestep_otel.settings import Detail

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
TINY = ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu", lm_device="cpu", placement=Placement())
SONG = GenerationRequest(caption="x", duration=10.0, inference_steps=1, thinking=True, seeds=(1,))


def test_one_device_named_twice_is_one_device() -> None:
    models = load_models(TINY)
    assert models.planner is not None
    assert models.planner.offloader is models.renderer.offloader
    assert generate_music(models, SONG).effective.lm_device is None


def test_a_planner_on_another_device_has_a_separate_offloader_that_offloads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(checkpoints, "resolve_device", torch.device)
    monkeypatch.setattr(checkpoints, "load_renderer_models", lambda *_: object())
    monkeypatch.setattr(checkpoints, "Renderer", lambda _models, offloader, _decode, fuse: offloader)
    monkeypatch.setattr(checkpoints, "require_language_model", lambda _: None)
    monkeypatch.setattr(
        checkpoints,
        "start_planner",
        lambda _selection, device, dtype, offloader: asked.append((device, dtype, offloader)),
    )
    selection = replace(TINY, device="cuda:0", lm_device="cuda:1", placement=Placement(offload_to_cpu=True))
    renderer: Any = load_models(selection).renderer
    ((device, dtype, offloader),) = asked
    assert (device, dtype) == (SECOND, torch.bfloat16)
    assert (offloader.device, offloader.placement.offload_to_cpu) == (SECOND, False)
    assert (renderer.device, renderer.placement.offload_to_cpu) == (FIRST, True)
    load_planner(selection)
    assert asked[1][0] == SECOND


def test_a_device_that_does_not_exist_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(DeviceUnavailable, match="cuda:7"):
        require_language_model(replace(TINY, lm_device="cuda:7"))


def test_spans_of_the_language_model_name_its_device_and_no_others_do(traced: Any) -> None:
    traced.instrument()
    models = load_models(TINY)
    assert models.planner is not None
    models.planner.device = torch.device("mps", 0)
    assert generate_music(models, SONG).effective.lm_device == "mps:0"
    named = {span.name for span in traced.spans if span.attributes.get(semconv.DEVICE) == "mps:0"}
    assert named == {semconv.LM, semconv.LM_CODES}
    (root,) = traced.named(semconv.GENERATE_MUSIC)
    assert root.attributes[semconv.DEVICE] == "cpu"


def test_a_stage_reads_and_resets_the_counters_of_its_device() -> None:
    log: list[tuple[str, torch.device]] = []

    class Counters:
        def begin(self, device: torch.device) -> None:
            log.append(("reset", device))

        def read(self, device: torch.device) -> VramReading:
            log.append(("read", device))
            size = 100 * (device.index + 1)
            return VramReading(size, size, VramPeak(size, size, shared=False))

    root = Stage("generate_music", host_mark(), device_clock=False)
    recording = RequestRecording(
        root,
        clock=HostClock(),
        device=FIRST,
        detail=Detail.STAGE,
        vram=Counters(),  # type: ignore[arg-type]
    )
    begin: dict[str, Any] = {"detail": Detail.STAGE, "device_clock": False, "tracks_memory": True}
    elsewhere = recording.begin(semconv.LM_CODES, device=SECOND, **begin)
    recording.end(elsewhere)
    here = recording.begin(semconv.DIT, device=FIRST, **begin)
    recording.end(here)
    assert log == [("reset", SECOND), ("read", SECOND), ("reset", FIRST), ("read", FIRST)]
    assert (elsewhere.peak.reserved, here.peak.reserved) == (200, 100)  # type: ignore[union-attr]
    assert (elsewhere.attributes, here.attributes) == ({semconv.DEVICE: "cuda:1"}, {})


def span(name: str, reserved: int, **attributes: Any) -> FinishedSpan:
    peaks = {semconv.VRAM_PEAK_ALLOCATED: reserved // 2, semconv.VRAM_PEAK_RESERVED: reserved}
    return FinishedSpan(name, "1" * 16, None, "1" * 32, 0, 1, {**peaks, **attributes}, "ok", None, ())


def test_peaks_are_listed_by_card() -> None:
    gib = 2**30
    run = Run(
        root=span(semconv.GENERATE_MUSIC, 3 * gib, **{semconv.DEVICE: "cuda:0"}),
        spans=(
            span(semconv.LM_CODES, 5 * gib, **{semconv.DEVICE: "cuda:1"}),
            span(semconv.DIT, 9 * gib),
            span(semconv.VAE_DECODE, 7 * gib),
        ),
    )
    assert [peak.label for peak in memory_peaks(run)] == ["generate_music", "lm.codes (cuda:1)", "dit", "vae.decode"]
    highest = peak_by_device(run)
    assert {device: (peak.stage, peak.reserved) for device, peak in highest.items()} == {
        "cuda:0": ("dit", 9 * gib),
        "cuda:1": ("lm.codes", 5 * gib),
    }
    assert render_peaks(highest).splitlines()[-2:] == [
        "  cuda:0      9.00 GiB      4.50 GiB      dit",
        "  cuda:1      5.00 GiB      2.50 GiB      lm.codes",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lm-device", "gpu"], "--lm-device 'gpu': choose auto, cuda, cuda:N, mps or cpu"),
        (["--dit-device", "cuda:x"], "--dit-device 'cuda:x': choose"),
        (
            ["--mode", "benchmark", "--gpus", "0", "--lm-device", "cuda:1"],
            "--gpus and --ray give each process",
        ),
        (["--mode", "tier-test", "--lm-device", "cpu"], "--lm-device belongs to --mode profile, benchmark"),
        (["--thinking", "--lm-device", "cuda:7"], "device 'cuda:7' was requested"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", *arguments]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert message in shown.err
