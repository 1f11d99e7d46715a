"""The energy of a run in terminal, result file and page."""

from __future__ import annotations

from acestep_otel import semconv
from acestep_otel.profiler.report.energy import RunEnergy, render_energy
from acestep_otel.profiler.report.html.page import RunSections
from acestep_otel.profiler.report.results import RunResult
from acestep_otel.profiler.report.spans import Run
from tests.profiler.report.recorded import run_of, span
from tests.profiler.report.test_html import report


def metered_run(*, shared: bool = False) -> Run:
    known = {semconv.ENERGY: 1800.0, semconv.ENERGY_RESOLUTION: 0.12, semconv.ENERGY_SHARED: shared}
    if not shared:
        known[semconv.ENERGY_PER_MINUTE] = 0.125
    root = span(semconv.GENERATE_MUSIC, 0, 4.0, attributes=known)
    dit = span(semconv.DIT, 1.0, 2.0, root, {semconv.ENERGY: 1100.0})
    return run_of([root, dit, span(semconv.AUDIO_SAVE, 3.5, 0.1, root)])


def test_joules_watts_and_watt_hours_are_shown_with_their_resolution() -> None:
    energy = RunEnergy.of(metered_run())
    assert energy is not None
    text = render_energy(energy)
    assert "1,800 J, 450 W on average" in text
    assert "0.125 Wh" in text
    assert "120 ms" in text
    assert [line.split() for line in text.splitlines() if line.startswith("  dit")] == [["dit", "1,100", "J"]]


def test_the_result_file_has_the_same() -> None:
    entry = RunResult(metered_run(), None).to_json()["measurement"]["energy"]
    assert entry == {
        "joules": 1800.0,
        "watts": 450.0,
        "watt_hours_per_minute": 0.125,
        "resolution": 0.12,
        "shared": False,
        "stages": {"dit": 1100.0},
    }


def test_a_shared_card_is_said_and_no_minute_of_music_is_charged() -> None:
    energy = RunEnergy.of(metered_run(shared=True))
    assert energy is not None
    assert energy.watt_hours_per_minute is None
    assert "another request on the card included" in render_energy(energy)


def test_a_run_without_a_counter_has_no_energy_anywhere() -> None:
    run = run_of([span(semconv.GENERATE_MUSIC, 0, 4.0)])
    assert RunEnergy.of(run) is None
    assert RunResult(run, None).to_json()["measurement"]["energy"] is None
    assert RunSections.of(run, report(run)).energy == ()
