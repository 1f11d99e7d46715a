"""Files are written whole or not at all, and found unwritable before the work."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from acestep_otel.errors import SetupError
from acestep_otel.profiler.files import replacing, require_apart, require_writable


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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    """N1."""
    path = tmp_path / "file"
    path.write_text("old", "utf-8")
    path.chmod(mode)
    require_writable(path)
    with replacing(path) as stream:
        stream.write("new")
    assert (path.read_text("utf-8"), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_and_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 12_345, 12_346)
    with replacing(path) as stream:
        stream.write("new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12_345, 12_346)


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder/file")
    (tmp_path / "folder").mkdir()
    for content in ("first", "second"):
        require_writable(tmp_path / "link")
        with replacing(tmp_path / "link") as stream:
            stream.write(content)
        assert (tmp_path / "folder" / "file").read_text("utf-8") == content
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_a_device_is_written_through_and_stays_a_device(tmp_path: Path) -> None:
    path = tmp_path / "null"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this container allows no devices")
    require_writable(path)
    with replacing(path) as stream:
        stream.write("new")
    assert stat.S_ISCHR(path.stat().st_mode)


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text("utf-8")))
    require_writable(path)
    reader.start()
    with replacing(path) as stream:
        stream.write("new")
    reader.join(10)
    assert read == ["new"]
    assert stat.S_ISFIFO(path.stat().st_mode)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 255, "a\0b"])
def test_the_longest_name_works_and_a_longer_one_is_a_setup_error(tmp_path: Path, name: str) -> None:
    """N18."""
    path = tmp_path / name
    if len(name) == 255:
        require_writable(path)
        with replacing(path) as stream:
            stream.write("new")
        assert path.read_text("utf-8") == "new"
    else:
        with pytest.raises(SetupError, match="cannot write"):
            require_writable(path)


def test_two_outputs_at_one_path_are_refused(tmp_path: Path) -> None:
    """N1."""
    (tmp_path / "link").symlink_to("result.json")
    with pytest.raises(SetupError, match="--report would overwrite --benchmark-output"):
        require_apart(
            (("--benchmark-output", tmp_path / "result.json"), ("--report", tmp_path / "a" / ".." / "result.json"))
        )
    with pytest.raises(SetupError, match="--report would overwrite --benchmark-output"):
        require_apart((("--benchmark-output", tmp_path / "result.json"), ("--report", tmp_path / "link")))
    require_apart((("--benchmark-output", tmp_path / "a"), ("--report", tmp_path / "b"), ("--trace-output", None)))


def test_an_output_that_is_an_input_is_refused_by_any_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "song.wav").touch()
    (tmp_path / "hard").hardlink_to(tmp_path / "song.wav")
    with pytest.raises(SetupError, match="--report would overwrite --src-audio"):
        require_apart((("--report", tmp_path / "hard"),), (("--src-audio", tmp_path / "song.wav"),))


def test_two_outputs_may_go_to_one_device() -> None:
    require_apart((("--benchmark-output", Path(os.devnull)), ("--report", Path(os.devnull))))
