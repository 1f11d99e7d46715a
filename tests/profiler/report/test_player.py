"""The songs of a run on its root span, and in a page that plays them."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from pathlib import Path

import pytest

from acestep.checkpoints import Models
from acestep.inference import generate_music
from acestep.types import GenerationRequest
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.report.html.player import played_songs
from acestep_otel.settings import SONGS_VARIABLE, Settings
from tests.browser import visit
from tests.profiler.report.recorded import run_of, span
from tests.tracing import Traced

SONG = GenerationRequest(caption="a song", duration=10, inference_steps=1, batch_size=2, seeds=(1, 2))


def root_of(traced: Traced) -> dict[str, object]:
    AceStepInstrumentor().flush()
    (root,) = [span for span in traced.spans if span.name == semconv.GENERATE_MUSIC]
    return dict(root.attributes)


@pytest.mark.parametrize("where", ["path", "https://songs.example.org/all/"])
def test_the_root_span_has_place_hash_and_type_of_each_song(
    traced: Traced, tiny_models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv(SONGS_VARIABLE, where)
    traced.instrument()
    songs = generate_music(tiny_models, SONG, save_dir=tmp_path).songs
    root = root_of(traced)
    paths = [song.path for song in songs if song.path is not None]
    expected = [str(path) if where == "path" else f"https://songs.example.org/all/{path.name}" for path in paths]
    assert root[semconv.SONG_LOCATIONS] == tuple(expected)
    assert root[semconv.SONG_HASHES] == tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    assert root[semconv.SONG_MIME_TYPES] == ("audio/flac", "audio/flac")
    assert root[semconv.AUDIO_DURATION] == 10.0


def test_by_default_a_trace_contains_no_files(traced: Traced, tiny_models: Models, tmp_path: Path) -> None:
    traced.instrument()
    generate_music(tiny_models, SONG, save_dir=tmp_path)
    assert not {name for name in root_of(traced) if name.startswith("acestep.song.")}


def test_songs_that_were_not_saved_have_no_place(
    traced: Traced, tiny_models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SONGS_VARIABLE, "path")
    traced.instrument()
    generate_music(tiny_models, SONG)
    assert not {name for name in root_of(traced) if name.startswith("acestep.song.")}


def test_a_wrong_setting_is_named() -> None:
    with pytest.raises(ValueError, match=SONGS_VARIABLE):
        Settings.from_environment({SONGS_VARIABLE: "yes"})


def written(tmp_path: Path, *arguments: str) -> Path:
    """The page of a real run."""
    path = tmp_path / "report.html"
    short = ("--duration", "10", "--inference-steps", "1", "--no-warmup", "--no-progress")
    folder = ("--output-dir", str(tmp_path), "--report", str(path))
    assert main(["--tiny", "--device", "cpu", *short, *folder, *arguments]) == 0
    return path


LENGTH = """
const song = document.querySelector("audio");
const tell = () => document.body.setAttribute("data-played", song.error ? song.error.message : song.duration);
song.onerror = tell;
song.onloadedmetadata = tell;
song.load();
"""


def test_the_page_plays_the_song_and_loads_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "--songs-in-trace")
    page = path.read_text("utf-8")
    (source,) = re.findall(r'<audio controls preload="metadata" src="data:audio/ogg;base64,([^"]+)"', page)
    assert b64decode(source).startswith(b"OggS")
    seen = visit(path)
    assert (seen.console, seen.requests) == ([], [])
    # The same page, with a script that says how long the browser takes the song to be.
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (old,) = re.findall(r"script-src '(sha256-[^']+)'", page)
    new = f"sha256-{b64encode(hashlib.sha256(LENGTH.encode()).digest()).decode()}"
    path.write_text(page.replace(script, LENGTH).replace(old, new), "utf-8")
    (seconds,) = re.findall(r'data-played="([^"]*)"', visit(path).dom)
    assert float(seconds) == pytest.approx(10, abs=0.1)


def test_a_page_without_songs_forbids_media(tmp_path: Path) -> None:
    page = written(tmp_path).read_text("utf-8")
    assert "<audio" not in page
    assert "media-src" not in page


@pytest.mark.parametrize("content", [None, b"no audio"])
def test_a_file_that_is_missing_or_not_audio_leaves_a_note(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "song.flac"
    if content is not None:
        path.write_bytes(content)
    attributes = {semconv.SONG_LOCATIONS: (str(path),), semconv.SONG_MIME_TYPES: ("audio/flac",)}
    (song,) = played_songs(run_of([span(semconv.GENERATE_MUSIC, 0, 1.0, attributes=attributes)]))
    assert (song.name, song.source) == ("song.flac", "")
