"""N2: the result does not depend on the reader or the encoding of standard output. Whole processes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.receivers import grpc_receiver, refusing_endpoint

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


SONG = ("--duration", "10", "--inference-steps", "1")
MODES = {
    "profile": SONG,
    "benchmark": (*SONG, "--batch-size", "1", "--mode", "benchmark"),
    "tier-test": ("--mode", "tier-test", "--tiers", "8", "--tier-duration", "10"),
    "create_sample": ("--mode", "create_sample", "--lyrics-token-limit", "16"),
    "understand": ("--mode", "understand", "--lyrics-token-limit", "16"),
    "format_sample": ("--mode", "format_sample", "--lyrics-token-limit", "16"),
}
OUTPUTS = ("--benchmark-output", "r.json", "--report", "r.html")
every_mode = pytest.mark.parametrize("mode", MODES)
each_kind_of_table = pytest.mark.parametrize("mode", ["profile", "benchmark", "tier-test"])


def arguments(mode: str) -> tuple[str, ...]:
    return ("--tiny", *(("--no-warmup",) if mode != "tier-test" else ()), "--no-progress", *MODES[mode], *OUTPUTS)


def files_are_whole(folder: Path, mode: str) -> None:
    document = json.loads((folder / "r.json").read_text("utf-8"))
    assert document["mode"] == mode
    assert {result["status"] for result in document["results"]} == {"ok"}
    assert (folder / "r.html").read_text("utf-8").rstrip().endswith("</html>")


@every_mode
def test_a_closed_reader_loses_no_file_and_is_not_an_error(tmp_path: Path, mode: str) -> None:
    writer = closed_pipe()
    done = run(tmp_path, *arguments(mode), stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    files_are_whole(tmp_path, mode)


@each_kind_of_table
def test_a_process_without_standard_streams_writes_its_files_and_nothing_into_them(tmp_path: Path, mode: str) -> None:
    command = shlex.join([*PROGRAM, *arguments(mode)])
    for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f"{command} {closed}"], cwd=tmp_path, capture_output=True, text=True, timeout=240,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        files_are_whole(tmp_path, mode)
        if mode != "profile":
            break


@pytest.mark.parametrize("arrives", [True, False])
def test_a_doctor_whom_nothing_hears_ends_as_it_would_have(tmp_path: Path, arrives: bool) -> None:
    with grpc_receiver() as received, refusing_endpoint() as nowhere:
        command = ("doctor", "--wait", "0", "--otlp-endpoint", received.endpoint if arrives else nowhere)
        writer = closed_pipe()
        piped = run(tmp_path, *command, stdout=writer)
        os.close(writer)
        closed = subprocess.run(
            ["bash", "-c", f"{shlex.join([*PROGRAM, *command])} >&-"], cwd=tmp_path, capture_output=True, text=True
        )
    said = "" if arrives else "error: telemetry did not arrive; see above\n"
    for done in (piped, closed):
        assert (done.returncode, done.stderr) == (0 if arrives else 1, said)
    assert bool(received.traces) == arrives


def test_a_doctor_says_what_it_can_where_its_signs_cannot_be_shown(tmp_path: Path) -> None:
    with refusing_endpoint() as nowhere:
        command = ("doctor", "--wait", "0", "--otlp-endpoint", nowhere)
        done = run(tmp_path, *command, stdout=subprocess.PIPE, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (1, "error: telemetry did not arrive; see above\n")
    assert "?  traces: not accepted by" in done.stdout


@pytest.mark.parametrize("words", [("--help",), ("doctor", "--help"), ("compare", "a.json", "a.json")])
def test_what_only_prints_needs_nobody_who_reads(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, *arguments("profile"), "--benchmark-output", "a.json", stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join([*PROGRAM, *words])} >&-"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_into_a_pipe_without_a_reader_is_no_error(tmp_path: Path) -> None:
    writer = closed_pipe()
    done = run(tmp_path, "--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@each_kind_of_table
def test_a_full_device_loses_what_is_printed_and_no_file(tmp_path: Path, mode: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(tmp_path, *arguments(mode), stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write standard output: No space left on device\n"
    files_are_whole(tmp_path, mode)


@each_kind_of_table
def test_characters_that_cannot_be_shown_are_replaced(tmp_path: Path, mode: str) -> None:
    done = run(tmp_path, *arguments(mode), stdout=subprocess.PIPE, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Report:  r.html" in done.stdout
    # A benchmark's table has no others.
    assert ("?" in done.stdout) == (mode != "benchmark")
    files_are_whole(tmp_path, mode)


def test_a_link_to_standard_output_gets_the_result_and_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    done = run(tmp_path, *RUN, "--benchmark-output", "link", stdout=subprocess.PIPE)
    assert done.returncode == 0
    document, _ = json.JSONDecoder().raw_decode(done.stdout)
    assert document["mode"] == "profile"
    assert (tmp_path / "link").is_symlink()
