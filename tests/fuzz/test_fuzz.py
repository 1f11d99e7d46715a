"""Every file of the corpus, including former crashes, and a few seconds of fuzzing for each parser."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5


def test_every_reader_has_a_corpus() -> None:
    assert sorted(folder.name for folder in CORPUS.iterdir()) == sorted(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*")) < 2**20


@pytest.mark.parametrize("path", sorted(CORPUS.rglob("*.bin")), ids=lambda path: f"{path.parent.name}/{path.stem[:8]}")
def test_a_file_of_the_corpus_is_read_or_is_one_error(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no build for this Python")
@pytest.mark.parametrize("name", TARGETS)
def test_a_few_seconds_of_fuzzing_find_nothing(name: str, tmp_path: Path) -> None:
    options = (f"-max_total_time={SECONDS}", "-rss_limit_mb=4096", "-timeout=20", "-max_len=65536", "-verbosity=0")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", name, *options, f"-artifact_prefix={tmp_path}/", str(tmp_path),
         str(CORPUS / name)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
