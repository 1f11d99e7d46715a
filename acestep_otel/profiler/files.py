"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from acestep_otel.errors import SetupError


def require_writable(path: Path) -> None:
    """Make sure, before any long work, that a file can be written; creates the folders above it.

    Raises:
        SetupError: it cannot.
    """
    if path.is_dir():
        raise SetupError(f"cannot write {path}: it is a directory, give a file name")
    probe = _beside(path, "probe")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file whose new content replaces the old one when the block ends well.

    Raises:
        OSError: it could not be written; what was there before is unchanged. The message names the file.
    """
    draft = _beside(path, "draft")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _beside(path: Path, purpose: str) -> Path:
    # A rename is atomic only within one file system, so the draft is in the same folder.
    return path.with_name(f".{path.name}.{purpose}-{os.getpid()}")
