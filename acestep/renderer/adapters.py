"""Adapters in use: each request names its own, and they are switched without loading the model again.

An adapter that is in use is added to the weights themselves. So it costs nothing per step, compiled code stays as it
is, and a request without adapters runs on the weights that were loaded, bit for bit. The loaded weights of the layers
that are changed are kept in host memory until they are restored.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from acestep.errors import InvalidRequest, device_errors
from acestep.types import AdapterScale
from acestep.weights.adapters import Adapter, LoadedAdapter, combined, read_adapter, require_scale


class AdapterSet:
    """The adapters of one transformer.

    Requests that use the same adapters at the same scales run at the same time; others wait until those are done.

    Args:
        transformer: ``diffusers.AceStepTransformer1DModel``.
        device: that changes are computed on.
        loaded: adapters that were loaded with the model.
        merged: why they are a permanent part of the weights, for messages; ``None`` if they can be switched.
    """

    def __init__(
        self, transformer: Any, device: torch.device, loaded: Sequence[LoadedAdapter] = (), merged: str | None = None
    ) -> None:
        self._transformer = transformer
        self._device = device
        self._merged = merged
        self._loaded: dict[str, LoadedAdapter] = {}
        self._in_use: tuple[AdapterScale, ...] | None = ()
        self._users = 0
        self._turn = threading.Lock()
        self._finished = threading.Condition()
        self._loaded_weights: dict[str, torch.Tensor] = {}
        for adapter in loaded:
            self._add(adapter)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the loaded adapters, in the order of their loading."""
        return tuple(self._loaded)

    @property
    def defaults(self) -> tuple[AdapterScale, ...]:
        """The adapters of a request that names none: every loaded adapter at its own scale."""
        return tuple(AdapterScale(adapter.name, adapter.scale) for adapter in list(self._loaded.values()))

    def load(self, adapter: Adapter) -> str:
        """Load one more adapter.

        Returns:
            Its name.

        Raises:
            InvalidRequest: the name is taken, the name or scale cannot be used, or the weights are quantised.
            BackendUnavailable: the library for it is not installed.
            CheckpointNotFound: there is no adapter at the path.
            CheckpointInvalid: it cannot be used with this model.
        """
        if self._merged is not None:
            raise InvalidRequest(f"adapter {adapter.called} cannot be added: {self._merged}")
        return self._add(read_adapter(adapter, self._transformer))

    def unload(self, name: str) -> None:
        """Unload an adapter, after the requests that use it have ended.

        Raises:
            InvalidRequest: none has that name, or the weights are quantised.
        """
        if self._merged is not None:
            raise InvalidRequest(f"adapter {name} cannot be removed: {self._merged}")
        remaining = tuple(chosen for chosen in self._in_use or () if chosen.name != name)
        self.resolve((AdapterScale(name),))
        with self.applied(remaining):
            self._loaded.pop(name, None)

    def resolve(self, chosen: tuple[AdapterScale, ...] | None) -> tuple[AdapterScale, ...]:
        """The adapters that a request uses, those at a scale of 0 left out.

        Args:
            chosen: by the request; ``None`` for the defaults.

        Raises:
            InvalidRequest: none has such a name, one is named twice, a scale is not finite, or the weights are
                quantised and contain others.
        """
        for number, adapter in enumerate(chosen or ()):
            if adapter.name not in self._loaded:
                known = f"choose from {', '.join(self._loaded)}" if self._loaded else "none is loaded"
                raise InvalidRequest(f"`adapters` has no {adapter.name!r}: {known}")
            if adapter.name in [other.name for other in (chosen or ())[:number]]:
                raise InvalidRequest(f"`adapters` has {adapter.name!r} twice: give it one scale")
            require_scale(adapter.name, adapter.scale)
        used = _used(self.defaults if chosen is None else chosen)
        if self._merged is not None and used != _used(self.defaults):
            raise InvalidRequest(f"`adapters` cannot be changed: {self._merged}")
        return used

    @contextmanager
    def applied(self, adapters: tuple[AdapterScale, ...]) -> Iterator[None]:
        """Keep these adapters applied to the transformer's weights while the block runs; it must not be in transfer.

        Args:
            adapters: of ``resolve``.

        Raises:
            OutOfMemory: there is no room to compute a change.
        """
        if self._merged is not None:
            yield
            return
        # New requests queue behind a waiting one, which could otherwise wait indefinitely.
        with self._turn:
            if not self._join(adapters):
                self.switch(adapters)
        try:
            yield
        finally:
            with self._finished:
                self._users -= 1
                self._finished.notify_all()

    def _join(self, adapters: tuple[AdapterScale, ...]) -> bool:
        """Use the weights as they are, if these adapters are applied."""
        with self._finished:
            fits = self._in_use == adapters
            self._users += fits
            return fits

    @device_errors("adapter.switch")
    def switch(self, adapters: tuple[AdapterScale, ...]) -> None:
        """Wait until no request uses the weights, then apply other adapters, for one request.

        Args:
            adapters: of ``resolve``.
        """
        with self._finished:
            self._finished.wait_for(lambda: self._users == 0)
            self._write(adapters)
            self._users = 1

    def _write(self, adapters: tuple[AdapterScale, ...]) -> None:
        gone = [adapter.name for adapter in adapters if adapter.name not in self._loaded]
        if gone:
            raise InvalidRequest(f"adapter {gone[0]} was unloaded before the request could use it")
        # Until all layers are written, neither of the two sets is in use: the next request writes them again.
        self._in_use = None
        chosen = [(self._loaded[adapter.name], adapter.scale) for adapter in adapters]
        layers = dict.fromkeys(layer for adapter, _ in chosen for layer in adapter.change.layers)
        written = {**dict.fromkeys(self._loaded_weights), **layers}
        # Weights created in inference mode could never be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            for layer in written:
                weight = self._transformer.get_submodule(layer).weight
                if layer not in self._loaded_weights:
                    self._loaded_weights[layer] = weight.detach().to("cpu", copy=True)
                loaded = self._loaded_weights[layer]
                if layer in layers:
                    weight.copy_(combined(layer, loaded.to(self._device, torch.float32), chosen))
                else:
                    weight.copy_(loaded)
                    del self._loaded_weights[layer]
        self._in_use = adapters

    def _add(self, adapter: LoadedAdapter) -> str:
        if adapter.name in self._loaded:
            raise InvalidRequest(f"two adapters are called {adapter.name!r}: give one of them another name")
        self._loaded[adapter.name] = adapter
        return adapter.name


def _used(adapters: tuple[AdapterScale, ...]) -> tuple[AdapterScale, ...]:
    return tuple(adapter for adapter in adapters if adapter.scale != 0)
