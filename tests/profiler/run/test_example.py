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
        (b"[1]", "contains a JSON list"),
        (b'{"bpm": "fast"}', "'bpm' is 'fast', expected a whole number"),
        (b'{"bpm": true}', "'bpm' is True, expected a whole number"),
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


def written(tmp_path: Path, content: object) -> str:
    path = tmp_path / "song.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_the_keys_of_the_released_api_are_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """N11."""
    keys = {
        "prompt": "a song", "audio_duration": 60, "key_scale": "C major", "time_signature": 3, "vocal_language": "de",
        "thinking": True, "inference_steps": 4,
    }  # fmt: skip
    example = load_example(written(tmp_path, keys))
    assert (example.caption, example.duration, example.keyscale) == ("a song", 60, "C major")
    assert (example.timesignature, example.language, example.inference_steps) == ("3", "de", 4)
    assert capsys.readouterr().err == ""


def test_a_key_that_is_not_known_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, {"caption": "a song", "captoin": "typed", "tempo": 3})
    load_example(path)
    assert capsys.readouterr().err == f"warning: {path}: unknown keys are ignored: 'captoin', 'tempo'\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "is not an example: it has none of the keys caption, lyrics"),
        ({"tempo": 3}, "is not an example"),
        ({"description": "a slow song", "vocal_language": "en"}, "use --mode create_sample --sample-query"),
        ({"caption": "one", "prompt": "two"}, "'prompt' and another key both set the caption"),
        ("[" * 200_000, "is nested deeper than"),
        ('{"seed": ' + "9" * 6_000 + "}", "a number of 6,000 digits"),
        ({"caption": "\ud800"}, "lone surrogate"),
        ({"bpm": [1] * 10_000}, "'bpm' is [1, 1, 1"),
    ],
)
def test_what_is_no_example_is_one_line(tmp_path: Path, content: object, problem: str) -> None:
    """N11, N13."""
    with pytest.raises(SetupError) as refusal:
        load_example(written(tmp_path, content))
    assert problem in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("name", ["x" * 300, "x\0y", "", "."])
def test_a_name_that_no_file_can_have_is_one_line(name: str) -> None:
    with pytest.raises(SetupError, match="no example"):
        load_example(name)
