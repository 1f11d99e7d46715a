"""What the command line can refuse, and what it can fail with."""

from __future__ import annotations


class SetupError(Exception):
    """Something the user gave cannot be used, found before any work was done.

    The message is one line that names the value and the way out.
    """


class RunFailed(Exception):
    """Work was done and reported, and part of it did not end well.

    The message is one line; what there is to say about the parts has been printed.
    """
