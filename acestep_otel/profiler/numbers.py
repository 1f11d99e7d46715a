"""Numbers of the command line: finite, and in range. To click, ``nan`` and ``inf`` are in any range."""

from __future__ import annotations

import math
from typing import Any, Final

import click

_MOST_DIGITS: Final = 30


class Number(click.FloatRange):
    """A finite number."""

    name = "float"

    def _describe_range(self) -> str:
        # click writes "x<=None" where there is no bound.
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that a text says."""
        if isinstance(value, str) and len(value) > _MOST_DIGITS:
            self.fail(f"{value[:_MOST_DIGITS]}… has {len(value):,} characters.", param, ctx)
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


class WholeNumber(click.IntRange):
    """A whole number."""

    name = "integer"

    def _describe_range(self) -> str:
        # click writes "x<=None" where there is no bound.
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that a text says."""
        if isinstance(value, str) and len(value) > _MOST_DIGITS:
            self.fail(f"{value[:_MOST_DIGITS]}… has {len(value):,} characters.", param, ctx)
        return super().convert(value, param, ctx)
