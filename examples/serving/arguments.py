"""Numbers on the command lines of the service and of its load: finite, in range, or one line and exit code 2."""

from __future__ import annotations

import argparse
import math
import re
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


def replicas(text: str) -> str:
    """Takes a number of replicas, or the smallest and the largest."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})(-([1-9][0-9]{0,3}))?", text)
    if found is None or (found[3] is not None and int(found[3]) < int(found[1])):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number of replicas: 4, or 1-8")
    return text
