"""JSON from outside, read within limits: the one reader for examples, results, configurations and requests.

Python's own reader accepts NaN, numbers of any length and lone surrogates, and ends in ``RecursionError`` for a
document that is nested deeply enough. None of these occurs in a song or a configuration.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, Final

LARGEST: Final = 64 * 2**20
"""Maximum size of a document in bytes, unless its reader sets another."""
DEEPEST: Final = 64
"""Maximum depth of nested arrays and objects."""
MOST_DIGITS: Final = 100
"""Maximum number of characters of one number."""

_LFS: Final = b"version https://git-lfs.github.com/spec/"


class DocumentError(ValueError):
    """A document that cannot be used; the message is one line."""


def read_document(path: Path, *, largest: int = LARGEST) -> Any:
    """The value in a JSON file.

    Args:
        path: a regular file; reading a pipe could block forever.
        largest: bytes that are read at most.

    Raises:
        DocumentError: it cannot be read, or its content is rejected; the message names the path.
    """
    return parse_document(read_regular_file(path, largest=largest), str(path))


def read_regular_file(path: Path, *, largest: int) -> bytes:
    """The content of a regular file.

    Raises:
        DocumentError: there is no such file, it is something else, larger than ``largest``, or cannot be read.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would already block.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no Path
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DocumentError(f"{shown(path)} is not a regular file")
            if status.st_size > largest:
                raise DocumentError(f"{shown(path)} has {status.st_size:,} bytes: {largest:,} are read at most")
            return file.read(largest + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DocumentError(f"there is no file {shown(path)}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, DocumentError):
            raise
        raise DocumentError(f"cannot read {shown(path)}: {getattr(error, 'strerror', None) or error}") from error


def parse_document(content: bytes, name: str, *, largest: int = LARGEST) -> Any:
    """The value of a JSON document in UTF-8; a byte-order mark is skipped.

    Args:
        content: the document.
        name: what it is called in messages.
        largest: bytes that it may have.

    Raises:
        DocumentError: it is not JSON, too large, nested too deeply, or contains an invalid number or text.
    """
    name = shown(name)
    if len(content) > largest:
        raise DocumentError(f"{name} has more than {largest:,} bytes")
    try:
        value = json.loads(
            content.decode("utf-8-sig"), parse_int=_whole, parse_float=_finite, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise DocumentError(f"{name} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise DocumentError(f"{name}, line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise DocumentError(f"{name}: {error}") from error
    except RecursionError as error:
        raise DocumentError(f"{name} is nested deeper than {DEEPEST} levels") from error
    _check(value, name)
    return value


def is_lfs_pointer(path: Path, size: int) -> bool:
    """Whether a regular file is only a Git LFS pointer to the real file.

    Args:
        path: the file.
        size: its bytes; a pointer has fewer than 1,024 (Git LFS specification, version 1).
    """
    if size >= 1_024:
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: a lone surrogate cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(name: str | Path) -> str:
    """A name of a file that can be printed: bytes outside UTF-8 and control characters are escaped."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits) if len(digits) <= MOST_DIGITS else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is out of range")
    return value


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _check(value: Any, name: str) -> None:
    """Depth and texts of a whole document, without recursion."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise DocumentError(f"{name} is nested deeper than {DEEPEST} levels")
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if not is_text(item):
                    raise DocumentError(f"{name} contains a string with a lone surrogate")
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
        level, depth = below, depth + 1
