"""ACE-Step 1.5 inference on kept libraries: a language model plans, a diffusion transformer renders, a VAE decodes.

    >>> from acestep import GenerationRequest, ModelSelection, generate_music, load_models
    >>> models = load_models(ModelSelection(dit="acestep-v15-turbo", lm="acestep-5Hz-lm-1.7B"))
    >>> result = generate_music(models, GenerationRequest(caption="bright synth pop", duration=30, thinking=True))

The public API is ``acestep.__all__``. Every other name, in any module of this package, is private and may change in any
release; ``docs/architecture.md`` lists the few of them that an observer may wrap.

Importing this package loads nothing else and changes no setting of the process: names are imported when they are first
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_MODULES = {
    "acestep.blueprints": ("create_sample", "format_sample", "understand_music", "understand_recording"),
    "acestep.cards": ("Card", "choose_cards"),
    "acestep.checkpoints": (
        "TINY_BASE_DIT",
        "TINY_DIT",
        "TINY_LM",
        "ModelSelection",
        "Models",
        "load_audio_encoder",
        "load_models",
        "load_planner",
    ),
    "acestep.errors": (
        "AceStepError",
        "AudioReadError",
        "AudioWriteError",
        "BackendFailed",
        "BackendUnavailable",
        "BudgetExceeded",
        "Cancelled",
        "CheckpointInvalid",
        "CheckpointNotFound",
        "DeviceUnavailable",
        "DownloadFailed",
        "InvalidOutput",
        "InvalidRequest",
        "OutOfMemory",
        "PlacementUnavailable",
    ),
    "acestep.inference": ("generate_music",),
    "acestep.renderer.decode_fallbacks": ("DecodeSettings",),
    "acestep.types": (
        "SAMPLE_RATE",
        "AdapterScale",
        "EffectivePlannerSettings",
        "EffectiveSettings",
        "GenerationRequest",
        "GenerationResult",
        "Placement",
        "Progress",
        "ProgressCallback",
        "SamplerSettings",
        "SamplingSettings",
        "Song",
        "SongBlueprint",
        "SongMetadata",
        "SongwritingSettings",
        "VaeDecoding",
    ),
    "acestep.validation": ("validate",),
    "acestep.weights.adapters": ("Adapter",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

if TYPE_CHECKING:
    from acestep.blueprints import create_sample, format_sample, understand_music, understand_recording
    from acestep.cards import Card, choose_cards
    from acestep.checkpoints import (
        TINY_BASE_DIT,
        TINY_DIT,
        TINY_LM,
        Models,
        ModelSelection,
        load_audio_encoder,
        load_models,
        load_planner,
    )
    from acestep.errors import (
        AceStepError,
        AudioReadError,
        AudioWriteError,
        BackendFailed,
        BackendUnavailable,
        BudgetExceeded,
        Cancelled,
        CheckpointInvalid,
        CheckpointNotFound,
        DeviceUnavailable,
        DownloadFailed,
        InvalidOutput,
        InvalidRequest,
        OutOfMemory,
        PlacementUnavailable,
    )
    from acestep.inference import generate_music
    from acestep.renderer.decode_fallbacks import DecodeSettings
    from acestep.types import (
        SAMPLE_RATE,
        AdapterScale,
        EffectivePlannerSettings,
        EffectiveSettings,
        GenerationRequest,
        GenerationResult,
        Placement,
        Progress,
        ProgressCallback,
        SamplerSettings,
        SamplingSettings,
        Song,
        SongBlueprint,
        SongMetadata,
        SongwritingSettings,
        VaeDecoding,
    )
    from acestep.validation import validate
    from acestep.weights.adapters import Adapter

    __version__: str

__all__ = [
    "SAMPLE_RATE",
    "TINY_BASE_DIT",
    "TINY_DIT",
    "TINY_LM",
    "AceStepError",
    "Adapter",
    "AdapterScale",
    "AudioReadError",
    "AudioWriteError",
    "BackendFailed",
    "BackendUnavailable",
    "BudgetExceeded",
    "Cancelled",
    "Card",
    "CheckpointInvalid",
    "CheckpointNotFound",
    "DecodeSettings",
    "DeviceUnavailable",
    "DownloadFailed",
    "EffectivePlannerSettings",
    "EffectiveSettings",
    "GenerationRequest",
    "GenerationResult",
    "InvalidOutput",
    "InvalidRequest",
    "ModelSelection",
    "Models",
    "OutOfMemory",
    "Placement",
    "PlacementUnavailable",
    "Progress",
    "ProgressCallback",
    "SamplerSettings",
    "SamplingSettings",
    "Song",
    "SongBlueprint",
    "SongMetadata",
    "SongwritingSettings",
    "VaeDecoding",
    "choose_cards",
    "create_sample",
    "format_sample",
    "generate_music",
    "load_audio_encoder",
    "load_models",
    "load_planner",
    "understand_music",
    "understand_recording",
    "validate",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        return _version()
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from acestep.import_noise import quiet_imports

    with quiet_imports():
        value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("acestep-otel")
    except PackageNotFoundError:
        # A source tree that was put on the path without being installed.
        return "0+unknown"
