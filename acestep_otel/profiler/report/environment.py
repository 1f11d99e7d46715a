"""The environment of a measurement: hardware and versions, without names of the machine or its user."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch

from acestep.cards import processor_name, processors

_PACKAGES: Final = ("acestep-otel", "diffusers", "transformers", "opentelemetry-sdk")
_QUERY_SECONDS: Final = 5


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU.

    Attributes:
        name: as its driver reports it.
        memory_bytes: total memory.
        driver: version of the driver, or ``None`` if it cannot be queried.
    """

    name: str
    memory_bytes: int
    driver: str | None


@dataclass(frozen=True, slots=True)
class Environment:
    """The properties that determine whether two results are comparable.

    Attributes:
        cpu: model name.
        cpu_cores: logical cores that this process may use.
        memory_bytes: physical memory, or ``None`` if unknown.
        accelerators: the GPUs that are visible to PyTorch.
        operating_system: name, release and architecture.
        python: its version.
        packages: version of each package that the measurement depends on.
        git_revision: commit of the checkout that was run, or ``None`` for an installed package.
    """

    cpu: str
    cpu_cores: int
    memory_bytes: int | None
    accelerators: tuple[Accelerator, ...]
    operating_system: str
    python: str
    packages: dict[str, str]
    git_revision: str | None

    @classmethod
    def current(cls, *, ask_pytorch: bool = True) -> Environment:
        """Describe this machine and this process.

        Args:
            ask_pytorch: whether PyTorch may be queried for its GPUs, which uses CUDA; otherwise none are listed.
        """
        return cls(
            cpu=processor_name(),
            cpu_cores=processors(),
            memory_bytes=_memory_bytes(),
            accelerators=_accelerators() if ask_pytorch else (),
            operating_system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=platform.python_version(),
            packages=_package_versions(),
            git_revision=_answer("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        )


def _memory_bytes() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _accelerators() -> tuple[Accelerator, ...]:
    if not torch.cuda.is_available():
        return ()
    driver = _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(
        Accelerator(found.name, found.total_memory, driver.splitlines()[0] if driver else None) for found in properties
    )


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            # Run from a checkout that is not installed.
            versions[package] = "not installed"
    # Only its own version contains the platform that it was built for (CUDA, ROCm, CPU).
    return {**versions, "torch": torch.__version__}


def _answer(*command: str) -> str | None:
    """The output of a command; ``None`` if it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
