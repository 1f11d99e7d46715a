"""The cap on CUDA memory: its arithmetic, that it is always set, and that free memory respects it (R82, R165)."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.memory_cap import MemoryCap, effective_free_memory, enforce_memory_cap

GIB = 2**30
CUDA = torch.device("cuda", 0)


@dataclass
class Card:
    """What the allocator of a CUDA card answers."""

    total: int
    free: int = 0
    allocated: int = 0
    reserved: int = 0
    fractions: list[float] = field(default_factory=list)
    total_memory: int = field(init=False)

    def __post_init__(self) -> None:
        self.total_memory = self.total

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Card:
        answers = {
            "get_device_properties": lambda device: self,
            "set_per_process_memory_fraction": lambda fraction, device: self.fractions.append(fraction),
            "get_per_process_memory_fraction": lambda device: self.fractions[-1],
            "mem_get_info": lambda device: (self.free, self.total),
            "memory_allocated": lambda device: self.allocated,
            "memory_reserved": lambda device: self.reserved,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        return self


@pytest.mark.parametrize(
    ("total", "limit", "fraction"),
    [
        (22.5, 4, 0.1556),
        (22.5, 20, 0.8667),
        (22.5, 24, 1.0),
        (39.4, 8, 0.1904),
        (79.1, 4, 0.0442),
        (79.1, 16, 0.1960),
        (79.1, 24, 0.2971),
        (139.8, 12, 0.0823),
    ],
)
def test_r82_half_a_gib_of_the_limit_is_reserved_for_the_context(total: float, limit: float, fraction: float) -> None:
    cap = MemoryCap.of(limit, int(total * GIB))
    assert cap.fraction == pytest.approx(fraction, abs=1e-4)
    assert cap.allocator_budget_bytes == pytest.approx((limit - 0.5) * GIB if fraction < 1 else total * GIB, rel=1e-6)
    assert cap.limit_gib == (limit if fraction < 1 else pytest.approx(total))
    assert cap.is_capped == (fraction < 1)


def test_a_tiny_limit_leaves_something_to_run_with() -> None:
    assert MemoryCap.of(0.1, 8 * GIB).allocator_budget_bytes == GIB // 2
    assert MemoryCap.of(0.1, 800 * GIB).fraction == 0.01


def test_a_limit_of_just_the_card_caps_nothing() -> None:
    assert MemoryCap.of(8, 8 * GIB) == MemoryCap(8, 8 * GIB, 1.0)
    assert MemoryCap.of(None, 8 * GIB) == MemoryCap(8, 8 * GIB, 1.0)


@given(st.floats(0.01, 200), st.integers(GIB, 200 * GIB))
def test_a_cap_is_a_share_of_the_card_and_never_above_a_limit_that_has_room(limit: float, total: int) -> None:
    cap = MemoryCap.of(limit, total)
    assert 0 < cap.fraction <= 1
    assert cap.allocator_budget_bytes <= total
    if cap.is_capped and cap.fraction > 0.01 and limit > 1:
        assert cap.allocator_budget_bytes <= (limit - 0.5) * GIB + 1


def test_r165_the_cap_is_set_on_the_card_and_lifted_when_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(total=80 * GIB).install(monkeypatch)
    cap = enforce_memory_cap(CUDA, 8)
    assert cap is not None
    assert card.fractions == [cap.fraction] == [7.5 / 80]
    lifted = enforce_memory_cap(CUDA, None)
    assert lifted == MemoryCap(80, 80 * GIB, 1.0)
    assert card.fractions[-1] == 1.0


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_off_cuda_there_is_no_cap(device: str) -> None:
    assert enforce_memory_cap(torch.device(device), 8) is None
    assert effective_free_memory(torch.device(device)) is None


@pytest.mark.parametrize(
    ("free", "allocated", "reserved", "fraction", "expected"),
    [
        pytest.param(60, 10, 15, 1.0, 65, id="what is free, and what the allocator has in reserve"),
        pytest.param(60, 10, 15, 0.25, 10, id="no more than the cap leaves"),
        pytest.param(2, 0, 0, 0.25, 2, id="others may have taken it"),
        pytest.param(60, 20, 20, 0.125, 0, id="never less than nothing"),
    ],
)
def test_free_memory_is_what_can_still_be_allocated(
    monkeypatch: pytest.MonkeyPatch, free: int, allocated: int, reserved: int, fraction: float, expected: int
) -> None:
    card = Card(80 * GIB, free * GIB, allocated * GIB, reserved * GIB, [fraction])
    card.install(monkeypatch)
    assert effective_free_memory(CUDA) == expected * GIB
