"""What the layer and the command line refuse."""

from __future__ import annotations


class SetupError(Exception):
    """Something the user gave cannot be used, found before any work was done.

    The message is one line that names the value and the way out.
    """
