"""Prepares the environment of ``opentelemetry-instrument`` (entry point ``opentelemetry_environment_variables``).

The agent loads this module to collect further options; there are none. The module corrects variables instead: the SDK
reads them in the program before any other module of this package is loaded there, keeps empty values, and ends in a
traceback for some others. Empty variables are therefore unset, legal values that the SDK refuses are replaced by
equivalent ones, and invalid ones cause a warning each and take their defaults, as under ``configure``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from acestep_otel.sdk.variables import drop_wrong, suit_sdk


def prepare() -> None:
    """Leave the environment as the SDK can read it."""
    for wrong in drop_wrong():
        # No log handler is installed yet.
        sys.stderr.write(f"{wrong}; its default applies\n")
    suit_sdk()


if Path(sys.argv[0]).stem == "opentelemetry-instrument":
    prepare()
