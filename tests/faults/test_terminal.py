"""N2: the result does not depend on the reader or the encoding of standard output. Whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ("--tiny", "--no-warmup", "--duration", "10", "--inference-steps", "1", "--no-progress")
PROGRAM = (sys.executable, str(ROOT / "profile_inference.py"))


def run(tmp_path: Path, *arguments: str, stdout: int | object, **environment: str) -> subprocess.CompletedProcess[str]:
    encoding = "cp1252" if "PYTHONIOENCODING" in environment else "utf-8"
    return subprocess.run(
        [*PROGRAM, *arguments],
        cwd=tmp_path,
        stdout=stdout,  # type: ignore[arg-type]
        stderr=subprocess.PIPE,
        encoding=encoding,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )


def closed_pipe() -> int:
    """The end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("mode", [(), ("--mode", "create_sample", "--lyrics-token-limit", "16")])
def test_a_closed_reader_loses_no_file_and_is_not_an_error(tmp_path: Path, mode: tuple[str, ...]) -> None:
    arguments = RUN if not mode else ("--tiny", "--no-warmup", "--no-progress")
    writer = closed_pipe()
    done = run(tmp_path, *arguments, *mode, "--benchmark-output", "r.json", "--report", "r.html", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "r.json").read_text("utf-8"))["results"][0]["status"] == "ok"
    assert (tmp_path / "r.html").stat().st_size > 1_000


def test_help_into_a_pipe_without_a_reader_is_no_error(tmp_path: Path) -> None:
    writer = closed_pipe()
    done = run(tmp_path, "--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_device_loses_what_is_printed_and_no_file(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(tmp_path, *RUN, "--benchmark-output", "r.json", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write standard output: No space left on device\n"
    assert (tmp_path / "r.json").exists()


def test_characters_that_cannot_be_shown_are_replaced(tmp_path: Path) -> None:
    done = run(tmp_path, *RUN, stdout=subprocess.PIPE, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert done.returncode == 0
    assert "VAE Decode" in done.stdout


def test_a_link_to_standard_output_gets_the_result_and_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    done = run(tmp_path, *RUN, "--benchmark-output", "link", stdout=subprocess.PIPE)
    assert done.returncode == 0
    document, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert document["mode"] == "profile"
    assert (tmp_path / "link").is_symlink()
