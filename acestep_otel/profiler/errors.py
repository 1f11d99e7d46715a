"""The error of a failed run of the command line."""

from __future__ import annotations


class RunFailed(Exception):
    """A run did its work and reported it, and part of it failed.

    The message is one line; details of the parts have already been printed.
    """
