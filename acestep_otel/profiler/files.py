"""Atomic writes of files, and writes through devices, pipes and links."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO, cast

from acestep.documents import shown
from acestep_otel.errors import SetupError


def require_writable(path: Path) -> None:
    """Make sure, before any long work, that a file can be written; creates the folders above it.

    Raises:
        SetupError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = _target(path)
        if target.is_dir():
            raise SetupError(f"cannot write {shown(path)}: it is a directory, give a file name")
        if _is_replaced(target):
            probe = _beside(target, "probe")
            probe.touch()
            probe.unlink()
        elif not os.access(target, os.W_OK):
            raise SetupError(f"cannot write {shown(path)}: Permission denied")
    except (OSError, ValueError) as error:
        raise SetupError(f"cannot write {shown(path)}: {getattr(error, 'strerror', None) or error}") from error


def require_apart(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[tuple[str, Path | None]] = ()) -> None:
    """Make sure that no two outputs of a run are the same file, and that no output is an input of it.

    Args:
        outputs: flags or other names, and paths; ``None`` for an output that is not written.
        inputs: the same for files that are read.

    Raises:
        SetupError: two of them are the same file.
    """
    seen = [(name, _identity(path)) for name, path in inputs if path is not None]
    for name, path in outputs:
        if path is None or not can_be_replaced(path):
            # Two outputs may go to the same terminal.
            continue
        identity = _identity(path)
        for other, taken in seen:
            if identity & taken:
                raise SetupError(f"{name} would overwrite {other}, {shown(path)}: give another file")
        seen.append((name, identity))


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file whose new content replaces the old one when the block ends well.

    A link is followed; the file behind it is replaced and keeps its mode and, if permitted, its owner. Anything that is
    no regular file (a terminal, a pipe, ``/dev/null``) is written directly.

    Raises:
        OSError: it could not be written; the previous file is unchanged. The message names the file.
    """
    with _replacing(path, "utf-8") as stream:
        yield cast(TextIO, stream)


@contextmanager
def replacing_bytes(path: Path) -> Iterator[BinaryIO]:
    """The same for bytes."""
    with _replacing(path, None) as stream:
        yield cast(BinaryIO, stream)


@contextmanager
def _replacing(path: Path, encoding: str | None) -> Iterator[IO[Any]]:
    mode = "b" if encoding is None else ""
    try:
        target = _target(path)
        if _is_replaced(target):
            with _replaced(target, mode, encoding) as stream:
                yield stream
        else:
            with target.open(f"w{mode}", encoding=encoding) as stream:
                yield stream
    except OSError as error:
        raise OSError(f"cannot write {shown(path)}: {error.strerror or error}") from error


def can_be_replaced(path: Path) -> bool:
    """Whether a path is a regular file or does not exist yet, so that a run can rewrite it repeatedly."""
    try:
        return _is_replaced(_target(path))
    except (OSError, ValueError):
        return True


@contextmanager
def _replaced(target: Path, mode: str, encoding: str | None) -> Iterator[IO[Any]]:
    draft = _beside(target, "draft")
    try:
        with draft.open(f"x{mode}", encoding=encoding) as stream:
            _take_over(stream.fileno(), target)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _take_over(descriptor: int, target: Path) -> None:
    """Give a draft the mode and the owner of the file that it will replace."""
    try:
        before = target.stat()
    except FileNotFoundError:
        return
    if hasattr(os, "fchown"):
        with suppress(PermissionError):
            os.fchown(descriptor, before.st_uid, before.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _target(path: Path) -> Path:
    """The path that is written: the end of a chain of links, even if it does not exist yet.

    The links of ``/dev/stdout`` end in names that cannot be opened again, such as ``pipe:[1]``; they are not resolved.
    """
    if not path.is_symlink():
        return path
    end = path.resolve()
    return end if not path.exists() or end.exists() else path


def _is_replaced(target: Path) -> bool:
    try:
        return stat.S_ISREG(target.stat().st_mode)
    except FileNotFoundError:
        return True


def _identity(path: Path) -> set[object]:
    """The identity of a file: its resolved name and, if it exists, its inode."""
    found: set[object] = {os.path.realpath(path)}
    with suppress(OSError, ValueError):
        status = path.stat()
        found.add((status.st_dev, status.st_ino))
    return found


def _beside(path: Path, purpose: str) -> Path:
    # A rename is atomic only within one file system, so the draft is in the same folder. A name of 255 bytes has no
    # room for an ending.
    return path.with_name(f".{purpose}-{os.getpid()}-{abs(hash(path.name)) % 10**8}")
