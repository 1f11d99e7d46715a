"""Metrics as a collector receives them, result file, trace file and terminal: one set of figures in four places."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.spans import Run, measured_runs
from acestep_otel.semconv import MetricDefinition
from tests.profiler.outputs import OUTPUTS, result, traced
from tests.receivers import Received, grpc_receiver, http_receiver

SMALL = ("--tiny", "--device", "cpu", "--duration", "10", "--inference-steps", "3", "--audio-format", "wav")
RECEIVERS = pytest.mark.parametrize(
    ("receiver", "protocol"), [(grpc_receiver, "grpc"), (http_receiver, "http/protobuf")]
)


def series(received: Received, metric: MetricDefinition, *, by: str = semconv.STAGE) -> dict[Any, Any]:
    """The data point of each value of an attribute; models are loaded before the run that is reported."""
    loading = semconv.stage_of(semconv.MODEL_LOAD)
    points = [point for point in received.points(metric.name) if point[0].get(semconv.STAGE) != loading]
    found = {attributes[by]: point for attributes, point in points}
    assert len(found) == len(points)
    return found


def shown_seconds(output: str, row: str) -> str:
    """Seconds of a row, as the terminal shows them."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"  {row}  ")]
    return line.split(row)[1].split()[0]


@RECEIVERS
def test_a_song_has_the_same_figures_everywhere(
    receiver: Any, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """R2, R153 ... R156: the warm-up that comes first is in none of them."""
    with receiver() as received:
        arguments = ("--thinking", "--use-cot-metas", "--batch-size", "2", "--otlp-protocol", protocol)
        assert main([*SMALL, *OUTPUTS, *arguments, "--otlp-endpoint", received.endpoint]) == 0
    shown = capsys.readouterr().out
    (run,) = measured_runs(traced())
    measurement = result()["measurement"]
    stages = series(received, semconv.STAGE_DURATION)
    (request,) = series(received, semconv.REQUEST_DURATION).values()

    assert request.count == 1
    assert request.sum == run.root.seconds == measurement["wall"]
    assert shown_seconds(shown, "Wall Time (total)") == f"{request.sum:.2f}"
    for stage, entry, row in (
        ("lm", "llm_planning", "LLM Planning (total)"),
        ("dit", "dit_diffusion", "DiT Diffusion (total)"),
        ("vae.decode", "vae_decode", "VAE Decode"),
        ("audio.save", "audio_save", "Audio Save"),
    ):
        (span,) = run.named(f"acestep.{stage}")
        assert stages[stage].count == 1
        assert stages[stage].sum == span.seconds == measurement["stages"][entry]["total"]
        assert shown_seconds(shown, row) == f"{stages[stage].sum:.2f}"

    assert_parts_agree(received, run, measurement)


def assert_parts_agree(received: Received, run: Run, measurement: dict[str, Any]) -> None:
    """Steps, tiles and tokens."""
    (steps,) = [point for _, point in received.points(semconv.DIT_STEP_DURATION.name)]
    step_times = measurement["stages"]["dit_diffusion"]["step_times"]
    assert (steps.count, steps.min, steps.max) == (3, min(step_times), max(step_times))
    assert steps.sum == pytest.approx(sum(step_times), rel=1e-12)
    (tiles,) = [point for _, point in received.points(semconv.VAE_TILE_DURATION.name)]
    tile_times = measurement["stages"]["vae_decode"]["tile_times"]
    assert tiles.count == len(tile_times) == len(run.named(semconv.VAE_TILE))
    assert tiles.sum == pytest.approx(sum(tile_times), rel=1e-12)

    first_tokens = series(received, semconv.TIME_TO_FIRST_TOKEN)
    counted = Counter({
        (attributes[semconv.STAGE], attributes[semconv.TOKEN_KIND]): int(point.as_double)
        for attributes, point in received.points(semconv.LM_TOKENS_COUNT.name)
    })  # fmt: skip
    assert len(measurement["token_statistics"]) == 2
    for phase in measurement["token_statistics"]:
        assert first_tokens[phase["phase"]].sum == phase["time_to_first_token"]
        for kind in ("prompt", "sampled", "forced", "unconditional"):
            assert counted[phase["phase"], kind] == phase[f"{kind}_tokens"]
    ((_, songs),) = received.points(semconv.AUDIO_SECONDS.name)
    assert songs.as_double == 20
    ((attributes, requests),) = received.points(semconv.REQUESTS.name)
    assert (attributes[semconv.OUTCOME], requests.as_int) == ("ok", 1)


def test_a_recording_that_is_understood_has_the_same_figures_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """R55."""
    soundfile.write("song.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (48_000, 2)), 48_000)
    arguments = ("--tiny", "--device", "cpu", "--mode", "understand", "--src-audio", "song.wav")
    with grpc_receiver() as received:
        assert main([*arguments, *OUTPUTS, "--lyrics-token-limit", "8", "--otlp-endpoint", received.endpoint]) == 0
    shown = capsys.readouterr().out
    (run,) = measured_runs(traced(), semconv.UNDERSTAND_MUSIC)
    stages = series(received, semconv.STAGE_DURATION)
    entries = result()["measurement"]["stages"]
    for stage, entry, row in (
        ("vae.encode", "vae_encode", "VAE Encode"), ("audio.tokenize", "audio_tokenization", "Audio Tokenizer"),
    ):  # fmt: skip
        (span,) = run.named(f"acestep.{stage}")
        assert stages[stage].sum == span.seconds == entries[entry]["total"]
        assert shown_seconds(shown, row) == f"{span.seconds:.2f}"


def test_a_benchmark_has_the_same_figures_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """R43, R44: of the gauges of a cell, its row in the table, its row in the file and the breakdown of its span."""
    arguments = ("--mode", "benchmark", "--batch-size", "1", "--inference-steps", "2")
    with grpc_receiver() as received:
        assert main([*SMALL, *OUTPUTS, *arguments, "--otlp-endpoint", received.endpoint]) == 0
    rows = json.loads(Path("result.json").read_text("utf-8"))["results"]
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("OK")]
    breakdowns = {run.root.attributes[semconv.BENCHMARK_CELL]: Breakdown.of(run) for run in measured_runs(traced())}
    metrics = (semconv.BENCHMARK_WALL, semconv.BENCHMARK_LM, semconv.BENCHMARK_DIT, semconv.BENCHMARK_VAE)
    gauges = [series(received, metric, by=semconv.THINKING) for metric in metrics]
    assert len(rows) == len(table) == len(breakdowns) == 2
    for index, (row, line) in enumerate(zip(rows, table, strict=True)):
        measured = [gauge[row["config"]["thinking"]].as_double for gauge in gauges]
        assert measured == [row["wall_time"], row["lm_time"], row["dit_time"], row["vae_time"]]
        breakdown = breakdowns[index]
        assert measured == [breakdown.wall, breakdown.planner, breakdown.diffusion, breakdown.vae_decode]
        assert line[4:8] == [f"{seconds:.2f}" for seconds in measured]
