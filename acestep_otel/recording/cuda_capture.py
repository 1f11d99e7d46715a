"""CUDA graphs that other threads record, and this one must not spoil."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

_THREAD_LOCAL: Final = 1
"""``CU_STREAM_CAPTURE_MODE_THREAD_LOCAL``."""
_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_Exchange = Callable[[Any], int]


@contextmanager
def beside_captures() -> Iterator[None]:
    """Let this thread ask about events and streams while others capture theirs.

    A capture in PyTorch's default mode forbids such questions to every thread, and fails when one is asked.
    A thread in this mode heeds its own captures only. Without NVIDIA's driver nothing is changed.

    Source: CUDA driver API, ``cuThreadExchangeStreamCaptureMode``.
    """
    exchange = _exchange()
    mode = ctypes.c_int(_THREAD_LOCAL)
    changed = exchange is not None and exchange(ctypes.byref(mode)) == 0
    try:
        yield
    finally:
        if exchange is not None and changed:
            exchange(ctypes.byref(mode))


@cache
def _exchange() -> _Exchange | None:
    try:
        found: _Exchange = ctypes.CDLL(_LIBRARY).cuThreadExchangeStreamCaptureMode
    except (OSError, AttributeError):
        return None
    return found
