"""From a model's name to loaded models.

A name is looked up in this order: a path; ``<checkpoint root>/<name>`` in the official layout or in diffusers
layout. Weights that are not there are an error with the ways out; random weights are used only when asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from acestep.devices import default_dtype, resolve_device
from acestep.errors import CheckpointNotFound, stage_errors
from acestep.gpu_config import detect_gpu_memory, gpu_config
from acestep.placement import Placement
from acestep.planner.backends.registry import create_planner, resolve_backend, storage_device
from acestep.planner.models import LanguageModel
from acestep.planner.planner import Planner
from acestep.renderer.models import RendererModels
from acestep.renderer.renderer import Renderer
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS, build_language_model
from acestep.synthetic.renderer import RENDERER_CONFIGS, build_renderer_models

WeightsKind = Literal["checkpoint", "synthetic"]

TINY_DIT = "acestep-v15-tiny"
TINY_BASE_DIT = "acestep-v15-tiny-base"
TINY_LM = "acestep-5Hz-lm-tiny"
DEFAULT_DIT = "acestep-v15-turbo"
DEFAULT_LM = "acestep-5Hz-lm-1.7B"
EMBEDDED = frozenset({TINY_DIT, TINY_LM, TINY_BASE_DIT})
"""Models that exist only as seeded random weights, so their name alone asks for them."""


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """Which models to load, from where, onto what.

    Attributes:
        dit: name or path of the diffusion model.
        lm: name or path of the language model, or ``None`` to load none.
        weights: ``checkpoint`` looks on disk; ``synthetic`` builds the named architecture at its true size with
            seeded random weights: real speed and memory, and noise for music.
        device: see ``acestep.devices.resolve_device``.
        lm_backend: see ``acestep.planner.backends.registry.resolve_backend``.
        songs: made together at most; vllm reserves memory for so many when it starts. ``None``: the GPU tier's limit.
        checkpoint_root: folder that names are looked up in.
        placement: where the models live between uses, and in which form.
        seed: seed of synthetic weights.
    """

    dit: str = DEFAULT_DIT
    lm: str | None = DEFAULT_LM
    weights: WeightsKind = "checkpoint"
    device: str = "auto"
    lm_backend: str = "auto"
    songs: int | None = None
    checkpoint_root: Path = field(default_factory=lambda: Path("checkpoints"))
    placement: Placement = field(default_factory=Placement)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Models:
    """Everything that a verb of ``acestep.inference`` needs.

    Attributes:
        renderer: diffusion and VAE.
        planner: the language model's side, or ``None`` when none was loaded.
        device: device of all of them.
    """

    renderer: Renderer
    planner: Planner | None
    device: torch.device


def load_models(selection: ModelSelection) -> Models:
    """Load what the selection names.

    Raises:
        DeviceUnavailable: the device does not exist here.
        BackendUnavailable: the language-model backend cannot run here.
        CheckpointNotFound: no weights under a name.
        OutOfMemory: the models do not fit.
    """
    device = resolve_device(selection.device)
    dtype = default_dtype(device)
    if selection.lm is not None:
        resolve_backend(selection.lm_backend, device)
    with stage_errors("model.load"):
        renderer = Renderer(load_renderer_models(selection, device, dtype))
        planner = None if selection.lm is None else start_planner(selection, device, dtype)
    return Models(renderer, planner, device)


def load_planner(selection: ModelSelection) -> Planner:
    """Load the language model alone, for the verbs that make no audio.

    Raises:
        ValueError: the selection names no language model.
        DeviceUnavailable: the device does not exist here.
        BackendUnavailable: the language-model backend cannot run here.
        CheckpointNotFound: no weights under the name.
        OutOfMemory: the model does not fit.
    """
    device = resolve_device(selection.device)
    resolve_backend(selection.lm_backend, device)
    with stage_errors("model.load"):
        return start_planner(selection, device, default_dtype(device))


def require_language_model(selection: ModelSelection) -> None:
    """Make sure, without loading it, that the selection's language model can be loaded later.

    Raises:
        ValueError: the selection names no language model.
        DeviceUnavailable: the device does not exist here.
        BackendUnavailable: the language-model backend cannot run here.
        CheckpointNotFound: no weights under the name.
    """
    if selection.lm is None:
        raise ValueError("the selection names no language model")
    resolve_backend(selection.lm_backend, resolve_device(selection.device))
    require_weights(selection.lm, selection, known=tuple(LANGUAGE_MODEL_CONFIGS))


def load_renderer_models(selection: ModelSelection, device: torch.device, dtype: torch.dtype) -> RendererModels:
    """Diffusion transformer, condition encoders and VAE under ``selection.dit``."""
    require_weights(selection.dit, selection, known=tuple(RENDERER_CONFIGS))
    return build_renderer_models(selection.dit, device=device, dtype=dtype, seed=selection.seed)


def start_planner(selection: ModelSelection, device: torch.device, dtype: torch.dtype) -> Planner:
    """Load the language model under ``selection.lm`` and start the backend that runs it."""
    backend = resolve_backend(selection.lm_backend, device)
    model = load_language_model(selection, storage_device(backend, device), dtype)
    songs = selection.songs or gpu_config(detect_gpu_memory(device)).with_lm.batch_size
    return create_planner(backend, model, device, songs)


def load_language_model(selection: ModelSelection, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """The language model under ``selection.lm``.

    Raises:
        ValueError: the selection names no language model.
    """
    if selection.lm is None:
        raise ValueError("the selection names no language model")
    require_weights(selection.lm, selection, known=tuple(LANGUAGE_MODEL_CONFIGS))
    return build_language_model(selection.lm, device=device, dtype=dtype, seed=selection.seed)


def require_weights(name: str, selection: ModelSelection, *, known: Sequence[str]) -> None:
    """Make sure that a name has weights of the kind asked for.

    Args:
        name: name or path of a model.
        selection: kind of weights and where to look.
        known: architectures that synthetic weights can be built for.

    Raises:
        CheckpointNotFound: with what was looked for and the ways out.
    """
    if name in EMBEDDED:
        return
    if selection.weights == "synthetic":
        if name not in known:
            raise CheckpointNotFound(
                f"no architecture named {name!r} to build synthetic weights for: choose {', '.join(known)}"
            )
        return
    candidates = (Path(name), selection.checkpoint_root / name)
    for path in candidates:
        if path.is_dir():
            raise CheckpointNotFound(
                f"{path} exists, but reading weights from disk is not available yet: use --weights synthetic or --tiny"
            )
    looked = " and ".join(str(path) for path in dict.fromkeys(candidates))
    raise CheckpointNotFound(
        f"no weights for {name!r}: looked for {looked}. Ways out: download them with "
        f"`hf download ACE-Step/Ace-Step1.5 --local-dir {selection.checkpoint_root}`; run the same architecture with "
        f"random weights (real speed and memory, noise for music) by --weights synthetic; or run the tiny built-in "
        f"models by --tiny"
    )
