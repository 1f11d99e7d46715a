"""Checkpoints on disk from the command line: profiled in either layout, fetched, converted, adapted, refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from acestep.weights.adapters import Adapter
from acestep_otel import semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.cli import main
from acestep_otel.profiler.run.weights import parse_adapter
from tests.profiler.outputs import OUTPUTS, result, traced
from tests.weights.hub import Hub, miniature_hub, serve, use_endpoint
from tests.weights.miniature import LANGUAGE_MODEL, copy_golden, rewrite, write_language_model
from tests.weights.test_adapters import write_adapter

ROOT = Path(__file__).resolve().parents[3]
SHORT = ("--device", "cpu", "--duration", "10", "--inference-steps", "2", "--audio-format", "wav", "--no-warmup")
MODELS = ("--config-path", "acestep-v15-turbo", "--lm-model", LANGUAGE_MODEL)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """The default checkpoint folder of a run in the working folder."""
    root = copy_golden(tmp_path / "checkpoints")
    write_language_model(root / LANGUAGE_MODEL)
    return root


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line.removeprefix("error: ")


def test_an_official_checkpoint_is_profiled_with_its_language_model(checkpoints: Path) -> None:
    """R139, R140."""
    assert main([*SHORT, *MODELS, "--thinking", "--use-cot-metas", "--output-dir", "songs", *OUTPUTS]) == 0
    effective = result()["effective_settings"]
    assert (effective["dit_model"], effective["lm_model"]) == ("acestep-v15-turbo", LANGUAGE_MODEL)
    assert effective["weights"] == "checkpoint"
    assert len(list(Path("songs").iterdir())) == len(result()["songs"])
    loads = {span.attributes[semconv.MODEL_NAME] for span in traced() if span.name == semconv.MODEL_LOAD}
    assert loads == {"acestep-v15-turbo", LANGUAGE_MODEL}


@pytest.mark.parametrize("mode", ["understand", "create_sample", "format_sample"])
def test_a_language_model_on_disk_writes_songs_in_words(checkpoints: Path, mode: str) -> None:
    arguments = ["--mode", mode, "--device", "cpu", *MODELS, "--lyrics-token-limit", "16", "--no-warmup", *OUTPUTS]
    assert main(arguments) == 0
    effective = result()["effective_settings"]
    assert (effective["lm_model"], effective["weights"]) == (LANGUAGE_MODEL, "checkpoint")


def test_a_converted_checkpoint_is_profiled_by_its_path(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "acestep-v15-turbo", "repository"]) == 0
    assert capsys.readouterr().out == "Repository: repository\n"
    songs = []
    for number, model in enumerate(("acestep-v15-turbo", "repository")):
        folder = f"songs-{number}"
        assert main([*SHORT, "--config-path", model, "--output-dir", folder, "--seed", "3", *OUTPUTS]) == 0
        songs.append(next(Path(folder).iterdir()).read_bytes())
    assert songs[0] == songs[1]
    assert result()["effective_settings"]["dit_model"] == "repository"


def test_a_path_does_not_reach_the_trace(checkpoints: Path) -> None:
    checkpoints.rename("private-folder")
    assert main([*SHORT, "--config-path", "private-folder/acestep-v15-turbo", *OUTPUTS]) == 0
    assert "private-folder" not in Path("trace.jsonl").read_text("utf-8")


def test_an_adapter_changes_the_song(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora")
    songs = {}
    for scale in ("0", "0.5", "0.5"):
        assert main(["--tiny", *SHORT, "--seed", "3", "--lora", f"lora:{scale}", "--output-dir", "songs"]) == 0
        songs.setdefault(scale, []).append(next(Path("songs").iterdir()).read_bytes())
    assert songs["0.5"][0] == songs["0.5"][1] != songs["0"][0]


def test_adapters_are_named_on_the_terminal_in_the_result_file_and_in_the_trace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for seed, name in enumerate(("lora", "strings")):
        write_adapter(tmp_path / name, seed=seed)
    assert main(["--tiny", *SHORT, "--lora", "keys=lora:0.5", "--lora", "strings", *OUTPUTS]) == 0
    assert "adapters: keys x 0.5, strings x 1" in capsys.readouterr().out
    used = [{"name": "keys", "scale": 0.5}, {"name": "strings", "scale": 1.0}]
    assert result()["effective_settings"]["adapters"] == used
    (root,) = [span for span in traced() if span.name == semconv.GENERATE_MUSIC]
    assert root.attributes[semconv.ADAPTER_NAMES] == "keys,strings"
    assert root.attributes[semconv.ADAPTER_SCALES] == "0.5,1"


def test_adapters_of_one_name_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_adapter(tmp_path / "lora")
    assert "two adapters are called 'lora'" in refusal(capsys, "--tiny", *SHORT, "--lora", "lora", "--lora", "lora:2")


@pytest.mark.parametrize(
    ("text", "adapter"),
    [
        ("lora", Adapter(Path("lora"))),
        ("lora:0.5", Adapter(Path("lora"), 0.5)),
        ("a:b/lora.safetensors:-1", Adapter(Path("a:b/lora.safetensors"), -1.0)),
        ("c:\\lora", Adapter(Path("c:\\lora"))),
        ("12", Adapter(Path("12"))),
        ("piano=lora", Adapter(Path("lora"), name="piano")),
        ("piano=c:\\lora:0.5", Adapter(Path("c:\\lora"), 0.5, "piano")),
        ("a b=lora", Adapter(Path("a b=lora"))),
    ],
)
def test_an_adapter_is_a_path_and_perhaps_a_scale(text: str, adapter: Adapter) -> None:
    assert parse_adapter(text) == adapter


def test_a_path_with_a_sign_of_equality_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rank=4").mkdir()
    assert parse_adapter("rank=4") == Adapter(Path("rank=4"))
    assert parse_adapter("rank=8") == Adapter(Path("8"), name="rank")


def test_a_scale_that_is_no_number_to_multiply_with_is_refused() -> None:
    with pytest.raises(SetupError, match="--lora x:nan: the scale must be a finite number"):
        parse_adapter("x:nan")


def test_damaged_checkpoints_are_one_line_each_and_nothing_runs(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoints / "acestep-v15-turbo" / "model.safetensors"
    rewrite(weights, {"decoder.norm_out.weight": None})
    assert "lacks the tensor decoder.norm_out.weight" in refusal(capsys, *SHORT)
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is corrupt or incomplete" in refusal(capsys, *SHORT)
    weights.unlink()
    assert "run `acestep-otel download acestep-v15-turbo`" in refusal(capsys, *SHORT)
    assert "no LoRA adapter at nowhere" in refusal(capsys, "--tiny", *SHORT, "--lora", "nowhere")
    assert not Path("output").exists() or not list(Path("output").iterdir())


def test_a_language_model_that_is_missing_is_noticed_before_the_renderer_loads(
    capsys: pytest.CaptureFixture[str], checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: object, **named: object) -> None:
        raise AssertionError("the renderer was loaded first")

    monkeypatch.setattr("acestep.checkpoints.load_renderer_models", loaded)
    assert "no weights for 'acestep-5Hz-lm-4B'" in refusal(
        capsys, *SHORT, "--thinking", "--lm-model", "acestep-5Hz-lm-4B"
    )


def test_what_cannot_be_converted_is_one_line(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no weights for 'acestep-v15-sft'" in refusal(capsys, "convert", "acestep-v15-sft", "target")
    assert "is built in" in refusal(capsys, "convert", "acestep-v15-tiny", "target")
    assert "is a language model" in refusal(capsys, "convert", LANGUAGE_MODEL, "target")
    assert "checkpoints exists" in refusal(capsys, "convert", "acestep-v15-turbo", "checkpoints")
    assert main(["convert", "acestep-v15-turbo", "target"]) == 0
    capsys.readouterr()
    assert "is a repository of diffusers already" in refusal(capsys, "convert", "target", "again")


@pytest.fixture(scope="module")
def released() -> Hub:
    return miniature_hub()


def test_download_prints_size_and_source_and_then_downloads(
    released: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(released) as hub:
        use_endpoint(hub.url, monkeypatch)
        assert main(["download", "acestep-v15-turbo", "--checkpoint-dir", "models"]) == 0
    told = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("acestep-v15-turbo: "))
    assert told == "acestep-v15-turbo: 0.00 GB to fetch from ACE-Step/Ace-Step1.5 at 19671f40, into models"
    fetched = {str(path.relative_to("models")) for path in Path("models").rglob("*") if path.is_file()}
    assert {
        "acestep-v15-turbo/config.json",
        "acestep-v15-turbo/model.safetensors",
        "acestep-v15-turbo/silence_latent.pt",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    } <= fetched
    assert not any(name.startswith("acestep-v15-base") for name in fetched)


def test_a_run_downloads_missing_models_only_with_the_option(
    released: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Hub(released.repositories)) as hub:
        use_endpoint(hub.url, monkeypatch)
        assert "--download" in refusal(capsys, *SHORT)
        assert not hub.requests
        assert main([*SHORT, "--download", *OUTPUTS]) == 0
    assert "0.00 GB to fetch from ACE-Step/Ace-Step1.5" in capsys.readouterr().err
    assert result()["effective_settings"]["weights"] == "checkpoint"


def test_the_environment_names_the_mirror(released: Hub) -> None:
    """In a process of its own, because the hub's client reads its environment when it is imported."""
    with serve(Hub(released.repositories)) as hub:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_ENDPOINT": hub.url}
        command = [sys.executable, "-m", "acestep_otel.profiler", "download", "acestep-v15-turbo"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("checkpoints/acestep-v15-turbo/model.safetensors").is_file()


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_a_download_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    use_endpoint("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    reason = "HF_HUB_OFFLINE is set" if offline else "check the connection"
    assert reason in refusal(capsys, "download", "acestep-5Hz-lm-4B")
    assert not Path("checkpoints").exists()
