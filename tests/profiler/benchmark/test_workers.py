"""What several workers are together, and what each is asked to run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from acestep.cards import Card
from acestep.types import GenerationRequest
from acestep_otel.profiler.benchmark.matrix import Cell
from acestep_otel.profiler.benchmark.protocol import Order, Ready
from acestep_otel.profiler.benchmark.workers import combined, orders_of, warn_of_different_models
from acestep_otel.profiler.report.environment import Accelerator, Environment

HERE = Environment.current(ask_pytorch=False)


def test_the_smallest_card_decides_the_memory_and_every_card_is_in_the_environment() -> None:
    large, small = (Accelerator(name, memory * 2**30, None) for name, memory in (("H100", 80), ("A10", 24)))
    ready = [Ready(80.0, replace(HERE, accelerators=(large,))), Ready(24.0, replace(HERE, accelerators=(small,)))]
    assert combined(ready) == Ready(24.0, replace(HERE, accelerators=(large, small)))


def test_orders_keep_the_place_in_the_matrix_and_are_handed_out_longest_first() -> None:
    short, long = Cell(30, 1, False, 8), Cell(240, 2, True, 8)
    quick = Cell(30, 1, True, 8)
    requests = {
        cell: GenerationRequest(batch_size=cell.batch_size, thinking=cell.thinking) for cell in (short, quick, long)
    }
    assert orders_of(requests) == [Order(0, short, 2), Order(2, long, 2), Order(1, quick, 2)]


@pytest.mark.parametrize(("models", "warned"), [(("H100", "H100"), False), (("H100", "A100"), True)])
def test_only_cards_of_different_models_are_warned_of(
    models: tuple[str, str], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_different_models([Card(f"GPU {number}", model, None, "here") for number, model in enumerate(models)])
    assert ("cards are of different models (H100, A100)" in capsys.readouterr().err) is warned
