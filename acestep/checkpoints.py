"""From a model's name to loaded models.

A name is looked up in this order: a path; ``<checkpoint root>/<name>``. Either may be in the official layout or in
diffusers layout. Missing weights are an error that lists the solutions. Random weights and downloads must be
requested explicitly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from acestep.devices import default_dtype, effective_placement, resolve_device
from acestep.errors import CheckpointNotFound, stage_errors
from acestep.gpu_config import detect_gpu_memory, gpu_config
from acestep.offloading import ModelOffloader, loading_device
from acestep.planner.backends.registry import create_planner, resolve_backend, storage_device
from acestep.planner.budget import LanguageModel
from acestep.planner.planner import Planner
from acestep.renderer.audio_encoder import AudioEncoder
from acestep.renderer.decode_fallbacks import DecodeSettings
from acestep.renderer.models import AudioEncoderModels, RendererModels
from acestep.renderer.preparation import prepare, prepare_audio_encoder
from acestep.renderer.renderer import Renderer
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS, build_language_model
from acestep.synthetic.renderer import RENDERER_CONFIGS, build_audio_encoder_models, build_renderer_models
from acestep.types import Placement
from acestep.weights.adapters import Adapter, merge_adapters, read_adapter
from acestep.weights.layout import candidates, find_renderer, locate, require_language_model_folder
from acestep.weights.qwen3 import load_language_model_folder
from acestep.weights.renderer import load_audio_encoder_weights, load_renderer

WeightsKind = Literal["checkpoint", "synthetic"]

TINY_DIT = "acestep-v15-tiny"
"""Built-in diffusion model of a few megabytes, with random weights: every stage runs, and the result is noise."""
TINY_BASE_DIT = "acestep-v15-tiny-base"
"""The same as a base model, which the tasks ``lego``, ``extract`` and ``complete`` need."""
TINY_LM = "acestep-5Hz-lm-tiny"
"""Built-in language model of a few megabytes, with random weights."""
DEFAULT_DIT = "acestep-v15-turbo"
DEFAULT_LM = "acestep-5Hz-lm-1.7B"
EMBEDDED = frozenset({TINY_DIT, TINY_LM, TINY_BASE_DIT})
"""Models that exist only as seeded random weights, so their name is sufficient to select them."""


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """Which models to load, their source and their device.

    Attributes:
        dit: name or path of the diffusion model.
        lm: name or path of the language model, or ``None`` to load none.
        weights: ``checkpoint`` looks on disk; ``synthetic`` builds the named architecture at its true size with
            seeded random weights: real speed and memory, noise as audio.
        device: see ``acestep.devices.resolve_device``.
        lm_device: device of the language model, if it is a separate one. The model is then alone on it, so it is not
            offloaded.
        lm_backend: see ``acestep.planner.backends.registry.resolve_backend``.
        max_batch_size: maximum number of songs per request; vllm reserves memory for them at start. ``None`` is the
            limit of the GPU tier.
        checkpoint_root: folder that names are looked up in.
        placement: device and format of the models, and compilation.
        adapters: LoRA, DoRA and LoKr adapters of the diffusion transformer. Requests choose among them; on a
            quantised transformer they are part of the weights.
        decode: how the VAE decodes.
        fused_decode: use the fused Triton kernels of the pt and vllm backends if supported (CUDA, bfloat16).
        fused_render: use the renderer's fused Triton kernels and recorded CUDA graphs if supported.
        fetch: called with a name and ``checkpoint_root`` if the weights are missing; may download them.
        seed: seed of synthetic weights.
    """

    dit: str = DEFAULT_DIT
    lm: str | None = DEFAULT_LM
    weights: WeightsKind = "checkpoint"
    device: str = "auto"
    lm_device: str | None = None
    lm_backend: str = "auto"
    max_batch_size: int | None = None
    checkpoint_root: Path = field(default_factory=lambda: Path("checkpoints"))
    placement: Placement = field(default_factory=Placement)
    adapters: tuple[Adapter, ...] = ()
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    fused_decode: bool = True
    fused_render: bool = True
    fetch: Callable[[str, Path], None] | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Models:
    """Loaded models, as ``generate_music`` needs them.

    Attributes:
        renderer: diffusion and VAE.
        planner: the language model with its prompts and grammar, or ``None`` if none was loaded.
        device: device of the renderer, and of the planner unless it has a separate one.
    """

    renderer: Renderer
    planner: Planner | None
    device: torch.device

    @property
    def placement(self) -> Placement:
        """The placement that took effect."""
        return self.renderer.offloader.placement

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded adapters of the diffusion transformer."""
        return self.renderer.adapters.names

    def load_adapter(self, adapter: Adapter) -> str:
        """Load one more adapter, which requests can use from then on; the model is not loaded again.

        Returns:
            Its name.

        Raises:
            InvalidRequest: the name is taken, the name or scale cannot be used, or the weights are quantised.
            BackendUnavailable: the library for it is not installed.
            CheckpointNotFound: there is no adapter at the path.
            CheckpointInvalid: it is corrupt, of a kind that is not supported, not finite, or made for another model.
        """
        return self.renderer.adapters.load(adapter)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter, after the requests that use it have ended.

        Raises:
            InvalidRequest: none has that name, or the weights are quantised.
        """
        self.renderer.adapters.unload(name)


def load_models(selection: ModelSelection) -> Models:
    """Load what the selection names.

    Raises:
        DeviceUnavailable: the device does not exist here.
        PlacementUnavailable: the device cannot run the placement; nothing was loaded.
        BackendUnavailable: the language-model backend cannot run here.
        CheckpointNotFound: no weights under a name.
        CheckpointInvalid: the weights under a name cannot be used.
        OutOfMemory: the models do not fit.
    """
    device = resolve_device(selection.device)
    offloader = ModelOffloader(device, effective_placement(selection.placement, device))
    dtype = default_dtype(device)
    if selection.lm is not None:
        # Checked before the renderer is loaded, which can take minutes.
        require_language_model(selection)
    with stage_errors("model.load"):
        renderer_models = load_renderer_models(selection, device, dtype)
        renderer = Renderer(renderer_models, offloader, selection.decode, fuse=selection.fused_render)
        planner = None if selection.lm is None else _planner_beside(selection, device, offloader)
    return Models(renderer, planner, device)


def planner_device(selection: ModelSelection) -> torch.device:
    """Device of the language model.

    Raises:
        DeviceUnavailable: it does not exist here.
    """
    return resolve_device(selection.device if selection.lm_device is None else selection.lm_device)


def _planner_beside(selection: ModelSelection, device: torch.device, offloader: ModelOffloader) -> Planner:
    """The planner that goes with a renderer: it shares the offloader with it where it shares the device."""
    own = planner_device(selection)
    if own != device:
        offloader = ModelOffloader(own, effective_placement(_planner_placement(selection), own))
    return start_planner(selection, own, default_dtype(own), offloader)


def load_planner(selection: ModelSelection) -> Planner:
    """Load the language model alone, for the functions that generate no audio.

    Raises:
        ValueError: the selection names no language model.
        DeviceUnavailable: the device does not exist here.
        BackendUnavailable: the language-model backend cannot run here.
        CheckpointNotFound: no weights under the name.
        CheckpointInvalid: the weights under the name cannot be used.
        OutOfMemory: the model does not fit.
    """
    device = planner_device(selection)
    offloader = ModelOffloader(device, effective_placement(_planner_placement(selection), device))
    resolve_backend(selection.lm_backend, device, offloader.placement)
    with stage_errors("model.load"):
        return start_planner(selection, device, default_dtype(device), offloader)


def _whereabouts(selection: ModelSelection) -> Placement:
    """The part of the placement that applies to every model; the rest is for the diffusion transformer."""
    asked = selection.placement
    return Placement(offload_to_cpu=asked.offload_to_cpu, automatic_offload=asked.automatic_offload)


def _planner_placement(selection: ModelSelection) -> Placement:
    """Placement of the language model: on a separate device it is not offloaded."""
    shared = selection.lm_device is None or planner_device(selection) == resolve_device(selection.device)
    return _whereabouts(selection) if shared else Placement()


def load_audio_encoder(selection: ModelSelection) -> AudioEncoder:
    """Load the VAE and the audio tokenizer of ``selection.dit``, which turn a recording into audio codes.

    Raises:
        DeviceUnavailable: the device does not exist here.
        CheckpointNotFound: no weights under the name.
        CheckpointInvalid: the weights under the name cannot be used.
        OutOfMemory: the models do not fit.
    """
    device = resolve_device(selection.device)
    offloader = ModelOffloader(device, effective_placement(_whereabouts(selection), device))
    with stage_errors("model.load"):
        models = load_audio_encoder_models(selection, device, default_dtype(device), offloader.idle_device("vae"))
        prepare_audio_encoder(models, offloader)
    return AudioEncoder(models, offloader)


def require_language_model(selection: ModelSelection) -> None:
    """Check, without loading it, that the selection's language model can be loaded later.

    Raises:
        ValueError: the selection names no language model.
        DeviceUnavailable: the device does not exist here.
        BackendUnavailable: the language-model backend cannot run here.
        CheckpointNotFound: no weights under the name.
        CheckpointInvalid: the weights under the name are not a language model.
    """
    if selection.lm is None:
        raise ValueError("the selection names no language model")
    device = planner_device(selection)
    resolve_backend(selection.lm_backend, device, effective_placement(_planner_placement(selection), device))
    folder = require_weights(selection.lm, selection, known=tuple(LANGUAGE_MODEL_CONFIGS))
    if folder is not None:
        require_language_model_folder(folder)


def load_renderer_models(selection: ModelSelection, device: torch.device, dtype: torch.dtype) -> RendererModels:
    """Diffusion transformer, condition encoders and VAE under ``selection.dit``, with its adapters.

    Raises:
        CheckpointNotFound: no weights under the name.
        CheckpointInvalid: the weights or an adapter cannot be used.
    """
    folder = require_weights(selection.dit, selection, known=tuple(RENDERER_CONFIGS))
    offloader = ModelOffloader(device, effective_placement(selection.placement, device))
    storage = loading_device(device, offloader.placement)
    if folder is None:
        models = build_renderer_models(selection.dit, device=device, dtype=dtype, seed=selection.seed, storage=storage)
    else:
        loaded = load_renderer(find_renderer(folder, selection.checkpoint_root), device=storage, dtype=dtype)
        models = replace(loaded, device=device)
    if selection.adapters:
        models = replace(models, adapters=tuple(read_adapter(one, models.transformer) for one in selection.adapters))
        if offloader.placement.quantization is not None:
            merge_adapters(models.transformer, models.adapters)
    prepare(models, offloader)
    return models


def load_audio_encoder_models(
    selection: ModelSelection, device: torch.device, dtype: torch.dtype, storage: torch.device
) -> AudioEncoderModels:
    """VAE and audio tokenizer under ``selection.dit``, loaded to where they are kept.

    Raises:
        CheckpointNotFound: no weights under the name.
        CheckpointInvalid: the weights cannot be used.
    """
    folder = require_weights(selection.dit, selection, known=tuple(RENDERER_CONFIGS))
    if folder is None:
        return build_audio_encoder_models(
            selection.dit, device=device, dtype=dtype, seed=selection.seed, storage=storage
        )
    found = find_renderer(folder, selection.checkpoint_root)
    loaded = load_audio_encoder_weights(found, device=storage, dtype=dtype)
    return replace(loaded, silence_latent=loaded.silence_latent.to(device), device=device)


def start_planner(
    selection: ModelSelection, device: torch.device, dtype: torch.dtype, offloader: ModelOffloader
) -> Planner:
    """Load the language model under ``selection.lm`` and start the backend that runs it.

    Raises:
        ValueError: the selection names no language model.
        BackendUnavailable: the language-model backend cannot run here.
        CheckpointNotFound: no weights under the name.
        CheckpointInvalid: the weights cannot be used.
        OutOfMemory: what the backend reserves does not fit.
    """
    backend = resolve_backend(selection.lm_backend, device, offloader.placement)
    model = load_language_model(selection, device, dtype, storage_device(backend, offloader))
    max_batch_size = selection.max_batch_size or gpu_config(detect_gpu_memory(device)).with_lm.batch_size
    return create_planner(backend, model, max_batch_size, offloader, fused_decode=selection.fused_decode)


def load_language_model(
    selection: ModelSelection, device: torch.device, dtype: torch.dtype, storage: torch.device | None = None
) -> LanguageModel:
    """The language model under ``selection.lm``.

    Args:
        selection: names it.
        device: that it will run on.
        dtype: of its weights.
        storage: where its weights are kept; ``device`` when not given.

    Raises:
        ValueError: the selection names no language model.
        CheckpointNotFound: no weights under the name.
        CheckpointInvalid: the weights cannot be used.
    """
    if selection.lm is None:
        raise ValueError("the selection names no language model")
    folder = require_weights(selection.lm, selection, known=tuple(LANGUAGE_MODEL_CONFIGS))
    if folder is None:
        return build_language_model(selection.lm, device=device, dtype=dtype, seed=selection.seed, storage=storage)
    require_language_model_folder(folder)
    return replace(load_language_model_folder(folder, device=storage or device, dtype=dtype), device=device)


def require_weights(name: str, selection: ModelSelection, *, known: Sequence[str]) -> Path | None:
    """Check that a name has weights of the requested kind; fetch them if ``selection.fetch`` is set.

    Args:
        name: name or path of a model.
        selection: kind of weights and where to look.
        known: architectures that synthetic weights can be built for.

    Returns:
        The model's folder; ``None`` if its weights are synthetic.

    Raises:
        CheckpointNotFound: with the paths that were tried and the solutions.
        CheckpointInvalid: the path exists and is not a folder.
        DownloadFailed: the weights could not be downloaded.
    """
    if name in EMBEDDED:
        return None
    if selection.weights == "synthetic":
        if name not in known:
            raise CheckpointNotFound(
                f"no architecture named {name!r} to build synthetic weights for: choose {', '.join(known)}"
            )
        return None
    folder = locate(name, selection.checkpoint_root)
    if folder is None and selection.fetch is not None:
        selection.fetch(name, selection.checkpoint_root)
        folder = locate(name, selection.checkpoint_root)
    if folder is not None:
        return folder
    looked = " and ".join(map(str, candidates(name, selection.checkpoint_root)))
    raise CheckpointNotFound(
        f"no weights for {name!r}: looked for {looked}",
        "To resolve this, copy them there, set `fetch` to download them, or set `weights` 'synthetic' to build the "
        "same architecture with random weights (real speed and memory, noise as audio)",
        model=name,
    )
