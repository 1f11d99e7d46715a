"""Released weights from the hub: fixed commits, data only, size printed first, resumed, and one line per failure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from acestep.errors import DownloadFailed
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS
from acestep.synthetic.renderer import RENDERER_CONFIGS
from acestep.weights import hub as product
from acestep.weights.hub import RELEASED, fetch, plan_download
from tests.weights.hub import Hub, serve, use_endpoint

BUNDLE = "ACE-Step/Ace-Step1.5"
WEIGHTS = bytes(range(256)) * 4_000


def released(repository: str) -> tuple[str, str]:
    """The repository and the commit that the product requests."""
    (commit,) = {
        source.revision for sources in RELEASED.values() for source in sources if source.repository == repository
    }
    return repository, commit


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    files = {
        "README.md": b"text",
        "config.json": b"{}",
        "acestep-v15-turbo/config.json": b'{"model_type": "acestep"}',
        "acestep-v15-turbo/model.safetensors": WEIGHTS,
        "acestep-v15-turbo/silence_latent.pt": b"silence",
        "acestep-v15-turbo/modeling_acestep_v15_turbo.py": b"raise SystemExit",
        "acestep-5Hz-lm-1.7B/model.safetensors": b"language model",
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": b"vae",
        "Qwen3-Embedding-0.6B/config.json": b"{}",
        "Qwen3-Embedding-0.6B/merges.txt": b"merges",
    }
    base = {"config.json": b"{}", "model.safetensors": b"base weights", "apg_guidance.py": b"raise SystemExit"}
    repositories = {released(BUNDLE): files, released("ACE-Step/acestep-v15-base"): base}
    with serve(Hub(repositories)) as running:
        use_endpoint(running.url, monkeypatch)
        yield running


def download(name: str, root: Path) -> None:
    for part in plan_download(name, root):
        fetch(name, part)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def test_a_model_comes_with_what_it_needs_and_without_code(hub, tmp_path):
    download("acestep-v15-turbo", tmp_path)
    files = hub.repositories[released(BUNDLE)]
    wanted = ("acestep-v15-turbo/", "vae/", "Qwen3-Embedding-0.6B/")
    expected = {n: content for n, content in files.items() if n.startswith(wanted) and not n.endswith(".py")}
    assert tree(tmp_path) == expected
    assert not [path for path, _ in hub.downloads() if path.endswith(".py")]


def test_a_model_in_a_separate_repository_gets_a_separate_folder(hub, tmp_path):
    download("acestep-v15-base", tmp_path)
    assert set(tree(tmp_path)) == {
        "acestep-v15-base/config.json",
        "acestep-v15-base/model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "Qwen3-Embedding-0.6B/config.json",
        "Qwen3-Embedding-0.6B/merges.txt",
    }


def test_the_size_is_known_before_anything_is_fetched_and_is_nothing_afterwards(hub, tmp_path):
    (plan,) = plan_download("acestep-v15-turbo", tmp_path)
    assert not tree(tmp_path)
    assert not hub.downloads()
    fetch("acestep-v15-turbo", plan)
    assert plan.bytes == sum(map(len, tree(tmp_path).values()))
    (again,) = plan_download("acestep-v15-turbo", tmp_path)
    assert again.bytes == 0


def test_a_download_that_broke_off_is_continued_where_it_stopped(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**16)
    hub.break_after = len(WEIGHTS) // 2
    download("acestep-v15-turbo", tmp_path)
    assert tree(tmp_path)["acestep-v15-turbo/model.safetensors"] == WEIGHTS
    offsets = [start for path, start in hub.downloads() if path == "acestep-v15-turbo/model.safetensors"]
    assert offsets[0] == 0
    assert 0 < offsets[-1] <= len(WEIGHTS) // 2


def one_line(caught: pytest.ExceptionInfo[DownloadFailed]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_network_is_one_line_at_once(hub, tmp_path, monkeypatch):
    use_endpoint("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(DownloadFailed) as caught:
        plan_download("acestep-v15-base", tmp_path)
    assert "could not be downloaded from http://127.0.0.1:9" in one_line(caught)
    assert "HF_ENDPOINT" in str(caught.value)


def test_a_connection_that_breaks_between_the_plan_and_the_fetch_is_one_line(hub, tmp_path, monkeypatch):
    (plan,) = plan_download("acestep-v15-turbo", tmp_path)

    def broken(*arguments, **named):
        raise ConnectionResetError("reset by peer\nwith details")

    monkeypatch.setattr(product, "snapshot_download", broken)
    with pytest.raises(DownloadFailed) as caught:
        fetch("acestep-v15-turbo", plan)
    assert "ConnectionResetError: reset by peer" in one_line(caught)


def test_offline_mode_is_respected_and_said(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadFailed) as caught:
        plan_download("acestep-v15-base", tmp_path)
    assert "HF_HUB_OFFLINE is set" in one_line(caught)
    assert not hub.requests


def test_a_commit_that_is_gone_is_one_line(hub, tmp_path):
    with pytest.raises(DownloadFailed) as caught:
        plan_download("acestep-v15-sft", tmp_path)
    assert "acestep-v15-sft could not be downloaded" in one_line(caught)


def test_an_unknown_name_lists_the_released_models(tmp_path):
    with pytest.raises(DownloadFailed, match=r"no released model is named 'acestep-v99': choose .*acestep-5Hz-lm-4B"):
        plan_download("acestep-v99", tmp_path)


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(product.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    with pytest.raises(DownloadFailed, match=r"acestep-v15-turbo needs 0\.0 GB, but .* has only 0\.0 GB left"):
        plan_download("acestep-v15-turbo", tmp_path / "to" / "be" / "made")
    assert not hub.downloads()


def test_every_architecture_but_the_built_in_ones_is_released_at_a_commit():
    architectures = {*RENDERER_CONFIGS, *LANGUAGE_MODEL_CONFIGS}
    assert set(RELEASED) == {name for name in architectures if "tiny" not in name}
    for sources in RELEASED.values():
        for source in sources:
            assert re.fullmatch("[0-9a-f]{40}", source.revision)
            assert source.repository.startswith("ACE-Step/")
