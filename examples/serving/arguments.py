"""Numbers on the command lines of the service and of its load: finite, in range, or one line and exit code 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole_number(smallest: int, largest: int) -> Callable[[str], int]:
    """Takes a whole number of a range."""

    def parse(text: str) -> int:
        if not text.strip().isdecimal() or len(text) > 20 or not smallest <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a whole number from {smallest} to {largest}")
        return int(text)

    return parse


def duration(largest: float) -> Callable[[str], float]:
    """Takes a duration above zero."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= largest:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number of seconds up to {largest:g}")
        return value

    return parse
