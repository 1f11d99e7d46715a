"""What happens to a test whose program is not installed, and the two commands that install them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / ".ci" / "programs.sh"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has no program but a shell's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "mktemp", "rm", "cat", "id"):
        (folder / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    # Packages have other names on Ubuntu.
    monkeypatch.setenv("OS_RELEASE", str(folder / "none"))
    return folder


@pytest.mark.usefixtures("bare")
def test_a_missing_program_skips_with_the_package_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"missing program: promtool \(apt-get install .* prometheus\)"):
        programs.program("promtool")


@pytest.mark.usefixtures("bare")
def test_a_missing_program_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="missing program: chromium"):
        programs.program("chromium")


def test_another_name_of_the_browser_does(bare: Path) -> None:
    write_program(bare / "google-chrome")
    assert programs.program("chromium") == str(bare / "google-chrome")


@pytest.mark.parametrize("stub", ["exit 1", "echo Chromium 140.0.1 snap"], ids=["not installed", "installed"])
def test_ubuntus_snap_is_not_a_browser_for_the_tests(bare: Path, monkeypatch: pytest.MonkeyPatch, stub: str) -> None:
    """It cannot read the files in the folder for temporary files."""
    monkeypatch.delenv("CI", raising=False)
    write_program(bare / "chromium-browser", stub)
    with pytest.raises(pytest.skip.Exception, match="missing program: chromium"):
        programs.program("chromium")


def test_skips_are_counted_by_program_in_one_line() -> None:
    chromium = "('a.py', 3, 'Skipped: missing program: chromium (apt-get install chromium)')"
    promtool = chromium.replace("chromium", "promtool")
    assert programs.summary([chromium, promtool, chromium, "needs a GPU"]) == (
        "3 tests skipped because a program is missing (chromium 2, promtool 1): "
        "apt-get install --no-install-recommends chromium prometheus"
    )
    assert programs.summary(["needs a GPU"]) is None


def test_servers_that_no_registry_has_are_counted_with_their_own_way_out() -> None:
    reason = f"{programs.REASON}{programs.SERVERS} (no program jaeger in ACESTEP_STACK_BIN or PATH)"
    assert programs.summary([reason, reason]) == (
        "2 tests skipped because a program is missing (the stack's servers 2): "
        "ACESTEP_STACK_BIN=FOLDER with otelcol-contrib, jaeger and prometheus 3"
    )


def test_the_line_is_the_last_of_a_run(tmp_path: Path) -> None:
    """With the plugin and worker processes that ``make test`` uses."""
    (tmp_path / "test_page.py").write_text(
        "from tests.programs import program\ndef test_page():\n    program('prometheus')\n", "utf-8"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-n", "1", "-c", "/dev/null", "test_page.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("1 test skipped because a program is missing (prometheus 1):"), done.stdout


def write_program(path: Path, script: str = "exit 0") -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)


def install(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", str(SCRIPT), *arguments], capture_output=True, text=True)


def write_python(folder: Path, version: tuple[int, int] = (3, 11), has_venv: bool = True) -> str:
    """An interpreter with the behaviour that the script needs."""
    write_program(
        folder / "python3",
        f"""case "$*" in
  --version) echo "Python {version[0]}.{version[1]}.0" ;;
  *ensurepip*) [ -e "{folder}/venv" ] || exit {0 if has_venv else 1} ;;
  *-venv*) echo python{version[0]}.{version[1]}-venv ;;
  *) exit {int(version < (3, 11))} ;;
esac""",
    )
    return "python3"


def write_apt(folder: Path, fails: str = "") -> None:
    """A package manager that writes down what it installs and makes the programs exist."""
    write_program(folder / "id", "echo 0")
    write_program(
        folder / "env",
        'while :; do case "$1" in *=*) shift ;; *) break ;; esac; done; exec "$@"',
    )
    write_program(
        folder / "apt-get",
        f"""echo "$*" >>"{folder}/apt.log"
for last; do :; done
[ "$last" = "{fails}" ] && {{ echo "E: Unable to locate package $last"; exit 100; }}
case "$last" in
  chromium) names=chromium ;;
  prometheus) names="prometheus promtool" ;;
  *-venv) names=venv ;;
esac
for name in $names; do echo '#!/bin/sh' >"{folder}/$name"; /bin/chmod +x "{folder}/$name"; done
echo chatter""",
    )


def test_what_is_missing_is_installed_once_and_without_chatter(bare: Path) -> None:
    python = write_python(bare, has_venv=False)
    write_apt(bare)
    done = install(python, "browser", "prometheus")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "Installing python3.11-venv (apt-get)",
        "Installing chromium (apt-get)",
        "Installing prometheus (apt-get)",
    ]
    log = (bare / "apt.log").read_text("utf-8")
    assert log.count("update") == 1
    again = install(python, "browser", "prometheus")
    assert (again.returncode, again.stderr) == (0, "")
    assert (bare / "apt.log").read_text("utf-8") == log


def test_a_package_that_cannot_be_installed_is_named_and_the_rest_continues(bare: Path) -> None:
    python = write_python(bare)
    write_apt(bare, fails="chromium")
    done = install(python, "browser", "prometheus")
    assert done.returncode == 0
    assert "E: Unable to locate package chromium" in done.stderr
    assert (bare / "promtool").exists()
    assert done.stderr.splitlines()[-1] == (
        "Not installed, so the tests that need it are skipped: chromium. "
        "To install: sudo apt-get install --no-install-recommends chromium"
    )


def test_ubuntu_is_shown_the_way_to_a_browser_that_is_no_snap(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "os-release").write_text('ID=ubuntu\nNAME="Ubuntu"\n', "utf-8")
    monkeypatch.setenv("OS_RELEASE", str(bare / "os-release"))
    write_program(bare / "chromium-browser", "echo Chromium 140.0.1 snap")
    write_apt(bare)
    done = install(write_python(bare), "browser", "prometheus")
    assert done.returncode == 0
    assert "chromium" not in (bare / "apt.log").read_text("utf-8")
    assert done.stderr.splitlines() == [
        "Not installed, so the tests that need it are skipped: a browser. Ubuntu has Chromium as a snap, and a snap "
        "cannot read the files of the tests. To install Chrome: curl -LO "
        "https://dl.google.com/linux/direct/google-chrome-stable_current_amd64.deb && "
        "sudo apt-get install ./google-chrome-stable_current_amd64.deb",
        "Installing prometheus (apt-get)",
    ]


def test_without_the_right_to_install_the_command_is_named(bare: Path) -> None:
    python = write_python(bare)
    done = install(python, "browser", "prometheus")
    assert done.returncode == 0
    assert "sudo apt-get install --no-install-recommends chromium prometheus" in done.stderr


def test_without_venv_nothing_can_run(bare: Path) -> None:
    done = install(write_python(bare, has_venv=False))
    assert done.returncode == 1
    assert done.stderr.startswith("error: python3 needs the package python3.11-venv: sudo apt-get install")


def test_an_interpreter_that_is_too_old_is_named(bare: Path) -> None:
    done = install(write_python(bare, version=(3, 10)))
    assert done.returncode == 1
    assert "Python 3.10.0, which is too old: install 3.11 or later" in done.stderr
