"""Axes, charts and quantities of the HTML report, for any value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel.profiler.report.html.charts import WIDTH, Part, column_chart, row_chart
from acestep_otel.profiler.report.html.curve import Level, Reading, Series, curve_chart
from acestep_otel.profiler.report.html.quantities import Axis, duration, number, share, shortened, size

positive = st.floats(1e-6, 1e6)
# Times come as integer nanoseconds.
seconds = st.just(0.0) | st.floats(1e-9, 1e3)
UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (None, "—"), (6.429, "6.43 s"), (0.9996, "1.00 s"), (0.147, "147 ms"), (0.0034, "3.40 ms"),
     (99.96, "100 s"), (1234.5, "1,234 s"), (7.03e-4, "703 µs"), (-0.5, "-500 ms")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(1e-5, 1e5))
def test_a_duration_has_three_significant_digits(seconds: float) -> None:
    figures, unit = duration(seconds).split(" ")
    assert float(figures.replace(",", "")) * UNITS[unit] == pytest.approx(seconds, rel=5.1e-3)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1,023 B"), (1536, "1.50 KiB"), (14_227_079_168, "13.2 GiB"), (None, "—")]
)
def test_sizes(count: int | None, text: str) -> None:
    assert size(count) == text


def test_numbers_and_shares() -> None:
    assert (number(12_345), number(630.51), number(None)) == ("12,345", "631", "—")
    assert (share(45.24), share(-1e-9), share(None)) == ("45.2%", "0.0%", "—")
    assert (shortened("40.0 ms"), shortened("2.50 s"), shortened("200 ms")) == ("40 ms", "2.5 s", "200 ms")


@given(positive, st.floats(0, 1))
def test_an_axis_keeps_values_in_order_and_in_place(largest: float, part: float) -> None:
    axis = Axis.covering(largest, start=100, length=800, text=duration)
    assert 100 <= axis.at(largest * part) <= axis.at(largest) == 900
    positions = [tick.position for tick in axis.ticks]
    assert positions == sorted(set(positions))
    assert 100 == positions[0] < positions[-1] <= 900
    assert 2 <= len(positions) <= 6


@given(positive)
def test_ticks_say_where_they_are(largest: float) -> None:
    axis = Axis.covering(largest, start=0, length=WIDTH, text=repr)
    for tick in axis.ticks:
        assert axis.at(float(tick.text)) == pytest.approx(tick.position, abs=0.02)


def test_an_axis_of_nothing_has_a_length() -> None:
    assert Axis.covering(0, start=0, length=WIDTH, text=duration).at(0) == 0


@given(st.lists(seconds, min_size=1, max_size=12))
def test_stacked_parts_follow_one_another(values: list[float]) -> None:
    chart = row_chart("parts", [("", [Part(value, "dit", "") for value in values])], duration, stacked=True)
    ends = [bar.x + bar.width for bar in chart.bars]
    for end, after in zip(ends, chart.bars[1:], strict=False):
        assert after.x == pytest.approx(end, abs=0.02)
    assert ends[-1] <= WIDTH
    if sum(values) > 0:
        assert ends[-1] == pytest.approx(chart.axis.at(sum(values)), abs=0.02)


@given(st.lists(positive, min_size=1, max_size=12), positive)
def test_a_line_across_rows_stands_where_its_value_is(values: list[float], line: float) -> None:
    rows = [(str(index), [Part(value, "dit", "")]) for index, value in enumerate(values)]
    chart = row_chart("rows", rows, duration, stacked=True, reference=(line, "limit"))
    assert chart.reference is not None
    assert (chart.reference.x, chart.reference.text) == (chart.axis.at(line), "limit")
    assert chart.left <= chart.reference.x <= WIDTH
    assert chart.axis.limit == max(line, *values)
    for bar in chart.bars:
        # Its word stands above all rows.
        assert bar.y > chart.reference.y


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=120))
def test_columns_stand_on_the_axis_and_do_not_overlap(values: list[tuple[float, float]]) -> None:
    columns = [
        (str(index), [Part(device, "dit", ""), Part(host, "host", "")]) for index, (device, host) in enumerate(values)
    ]
    chart = column_chart("steps", columns, duration)
    for bar in chart.bars:
        assert bar.y + bar.height == pytest.approx(chart.axis.start, abs=0.02)
        assert bar.y >= 0
    for bar, after in zip(chart.bars, chart.bars[1:], strict=False):
        assert bar.x + bar.width <= after.x + 0.02
    assert chart.bars[-1].x + chart.bars[-1].width <= WIDTH
    assert len(chart.labels) <= 25


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 2**37)), max_size=60))
def test_a_curve_holds_each_reading_until_the_next_and_stays_inside(readings: list[tuple[float, int]]) -> None:
    ordered = [Reading(time, value, str(value)) for time, value in sorted(readings)]
    peak = Level(0, 10, 2**37, "vram-peak", "")
    chart = curve_chart("c", [Series("dit", ordered)], [peak], duration=10, time_text=duration, value_text=size)
    (line,) = chart.lines
    assert [point.title for point in line.points] == [reading.title for reading in ordered]
    assert line.path.count(" H ") == line.path.count(" V ") == max(0, len(ordered) - 1)
    for point in line.points:
        assert chart.left <= point.x <= WIDTH
        assert 0 <= point.y <= chart.bottom
    for before, after in zip(line.points, line.points[1:], strict=False):
        assert before.x <= after.x
        assert f" H {after.x} V {after.y}" in line.path
    (segment,) = chart.segments
    # The highest value there is.
    assert all(segment.y <= point.y for point in line.points)
    assert (segment.left, segment.right) == (chart.left, chart.times.at(10))
