"""Which backend runs the language model: by name, by device, and by what is installed.

The engines are imported when they are selected: each import takes seconds, and none has to be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import torch

from acestep.errors import BackendUnavailable
from acestep.memory_cap import effective_free_memory
from acestep.offloading import LANGUAGE_MODEL, ModelOffloader
from acestep.planner.backends.base import PlannerBackend
from acestep.planner.backends.pt import PtBackend
from acestep.planner.planner import Planner
from acestep.types import Placement

if TYPE_CHECKING:
    from acestep.planner.backends.mlx.backend import MlxBackend
    from acestep.planner.backends.vllm.backend import VllmBackend
    from acestep.planner.budget import LanguageModel

_RESERVED_SHARE: Final = 0.5
"""Share of the memory that weights leave free which an engine may reserve: the renderer needs the rest."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a backend is started for.

    Attributes:
        device: the device that it runs on.
        songs: songs generated together, for which an engine reserves memory.
        fused_decode: use the fused kernels of pt and vllm if supported.
    """

    device: torch.device
    songs: int
    fused_decode: bool


@dataclass(frozen=True, slots=True)
class EngineRequirements:
    """What an engine needs: a separate package, which keeps its own copy of the weights on the device.

    Attributes:
        module: the module that has to be importable.
        devices: where it runs.
        preferred_on: kind of device on which ``auto`` selects it; ``None`` if it has to be named.
    """

    module: str
    devices: tuple[str, ...]
    preferred_on: str | None


@dataclass(frozen=True, slots=True)
class BackendKind:
    """A backend that can be selected.

    Attributes:
        start: starts it with a loaded language model.
        engine: what it needs; ``None`` for a backend that runs the loaded model itself, on every device.
    """

    start: Callable[[LanguageModel, Start], PlannerBackend[Any]]
    engine: EngineRequirements | None = None


def _start_vllm(model: LanguageModel, start: Start) -> VllmBackend:
    from acestep.planner.backends.vllm.backend import VllmBackend

    limit, free = None, effective_free_memory(start.device)
    if free is not None:
        weights = sum(parameter.nbytes for parameter in model.body.parameters())
        limit = int(max(free - weights, 0) * _RESERVED_SHARE)
    return VllmBackend(model, device=start.device, songs=start.songs, memory_limit=limit, fuse=start.fused_decode)


def _start_pt(model: LanguageModel, start: Start) -> PtBackend:
    return PtBackend(model, fuse=None if start.fused_decode else False)


def _start_mlx(model: LanguageModel, _start: Start) -> MlxBackend:
    from acestep.planner.backends.mlx.backend import MlxBackend

    return MlxBackend(model)


BACKENDS: Final[dict[str, BackendKind]] = {
    # Measured on CUDA (docs/performance.md), pt is faster for one request at a time, of one song or of several, and
    # vllm for requests that overlap: a service selects it by name.
    "vllm": BackendKind(_start_vllm, EngineRequirements("vllm", ("cuda", "cpu"), None)),
    "pt": BackendKind(_start_pt),
    "mlx": BackendKind(_start_mlx, EngineRequirements("mlx_lm", ("mps", "cpu"), "mps")),
}
"""Every backend by its name (``acestep.types.BackendName``)."""


def resolve_backend(name: str, device: torch.device, placement: Placement | None = None) -> str:
    """Resolve the name of a backend.

    Args:
        name: ``auto`` (MPS: mlx, if it is installed and nothing is offloaded; else pt), ``pt``, ``vllm`` or
            ``mlx``.
        device: that the language model runs on.
        placement: the effective placement; without one, everything stays on the device.

    Raises:
        BackendUnavailable: an unknown name, a package that is not installed, a device that the backend does not run on,
            or an engine together with offload. An explicit choice is never replaced: that would change what
            is measured.
    """
    placement = placement or Placement()
    if name == "auto":
        if placement.offload_to_cpu:
            # The only one whose weights can leave the device.
            return "pt"
        engines = ((kind, known.engine) for kind, known in BACKENDS.items() if known.engine is not None)
        preferred = (kind for kind, engine in engines if engine.preferred_on == device.type and _installed(engine))
        return next(preferred, "pt")
    if name not in BACKENDS:
        raise BackendUnavailable(f"unknown `lm_backend` {name!r}: choose {', '.join(('auto', *BACKENDS))}")
    engine = BACKENDS[name].engine
    if engine is None:
        return name
    if device.type not in engine.devices:
        raise BackendUnavailable(
            f"`lm_backend` {name} runs on {' and '.join(engine.devices)}, and the device is {device.type}: "
            "use `lm_backend` pt or auto"
        )
    if not _installed(engine):
        raise BackendUnavailable(f"`lm_backend` {name} is not installed: pip install 'acestep-otel[{name}]'")
    if placement.offload_to_cpu and not placement.automatic_offload:
        raise BackendUnavailable(
            f"`lm_backend` {name} keeps its weights on the device, and `offload_to_cpu` moves idle models to "
            "host memory: use `lm_backend` pt or auto, or leave out `offload_to_cpu`"
        )
    return name


def storage_device(name: str, offloader: ModelOffloader) -> torch.device:
    """Where the weights for a backend are loaded to: an engine makes its own copy, so the host is sufficient."""
    return offloader.idle_device(LANGUAGE_MODEL) if BACKENDS[name].engine is None else torch.device("cpu")


def create_planner(
    name: str, model: LanguageModel, songs: int, offloader: ModelOffloader, *, fused_decode: bool = True
) -> Planner:
    """A planner on a backend.

    Args:
        name: a key of ``BACKENDS`` (see ``resolve_backend``).
        model: the loaded language model.
        songs: songs generated together, for which an engine reserves memory.
        offloader: that of the language model, for the device that it runs on; an engine never leaves the device.
        fused_decode: use the fused kernels of pt and vllm if supported.

    Raises:
        BackendUnavailable: the backend cannot run here.
        OutOfMemory: it does not fit.
    """
    kind, start = BACKENDS[name], Start(offloader.device, songs, fused_decode)
    if kind.engine is None:
        offloader.place(LANGUAGE_MODEL, model.body)
        return Planner.on_backend(kind.start(model, start), model, offloader=offloader)
    try:
        backend = kind.start(model, start)
    except ImportError as error:
        raise BackendUnavailable(
            f"`lm_backend` {name} is installed but cannot be used ({error}): pip install 'acestep-otel[{name}]' in a "
            "fresh environment, or use `lm_backend` pt"
        ) from error
    return Planner.on_backend(backend, model, offloader=ModelOffloader(offloader.device, Placement()))


def _installed(engine: EngineRequirements) -> bool:
    return find_spec(engine.module) is not None
