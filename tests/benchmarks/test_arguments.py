"""An invalid value of a benchmark's option is one line, before anything is loaded."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch

from benchmarks.environment import add_model_options
from benchmarks.workload import prepare


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("overhead --duration 5", "--duration 5 s is out of range: 10 ... 600 s"),
        ("overhead --batch-size 9", "--batch-size 9 is out of range: 1 ... 8"),
        ("overhead --batch-size 0", "'0' is not a whole number from 1 on"),
        ("overhead --rounds 1.5", "'1.5' is not a whole number from 1 on"),
        ("overhead --minutes nan", "'nan' is not a number of minutes above 0"),
        ("overhead --device tpu", "tpu"),
        ("overhead --weights synthetic --dit nope", "no architecture named 'nope'"),
        ("overhead --output /dev/null/result.json", "cannot write /dev/null/result.json: "),
        ("overhead --output /", "cannot write /: it is a directory"),
        ("lm --lm nope", "invalid choice: 'nope'"),
        ("lm --codes 1", "2 tokens or more"),
        ("vae_decode --dit nope", "invalid choice: 'nope'"),
        ("vae_decode --tiles 0", "'0' is not a whole number from 1 on"),
        ("tiers /nowhere.json", "there is no file /nowhere.json"),
        ("tiers pyproject.toml", "pyproject.toml, line 1, column 2: Expecting value"),
        ("tiers benchmarks/results/load.json", "benchmarks/results/load.json is not a result file of version 1"),
        ("soak --clients 0", "'0' is not a whole number from 1 on"),
    ],
)
def test_a_wrong_value_is_one_line(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = command.split()
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code not in (0, None)
    # A text is what Python itself prints when such an exit reaches the top.
    said = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err.splitlines()[-1]
    assert message in said
    assert "\n" not in said


def test_the_tiny_song_can_be_prepared() -> None:
    parser = ArgumentParser()
    add_model_options(parser)
    models, song = prepare(parser.parse_args(["--device", "cpu", "--duration", "10"]))
    assert (models.device, song.duration) == (torch.device("cpu"), 10)
