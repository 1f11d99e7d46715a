"""The wheel of everything: what goes in, what stays out, and that the command works from it alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import acestep
import acestep_otel

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def metadata(wheel: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        message = Parser().parsestr(archive.read(path).decode())
    return {key: message.get_all(key, []) for key in message}


def test_both_packages_and_nothing_beside_them_go_in(wheel: Path) -> None:
    assert {name.partition("/")[0] for name in names(wheel)} == {
        "acestep",
        "acestep_otel",
        f"acestep_otel-{acestep_otel.__version__}.dist-info",
    }


def test_every_file_of_the_packages_goes_in(wheel: Path) -> None:
    files = {
        str(path.relative_to(ROOT))
        for package in ("acestep", "acestep_otel")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files.remove("acestep_otel/pyproject.toml")
    assert files <= set(names(wheel))
    assert {"acestep/py.typed", "acestep_otel/py.typed"} <= files


def test_of_the_examples_only_the_songs_go_in(wheel: Path) -> None:
    packed = {Path(name).relative_to("acestep_otel") for name in names(wheel) if "/examples/" in name}
    assert packed == {path.relative_to(ROOT) for path in (ROOT / "examples" / "text2music").iterdir() if path.is_file()}


def test_the_version_is_that_of_the_packages(wheel: Path) -> None:
    assert metadata(wheel)["Version"] == [acestep_otel.__version__] == [acestep.__version__]


def test_the_project_is_linked(wheel: Path) -> None:
    labels = {url.partition(",")[0] for url in metadata(wheel)["Project-URL"]}
    assert labels == {"Documentation", "Source", "Issues", "Changelog"}


def test_an_installed_command_finds_its_example(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (scripts,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        (command,) = [
            line.partition(" = ")[2]
            for line in archive.read(scripts).decode().splitlines()
            if line.startswith("acestep-otel = ")
        ]
    module, _, function = command.partition(":")
    program = (
        f"import sys; sys.argv[1:] = {['--tiny', '--no-warmup', '--duration', '10', '--inference-steps', '1']!r}\n"
        f"import acestep_otel; assert acestep_otel.__file__.startswith({str(site)!r}), acestep_otel.__file__\n"
        f"from {module} import {function}; sys.exit({function}())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output" / "song-1-seed42.flac").exists()
