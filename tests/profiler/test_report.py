"""``--report``: the page is written beside the other files, and agrees with the trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep.renderer.decoder import VaeDecoder
from acestep_otel import semconv
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.html import Report, render_report
from acestep_otel.profiler.report.spans import Preparation, measured_runs
from tests.profiler.outputs import OUTPUTS, traced

SMALL = ("--tiny", "--device", "cpu", "--no-warmup")
SHORT_SONG = ("--duration", "10", "--inference-steps", "3")
SHORT = {"profile": (*SHORT_SONG, "--thinking"), "format_sample": ("--lyrics-token-limit", "16")}


def run(*arguments: str, mode: str = "profile") -> int:
    return main([*SMALL, "--mode", mode, *SHORT[mode], *OUTPUTS, "--report", "pages/report.html", *arguments])


def page() -> str:
    return Path("pages/report.html").read_text("utf-8")


def article(source: str) -> str:
    """The part of a page that is about the run."""
    return source[source.index("<article>") : source.index("</article>")]


@pytest.mark.parametrize(
    ("mode", "root"), [("profile", semconv.GENERATE_MUSIC), ("format_sample", semconv.FORMAT_SAMPLE)]
)
def test_the_page_says_what_the_trace_says(mode: str, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--detail", "token", mode=mode) == 0
    assert "Report:  pages/report.html\n" in capsys.readouterr().out
    spans = traced()
    from_trace = render_report(
        Report(
            mode=mode,
            environment=Environment.current(),
            arguments={},
            runs=measured_runs(spans, root),
            preparation=Preparation.of(spans, root),
        )
    )
    assert "Models loaded in " in article(page())
    assert article(page()) == article(from_trace)
    assert f"<h2>{root}</h2>" in page()


def test_a_failed_run_leaves_a_page_with_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: Any, **_options: Any) -> Callable[..., Any]:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(VaeDecoder, "decode_tile", full)
    assert run() == 1
    assert "OutOfMemory: out of memory in stage &#39;vae.decode&#39;" in page()
    assert "dit.step × 3" in page()


def test_a_benchmark_leaves_its_matrix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    decode = VaeDecoder.decode_tile

    def fails_for_two(self: VaeDecoder, latents: torch.Tensor, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("no room")
        return decode(self, latents, **options)

    calls: list[int] = []
    monkeypatch.setattr(VaeDecoder, "decode_tile", fails_for_two)
    assert main([*SMALL, *SHORT_SONG, *OUTPUTS, "--report", "report.html", "--mode", "benchmark"]) == 1
    assert "Report:  report.html\n" in capsys.readouterr().out
    source = Path("report.html").read_text("utf-8")
    cells = json.loads(Path("result.json").read_text("utf-8"))["results"]
    failed = [cell for cell in cells if cell["status"] == "error"]
    assert 0 < len(failed) < len(cells)
    assert source.count('<td class="failed">OutOfMemory</td>') == len(failed)
    assert source.count('class="shade-') == 5 * (len(cells) - len(failed))
    assert f"{len(failed)} of {len(cells)} cells failed" in source


def test_without_tracing_the_page_says_so() -> None:
    assert run("--detail", "off") == 0
    assert "No run was traced" in page()


def test_a_place_that_cannot_be_written_is_refused_before_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *SHORT_SONG, "--report", "."]) == 2
    assert capsys.readouterr().err == "error: cannot write .: it is a directory, give a file name\n"
    assert not list(Path().rglob("*.flac"))
