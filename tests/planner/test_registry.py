from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from acestep.checkpoints import TINY_LM, ModelSelection, load_planner, require_language_model
from acestep.errors import BackendUnavailable
from acestep.gpu_config import gpu_config
from acestep.offloading import LANGUAGE_MODEL, ModelOffloader
from acestep.planner.backends import registry
from acestep.planner.backends.registry import BACKENDS, create_planner, resolve_backend, storage_device
from acestep.planner.budget import PlannerBudget
from acestep.types import BackendName, Placement
from acestep_otel.patches.engine_language_model import PATCHES
from acestep_otel.profiler.cli import main

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def installed(monkeypatch):
    """Which packages there are; what else is looked for is not there."""
    names: set[str] = set()
    monkeypatch.setattr(registry, "find_spec", lambda name: object() if name in names else None)
    return names


def test_every_backend_can_be_asked_for_by_its_name():
    assert get_args(BackendName) == ("auto", *BACKENDS)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_layer_wraps_the_passes_and_the_grammar_of_every_backend(name):
    package = f"acestep.planner.backends.{name}"
    wrapped = {patch.path.partition(".")[2] for patch in PATCHES if f"{patch.module}.".startswith(f"{package}.")}
    assert wrapped >= {"prefill", "decode", "constrain", "accept"}


@pytest.mark.parametrize(
    ("device", "packages", "backend"),
    [
        (CUDA, {"vllm"}, "pt"),
        (CUDA, {"mlx_lm"}, "pt"),
        (CUDA, set(), "pt"),
        (MPS, {"mlx_lm"}, "mlx"),
        (MPS, {"vllm"}, "pt"),
        (MPS, set(), "pt"),
        (CPU, {"vllm", "mlx_lm"}, "pt"),
    ],
)
def test_r17_auto_takes_what_is_faster_for_one_request_at_a_time(installed, device, packages, backend):
    installed |= packages
    assert resolve_backend("auto", device) == backend


@pytest.mark.parametrize(("name", "device"), [("vllm", CUDA), ("vllm", CPU), ("mlx", MPS), ("mlx", CPU)])
def test_r14_r16_an_engine_that_is_not_installed_names_the_command_in_one_line(installed, name, device):
    with pytest.raises(BackendUnavailable) as caught:
        resolve_backend(name, device)
    assert str(caught.value) == f"`lm_backend` {name} is not installed: pip install 'acestep-otel[{name}]'"


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
    with pytest.raises(BackendUnavailable, match=f"'fast': choose {', '.join(get_args(BackendName))}$"):
        resolve_backend("fast", CPU)


OFFLOAD = Placement(offload_to_cpu=True)
AUTOMATIC = Placement(offload_to_cpu=True, automatic_offload=True)


def test_an_engine_copies_its_weights_from_the_host():
    assert storage_device("pt", ModelOffloader(CUDA, Placement())) == CUDA
    assert storage_device("pt", ModelOffloader(CUDA, OFFLOAD)) == CPU
    assert storage_device("vllm", ModelOffloader(CUDA, AUTOMATIC)) == CPU
    assert storage_device("mlx", ModelOffloader(MPS, Placement())) == CPU


@pytest.mark.parametrize("placement", [OFFLOAD, AUTOMATIC])
def test_r99_where_models_wait_on_the_host_auto_takes_the_backend_whose_weights_can(installed, placement):
    installed |= {"mlx_lm"}
    assert resolve_backend("auto", MPS, placement) == "pt"


def test_r99_an_engine_with_requested_offload_is_refused_and_the_flag_is_named(installed):
    installed |= {"vllm"}
    with pytest.raises(BackendUnavailable, match=r"vllm keeps .* `offload_to_cpu` moves .* `lm_backend` pt or auto"):
        resolve_backend("vllm", CUDA, OFFLOAD)


def test_an_explicit_engine_is_kept_with_automatic_offload(installed):
    installed |= {"vllm"}
    assert resolve_backend("vllm", CUDA, AUTOMATIC) == "vllm"
    tiers = [gpu_config(memory).placement() for memory in (4, 16, 24)]
    assert [resolve_backend("vllm", CUDA, placement) for placement in tiers] == ["vllm"] * 3
    assert [resolve_backend("auto", CUDA, placement) for placement in tiers] == ["pt"] * 3


def test_an_engine_s_planner_stays_on_its_device(tiny, monkeypatch):
    def stand_in(model, _start):
        return SimpleNamespace(name="mlx", budget=PlannerBudget.of(model))

    monkeypatch.setitem(BACKENDS, "mlx", replace(BACKENDS["mlx"], start=stand_in))
    offloader = ModelOffloader(torch.device("cpu", 0), AUTOMATIC)
    planner = create_planner("mlx", tiny, 1, offloader)
    assert planner.device == offloader.device
    assert not planner.offloader.offloads(LANGUAGE_MODEL)
    assert create_planner("pt", tiny, 1, offloader).offloader.offloads(LANGUAGE_MODEL)


@pytest.mark.parametrize("name", ["vllm", "mlx"])
def test_a_broken_installation_says_what_is_missing(tiny, installed, monkeypatch, name):
    def broken(*_arguments):
        raise ImportError("no module named 'xyz'")

    monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], start=broken))
    with pytest.raises(BackendUnavailable, match=f"{name} is installed but cannot be used .*'xyz'.*pip install"):
        create_planner(name, tiny, 1, ModelOffloader(CPU, Placement()))


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
