"""What one operator moves and computes, and when the work of a pass is worked out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from acestep_otel.roofline.work import Form, Pass, Work

sizes = st.integers(1, 4096)


@given(sizes, sizes, sizes)
@settings(max_examples=50)
def test_a_product_moves_and_computes_what_its_shapes_say(rows: int, inputs: int, outputs: int) -> None:
    work = Form.plain("bfloat16").linear(rows, inputs, outputs)
    assert work == Work(2 * rows * inputs * outputs, 2 * (rows * inputs + rows * outputs + inputs * outputs))


def test_a_pass_is_worked_out_when_it_is_asked_for() -> None:
    calls: list[int] = []

    def work(size: int) -> Work:
        calls.append(size)
        return Work(size, size)

    noted = Pass(work, (3,), "float32")
    assert calls == []
    assert noted.part().work == Work(3, 3)
    assert noted.part() is Pass(work, (3,), "float32").part()
    assert calls == [3]
