"""Example files: where they are looked up, what is filled in, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep_otel.errors import SetupError
from acestep_otel.profiler.run.example import Example, available_examples, load_example


def test_the_default_example_is_found_by_name() -> None:
    """R125."""
    example = load_example("example_05.json")
    assert (example.bpm, example.duration, example.language) == (100, 200, "ja")
    assert (example.batch_size, example.inference_steps, example.seed) == (1, 8, 42)


def test_every_shipped_example_loads() -> None:
    names = available_examples()
    assert len(names) >= 12
    assert all(load_example(name).caption for name in names)


def test_missing_and_null_keys_have_defaults(tmp_path: Path) -> None:
    path = tmp_path / "song.json"
    path.write_text(json.dumps({"think": True, "caption": "rain", "bpm": None, "extra": 1}), encoding="utf-8")
    assert load_example(str(path)) == Example(caption="rain")


def test_own_batch_size_steps_and_seed_are_honoured(tmp_path: Path) -> None:
    """R103 ... R105."""
    path = tmp_path / "song.json"
    path.write_text(json.dumps({"batch_size": 2, "inference_steps": 4, "seed": 7}), encoding="utf-8")
    example = load_example(str(path))
    assert (example.batch_size, example.inference_steps, example.seed) == (2, 4, 7)


def test_a_byte_order_mark_and_a_numeric_time_signature_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "song.json"
    path.write_text('{"timesignature": 3}', encoding="utf-8-sig")
    assert load_example(str(path)).timesignature == "3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n"caption": "a"\n"bpm": 1}', "line 3"),
        (b"", "line 1"),
        (b"[1]", "holds a JSON list"),
        (b'{"bpm": "fast"}', "'bpm' is 'fast', expected int"),
        (b'{"bpm": true}', "'bpm' is True, expected int"),
        (b'{"lyrics": ["la"]}', "'lyrics' is"),
        (b'{"caption": "\xff"}', "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_example_is_refused_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "song.json"
    path.write_bytes(content)
    with pytest.raises(SetupError) as refused:
        load_example(str(path))
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_an_unknown_example_lists_those_there_are() -> None:
    with pytest.raises(SetupError, match=r"no example 'nope.json'; there are: example_01\.json, example_02\.json"):
        load_example("nope.json")


def test_a_folder_is_no_example(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no example"):
        load_example(str(tmp_path))
