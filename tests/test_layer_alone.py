"""The wheel of the tracing layer alone: what it needs, what it brings, and that it works beside another ``acestep``."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.services import PRELUDE, ROOT, unpack_double

SOURCE = ROOT / "acestep_otel"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=SOURCE, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


def requirements(name, extras=()):
    """A distribution and everything it needs, by name."""
    found = {name.lower()}
    for line in distribution(name).requires or ():
        needed, _, marker = line.partition(";")
        if "extra" not in marker:
            found |= requirements(re.match(r"[\w.-]+", needed)[0])
    return found


def needed_by_the_wheel():
    declared = tomllib.loads((SOURCE / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    return {name for line in declared for name in requirements(re.match(r"[\w.-]+", line)[0])}


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of a fresh environment with the wheel and what it declares, and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    for name in needed_by_the_wheel():
        for file in distribution(name).files or ():
            if ".." not in file.parts and (source := Path(str(file.locate()))).is_file():
                target = site / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return folder / "bin" / "python"


def run(python, program, *path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    done = subprocess.run([python, "-c", program], env=environment, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_brings_the_layer_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"acestep_otel", "acestep_otel_layer"}
    assert "acestep_otel/instrumentor.py" in names
    assert not any(name.endswith((".toml", ".json")) or "/profiler/" in name for name in names)


def test_it_needs_neither_pytorch_nor_the_sdk():
    assert {"opentelemetry-api", "wrapt"} <= needed_by_the_wheel()
    assert not {"torch", "opentelemetry-sdk", "numpy"} & needed_by_the_wheel()


def test_it_puts_no_engine_on_the_path(python):
    found = run(python, "from importlib.util import find_spec; print(find_spec('acestep'), find_spec('torch'))")
    assert found == "None None"


def test_it_instruments_the_engine_that_is_there_and_takes_itself_off_again(python, tmp_path):
    program = (
        "from acestep_otel.instrumentor import AceStepInstrumentor as Instrumentor\n"
        "Instrumentor().instrument()\n" + PRELUDE + "import acestep.inference\n"
        "assert song().success\n"
        "assert 'Wrapper' in type(acestep.inference.generate_music).__name__\n"
        "Instrumentor().uninstrument()\n"
        "assert 'Wrapper' not in type(acestep.inference.generate_music).__name__\n"
        "assert song().success\n"
        "print(sorted({'torch', 'opentelemetry.sdk', 'numpy'} & set(sys.modules)))\n"
    )
    assert run(python, program, unpack_double(tmp_path)) == "[]"


def test_every_module_but_those_of_the_sdk_can_be_imported(python, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name[:-3].replace("/", ".") for name in archive.namelist() if name.endswith(".py")]
    of_the_sdk = ("acestep_otel.forced_sampling.sampler", "acestep_otel.sdk.", "acestep_otel.testing")
    modules = [name.removesuffix(".__init__") for name in names if not name.startswith(of_the_sdk)]
    run(python, "import importlib\nfor name in " + repr(modules) + ": importlib.import_module(name)")


def test_both_distributions_have_the_same_entry_points():
    whole, alone = (
        tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"] for folder in (ROOT, SOURCE)
    )
    assert whole["entry-points"] == alone["entry-points"]
