"""Files are written whole or not at all, and found unwritable before the work."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from acestep_otel.errors import SetupError
from acestep_otel.profiler.files import replacing, require_writable


def test_missing_folders_are_created(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "result.json"
    require_writable(path)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is a directory"):
        require_writable(tmp_path)


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"cannot write .*result\.json"):
        require_writable(tmp_path / "file" / "result.json")


def test_an_interrupted_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def interrupted() -> None:
        with replacing(path) as stream:
            stream.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_write_replaces_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer", encoding="utf-8")
    with replacing(path) as stream:
        stream.write("new")
    assert path.read_text("utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("acestep_otel.profiler.files.os.fsync", full)
    path = tmp_path / "file"
    with pytest.raises(OSError, match=rf"cannot write {path}: No space left on device"), replacing(path) as stream:
        stream.write("new")
    assert list(tmp_path.iterdir()) == []
