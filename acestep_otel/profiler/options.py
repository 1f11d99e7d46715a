"""Options of the command line: one field per option, with its default."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from acestep_otel.errors import SetupError
from acestep_otel.sdk.addresses import without_credentials

Mode = Literal["profile", "benchmark", "tier-test", "understand", "create_sample", "format_sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the benchmark guide's command-line reference, and further ones.

    ``None`` in a generation parameter means "from the example".
    """

    device: str = "auto"
    dit_device: str | None = None
    lm_device: str | None = None
    gpus: str | None = None
    ray: str | None = None
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

    shift: float | None = None
    timesteps: str | None = None
    cfg_interval_start: float = 0.0
    cfg_interval_end: float = 1.0
    use_adg: bool = False
    infer_method: str = "ode"
    sampler_mode: str = "euler"
    dcw: bool | None = None
    dcw_mode: str = "double"
    dcw_scaler: float = 0.05
    dcw_high_scaler: float = 0.02
    retake_seed: int | None = None
    retake_variance: float = 0.0

    thinking: bool = False
    use_cot_metas: bool = False
    use_cot_caption: bool = False
    use_cot_language: bool = False
    use_constrained_decoding: bool = True
    lm_temperature: float = 0.85
    lm_cfg_scale: float = 2.0
    lm_top_k: int = 0
    lm_top_p: float = 0.9
    lm_negative_prompt: str = "NO USER INPUT"

    mode: Mode = "profile"
    no_warmup: bool = False
    detailed: bool = False
    llm_debug: bool = False
    benchmark_output: Path | None = None
    repeat: int = 1
    torch_profile: bool = False
    roofline: bool = False

    tiers: tuple[int, ...] = (4, 6, 8, 12, 16, 20, 24)
    tier_with_lm: bool = False
    tier_skip_compile: bool = False
    tier_boundary: bool = False
    tier_batch_boundary: bool = False
    tier_duration: float = 30.0
    tier_timeout: float = 600.0

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
    cover_noise_strength: float = 0.0
    repaint_mode: str = "balanced"
    repaint_strength: float = 0.5
    track: tuple[str, ...] = ()

    tiny: bool = False
    weights: Literal["checkpoint", "synthetic"] = "checkpoint"
    checkpoint_dir: Path = Path("checkpoints")
    download: bool = False
    lora: tuple[str, ...] = ()
    output_dir: Path = Path("output")
    audio_format: str = "flac"
    report: Path | None = None
    songs_in_trace: bool = False
    lyrics_token_limit: int = 2_048
    no_progress: bool = False

    detail: str | None = None
    trace_output: Path | None = None
    otlp_endpoint: str | None = None
    otlp_protocol: str | None = None
    prometheus_port: int | None = None

    @property
    def renderer_device(self) -> str:
        """The requested device of diffusion and VAE."""
        return self.device if self.dit_device is None else self.dit_device


DEFAULTS: Final = Options()


def shown_options(options: Options) -> dict[str, Any]:
    """Every option by its name, in the form for result file and page: an endpoint without user information."""
    endpoint = options.otlp_endpoint
    return asdict(options) | {"otlp_endpoint": None if endpoint is None else without_credentials(endpoint)}


def command_line(options: Options) -> str:
    """The options that are not the defaults, as they are typed in a shell."""
    words = ["acestep-otel"]
    given = shown_options(options)
    for field in fields(options):
        value = given[field.name]
        if value == field.default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{field.name.removeprefix('use_').replace('_', '-')}")
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)] if field.name == "tiers" else [w for v in value for w in (flag, str(v))]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


_SINGLE_CALL_MODES: Final = ("profile", "understand", "create_sample", "format_sample")
_MUSIC_MODES: Final = ("profile", "benchmark", "tier-test")
_MODES_OF: Final = {
    "duration": _MUSIC_MODES,
    "batch_size": _MUSIC_MODES,
    "inference_steps": _MUSIC_MODES,
    "guidance_scale": _MUSIC_MODES,
    "shift": _MUSIC_MODES,
    "timesteps": ("profile",),
    "cfg_interval_start": _MUSIC_MODES,
    "cfg_interval_end": _MUSIC_MODES,
    "use_adg": _MUSIC_MODES,
    "infer_method": _MUSIC_MODES,
    "sampler_mode": _MUSIC_MODES,
    "dcw": _MUSIC_MODES,
    "dcw_mode": _MUSIC_MODES,
    "dcw_scaler": _MUSIC_MODES,
    "dcw_high_scaler": _MUSIC_MODES,
    "retake_seed": _MUSIC_MODES,
    "retake_variance": _MUSIC_MODES,
    "lm_top_k": _MUSIC_MODES,
    "lm_top_p": _MUSIC_MODES,
    "lm_negative_prompt": _MUSIC_MODES,
    "thinking": _MUSIC_MODES,
    "use_cot_metas": _MUSIC_MODES,
    "use_cot_caption": _MUSIC_MODES,
    "use_cot_language": _MUSIC_MODES,
    "audio_format": _MUSIC_MODES,
    "example": (*_MUSIC_MODES, "format_sample"),
    "lyrics_token_limit": ("understand", "create_sample", "format_sample"),
    # The rows of a benchmark have different durations; a source has a fixed one.
    "task_type": ("profile",),
    "src_audio": ("profile", "understand"),
    "repainting_start": ("profile",),
    "repainting_end": ("profile",),
    "audio_cover_strength": ("profile",),
    "cover_noise_strength": ("profile",),
    "repaint_mode": ("profile",),
    "repaint_strength": ("profile",),
    "track": ("profile",),
    "reference_audio": ("profile", "benchmark"),
    "offload_dit_to_cpu": ("profile", "benchmark"),
    "quantization": ("profile", "benchmark"),
    "lora": ("profile", "benchmark"),
    "sample_query": ("create_sample",),
    "instrumental": ("create_sample",),
    "audio_codes": ("understand",),
    "gpus": ("benchmark", "tier-test"),
    "ray": ("benchmark",),
    "dit_device": ("profile", "benchmark"),
    "lm_device": ("profile", "benchmark"),
    "repeat": ("benchmark",),
    "detailed": _SINGLE_CALL_MODES,
    "llm_debug": _SINGLE_CALL_MODES,
    "torch_profile": _SINGLE_CALL_MODES,
    "roofline": _SINGLE_CALL_MODES,
    "songs_in_trace": ("profile",),
    "tiers": ("tier-test",),
    "tier_with_lm": ("tier-test",),
    "tier_skip_compile": ("tier-test",),
    "tier_boundary": ("tier-test",),
    "tier_batch_boundary": ("tier-test",),
    "tier_duration": ("tier-test",),
    "tier_timeout": ("tier-test",),
}
"""Options that only some modes read."""
_TIER_DECIDES: Final = {
    "batch_size": "--tier-batch-boundary tries several",
    "thinking": "--tier-with-lm runs the language model of the tier",
    "use_cot_metas": "--tier-with-lm runs the language model of the tier",
    "offload_to_cpu": "--tier-boundary also runs without it",
    "offload_dit_to_cpu": "--tier-boundary also runs without it",
    "quantization": "--tier-boundary also runs without it",
}
"""Options that a tier test does not take, because the tier determines them, and the alternative."""


def require_available(options: Options) -> None:
    """Refuse options that are not available in the mode, or not with each other.

    Raises:
        SetupError: the first such option.
    """
    spread = options.gpus is not None or options.ray is not None
    if spread and (options.dit_device is not None or options.lm_device is not None):
        raise SetupError("--gpus and --ray give each process one card: leave out --dit-device and --lm-device")
    for field in fields(options):
        instead = _TIER_DECIDES.get(field.name) if options.mode == "tier-test" else None
        if instead is not None and getattr(options, field.name) != field.default:
            raise SetupError(f"--{field.name.replace('_', '-')} is set by the tier in --mode tier-test: {instead}")
        modes = _MODES_OF.get(field.name, (options.mode,))
        if options.mode not in modes and getattr(options, field.name) != field.default:
            raise SetupError(f"--{field.name.replace('_', '-')} belongs to --mode {', '.join(modes)}")
