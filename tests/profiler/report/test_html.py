"""The HTML report: its text, its escaping, and its rendering in a browser."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_otel import semconv
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult, Failure, Figures
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.environment import Accelerator
from acestep_otel.profiler.report.html import Report, render_report, write_report
from acestep_otel.profiler.report.html.memory import card_memory
from acestep_otel.profiler.report.html.sections import breakdown_section, step_section
from acestep_otel.profiler.report.spans import Preparation, Run
from tests.browser import screenshot, visit
from tests.profiler.report.gpu_run import ENVIRONMENT, GIB, gpu_run
from tests.profiler.report.recorded import guide_spans, run_of, span

STYLE = (files("acestep_otel.profiler.report.html") / "templates" / "page.css").read_text("utf-8")
MATRIX = (
    CellResult(Cell(30.0, 1, False, 8), (Figures(3.21, 0.0, 1.89, 0.52),), None, ()),
    CellResult(Cell(30.0, 1, True, 8), (Figures(5.67, 2.91, 1.89, 0.52), Figures(5.67, 2.93, 1.87, 0.5)), None, ()),
    CellResult(Cell(240.0, 4, True, 16), (), Failure("OutOfMemory", "no room", "dit"), ()),
)


def report(run: Run | None = None, **fields: Any) -> Report:
    runs = () if run is None else (run,)
    return Report(**{"mode": "profile", "environment": ENVIRONMENT, "arguments": {"seed": 5}, "runs": runs, **fields})


class Page(HTMLParser):
    """Tags by name, and the text of each kind of element."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def row(self, first: str) -> list[str]:
        """The texts that follow one."""
        position = self.texts.index(first)
        return self.texts[position + 1 : position + 3]


def test_the_breakdown_is_the_guides() -> None:
    page = Page(render_report(report(run_of(guide_spans()))))
    assert page.row("LLM Planning (total)") == ["2.91 s", "45.2%"]
    assert page.row("Constrained decoding") == ["310 ms", "4.8%"]
    assert page.row("DiT Diffusion (total)") == ["1.89 s", "29.4%"]
    assert page.row("Steps") == ["8", "—"]
    assert page.row("Wall Time (total)") == ["6.43 s", "100.0%"]


def test_the_headline_says_what_ran_and_how_fast() -> None:
    page = Page(render_report(report(gpu_run())))
    assert "acestep-v15-base · acestep-5Hz-lm-1.7B (pt)" in page.texts
    assert "cuda:0 · bfloat16 · synthetic" in page.texts
    assert page.row("Wall time")[0] == "9.10 s"
    assert page.row("Audio") == ["480 s", "2 × 240 s"]
    # 9.1 s of computing for 480 s of sound.
    assert page.row("Compute per second of audio") == ["19.0 ms", "52.7× real time"]
    assert page.row("Peak VRAM") == ["13.2 GiB", "reserved, in vae.decode; 16.6% of 80.0 GiB"]
    assert page.row("Tokens per second") == ["630", "lm.codes"]


def test_what_came_before_the_run_has_its_times() -> None:
    started = "started 2023-11-14T22:13:20+00:00"
    page = render_report(report(gpu_run(), preparation=Preparation(load=31.4, warm_up=12.0)))
    assert f'<p class="origin">Models loaded in 31.4 s · warm-up took 12.0 s · {started} ·' in page
    bare = render_report(report(gpu_run(), preparation=Preparation(load=31.4, warm_up=None)))
    assert f'<p class="origin">Models loaded in 31.4 s · {started} ·' in bare
    assert '<p class="origin">Started 2023-11-14T22:13:20+00:00 ·' in render_report(report(gpu_run()))
    matrix = render_report(report(matrix=MATRIX, preparation=Preparation(1.5, 20.0)))
    assert "models loaded in 1.50 s · warm-up took 20.0 s" in matrix


def test_one_sentence_names_the_bottleneck_and_a_command_line_is_there_to_copy() -> None:
    page = Page(render_report(report(gpu_run(), command="acestep-otel --tiny --report 'a page.html'")))
    (sentence,) = [text for text in page.texts if text.startswith("Most of the time is")]
    assert sentence.startswith("Most of the time is LLM Planning: 46.2% of the wall time; ")
    assert page.row("Run again")[0] == "acestep-otel --tiny --report 'a page.html'"
    assert "Run again" not in Page(render_report(report(gpu_run()))).texts


def test_each_row_of_the_breakdown_has_a_bar_that_begins_where_the_one_before_it_ends() -> None:
    lines = {line.label: line.bars for line in breakdown_section(gpu_run()).lines}
    parts = [bar for label, bars in lines.items() if label != "LLM Planning (total)" for bar in bars]
    end = 0.0
    for start, length, _ in parts:
        assert start == pytest.approx(end, abs=0.02)
        end = start + length
    assert end == pytest.approx(100, abs=0.02)
    assert lines["LLM Planning (total)"] == tuple(parts[:3])
    assert lines["Steps"] == lines["Per-step average"] == lines["Wall Time (total)"] == ()


def test_every_span_is_in_the_table_and_has_a_bar() -> None:
    run = gpu_run()
    source = render_report(report(run))
    rows = re.findall(r'<tr id="span-([0-9a-f]{16})"', source)
    bars = re.findall(r'data-span="span-([0-9a-f]{16})"', source)
    expected = {run.root.span_id, *(found.span_id for found in run.spans)}
    assert set(rows) == set(bars) == expected
    assert len(rows) == len(bars) == len(expected)


def test_attributes_have_units() -> None:
    source = render_report(report(gpu_run()))
    assert "<li><code>acestep.lm.prefill.duration</code> 150 ms</li>" in source
    assert "<li><code>acestep.vram.peak.reserved</code> 13.2 GiB</li>" in source
    assert "<li><code>acestep.lm.sampled_tokens</code> 2400</li>" in source


def test_siblings_that_repeat_share_a_lane() -> None:
    texts = Page(render_report(report(gpu_run()))).texts
    assert "dit.step × 50" in texts
    assert "vae.tile × 24" in texts
    assert "lm.tokens × 19" in texts


def test_a_device_clock_shows_next_to_the_hosts() -> None:
    on_gpu = render_report(report(gpu_run()))
    assert "step 7: 62.0 ms" in on_gpu
    assert "step 7, host: 38.0 ms" in on_gpu
    on_cpu = render_report(report(run_of(_on_host(guide_spans()))))
    assert "step 7: 227 ms" in on_cpu
    assert "step 7, host" not in on_cpu


def _on_host(spans: list[Any]) -> list[Any]:
    for found in spans:
        found.attributes[semconv.CLOCK] = "host"
        found.attributes[semconv.HOST_DURATION] = found.seconds
    return spans


def test_sections_without_anything_to_show_are_left_out() -> None:
    full = Page(render_report(report(gpu_run(), matrix=MATRIX))).texts
    bare = Page(render_report(report(run_of([span(semconv.GENERATE_MUSIC, 0, 1.0)])))).texts
    for heading in ("Denoising steps", "Language model", "Peak VRAM", "Benchmark"):
        assert heading in full
        assert heading not in bare
    assert "Breakdown" in bare


def test_the_pace_needs_windows() -> None:
    assert "Pace of lm.codes" in render_report(report(gpu_run()))
    without = Run(gpu_run().root, tuple(found for found in gpu_run().spans if found.name != semconv.LM_TOKENS))
    assert "--detail token" in render_report(report(without))


def test_the_matrix_is_shaded_by_column() -> None:
    source = render_report(report(matrix=MATRIX))
    assert '<td class="shade-3">3.21 s</td>' in source
    assert '<td class="shade-5">5.67 s</td>' in source
    assert '<td class="shade-0">0 s</td>' in source
    assert '<td class="failed">OutOfMemory</td>' in source
    # 5.67 s for 30 s of sound, and the median of two runs.
    assert "189 ms" in source
    assert "2.92 s" in source


def test_the_matrix_says_what_ran_and_how_far_its_runs_lie_apart() -> None:
    plain: dict[str, Any] = {
        "device": "cuda", "dtype": "bfloat16", "weights": "checkpoint", "dit_model": "acestep-v15-turbo",
        "lm_model": None, "lm_backend": None,
    }  # fmt: skip
    thinking = {**plain, "lm_model": "acestep-5Hz-lm-1.7B", "lm_backend": "vllm"}
    ran = [[plain], [thinking, thinking], [None]]
    rows = tuple(
        replace(row, entries=tuple({"effective_settings": settings} for settings in entries))
        for row, entries in zip(MATRIX, ran, strict=True)
    )
    source = render_report(report(matrix=rows))
    assert '<p class="models">acestep-v15-turbo · acestep-5Hz-lm-1.7B (vllm)</p>' in source
    assert '<p class="setting">cuda · bfloat16 · checkpoint</p>' in source
    page = Page(source)
    assert page.row("30 s x 1, thinking, 8 steps")[:2] == ["5.67 s + 0 s", "2.91 s + 20.0 ms"]
    once = tuple(row for row in rows if len(row.runs) < 2)
    assert "Minimum + spread" not in render_report(report(matrix=once))


def test_vram_is_drawn_over_time_with_the_stages_peaks() -> None:
    source = render_report(report(gpu_run()))
    page = Page(source)
    assert "VRAM over time" in page.texts
    # The planner, 50 steps, their loop, 24 tiles and the decode.
    summary = "VRAM over time in 77 readings, the highest 13.2 GiB reserved after vae.decode at 8.80 s"
    assert f'aria-label="{summary}"' in source
    assert source.count("after dit.step, allocated:") == 50
    assert "vae.decode, highest allocated: 11.9 GiB" in source
    drawing = source[source.index("<h4>VRAM over time</h4>") :]
    assert re.findall(r'<path class="line ([\w-]+)"', drawing) == ["vram-reserved", "vram-allocated"]
    assert page.row("vae.tile")[0].endswith(" s")


def test_the_cards_memory_is_a_line_across_the_peaks_and_where_it_can_be_seen_across_the_curve() -> None:
    small = replace(ENVIRONMENT, accelerators=(Accelerator("Another GPU", 16 * GIB, None),))
    assert render_report(report(gpu_run())).count("the card has 80.0 GiB") == 1
    assert render_report(report(gpu_run(), environment=small)).count("the card has 16.0 GiB") == 2
    unknown = replace(ENVIRONMENT, accelerators=())
    assert "the card has" not in render_report(report(gpu_run(), environment=unknown))


@pytest.mark.parametrize(
    ("device", "found"), [("cuda", 8), ("cuda:0", 8), ("cuda:1", 24), ("cuda:2", None), ("cpu", None), ("mps", None)]
)
def test_the_card_is_the_one_that_the_run_was_on(device: str, found: int | None) -> None:
    cards = (Accelerator("small", 8 * GIB, None), Accelerator("large", 24 * GIB, None))
    run = run_of([span(semconv.GENERATE_MUSIC, 0, 1.0, None, {semconv.DEVICE: device})])
    assert card_memory(run, replace(ENVIRONMENT, accelerators=cards)) == (None if found is None else found * GIB)


def test_without_readings_there_are_peaks_and_no_curve() -> None:
    page = Page(render_report(report(_vae_run(readings=False))))
    assert "Peak VRAM" in page.texts
    assert "VRAM over time" not in page.texts


def _vae_run(*, readings: bool) -> Run:
    """Only the decode, so that nothing but the curve has the colour of the peaks."""
    run = gpu_run()
    kept = (semconv.VRAM_PEAK_ALLOCATED, semconv.VRAM_PEAK_RESERVED)
    kept += (semconv.VRAM_ALLOCATED, semconv.VRAM_RESERVED) if readings else ()
    spans = [found for found in run.spans if found.name in (semconv.VAE_DECODE, semconv.VAE_TILE)]
    only = ({name: value for name, value in found.attributes.items() if name in kept} for found in spans)
    return Run(run.root, tuple(replace(found, attributes=left) for found, left in zip(spans, only, strict=True)))


def test_a_count_of_steps_that_is_not_known_is_no_zero() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 2.0)
    unknown = Page(render_report(report(run_of([root, span(semconv.DIT, 0, 1.0, root)]))))
    assert unknown.row("Steps") == unknown.row("Per-step average") == ["—", "—"]
    assert "Denoising steps" not in unknown.texts
    # One loop of two shows its steps, so their average is unknown while their own times are not.
    shown = span(semconv.DIT, 1, 0.5, root)
    step = span(semconv.DIT_STEP, 1, 0.5, shown, {semconv.DIT_STEP_INDEX: 0})
    section = step_section(run_of([root, span(semconv.DIT, 0, 1.0, root), shown, step]))
    assert section is not None
    assert section.chart is not None
    assert section.chart.reference is None
    assert section.chart.summary == "1 denoising steps"


def test_failures_are_named() -> None:
    root = span(semconv.GENERATE_MUSIC, 0, 1.0, status="error", error="OutOfMemory")
    failed = Page(render_report(report(run_of([root]), failure="OutOfMemory: no room")))
    assert "OutOfMemory: no room" in failed.texts
    assert "The run failed: OutOfMemory" in failed.texts


def test_without_a_trace_the_page_says_so() -> None:
    page = Page(render_report(report()))
    assert "No run was traced, so there is no breakdown." in page.texts
    assert page.row("Accelerator")[0] == "A GPU, 80.0 GiB, driver 580.1"
    assert page.row("--seed")[0] == "5"


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


@settings(max_examples=20, deadline=None)
@given(st.one_of(st.just(HOSTILE), st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)))
def test_whatever_the_user_wrote_stays_text(written: str) -> None:
    plain = Page(render_report(_written_by_the_user("x")))
    page = Page(render_report(_written_by_the_user(written)))
    assert page.tags == plain.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in plain.attributes]
    if written.strip():
        assert sum(written.strip() in text for text in page.texts) >= 3


def _written_by_the_user(text: str) -> Report:
    return report(
        run_of([span(semconv.GENERATE_MUSIC, 0, 1.0, None, {semconv.CAPTION: text, text: "value"})]),
        arguments={"sample_query": text},
        matrix=(CellResult(Cell(30.0, 1, False, 8), (), Failure(text, "", None), ()),),
        failure=f"Error: {text}",
    )


def test_a_file_name_that_is_no_utf8_does_not_lose_the_page(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report(arguments={"output_dir": Path("songs-\udcff")}))
    assert "songs-?" in (tmp_path / "report.html").read_text("utf-8")


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = Page(render_report(report(gpu_run(), matrix=MATRIX)))
    assert not [pair for pair in page.attributes if pair[0] in ("src", "href", "action", "srcset", "data")]
    assert not re.findall(r"url\(|@import", STYLE)
    assert page.tags["script"] == page.tags["style"] == 1


def test_pictures_have_words_and_tables_have_headings() -> None:
    source = render_report(report(gpu_run(), matrix=MATRIX))
    for drawing in re.findall(r"<svg [^>]*>", source):
        assert "aria-label=" in drawing or 'aria-hidden="true"' in drawing
    for table in re.findall(r"<table.*?</table>", source, re.DOTALL):
        assert 'scope="col"' in table or 'scope="row"' in table


# --- Colours ------------------------------------------------------------------------------------------------------


def colours(scheme: Literal["light", "dark"]) -> dict[str, tuple[int, int, int]]:
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)[:2]
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6});", light if scheme == "light" else dark)
    return {name: tuple(bytes.fromhex(code)) for name, code in found}


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """The ratio of WCAG 2.2."""

    def luminance(colour: tuple[int, int, int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_bars_stand_out(scheme: Literal["light", "dark"]) -> None:
    """WCAG 2.2: 4.5 for text, 3 for graphics."""
    palette = colours(scheme)
    for surface in ("page", "card"):
        for text in ("ink", "quiet", "alarm"):
            assert contrast(palette[text], palette[surface]) >= 4.5, (text, surface)
    bars = ("lm", "lm-grammar", "lm-guidance", "condition", "dit", "vae", "audio", "model", "other", "host")
    for bar in bars:
        assert contrast(palette[bar], palette["card"]) >= 3, bar
    # The bar of the breakdown is written on.
    for bar in ("lm", "lm-grammar", "lm-guidance", "dit", "vae", "audio", "other"):
        assert contrast(palette[bar], palette["card"]) >= 4.5, bar


# --- In a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, report(gpu_run(HOSTILE), matrix=MATRIX))
    return path


def test_a_browser_shows_the_page_and_requests_nothing(page: Path) -> None:
    seen = visit(page)
    assert seen.console == []
    assert seen.requests == []
    texts = Page(seen.dom).texts
    assert "Where did the time go?" in texts
    assert "dit.step × 50" in texts
    assert f"{Breakdown.of(gpu_run()).wall:.2f} s" in texts
    # The page's own script ran: the bars of the trace are one stop of the tab key.
    assert re.findall(r'data-span="[^"]*"[^>]*tabindex="(-?\d)"', seen.dom)[:3] == ["0", "-1", "-1"]


def test_the_browser_check_detects_requests_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("boom")</script>', encoding="utf-8")
    seen = visit(path)
    assert "boom" in seen.console
    assert set(seen.requests) == {"http://127.0.0.1:9/x.png"}


def test_the_policy_stops_a_foreign_script(page: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    foreign = '<script>document.title = "taken"</script></body>'
    path.write_text(page.read_text("utf-8").replace("</body>", foreign), encoding="utf-8")
    seen = visit(path)
    assert "<title>taken</title>" not in seen.dom
    assert any("Content Security Policy" in line for line in seen.console)


SIDEWAYS = """<script>
const seen = (box) => box.checkVisibility({ contentVisibilityAuto: true });
const boxes = [...document.querySelectorAll(".scroll")].filter(seen);
const cut = boxes.filter((box) => box.scrollWidth > box.clientWidth + 1);
const marked = cut.filter((box) => box.classList.contains("more-right"));
const visible = getComputedStyle(document.querySelector(".sideways")).display !== "none";
const wide = document.documentElement.scrollWidth > innerWidth;
document.title = [cut.length > 0, marked.length === cut.length, visible, wide].join();
</script></body>"""


@pytest.mark.parametrize(("width", "expected"), [(500, "true,true,true,false"), (1200, "false,true,false,false")])
def test_what_a_narrow_window_cuts_is_marked_and_said(page: Path, tmp_path: Path, width: int, expected: str) -> None:
    path = tmp_path / "page.html"
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
    path.write_text(source.replace("</body>", SIDEWAYS), encoding="utf-8")
    assert f"<title>{expected}</title>" in visit(path, width).dom


WALK = """<script>
const bars = [...document.querySelectorAll("[data-span]")];
bars[0].focus();
bars[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
document.title = [document.activeElement === bars[1], bars[1].getAttribute("tabindex")].join();
</script></body>"""


def test_arrow_keys_walk_along_the_trace(page: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"))
    path.write_text(source.replace("</body>", WALK), encoding="utf-8")
    dom = visit(path).dom
    assert "<title>true,0</title>" in dom
    card = Page(dom[dom.index('class="span-card"') : dom.index("<summary>Every span</summary>")]).texts
    assert card[card.index("Span") + 1] == "acestep.lm"
    assert card[card.index("Duration") + 1] == "4.20 s"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_curve_of_vram_is_painted(tmp_path: Path, scheme: Literal["light", "dark"]) -> None:
    counts = []
    for readings in (True, False):
        write_report(tmp_path / "report.html", report(_vae_run(readings=readings)))
        pixels = Counter(screenshot(tmp_path / "report.html", scheme).get_flattened_data())
        counts.append([pixels[colours(scheme)[name]] for name in ("condition", "dit", "other")])
    (peaks, allocated, reserved), (no_peaks, allocated_bar, reserved_bar) = counts
    assert peaks > 100
    assert no_peaks == 0
    assert allocated > allocated_bar + 100
    assert reserved > reserved_bar + 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_has_every_stage_in_its_colour(page: Path, scheme: Literal["light", "dark"]) -> None:
    image = screenshot(page, scheme)
    pixels = Counter(image.get_flattened_data())
    palette = colours(scheme)
    for name in ("page", "card", "ink", "lm", "lm-grammar", "lm-guidance", "dit", "host", "vae", "audio", "other"):
        assert pixels[palette[name]] > 100, name
    assert pixels[palette["card"]] > 0.4 * image.width * image.height
    other_scheme = colours("dark" if scheme == "light" else "light")
    assert pixels[other_scheme["card"]] < 0.01 * image.width * image.height
