"""The transformer's velocity by the fastest way that the device has.

On CUDA a step is recorded as a graph for each shape when the shape first occurs, and replayed from then on: one launch
instead of hundreds, so the host is never the bottleneck of a step. The first step of a new shape runs without a graph
and is recorded as well, so a single song of a new length is faster too.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any, Final, Literal, Protocol

import torch

from acestep.cuda_graphs import GraphCache, records_on
from acestep.offloading import TRANSFORMER, ModelOffloader
from acestep.renderer.conditioning import Conditions
from acestep.renderer.fused_transformer import FusedTransformer, can_fuse
from acestep.renderer.models import RendererModels

logger = logging.getLogger(__name__)

RECORDED_LIMIT: Final = 4
"""Recorded steps that are kept, one per shape and stream; each has a copy of its conditions."""
_TOLERANCE: Final = 0.1
"""Relative difference that rounding to bfloat16 explains, over all blocks."""


class VelocityFunction(Protocol):
    """A forward pass of the transformer."""

    def prepare(self, conditions: Conditions) -> tuple[torch.Tensor, ...]:
        """What the steps of a request share, computed once."""

    def __call__(self, latents: torch.Tensor, times: torch.Tensor, *prepared: torch.Tensor) -> torch.Tensor:
        """The velocity, float32, the shape of ``latents``; ``times`` has the shape ``[1]``."""


class ModuleForward:
    """The forward pass of the model's own code, compiled or not.

    Args:
        transformer: ``diffusers.AceStepTransformer1DModel``.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    def prepare(self, conditions: Conditions) -> tuple[torch.Tensor, ...]:
        """Nothing is computed."""
        return conditions.encoder_hidden_states, conditions.context_latents

    def __call__(self, latents: torch.Tensor, times: torch.Tensor, *prepared: torch.Tensor) -> torch.Tensor:
        """The model's output, float32."""
        encoder_hidden_states, context_latents = prepared
        times = times.expand(latents.shape[0])
        velocity: torch.Tensor
        (velocity,) = self._transformer(
            hidden_states=latents.to(context_latents.dtype),
            timestep=times,
            timestep_r=times,
            encoder_hidden_states=encoder_hidden_states,
            context_latents=context_latents,
            return_dict=False,
        )
        return velocity.float()


class Velocity:
    """Calls the transformer for one renderer.

    Args:
        models: loaded models.
        offloader: decides where they are; a transformer that moves is not recorded, because a graph contains addresses.
        fuse: use the engine's kernels if they run and agree with the model, and record steps.
    """

    def __init__(self, models: RendererModels, offloader: ModelOffloader, *, fuse: bool) -> None:
        self._models = models
        self._fuse = fuse
        self._compiled = offloader.placement.compile
        self._graphs = GraphCache("a diffusion step", RECORDED_LIMIT)
        self._graphs.is_open = fuse and records_on(models.device) and not offloader.offloads(TRANSFORMER)
        self._chosen: VelocityFunction | None = None
        self._prepared: weakref.WeakKeyDictionary[Conditions, tuple[torch.Tensor, ...]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()

    @property
    def path(self) -> Literal["fused", "compiled", "eager"]:
        """What runs the transformer: the engine's kernels, or the model's code; the first call checks the kernels."""
        if isinstance(self._function, FusedTransformer):
            return "fused"
        return "compiled" if self._compiled else "eager"

    def forget(self) -> None:
        """Drop what was recorded and chosen; to be called after the transformer's layers or weights were replaced."""
        with self._lock:
            self._chosen = None
            self._graphs.clear()
            self._prepared.clear()

    def __call__(self, latents: torch.Tensor, conditions: Conditions, timestep: float) -> torch.Tensor:
        """The velocity at time t.

        Args:
            latents: float32, shape ``[rows, frames, channels]``.
            conditions: of the rows; what is computed from them is kept as long as the object is alive.
            timestep: t.

        Returns:
            float32, the shape of ``latents``; it outlives the next call.
        """
        with self._lock:
            prepared = self._prepared.get(conditions)
            if prepared is None:
                prepared = self._prepared[conditions] = self._function.prepare(conditions)
            if self._graphs.is_open:
                return self._replayed(latents, conditions, prepared, timestep)
        return self._function(latents, self._times(timestep), *prepared)

    def _replayed(
        self, latents: torch.Tensor, conditions: Conditions, prepared: tuple[torch.Tensor, ...], timestep: float
    ) -> torch.Tensor:
        times = self._times(timestep)
        graph = self._graphs.find(self._function, latents, times, *prepared)
        if graph is None:
            velocity = self._function(latents, times, *prepared)
            self._graphs.record(self._function, latents, times, *prepared)
            return velocity
        own_latents, own_times, *own_prepared = graph.inputs
        own_latents.copy_(latents)
        own_times.copy_(times)
        if not isinstance(graph.holds, weakref.ref) or graph.holds() is not conditions:
            for own, given in zip(own_prepared, prepared, strict=True):
                own.copy_(given)
            graph.holds = weakref.ref(conditions)
        return graph.replay().clone()

    def _times(self, timestep: float) -> torch.Tensor:
        # A fill, not a copy from the host: a copy could wait for the device.
        return torch.full((1,), timestep, device=self._models.device, dtype=self._models.dtype)

    @property
    def _function(self) -> VelocityFunction:
        if self._chosen is None:
            transformer = self._models.transformer
            fused = self._fuse and can_fuse(transformer) and kernels_agree(self._models)
            self._chosen = FusedTransformer(transformer) if fused else ModuleForward(transformer)
        return self._chosen


@torch.inference_mode()
def kernels_agree(models: RendererModels) -> bool:
    """Whether the kernels agree with the model's code on this GPU, driver and Triton version; else logs a warning.

    Compares velocities of two rows, longer than the window of sliding attention.
    """
    transformer, generator = models.transformer, torch.Generator().manual_seed(0)
    config = transformer.config

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(models.device, models.dtype)

    frames = transformer.patch_size * (config.sliding_window + 40) + 1
    latents = random(2, frames, config.audio_acoustic_hidden_dim).float()
    conditions = Conditions(
        random(1, 20, config.encoder_hidden_size or config.hidden_size),
        random(1, frames, config.in_channels - config.audio_acoustic_hidden_dim),
    ).expanded(2)
    times = torch.full((1,), 0.5, device=models.device, dtype=models.dtype)
    try:
        expected, found = (
            function(latents, times, *function.prepare(conditions))
            for function in (ModuleForward(transformer), FusedTransformer(transformer))
        )
        difference = float((found - expected).norm() / expected.norm())
    except torch.OutOfMemoryError:
        raise
    # Whatever else a compiler or driver raises: the model's own code still works.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        if difference < _TOLERANCE:
            return True
        reason = f"their velocity differs by {difference:.1%}"
    logger.warning("the diffusion transformer runs without its own kernels, several times slower: %s", reason)
    return False
