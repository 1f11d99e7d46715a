"""Tensors in safetensors files, single or sharded, read piece by piece.

A mapped page counts as this process's memory for as long as the file stays mapped. So a file is mapped again for every
``MAPPED_BYTES`` that were read: whatever the size of a checkpoint, that much is the cost of reading it.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from acestep.documents import is_lfs_pointer
from acestep.errors import CheckpointInvalid
from acestep.weights.layout import read_json

MAPPED_BYTES: Final = 128 * 2**20
"""Most bytes of a file that are mapped and read at a time."""
WEIGHT_DTYPES: Final[Mapping[str, int]] = {"F32": 4, "F16": 2, "BF16": 2}
"""Number types that weights may be stored in, and their bytes."""
_PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint, as its file describes it.

    Attributes:
        file: the file that holds it.
        shape: its shape.
        dtype: number type in the format's own spelling, for example ``BF16``.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of a tensor that are copied at once; ``None`` is all of it."""

    name: str
    rows: slice | None
    bytes: int


class TensorFiles:
    """The tensors of a folder; nothing but headers is read until ``read_into``.

    Args:
        files: safetensors files of one folder; together they contain every tensor once.

    Attributes:
        folder: the folder that contains them.
        tensors: what is stored, by name, in the order of the files.

    Raises:
        CheckpointInvalid: a file is corrupt or incomplete, two contain the same tensor, or a number type is not one of
            ``WEIGHT_DTYPES``.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.folder = files[0].parent
        self.tensors: dict[str, StoredTensor] = {}
        for path in files:
            for name, tensor in _described(path):
                if name in self.tensors:
                    raise CheckpointInvalid(f"{name} is stored twice: in {self.tensors[name].file} and in {path}")
                if tensor.dtype not in WEIGHT_DTYPES:
                    raise CheckpointInvalid(
                        f"{name} in {path} is stored as {tensor.dtype}: weights are {', '.join(WEIGHT_DTYPES)} here"
                    )
                self.tensors[name] = tensor

    @classmethod
    def open(cls, folder: Path, stem: str) -> TensorFiles:
        """The tensors of ``<stem>.safetensors``, or of the shards that its index lists.

        Raises:
            CheckpointInvalid: there is no such file, a shard is missing, or a file cannot be read.
        """
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        for path in (single, index):
            if path.is_symlink() and not path.exists():
                raise CheckpointInvalid(f"{path} is a broken symbolic link")
        if single.exists():
            return cls([single])
        if index.exists():
            return cls(_shards(index))
        pickles = sorted(
            path.name
            for path in folder.iterdir()
            if path.suffix in _PICKLE_SUFFIXES and path.name.startswith((stem, "pytorch_model"))
        )
        if pickles:
            raise CheckpointInvalid(
                f"{folder} has its weights in {pickles[0]} only: a pickle can execute code when it is loaded. "
                f"Save them as {single.name}"
            )
        raise CheckpointInvalid(
            f"{folder} has neither {single.name} nor {index.name}; to resume an interrupted download, run "
            f"`acestep-otel download {folder.name}`"
        )

    def read_into(self, targets: Mapping[str, torch.Tensor]) -> None:
        """Copy stored tensors into tensors of the same shapes, of any number type and on any device.

        Args:
            targets: by the stored tensors' names.

        Raises:
            CheckpointInvalid: a file changed or cannot be read any more.
        """
        by_file: dict[Path, list[str]] = {}
        for name, stored in self.tensors.items():
            if name in targets:
                by_file.setdefault(stored.file, []).append(name)
        for path, names in by_file.items():
            pieces = (piece for name in names for piece in _pieces(name, self.tensors[name]))
            for batch in _batches(pieces):
                with _opened(path) as file:
                    for piece in batch:
                        _copy(file, piece, targets[piece.name])

    def mapped(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Stored tensors as they are, without reading them: the files' pages are read where they are used.

        Raises:
            CheckpointInvalid: a file changed or cannot be read any more.
        """
        views: dict[str, torch.Tensor] = {}
        for path in dict.fromkeys(self.tensors[name].file for name in names):
            with _opened(path) as file:
                views |= {name: file.get_tensor(name) for name in names if self.tensors[name].file == path}
        return views


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise CheckpointInvalid(f"{index} is not a shard index: it has no weight_map of file names")
    names = set(listed.values())
    if not names:
        raise CheckpointInvalid(f"{index} lists no shards")
    shards = []
    for name in sorted(names):
        # A name with folders in it could point out of the checkpoint.
        if Path(name).name != name:
            raise CheckpointInvalid(f"{index} names {name!r}: a shard must be next to its index")
        if not (index.parent / name).exists():
            raise CheckpointInvalid(f"{index} names {name}, which does not exist: the checkpoint is incomplete")
        shards.append(index.parent / name)
    return shards


def _described(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    with _opened(path) as file:
        for name in file.offset_keys():
            described = file.get_slice(name)
            yield name, StoredTensor(path, tuple(described.get_shape()), described.get_dtype())


def require_regular(path: Path) -> None:
    """Check that a file of a checkpoint can be opened without blocking, and is not a pointer to its content.

    Raises:
        CheckpointInvalid: it does not exist, is a pipe or a device, or is a Git LFS pointer.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointInvalid(f"there is no file {path}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointInvalid(f"{path} is not a regular file")
    if is_lfs_pointer(path, status.st_size):
        raise CheckpointInvalid(f"{path} is a Git LFS pointer, not the file: run `git lfs pull`")


def stored_metadata(path: Path) -> Mapping[str, str]:
    """The texts in the header of one file.

    Raises:
        CheckpointInvalid: the file is corrupt or incomplete.
    """
    with _opened(path) as file:
        found: Mapping[str, str] = file.metadata() or {}
        return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file; the library's own messages do not name the damaged one."""
    require_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointInvalid(f"{path} is corrupt or incomplete ({error}): download it again") from error


def _pieces(name: str, stored: StoredTensor) -> Iterator[_Piece]:
    size = WEIGHT_DTYPES[stored.dtype]
    for length in stored.shape:
        size *= length
    if size <= MAPPED_BYTES or not stored.shape:
        yield _Piece(name, None, size)
        return
    rows = stored.shape[0]
    step = max(1, rows * MAPPED_BYTES // size)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield _Piece(name, slice(start, stop), size * (stop - start) // rows)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    mapped = 0
    for piece in pieces:
        if batch and mapped + piece.bytes > MAPPED_BYTES:
            yield batch
            batch, mapped = [], 0
        batch.append(piece)
        mapped += piece.bytes
    if batch:
        yield batch


def _copy(file: Any, piece: _Piece, target: torch.Tensor) -> None:
    if piece.rows is None:
        target.copy_(file.get_tensor(piece.name))
    else:
        target[piece.rows].copy_(file.get_slice(piece.name)[piece.rows])
