"""The error with which the layer and the command line refuse an input."""

from __future__ import annotations


class SetupError(Exception):
    """An input of the user cannot be used; raised before any work was done.

    The message is one line that names the value and what to do instead.
    """
