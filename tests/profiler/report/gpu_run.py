"""A made-up run on a GPU: every section of a page has something to show."""

from __future__ import annotations

from acestep_otel import semconv
from acestep_otel.profiler.report.environment import Accelerator, Environment
from acestep_otel.profiler.report.spans import FinishedSpan, Run
from tests.profiler.report.recorded import run_of, span

GIB = 2**30
ENVIRONMENT = Environment(
    cpu="A Processor", cpu_cores=16, memory_bytes=64 * GIB, accelerators=(Accelerator("A GPU", 80 * GIB, "580.1"),),
    operating_system="Linux", python="3.12.1", packages={"torch": "2.13.0"}, git_revision="0123abc",
)  # fmt: skip


def gpu_spans(caption: str = "rain") -> list[FinishedSpan]:
    root = span(
        semconv.GENERATE_MUSIC,
        0,
        9.1,
        None,
        {
            semconv.REQUEST_MODEL: "acestep-v15-base",
            semconv.DEVICE: "cuda:0",
            semconv.DTYPE: "bfloat16",
            semconv.WEIGHTS: "synthetic",
            semconv.BATCH_SIZE: 2,
            semconv.AUDIO_DURATION: 240.0,
            semconv.DIT_STEPS: 50,
            semconv.CAPTION: caption,
            semconv.CLOCK: "host",
        },
    )
    planner = span(
        semconv.LM,
        0.05,
        4.2,
        root,
        {
            semconv.REQUEST_MODEL: "acestep-5Hz-lm-1.7B",
            semconv.LM_BACKEND: "pt",
            semconv.LM_CONSTRAINED_DECODING_DURATION: 0.31,
            semconv.LM_CFG_DURATION: 0.5,
            semconv.CLOCK: "host",
            **_peak(5.2, 5.6),
            **_vram(4.9, 5.6),
        },
    )
    codes = span(
        semconv.LM_CODES,
        0.1,
        4.1,
        planner,
        {
            semconv.USAGE_INPUT_TOKENS: 1900,
            semconv.LM_SAMPLED_TOKENS: 2400,
            semconv.LM_FORCED_TOKENS: 0,
            semconv.LM_TIME_TO_FIRST_TOKEN: 0.2,
            semconv.LM_PREFILL_DURATION: 0.15,
            semconv.LM_DECODE_DURATION: 3.8,
            semconv.LM_TOKENS_PER_SECOND: 630.5,
            semconv.LM_TOKEN_GAP_P50: 0.003,
            semconv.LM_TOKEN_GAP_P95: 0.0045,
            semconv.LM_TOKEN_GAP_MAX: 0.012,
            semconv.CLOCK: "host",
        },
    )
    windows = [
        span(
            semconv.LM_TOKENS,
            0.3 + 0.2 * index,
            0.192,
            codes,
            {semconv.LM_WINDOW_FIRST: 1 + 64 * index, semconv.LM_WINDOW_TOKENS: 64, semconv.CLOCK: "cuda_event"},
        )
        for index in range(19)
    ]
    dit = span(
        semconv.DIT, 4.4, 3.2, root, {semconv.DIT_STEPS: 50, **_device(1.9), **_peak(7.4, 8.1), **_vram(5.4, 8.1)}
    )
    steps = [
        span(
            semconv.DIT_STEP,
            4.4 + 0.064 * index,
            0.062,
            dit,
            {
                semconv.DIT_STEP_INDEX: index,
                semconv.DIT_STEP_TIMESTEP: 1 - index / 50,
                semconv.DIT_STEP_GUIDED: True,
                **_device(0.038),
                **_vram(5.5 + index / 1000, 8.1),
            },
        )
        for index in range(50)
    ]
    vae = span(semconv.VAE_DECODE, 7.7, 1.1, root, {**_device(1.1), **_peak(11.9, 13.25), **_vram(6.1, 13.25)})
    tiles = [
        span(semconv.VAE_TILE, 7.7 + 0.04 * index, 0.04, vae, {**_device(0.01), **_vram(6.0, 13.0)})
        for index in range(24)
    ]
    save = span(semconv.AUDIO_SAVE, 8.82, 0.2, root, {semconv.CLOCK: "host"})
    return [root, planner, codes, *windows, dit, *steps, vae, *tiles, save]


def gpu_run(caption: str = "rain") -> Run:
    return run_of(gpu_spans(caption))


def _device(host_duration: float) -> dict[str, str | float]:
    return {semconv.CLOCK: "cuda_event", semconv.HOST_DURATION: host_duration}


def _vram(allocated: float, reserved: float) -> dict[str, int]:
    return {semconv.VRAM_ALLOCATED: round(allocated * GIB), semconv.VRAM_RESERVED: round(reserved * GIB)}


def _peak(allocated: float, reserved: float) -> dict[str, int]:
    return {
        semconv.VRAM_PEAK_ALLOCATED: round(allocated * GIB),
        semconv.VRAM_PEAK_RESERVED: round(reserved * GIB),
    }
