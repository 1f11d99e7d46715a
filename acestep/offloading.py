"""Model offload: models are kept in host memory and are on the device only while they are used.

Weights are only read, so the host's copy is kept while a model is on the device: offloading it frees memory and copies
nothing. The copy to the device is from pinned memory, in order with the device's other work; nothing waits for it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from acestep.errors import stage_errors
from acestep.types import Placement

LANGUAGE_MODEL: Final = "language_model"
"""The 5 Hz language model's name here; the renderer's models have their names in ``RendererModels``."""
TRANSFORMER: Final = "transformer"

_HOST: Final = torch.device("cpu")


class ModelOffloader:
    """Moves models between the host and one device.

    Args:
        device: where models run.
        placement: the effective placement, which decides what is kept on the host.
    """

    def __init__(self, device: torch.device, placement: Placement) -> None:
        self.device = device
        self.placement = placement
        self._users: Counter[str] = Counter()
        self._on_host: dict[str, list[torch.Tensor]] = {}
        self._lock = threading.RLock()

    def offloads(self, name: str) -> bool:
        """Whether a model is on the device only while it is used."""
        if not self.placement.offload_to_cpu:
            return False
        return name != TRANSFORMER or self.placement.offload_dit_to_cpu

    def idle_device(self, name: str) -> torch.device:
        """Device of a model between uses."""
        return _HOST if self.offloads(name) else self.device

    def place(self, name: str, model: nn.Module) -> None:
        """Move a freshly loaded model to its device between uses."""
        idle, pins = self.idle_device(name), self.device.type == "cuda" and self.offloads(name)
        _replace_parts(model, lambda parts: [part.to(idle).pin_memory() if pins else part.to(idle) for part in parts])

    @contextmanager
    def on_device(self, **models: nn.Module) -> Iterator[None]:
        """Keep models on the device while the block runs; blocks may overlap, and the last one to end offloads them.

        Args:
            models: by name; one that never leaves the device is not moved.

        Raises:
            OutOfMemory: the device has no room for one of them; all of them stay where they were.
        """
        with ExitStack() as stack:
            for name, model in models.items():
                if self.offloads(name):
                    stack.enter_context(self._resident(name, model))
            yield

    @contextmanager
    def on_host(self, name: str, model: nn.Module) -> Iterator[None]:
        """Keep a model on the host while the block runs, also one that is in use or is never offloaded."""
        if self.offloads(name) and self._users[name] == 0:
            yield
            return
        self.move(name, model, _HOST)
        try:
            yield
        finally:
            self.move(name, model, self.device)

    def move(self, name: str, model: nn.Module, destination: torch.device) -> int:
        """Move a model to a device: the one place where weights are moved.

        Args:
            name: of the model.
            model: its module, with all its tensors on one device.
            destination: ``self.device`` or the host.

        Returns:
            Bytes of its weights.
        """
        held = self._on_host.pop(name, None) if destination == _HOST else None
        left = _replace_parts(
            model, lambda parts: held or [part.to(destination, non_blocking=part.is_pinned()) for part in parts]
        )
        if destination != _HOST and self.offloads(name):
            self._on_host[name] = left
        return stored_bytes(model)

    def empty_cache(self) -> None:
        """Return the memory of offloaded models to the device; call it when the device is idle."""
        if self.placement.offload_to_cpu and self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _resident(self, name: str, model: nn.Module) -> Iterator[None]:
        with self._lock:
            if self._users[name] == 0:
                with stage_errors("offload.move"):
                    self.move(name, model, self.device)
            self._users[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._users[name] -= 1
                if self._users[name] == 0:
                    self.move(name, model, _HOST)


def loading_device(device: torch.device, placement: Placement) -> torch.device:
    """Where weights are loaded to: the host when the device should not hold all of them at once."""
    loads_on_host = placement.offload_to_cpu or placement.quantization is not None
    return _HOST if loads_on_host else device


def stored_bytes(model: nn.Module) -> int:
    """Bytes that a model's parameters and buffers take, quantised ones as they are stored."""
    return sum(tensor.nbytes for _, _, whole in _tensors(model) for tensor in _parts(whole))


def _tensors(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """Every parameter and buffer once, with the table that it is entered in."""
    seen: set[int] = set()
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for key, tensor in list(table.items()):
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield table, key, tensor


def _is_composite(tensor: torch.Tensor) -> bool:
    """Whether a tensor is made of several plain ones, as a quantised one is."""
    return bool(is_traceable_wrapper_subclass(tensor))


def _parts(tensor: Any) -> Iterator[torch.Tensor]:
    if not _is_composite(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _replace_parts(
    model: nn.Module, replaced: Callable[[list[torch.Tensor]], list[torch.Tensor]]
) -> list[torch.Tensor]:
    """Replace every plain tensor, and return those that were there; when memory runs out, nothing has changed.

    A plain parameter remains the same object, so every reference has the new device; a quantised one cannot.
    """
    # Weights created in inference mode could never be assigned outside of it.
    with torch.inference_mode(False), torch.no_grad():
        left = [part.data for _, _, tensor in _tensors(model) for part in _parts(tensor)]
        arriving = iter(replaced(left))
        for table, key, tensor in _tensors(model):
            if _is_composite(tensor):
                table[key] = nn.Parameter(_rebuilt(tensor, arriving), requires_grad=False)
            else:
                tensor.data = next(arriving)
    return left


def _rebuilt(tensor: Any, arriving: Iterator[torch.Tensor]) -> torch.Tensor:
    """A composite tensor of the same kind over other parts."""
    if not _is_composite(tensor):
        return next(arriving)
    names, context = tensor.__tensor_flatten__()
    parts = {name: _rebuilt(getattr(tensor, name), arriving) for name in names}
    rebuilt: torch.Tensor = type(tensor).__tensor_unflatten__(parts, context, tensor.size(), tensor.stride())
    return rebuilt
