"""The benchmark's matrix: axes, limits and clamped cells."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.gpu_config import gpu_config
from acestep_otel.profiler.benchmark.matrix import BATCH_SIZES, DURATIONS, INFERENCE_STEPS, Cell, Matrix, cell_options
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.generation_request import build_request
from tests.profiler.run.test_generation_request import EXAMPLE

UNLIMITED = gpu_config(24)


def matrix(memory: float = 24, **options: object) -> Matrix:
    return Matrix.of(Options(mode="benchmark", **options), gpu_config(memory))


def test_the_default_matrix_has_48_cells() -> None:
    """R36, R38, R40, R41."""
    cells = matrix().cells
    assert len(cells) == len(set(cells)) == 48
    assert {cell.duration for cell in cells} == {30, 60, 120, 240}
    assert {cell.batch_size for cell in cells} == {1, 2, 4}
    assert {cell.thinking for cell in cells} == {False, True}
    assert {cell.inference_steps for cell in cells} == {8, 16}
    assert matrix().clamps == ()


def test_rows_come_in_the_order_of_the_guide() -> None:
    assert matrix().cells[:5] == (
        Cell(30, 1, False, 8), Cell(30, 1, False, 16), Cell(30, 1, True, 8), Cell(30, 1, True, 16),
        Cell(30, 2, False, 8),
    )  # fmt: skip


def test_batches_are_clamped_by_the_limit_of_their_kind_and_nothing_vanishes_silently() -> None:
    """R39: 8 GB makes two songs at once with a language model, four without."""
    clamped = matrix(memory=8)
    assert {cell.batch_size for cell in clamped.cells if cell.thinking} == {1, 2}
    assert {cell.batch_size for cell in clamped.cells if not cell.thinking} == {1, 2, 4}
    assert list(clamped.clamp_lines()) == ["clamped, thinking: batch size 4 -> 2"]


def test_without_a_gpu_the_limits_are_those_of_the_smallest_tier() -> None:
    clamped = matrix(memory=0)
    assert {cell.batch_size for cell in clamped.cells} == {1}
    assert {cell.duration for cell in clamped.cells} == set(DURATIONS)
    assert list(clamped.clamp_lines()) == [
        "clamped, not thinking: batch size 2, 4 -> 1",
        "clamped, thinking: batch size 2, 4 -> 1",
    ]


def test_durations_are_clamped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """R37: no tier's limit is below the default durations, so a longer duration is used."""
    monkeypatch.setattr("acestep_otel.profiler.benchmark.matrix.DURATIONS", (30.0, 300.0, 400.0))
    clamped = matrix(memory=4)
    assert {cell.duration for cell in clamped.cells if cell.thinking} == {30, 240}
    assert {cell.duration for cell in clamped.cells if not cell.thinking} == {30, 300, 400}
    assert "clamped, thinking: duration 300, 400 -> 240" in clamped.clamp_lines()


def test_flags_that_bring_the_language_model_in_bring_its_limits_too() -> None:
    clamped = matrix(memory=8, use_cot_metas=True)
    assert {cell.batch_size for cell in clamped.cells if not cell.thinking} == {1, 2}


@pytest.mark.parametrize(
    ("option", "value", "axis", "left"),
    [
        ("duration", 45.0, "duration", 12),
        ("batch_size", 3, "batch_size", 16),
        ("inference_steps", 5, "inference_steps", 24),
    ],
)
def test_an_explicit_option_replaces_its_axis(option: str, value: float, axis: str, left: int) -> None:
    cells = matrix(**{option: value}).cells
    assert {getattr(cell, axis) for cell in cells} == {value}
    assert len(cells) == left


def test_thinking_replaces_its_axis() -> None:
    cells = matrix(thinking=True).cells
    assert len(cells) == 24
    assert all(cell.thinking for cell in cells)


def test_an_explicit_value_is_run_as_given_beyond_the_limits() -> None:
    """R161: up to ten minutes."""
    found = matrix(memory=4, batch_size=8, duration=600.0)
    assert {(cell.duration, cell.batch_size) for cell in found.cells} == {(600, 8)}
    assert found.clamps == ()


@given(st.floats(0, 100), st.booleans())
def test_every_value_of_the_default_axes_is_run_or_listed(memory: float, thinking: bool) -> None:
    found = matrix(memory=memory, thinking=thinking)
    assert len(set(found.cells)) == len(found.cells)
    for thinks in {cell.thinking for cell in found.cells}:
        limits = gpu_config(memory).limits(with_lm=thinks)
        for axis, values, limit in (
            ("duration", DURATIONS, limits.duration),
            ("batch_size", BATCH_SIZES, limits.batch_size),
        ):
            run = {getattr(cell, axis) for cell in found.cells if cell.thinking is thinks}
            listed = {clamp.requested for clamp in found.clamps if (clamp.axis, clamp.thinking) == (axis, thinks)}
            assert run == {min(value, limit) for value in values}
            assert listed == {value for value in values if value > limit}
    assert {cell.inference_steps for cell in found.cells} == set(INFERENCE_STEPS)


def test_a_thinking_cell_leaves_all_but_the_duration_open() -> None:
    request = build_request(EXAMPLE, cell_options(Options(seed=7), Cell(60, 2, True, 16)))
    metadata = request.metadata
    assert (metadata.bpm, metadata.keyscale, metadata.timesignature, metadata.language) == (None, None, None, None)
    assert (request.thinking, request.use_cot_metas, request.use_cot_caption, request.use_cot_language) == (True,) * 4
    assert (request.duration, request.batch_size, request.inference_steps) == (60, 2, 16)


def test_cells_side_by_side_differ_in_thinking_only() -> None:
    """R160."""
    thinking, plain = (
        build_request(EXAMPLE, cell_options(Options(), Cell(60, 2, thinks, 16))) for thinks in (True, False)
    )
    assert not plain.needs_language_model
    for field in ("caption", "lyrics", "seeds", "duration", "batch_size", "inference_steps", "sampling"):
        assert getattr(thinking, field) == getattr(plain, field)


def test_the_users_own_flags_hold_in_cells_that_do_not_think() -> None:
    request = build_request(EXAMPLE, cell_options(Options(use_cot_metas=True), Cell(60, 1, False, 8)))
    assert request.use_cot_metas
    assert not request.thinking
