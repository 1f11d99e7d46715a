"""Provoked stalls: a run of the program on the tiny models, and its reduction of known songs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from acestep_otel import semconv
from benchmarks import memory_pressure, stalls
from benchmarks.memory_pressure import on_planned
from benchmarks.stalls import ReportedStall, Row, Song, Usual

GIB = 2**30


def song(*, steps: tuple[float, ...] = (0.1, 0.1), tiles: tuple[float, ...] = (0.001,), **known: Any) -> Song:
    decode = {"tiles": 1, "tile_length": 250, "attempts": 1, "rung": "gpu"}
    given = {"seconds": 0.5, "stalls": (), "decode": decode, "moved": 0.0}
    counts = {"retries": 0, "out_of_memory": 0, "driver_allocations": 0}
    return Song(steps=steps, tiles=tiles, **{**given, **counts, **known})


def test_a_song_is_compared_with_the_medians_of_the_normal_ones() -> None:
    usual = Usual.of([song(seconds=0.5), song(seconds=0.7), song(seconds=0.6, steps=(0.1, 9.0))])
    assert usual == Usual(seconds=0.6, step=0.1, frame=0.001)
    assert usual.slowest(song(steps=(0.1, 0.3), tiles=(0.012,))) == pytest.approx(12)


def test_a_row_has_the_stalls_and_the_counters_of_its_songs() -> None:
    stall = ReportedStall("vae.tile", 0, 0.9, 9.0, 0.1, "allocator", "1 allocator retries")
    row = Row("fragmented", (song(stalls=(stall,), retries=1, seconds=1.4), song(retries=2, driver_allocations=7)))
    found = row.result(Usual(0.5, 0.1, 0.001))
    assert [each["cause"] for each in found["stalls"]] == ["allocator"]
    assert (found["allocator_retries"], found["driver_allocations"], found["compared"]) == (3, 7, 6)
    assert (found["wall_seconds"], found["normal_seconds"]) == ([1.4, 0.5], 0.5)


def test_memory_is_filled_after_the_tiles_are_planned_and_only_inside_the_block(tiny_models: Any) -> None:
    decoder = tiny_models.renderer.decoder
    planned = decoder.fallbacks(250)
    calls: list[str] = []
    with on_planned(decoder, lambda: calls.append("filled")):
        assert decoder.fallbacks(250) == planned
    decoder.fallbacks(250)
    assert calls == ["filled"]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> tuple[SimpleNamespace, list[int]]:
    """A decoder on a card with 10 GiB of free memory, and the bytes that are allocated there."""
    allocated: list[int] = []

    def empty(size: int, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        assert (dtype, device) == (torch.uint8, torch.device("meta"))
        allocated.append(size)
        return torch.zeros(1)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10 * GIB, 80 * GIB))
    models = SimpleNamespace(device=torch.device("meta"))
    return SimpleNamespace(models=models, fallbacks=lambda frames: (frames,)), allocated


def test_a_filled_card_leaves_what_was_asked_for(card: tuple[Any, list[int]]) -> None:
    decoder, allocated = card
    with memory_pressure.filled(decoder, GIB // 2 + 1) as spent:
        assert allocated == []
        assert decoder.fallbacks(250) == (250,)
    # The allocator's granularity is 2 MiB.
    assert 10 * GIB - sum(allocated) == GIB // 2 + memory_pressure.GRANULE
    assert len(spent) == 1


def test_a_fragmented_cache_has_no_room_for_a_tile_but_for_the_audio(card: tuple[Any, list[int]]) -> None:
    decoder, allocated = card
    with memory_pressure.fragmented(decoder):
        decoder.fallbacks(250)
    audio, *blocks = allocated
    assert audio >= 600 * 48_000 * 2 * 2
    assert set(blocks) == {memory_pressure.BLOCK}
    assert 0 < 10 * GIB - sum(allocated) <= (memory_pressure.SPARED_BLOCKS + 1) * memory_pressure.BLOCK


def test_a_run_on_the_cpu_reports_the_hang_while_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "stalls.json"
    song_options = ["--device", "cpu", "--duration", "10", "--inference-steps", "2"]
    monkeypatch.setattr("sys.argv", ["stalls", *song_options, "--songs", "2", "--output", str(output)])
    stalls.main()
    found = json.loads(output.read_text("utf-8"))
    by_case = {case["case"]: case for case in found["cases"]}
    assert [case["case"] for case in found["skipped"]] == ["full-card", "offload"]
    assert "full-card: skipped, cpu has no caching allocator that retries" in capsys.readouterr().out
    assert by_case["normal"]["compared"] == 2 * (2 + 1)
    assert found["events"] == found["counted_by_the_metric"]
    hang = by_case["hang"]
    assert hang["arrived_while_it_hung"]
    (snapshot,) = hang["snapshots"]
    assert snapshot[semconv.HANG_STAGE] == "vae.tile"
    assert snapshot[semconv.VAE_TILE_INDEX] == 0
    assert "stalls.py" in snapshot[semconv.HANG_STACK]
    assert hang["wall_seconds"][0] >= hang["deadline_seconds"]
    # The same tile is a stall once it has ended.
    assert [stall["span"] for stall in hang["stalls"]] == ["vae.tile"]
