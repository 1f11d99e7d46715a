"""Prepares the environment of ``opentelemetry-instrument`` (entry point ``opentelemetry_environment_variables``).

The agent loads this module for the options that it takes; there are none. What happens here is for the variables that
are set: the SDK reads them in the program, before anything of this package is loaded there, keeps what is empty, and
ends in a traceback for some values. So empty variables are unset, legal values that the SDK refuses are replaced by
what they mean, and wrong ones are a warning each and take their defaults, as in a service that calls ``configure``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from acestep_otel.sdk.variables import drop_wrong, suit_sdk


def prepare() -> None:
    """Leave the environment as the SDK can read it."""
    for wrong in drop_wrong():
        # Nothing has set up a log yet.
        sys.stderr.write(f"{wrong}; its default applies\n")
    suit_sdk()


if Path(sys.argv[0]).stem == "opentelemetry-instrument":
    prepare()
