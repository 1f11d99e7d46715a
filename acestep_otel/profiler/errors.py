"""What a run of the command line can fail with."""

from __future__ import annotations


class RunFailed(Exception):
    """Work was done and reported, and part of it did not end well.

    The message is one line; what there is to say about the parts has been printed.
    """
