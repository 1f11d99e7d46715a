"""What counts as a stall, what explains it, and where it is said."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan, Run
from acestep_otel.profiler.report.stalls import stall_lines
from acestep_otel.recording import stalls
from acestep_otel.recording.clock import Mark
from acestep_otel.recording.energy import Condition, Readings
from acestep_otel.recording.stalls import Evidence, RunningMedians
from acestep_otel.recording.trace_tree import Stage
from acestep_otel.recording.vram import VramPeak, VramReading
from tests.recording.test_emission import MS, Bench, add


def test_a_step_of_many_times_the_median_is_a_stall_and_raises_the_median_little() -> None:
    medians = RunningMedians()
    assert [medians.observe("step", 0.1) for _ in range(5)] == [None] * 5
    stall = medians.observe("step", 2.0)
    assert stall is not None
    assert (stall.ratio, stall.usual) == (pytest.approx(20), pytest.approx(0.1))
    assert medians.observe("step", 0.1) is None


def test_shapes_are_compared_with_their_own_kind_and_tiles_by_frame() -> None:
    medians = RunningMedians()
    for _ in range(5):
        medians.observe("short", 0.1)
        medians.observe("tile", 0.5, units=512)
    assert medians.observe("long", 2.0) is None
    # A tile of half as many frames that takes ten times as long as its share.
    stall = medians.observe("tile", 2.5, units=256)
    assert stall is not None
    assert stall.ratio == pytest.approx(10)


@given(st.lists(st.floats(1e-4, 0.02), max_size=40))
def test_what_takes_a_few_milliseconds_is_never_a_stall(durations: list[float]) -> None:
    medians = RunningMedians()
    assert [medians.observe("step", seconds) for seconds in durations] == [None] * len(durations)


def test_no_more_shapes_are_kept_than_a_process_needs() -> None:
    medians = RunningMedians()
    for shape in range(1000):
        medians.observe(shape, 0.1)
    assert len(medians._durations) == 64


@pytest.mark.parametrize(
    ("evidence", "cause", "words"),
    [
        (Evidence(retries=3, host_share=1.0), "allocator", "3 allocator retries"),
        (Evidence(out_of_memory=2, on_host=True, retries=9), "out_of_memory", "on the host, after 2 attempts"),
        (Evidence(moved=("vae",)), "offload", "vae"),
        (Evidence(throttled=0x40 | 0x4), "throttled", "thermal limit (hardware)"),
        (Evidence(host_share=0.95), "host", "waited for the host"),
        (Evidence(driver_allocations=4, host_share=0.85), "allocator", "4 allocations from the driver"),
        (Evidence(driver_allocations=4, retries=1, host_share=1.0), "allocator", "1 allocator retries"),
        # A model that moves, or a slow card, explains it before the memory that it takes.
        (Evidence(driver_allocations=4, moved=("vae",), host_share=1.0), "offload", "vae"),
        (Evidence(driver_allocations=4, throttled=0x40, host_share=1.0), "throttled", "thermal limit (hardware)"),
        # The host did not wait for the driver.
        (Evidence(driver_allocations=4, host_share=0.3), "unknown", "no counter"),
        (Evidence(on_host=True, retries=2, moved=("vae",)), "host", "decoded on the host by choice"),
        (Evidence(throttled=0x4, host_share=0.1), "unknown", "no counter"),
        (Evidence(memory_share=0.99), "unknown", "no counter"),
    ],
)
def test_the_likeliest_cause_is_named_with_its_evidence(evidence: Evidence, cause: str, words: str) -> None:
    found, why = evidence.cause
    assert found == cause
    assert words in why


def test_a_full_card_spills_only_where_the_driver_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "driver_can_spill", lambda: True)
    assert Evidence(memory_share=0.98).cause == ("driver_spill", "98 % of the card's memory in use")
    assert Evidence(memory_share=0.5).cause[0] == "unknown"


def reading(**counts: int) -> VramReading:
    return VramReading(0, 0, VramPeak(0, 0, False), **counts)


def decode(*, slow: bool = False, counts: dict[str, int] | None = None, **attributes: object):
    """A decode of six tiles, after a stage that read the allocator's counts; those at its end are given."""

    def build(root: Stage) -> None:
        add(root, semconv.CONDITION, 0, 10 * MS, vram=reading())
        end = reading(**counts or {})
        vae = add(root, semconv.VAE_DECODE, 10 * MS, 900 * MS, vram=end, attributes=dict(attributes))
        for index in range(6):
            start, end = (10 + 20 * index) * MS, (30 + 20 * index) * MS
            tile = {semconv.VAE_TILE_INDEX: index, semconv.VAE_TILE_FRAMES: 512}
            add(vae, semconv.VAE_TILE, start, 900 * MS if slow and index == 5 else end, attributes=tile)

    return build


def stalled(bench: Bench) -> list[dict[str, object]]:
    return [
        dict(event.attributes)
        for span in bench.exporter.get_finished_spans()
        for event in span.events
        if event.name == semconv.STALL_EVENT
    ]


@pytest.mark.parametrize(
    ("counts", "attributes", "cause"),
    [
        ({"retries": 2}, {}, "allocator"),
        ({"driver_allocations": 3}, {}, "allocator"),
        ({"out_of_memory": 1}, {}, "out_of_memory"),
        ({}, {semconv.VAE_ATTEMPTS: 3}, "out_of_memory"),
        ({}, {}, "unknown"),
    ],
)
def test_a_tile_that_stalls_has_an_event_and_is_counted_by_its_cause(
    counts: dict[str, int], attributes, cause: str
) -> None:
    bench = Bench()
    bench.emit(decode())
    bench.emit(decode(slow=True, counts=counts, **attributes))
    (event,) = stalled(bench)
    assert event[semconv.STALL_CAUSE] == cause
    assert event[semconv.STALL_RATIO] == pytest.approx(790 / 20)
    assert event[semconv.STALL_USUAL] == pytest.approx(0.02)
    (counted,) = bench.metrics()[semconv.STALLS.name]
    assert counted.value == 1
    assert counted.attributes[semconv.STAGE] == "vae.tile"
    assert counted.attributes[semconv.STALL_CAUSE] == cause


@pytest.mark.parametrize("inside", [semconv.VAE_DECODE, semconv.VAE_TILE])
def test_a_model_that_moved_in_the_decode_or_in_the_tile_itself_explains_a_stall(inside: str) -> None:
    bench = Bench()
    bench.emit(decode())

    def moving(root: Stage) -> None:
        decode(slow=True)(root)
        vae = root.children[-1]
        parent = vae if inside == semconv.VAE_DECODE else vae.children[-1]
        attributes = {semconv.OFFLOAD_MODEL: "transformer", semconv.OFFLOAD_DIRECTION: "to_device"}
        add(parent, semconv.OFFLOAD_MOVE, 120 * MS, 400 * MS, attributes=attributes)
        add(parent, semconv.OFFLOAD_MOVE, 400 * MS, 800 * MS, attributes=attributes)

    bench.emit(moving)
    (event,) = stalled(bench)
    assert event[semconv.STALL_CAUSE] == "offload"
    assert event[semconv.STALL_EVIDENCE] == "moved inside the stage: transformer"


def test_retries_of_an_earlier_request_explain_nothing() -> None:
    bench = Bench()
    counts = {"retries": 5, "driver_allocations": 70}
    bench.emit(decode(counts=counts))

    def later(root: Stage) -> None:
        decode(slow=True, counts=counts)(root)
        root.children[0].vram = reading(**counts)

    bench.emit(later)
    assert [event[semconv.STALL_CAUSE] for event in stalled(bench)] == ["unknown"]


def test_counts_of_another_device_explain_nothing() -> None:
    bench = Bench()
    bench.emit(decode())

    def elsewhere(root: Stage) -> None:
        decode(slow=True, counts={"driver_allocations": 70})(root)
        # The language model on a device of its own, whose allocator has counted less.
        lm = Stage(semconv.LM, Mark(0), device_clock=False, end=Mark(10 * MS), vram=reading(driver_allocations=3))
        lm.device = torch.device("cuda:1")
        root.children[0].vram = reading(driver_allocations=70)
        root.children.insert(1, lm)

    bench.emit(elsewhere)
    assert [event[semconv.STALL_CAUSE] for event in stalled(bench)] == ["unknown"]


def test_where_tiles_are_read_only_the_counts_of_the_tile_itself_explain_it() -> None:
    bench = Bench()
    bench.emit(decode())

    def read(root: Stage) -> None:
        decode(slow=True, counts={"driver_allocations": 9})(root)
        *before, stalls = root.children[-1].children
        for tile in before:
            tile.vram = reading(driver_allocations=4)
        stalls.vram = reading(driver_allocations=6)

    bench.emit(read)
    (event,) = stalled(bench)
    assert str(event[semconv.STALL_EVIDENCE]).startswith("2 allocations from the driver")


class TestDecodesOnTheHost:
    """A request of a device whose decode runs on the host."""

    ON_HOST: ClassVar[dict[str, object]] = {semconv.VAE_RUNG: "cpu"}

    def test_by_choice_they_are_compared_with_each_other(self) -> None:
        bench = Bench(device=torch.device("cuda:0"))
        bench.emit(decode())

        def usual(root: Stage) -> None:
            decode(**self.ON_HOST)(root)
            # Ten times as long as on the device.
            for index, tile in enumerate(root.children[-1].children):
                tile.start, tile.end = Mark((10 + 200 * index) * MS), Mark((210 + 200 * index) * MS)
            root.children[-1].end = root.end = Mark(1_300 * MS)

        bench.emit(usual)
        assert stalled(bench) == []

        def stalls(root: Stage) -> None:
            usual(root)
            root.children[-1].end = root.children[-1].children[-1].end = root.end = Mark(3_000 * MS)

        bench.emit(stalls)
        (event,) = stalled(bench)
        assert event[semconv.STALL_CAUSE] == "host"
        assert "on the host by choice" in str(event[semconv.STALL_EVIDENCE])

    @pytest.mark.parametrize(
        ("counts", "attributes"), [({"out_of_memory": 6}, {}), ({}, {semconv.VAE_ATTEMPTS: 7})], ids=str
    )
    def test_after_memory_ran_out_they_are_compared_with_those_on_the_device(self, counts, attributes) -> None:
        bench = Bench(device=torch.device("cuda:0"))
        bench.emit(decode())
        bench.emit(decode(slow=True, counts=counts, **self.ON_HOST, **attributes))
        (event,) = stalled(bench)
        assert event[semconv.STALL_CAUSE] == "out_of_memory"
        assert event[semconv.STALL_EVIDENCE] == "on the host, after 6 attempts that ran out of memory"

    def test_tiles_that_ran_out_of_memory_beside_it_are_attempts(self) -> None:
        bench = Bench(device=torch.device("cuda:0"))
        bench.emit(decode())

        def falls_back(root: Stage) -> None:
            decode(slow=True, **self.ON_HOST)(root)
            root.children[-1].children[0].error = torch.OutOfMemoryError("no room")

        bench.emit(falls_back)
        (event,) = stalled(bench)
        assert event[semconv.STALL_EVIDENCE] == "on the host, after 1 attempts that ran out of memory"


def test_a_throttled_card_explains_what_happened_while_it_was() -> None:
    readings = Readings()
    readings.note(Condition(5, 0x20, 0.5))
    readings.note(Condition(50_000_000_000, 0x40, 0.5))
    assert [condition.reasons for condition in readings.conditions(0, 10)] == [0x20]


def test_a_run_describes_its_stalls() -> None:
    bench = Bench()
    bench.emit(decode())
    bench.exporter.clear()
    bench.emit(decode(slow=True, counts={"retries": 1}))
    spans = [FinishedSpan.from_readable_span(span) for span in bench.exporter.get_finished_spans()]
    root = next(span for span in spans if span.name == semconv.GENERATE_MUSIC)
    (line,) = stall_lines(Run(root, tuple(spans)))
    assert line.startswith("vae.tile 5 took 0.79 s, 40 times the usual 0.02 s: allocator (1 allocator retries")
