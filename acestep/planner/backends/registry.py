"""Which backend runs the language model: by name, by device, and by what is installed.

The engines are imported when they are asked for: each takes seconds, and none has to be installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import torch

from acestep.errors import BackendUnavailable
from acestep.memory_cap import effective_free_memory
from acestep.placement import Placement
from acestep.planner.backends.pt import PtBackend
from acestep.planner.planner import Planner
from acestep.residence import LANGUAGE_MODEL, Residence

if TYPE_CHECKING:
    from acestep.planner.backends.mlx.backend import MlxBackend
    from acestep.planner.backends.vllm.backend import VllmBackend
    from acestep.planner.models import LanguageModel

_RESERVED_SHARE: Final = 0.5
"""Of the memory that weights leave free, what an engine may reserve: the renderer needs the rest."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A backend that needs a package of its own.

    Attributes:
        module: has to be importable.
        devices: where it runs.
        preferred_on: the kind of device whose first choice it is; ``None``: it has to be asked for.
    """

    module: str
    devices: tuple[str, ...]
    preferred_on: str | None


ENGINES: Final = {
    # Measured on CUDA (docs/performance.md), pt is faster for one request at a time, of one song or of several, and
    # vllm for requests that overlap: the caller knows of those, and asks for it.
    "vllm": EngineKind("vllm", ("cuda", "cpu"), None),
    "mlx": EngineKind("mlx_lm", ("mps", "cpu"), "mps"),
}
"""Backends beside ``pt``, which runs everywhere."""
BACKEND_NAMES: Final = ("auto", "vllm", "pt", "mlx")


def resolve_backend(name: str, device: torch.device, placement: Placement | None = None) -> str:
    """Turn the user's word into a backend.

    Args:
        name: ``auto`` (MPS: mlx, where it is installed and nothing waits in host memory; else pt), ``pt``, ``vllm`` or
            ``mlx``.
        device: that the language model runs on.
        placement: as it comes into effect there; without one, everything stays on the device.

    Raises:
        BackendUnavailable: an unknown name, a package that is not installed, a device that the backend does not run on,
            or an engine that shall wait in host memory. An explicit choice is never replaced: that would change what
            is measured.
    """
    placement = placement or Placement()
    if name == "auto":
        if placement.offload_to_cpu:
            # The only one whose weights can leave the device.
            return "pt"
        preferred = [kind for kind, engine in ENGINES.items() if engine.preferred_on == device.type]
        return next((kind for kind in preferred if _installed(ENGINES[kind])), "pt")
    if name == "pt":
        return name
    engine = ENGINES.get(name)
    if engine is None:
        raise BackendUnavailable(f"unknown language-model backend {name!r}: choose {', '.join(BACKEND_NAMES)}")
    if device.type not in engine.devices:
        raise BackendUnavailable(
            f"lm_backend {name!r} runs on {' and '.join(engine.devices)}, and the device is {device.type}: "
            "use lm_backend 'pt' or 'auto'"
        )
    if not _installed(engine):
        raise BackendUnavailable(f"lm_backend {name!r} is not installed: pip install 'acestep-otel[{name}]'")
    if placement.offload_to_cpu and not placement.automatic_offload:
        raise BackendUnavailable(
            f"lm_backend {name!r} keeps its weights on the device, and offload_to_cpu asks for models to wait in "
            "host memory: use lm_backend 'pt' or 'auto', or leave out offload_to_cpu"
        )
    return name


def storage_device(name: str, residence: Residence) -> torch.device:
    """Where a backend wants the weights to be loaded: an engine makes its own copy, so the host will do."""
    return residence.home(LANGUAGE_MODEL) if name == "pt" else torch.device("cpu")


def create_planner(
    name: str, model: LanguageModel, songs: int, residence: Residence, *, fused_kernels: bool = True
) -> Planner:
    """A planner on a backend.

    Args:
        name: ``pt``, ``vllm`` or ``mlx`` (see ``resolve_backend``).
        model: the loaded language model.
        songs: made together, which an engine that reserves its memory makes room for.
        residence: of the language model, on the device that it shall run on; an engine never leaves it.
        fused_kernels: whether pt may run small passes in kernels of its own, where they run and agree with the model.

    Raises:
        BackendUnavailable: the backend cannot run here.
        OutOfMemory: it does not fit.
    """
    if name == "pt":
        residence.settle(LANGUAGE_MODEL, model.body)
        return Planner.on_backend(PtBackend(model, fuse=None if fused_kernels else False), model, residence=residence)
    try:
        backend = _start_vllm(model, residence.device, songs) if name == "vllm" else _start_mlx(model)
    except ImportError as error:
        raise BackendUnavailable(
            f"lm_backend {name!r} is installed but cannot be used ({error}): pip install 'acestep-otel[{name}]' in a "
            "fresh environment, or use lm_backend 'pt'"
        ) from error
    return Planner.on_backend(backend, model, residence=Residence(residence.device, Placement()))


def _start_vllm(model: LanguageModel, device: torch.device, songs: int) -> VllmBackend:
    from acestep.planner.backends.vllm.backend import VllmBackend

    limit, free = None, effective_free_memory(device)
    if free is not None:
        weights = sum(parameter.nbytes for parameter in model.body.parameters())
        limit = int(max(free - weights, 0) * _RESERVED_SHARE)
    return VllmBackend(model, device=device, songs=songs, memory_limit=limit)


def _start_mlx(model: LanguageModel) -> MlxBackend:
    from acestep.planner.backends.mlx.backend import MlxBackend

    return MlxBackend(model)


def _installed(engine: EngineKind) -> bool:
    return find_spec(engine.module) is not None
