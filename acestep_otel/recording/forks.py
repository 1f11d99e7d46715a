"""Forked processes, which take over memory but no threads."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


def follow_forks(before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Have methods called around every fork of this process, for as long as their object lives.

    The hooks cannot be taken off again, so they do not keep the object alive.

    Args:
        before: called by the thread that forks, first.
        in_parent: called by the same thread after it.
        in_child: called in the child.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_while_alive(before), after_in_parent=_while_alive(in_parent), after_in_child=_while_alive(in_child)
        )


def _while_alive(method: Callable[[], None]) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (alive := reference()) is not None:
            alive()

    return call
