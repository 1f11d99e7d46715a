"""What the command line was told: one field per option, with its default."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal

from acestep_otel.errors import SetupError

Mode = Literal["profile", "benchmark", "tier-test", "understand", "create_sample", "format_sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the benchmark guide's command-line reference, and ours.

    ``None`` in a generation parameter means "from the example".
    """

    device: str = "auto"
    lm_backend: str = "auto"

    config_path: str = "acestep-v15-turbo"
    lm_model: str = "acestep-5Hz-lm-1.7B"

    offload_to_cpu: bool = False
    offload_dit_to_cpu: bool = False
    quantization: str | None = None

    duration: float | None = None
    batch_size: int | None = None
    inference_steps: int | None = None
    seed: int | None = None
    guidance_scale: float = 7.0

    thinking: bool = False
    use_cot_metas: bool = False
    use_cot_caption: bool = False
    use_cot_language: bool = False
    use_constrained_decoding: bool = True
    lm_temperature: float = 0.85
    lm_cfg_scale: float = 2.0

    mode: Mode = "profile"
    no_warmup: bool = False
    detailed: bool = False
    llm_debug: bool = False
    benchmark_output: Path | None = None
    repeat: int = 1
    torch_profile: bool = False

    tiers: tuple[int, ...] = (4, 6, 8, 12, 16, 20, 24)
    tier_with_lm: bool = False
    tier_skip_compile: bool = False
    tier_boundary: bool = False
    tier_batch_boundary: bool = False

    example: str = "example_05.json"
    task_type: str = "text2music"
    reference_audio: Path | None = None
    src_audio: Path | None = None
    sample_query: str | None = None
    instrumental: bool = False
    audio_codes: str | None = None

    repainting_start: float = 0.0
    repainting_end: float | None = None
    audio_cover_strength: float = 1.0
    track: tuple[str, ...] = ()

    tiny: bool = False
    weights: Literal["checkpoint", "synthetic"] = "checkpoint"
    checkpoint_dir: Path = Path("checkpoints")
    output_dir: Path = Path("output")
    audio_format: str = "flac"
    report: Path | None = None
    lyrics_token_limit: int = 2_048
    no_progress: bool = False

    detail: str | None = None
    trace_output: Path | None = None
    otlp_endpoint: str | None = None
    otlp_protocol: str | None = None


DEFAULTS: Final = Options()

_NOT_BUILT: Final = (
    "offload_to_cpu", "offload_dit_to_cpu", "quantization",
    "tiers", "tier_with_lm", "tier_skip_compile", "tier_boundary", "tier_batch_boundary",
)  # fmt: skip
_SINGLE_CALL_MODES: Final = ("profile", "understand", "create_sample", "format_sample")
_BUILT_MODES: Final = (*_SINGLE_CALL_MODES, "benchmark")
_MODES_OF: Final = {
    # The rows of a benchmark are durations of their own; a source has one already.
    "task_type": ("profile",),
    "src_audio": ("profile",),
    "repainting_start": ("profile",),
    "repainting_end": ("profile",),
    "audio_cover_strength": ("profile",),
    "track": ("profile",),
    "reference_audio": ("profile", "benchmark"),
    "sample_query": ("create_sample",),
    "instrumental": ("create_sample",),
    "audio_codes": ("understand",),
    "repeat": ("benchmark",),
    "detailed": _SINGLE_CALL_MODES,
    "llm_debug": _SINGLE_CALL_MODES,
    "torch_profile": _SINGLE_CALL_MODES,
}
"""Options that some modes alone read."""


def require_available(options: Options) -> None:
    """Refuse what the reference documents and this version cannot do.

    Raises:
        SetupError: the first such option, or one that the mode does not read.
    """
    if options.mode not in _BUILT_MODES:
        raise SetupError(f"--mode {options.mode} is not available yet")
    for field in fields(options):
        if field.name in _NOT_BUILT and getattr(options, field.name) != field.default:
            raise SetupError(f"--{field.name.replace('_', '-')} is not available yet")
        modes = _MODES_OF.get(field.name, (options.mode,))
        if options.mode not in modes and getattr(options, field.name) != field.default:
            raise SetupError(f"--{field.name.replace('_', '-')} belongs to --mode {', '.join(modes)}")
