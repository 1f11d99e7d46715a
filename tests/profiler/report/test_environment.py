"""The environment in a result: present if the system provides it, otherwise absent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from acestep_otel.profiler.report import environment
from acestep_otel.profiler.report.environment import Accelerator, Environment


def test_gpus_are_listed_with_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: SimpleNamespace(name=f"GPU {index}", total_memory=80 << 30)
    )
    monkeypatch.setattr(environment, "_answer", lambda *command: "570.1\n570.1" if "nvidia-smi" in command else None)
    assert Environment.current().accelerators == (
        Accelerator("GPU 0", 80 << 30, "570.1"),
        Accelerator("GPU 1", 80 << 30, "570.1"),
    )


def test_no_gpu_is_an_empty_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Environment.current().accelerators == ()


@pytest.mark.parametrize("command", [("no-such-command",), ("false",), ("true",)])
def test_a_command_without_output_is_none(command: tuple[str, ...]) -> None:
    assert environment._answer(*command) is None


def test_a_package_that_is_not_installed_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PACKAGES", ("no-such-package",))
    assert Environment.current().packages == {"no-such-package": "not installed", "torch": torch.__version__}
