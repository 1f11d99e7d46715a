import pytest
import torch

from acestep.checkpoints import TINY_LM, ModelSelection, load_planner, require_language_model
from acestep.errors import BackendUnavailable
from acestep.planner.backends import registry
from acestep.planner.backends.registry import create_planner, resolve_backend, storage_device
from acestep_otel.cli import main

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def installed(monkeypatch):
    """Which packages there are; what else is looked for is not there."""
    names: set[str] = set()
    monkeypatch.setattr(registry, "find_spec", lambda name: object() if name in names else None)
    return names


@pytest.mark.parametrize(
    ("device", "packages", "backend"),
    [
        (CUDA, {"vllm"}, "vllm"),
        (CUDA, {"mlx_lm"}, "pt"),
        (CUDA, set(), "pt"),
        (MPS, {"mlx_lm"}, "mlx"),
        (MPS, {"vllm"}, "pt"),
        (MPS, set(), "pt"),
        (CPU, {"vllm", "mlx_lm"}, "pt"),
    ],
)
def test_r17_auto_takes_the_best_that_is_installed(installed, device, packages, backend):
    installed |= packages
    assert resolve_backend("auto", device) == backend


@pytest.mark.parametrize(("name", "device"), [("vllm", CUDA), ("vllm", CPU), ("mlx", MPS), ("mlx", CPU)])
def test_r14_r16_an_engine_that_is_not_installed_names_the_command_in_one_line(installed, name, device):
    with pytest.raises(BackendUnavailable) as caught:
        resolve_backend(name, device)
    assert str(caught.value) == f"--lm-backend {name} is not installed: pip install 'acestep-otel[{name}]'"


@pytest.mark.parametrize(("name", "device"), [("vllm", MPS), ("mlx", CUDA)])
def test_an_engine_for_other_devices_is_refused_and_not_replaced(installed, name, device):
    installed |= {"vllm", "mlx_lm"}
    with pytest.raises(BackendUnavailable, match=f"{name} runs on .* the device is {device.type}"):
        resolve_backend(name, device)


def test_an_explicit_choice_stands(installed):
    installed |= {"vllm", "mlx_lm"}
    assert resolve_backend("pt", CUDA) == "pt"
    assert resolve_backend("vllm", CPU) == "vllm"
    assert resolve_backend("mlx", CPU) == "mlx"


def test_an_unknown_backend_names_those_that_there_are(installed):
    with pytest.raises(BackendUnavailable, match="'fast': choose auto, vllm, pt, mlx"):
        resolve_backend("fast", CPU)


def test_an_engine_copies_its_weights_from_the_host():
    assert storage_device("pt", CUDA) == CUDA
    assert storage_device("vllm", CUDA) == CPU
    assert storage_device("mlx", MPS) == CPU


@pytest.mark.parametrize("name", ["vllm", "mlx"])
def test_a_broken_installation_says_what_is_missing(tiny, installed, monkeypatch, name):
    def broken(*_arguments):
        raise ImportError("no module named 'xyz'")

    monkeypatch.setattr(registry, f"_start_{name}", broken)
    with pytest.raises(BackendUnavailable, match=f"{name} is installed but cannot be used .*'xyz'.*pip install"):
        create_planner(name, tiny, CPU, 1)


def test_backends_are_looked_for_before_anything_is_loaded(installed):
    selection = ModelSelection(lm=TINY_LM, device="cpu", lm_backend="mlx")
    for refuse in (load_planner, require_language_model):
        with pytest.raises(BackendUnavailable, match="not installed"):
            refuse(selection)


@pytest.mark.parametrize("name", ["vllm", "mlx"])
def test_r136_r137_the_command_line_says_it_in_one_line(installed, capsys, name):
    assert main(["--tiny", "--device", "cpu", "--thinking", "--no-progress", "--lm-backend", name]) == 2
    assert capsys.readouterr().err == (
        f"error: --lm-backend {name} is not installed: pip install 'acestep-otel[{name}]'\n"
    )
