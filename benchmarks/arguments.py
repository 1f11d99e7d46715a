"""Types of the benchmarks' options: an invalid value ends the script with one line and exit code 2 before it loads."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from acestep.devices import resolve_device
from acestep.errors import AceStepError
from acestep_otel.errors import SetupError
from acestep_otel.profiler.files import require_writable


def whole_number(word: str) -> int:
    """A whole number from 1 on."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 on")
    return int(word)


def minutes(word: str) -> float:
    """A time above zero."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of minutes above 0")
    return value


def available_device(word: str) -> torch.device:
    """A device of this machine."""
    try:
        return resolve_device(word)
    except AceStepError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def output_file(word: str) -> Path:
    """A file for the results that can be written; its folder is created now."""
    path = Path(word)
    try:
        require_writable(path)
    except SetupError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path
