"""What goes into the engine and what comes out: plain frozen dataclasses, units in the names or docstrings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import torch

SAMPLE_RATE: Final = 48_000
"""Samples per second of every song; two channels."""
SAMPLES_PER_FRAME: Final = 1_920
"""Samples that the VAE decodes from one latent frame."""
FRAMES_PER_SECOND: Final = SAMPLE_RATE // SAMPLES_PER_FRAME
"""Latent frames per second of audio (25)."""
FRAMES_PER_CODE: Final = 5
"""Latent frames per audio code."""
CODES_PER_SECOND: Final = FRAMES_PER_SECOND // FRAMES_PER_CODE
"""Audio codes per second of audio (5)."""
AUDIO_CODE_COUNT: Final = 64_000
"""Valid audio codes: 0 ... 63,999 (FSQ levels 8*8*8*5*5*5)."""

BackendName = Literal["auto", "vllm", "pt", "mlx"]
"""Language-model backend; ``acestep.planner.backends.registry`` resolves ``auto``."""
TaskType = Literal["text2music", "cover", "repaint", "lego", "extract", "complete"]
BASE_TASKS: Final = frozenset[TaskType]({"lego", "extract", "complete"})
"""Tasks on single tracks, which only the base models have been trained for: not turbo, and not sft."""
WINDOW_TASKS: Final = frozenset[TaskType]({"repaint", "lego"})
"""Tasks that can be limited to a window of the source."""
TRACK_NAMES: Final = (
    "vocals", "backing_vocals", "drums", "bass", "guitar", "keyboard", "percussion", "strings", "synth", "fx", "brass",
    "woodwinds",
)  # fmt: skip
"""Names of the tracks that the models were trained on."""
NO_USER_INPUT: Final = "NO USER INPUT"
"""The literal that the language model was trained on for missing user input."""
INSTRUMENTAL: Final = "[Instrumental]"
"""The lyrics of a song without vocals."""


Quantization = Literal["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"]
"""Quantised formats of the diffusion transformer's weights."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How loaded models share a device.

    Attributes:
        offload_to_cpu: models are kept in host memory while they are not in use.
        offload_dit_to_cpu: the same for the diffusion transformer; without effect unless ``offload_to_cpu`` is set.
        quantization: format of the diffusion transformer's weights; ``None`` keeps the model's dtype.
        compile: compile the code that runs; a quantised transformer is always compiled.
        automatic_offload: ``offload_to_cpu`` was selected because of the card's memory size, not by the user.
    """

    offload_to_cpu: bool = False
    offload_dit_to_cpu: bool = False
    quantization: Quantization | None = None
    compile: bool = False
    automatic_offload: bool = False


@dataclass(frozen=True, slots=True)
class SongMetadata:
    """The planner's structured description of a song; ``None`` means that the value is not set.

    Attributes:
        bpm: beats per minute, 30 ... 300.
        caption: free text, one line.
        duration: seconds, 10 ... 600.
        keyscale: for example ``C# minor`` (see ``acestep.planner.metadata.KEYSCALES``).
        language: a code of ``acestep.planner.metadata.LANGUAGES``, for example ``en``.
        timesignature: ``2``, ``3``, ``4`` or ``6`` (beats per bar; 6 means 6/8).
    """

    bpm: int | None = None
    caption: str | None = None
    duration: int | None = None
    keyscale: str | None = None
    language: str | None = None
    timesignature: str | None = None


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the language model samples.

    Order of operations (that of the reference's PyTorch path): guidance, mask, top-k, top-p on the untempered
    distribution, temperature, draw.

    Attributes:
        temperature: 0 means greedy.
        top_k: keep the k most probable tokens; 0 is off.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 is off.
        guidance_scale: classifier-free guidance on the audio codes; 1 is off (no unconditional rows).
        negative_prompt: text of the unconditional prompt, in place of caption and lyrics.
    """

    temperature: float = 0.85
    top_k: int = 0
    top_p: float = 0.9
    guidance_scale: float = 2.0
    negative_prompt: str = NO_USER_INPUT


TEXT_SAMPLING: Final = SamplingSettings(top_p=1.0, guidance_scale=1.0)
"""How the reference samples when the language model writes a blueprint: no nucleus, no guidance."""


InferMethod = Literal["ode", "sde"]
SamplerMode = Literal["euler", "heun"]
CorrectionMode = Literal["low", "high", "double", "pix"]
RepaintMode = Literal["conservative", "balanced", "aggressive"]


@dataclass(frozen=True, slots=True)
class SamplerSettings:
    """Settings of the diffusion sampler, with the names and defaults of the released package.

    Attributes:
        infer_method: ``ode`` follows the velocity; ``sde`` predicts the song and adds new noise at every step.
        sampler_mode: ``euler`` evaluates the transformer once per step, ``heun`` twice; with ``sde`` always once.
        dcw_enabled: correct the latents in the wavelet domain after every step (arXiv 2604.16044); ``None`` enables
            it for turbo models only.
        dcw_mode: which bands are corrected: the low or the high one, both, or no wavelet at all (``pix``).
        dcw_scaler: strength, 0 ... 1; of the low band in mode ``double``.
        dcw_high_scaler: strength of the high band in mode ``double``.
        velocity_norm_threshold: longest velocity, in lengths of the latents; 0 is off.
        velocity_ema_factor: share of the previous step in each velocity, 0 ... 1; 0 is off.
    """

    infer_method: InferMethod = "ode"
    sampler_mode: SamplerMode = "euler"
    dcw_enabled: bool | None = None
    dcw_mode: CorrectionMode = "double"
    dcw_scaler: float = 0.05
    dcw_high_scaler: float = 0.02
    velocity_norm_threshold: float = 0.0
    velocity_ema_factor: float = 0.0

    @property
    def corrects_steps(self) -> bool:
        """Whether a step evaluates the transformer a second time."""
        return self.sampler_mode == "heun" and self.infer_method == "ode"


@dataclass(frozen=True, slots=True)
class AdapterScale:
    """An adapter in use.

    Attributes:
        name: of a loaded adapter.
        scale: factor on what it adds; 1 is what it was trained for, 0 is off.
    """

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One call of ``generate_music``.

    Attributes:
        caption: description of the music.
        lyrics: the text, with section tags such as ``[Verse 1]``; ``[Instrumental]`` for none.
        metadata: values given by the user; ``metadata.caption`` is not used here. ``duration`` overrides
            ``metadata.duration`` and may be fractional.
        duration: seconds, 10 ... 600; ``None`` lets the planner decide, or means 30 s without a planner. With a
            source, the song has the length of the source, and this must be ``None``.
        task_type: ``text2music`` generates a song from text. The others process ``src_audio``: ``cover`` keeps its
            structure, ``repaint`` regenerates a window of it, ``lego`` adds a track, ``extract`` isolates one,
            ``complete`` accompanies it; the last three need a base model (not turbo, not sft).
        src_audio: file of the source recording; required by every task except ``text2music``.
        reference_audio: file of a recording whose timbre is transferred; possible with every task.
        repainting_start: start of the window of ``repaint`` and ``lego``, in seconds of the source; a negative
            value extends the source before its start.
        repainting_end: end of the window; a value beyond the source extends it, ``None`` is the end of the source.
        audio_cover_strength: share of the steps, 0 ... 1, that follow the source (``cover``) or the audio codes; the
            others follow the text alone.
        track_names: of ``TRACK_NAMES``: the track to add or isolate, or the tracks to complete with.
        batch_size: songs to generate from this request, 1 ... 8.
        seeds: one seed per song; a single seed gives ``seed + i``; empty means random.
        inference_steps: diffusion steps, 1 or more; not limited by the model.
        guidance_scale: classifier-free guidance of the diffusion (base and sft models; turbo models ignore it).
        guidance_interval: the range of t in which guidance is applied.
        use_adg: guide by angles (ADG) instead of projections (APG).
        shift: timestep shift; ``None`` selects that of the model (3 for turbo, 1 otherwise).
        timesteps: decreasing flow times to evaluate, at most 1, instead of ``inference_steps`` and ``shift``; empty for
            none. Turbo models use the nearest times of those that they were distilled on.
        sampler: settings of the diffusion sampler.
        retake_seed: of the noise that ``retake_variance`` mixes in, for the first song; the others count up from it.
        retake_variance: 0 ... 1: how far a song moves from that of its own seed to that of its retake seed.
        cover_noise_strength: 0 ... 1: 0 starts from noise; the closer to 1, the closer the start is to ``src_audio``.
        repaint_mode: how closely the latents outside a repainted window follow the source.
        repaint_strength: for mode ``balanced``: 0 is equal to ``conservative``, 1 to ``aggressive``.
        thinking: let the language model write audio codes; without effect with a source recording.
        use_cot_metas: let the language model decide the metadata that the user did not set.
        use_cot_caption: let the language model rewrite the caption.
        use_cot_language: let the language model detect the language of the vocals.
        use_constrained_decoding: constrain the metadata to its grammar.
        sampling: sampling settings of the language model.
        audio_codes: codes to render instead of letting the language model write them.
        adapters: adapters of the diffusion transformer to render with, of those that are loaded; what they add is
            summed. Empty for none, ``None`` for all that are loaded, each at its own scale.
        audio_format: file format of the saved songs.
        peak_dbfs: peak level after normalisation; ``None`` does not normalise.
    """

    caption: str = ""
    lyrics: str = ""
    metadata: SongMetadata = field(default_factory=SongMetadata)
    duration: float | None = None
    task_type: TaskType = "text2music"
    src_audio: Path | None = None
    reference_audio: Path | None = None
    repainting_start: float = 0.0
    repainting_end: float | None = None
    audio_cover_strength: float = 1.0
    track_names: tuple[str, ...] = ()
    batch_size: int = 1
    seeds: tuple[int, ...] = ()
    inference_steps: int = 8
    guidance_scale: float = 7.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    use_adg: bool = False
    shift: float | None = None
    timesteps: tuple[float, ...] = ()
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    retake_seed: int | None = None
    retake_variance: float = 0.0
    cover_noise_strength: float = 0.0
    repaint_mode: RepaintMode = "balanced"
    repaint_strength: float = 0.5
    thinking: bool = False
    use_cot_metas: bool = False
    use_cot_caption: bool = False
    use_cot_language: bool = False
    use_constrained_decoding: bool = True
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    audio_codes: tuple[int, ...] = ()
    adapters: tuple[AdapterScale, ...] | None = None
    audio_format: str = "flac"
    peak_dbfs: float | None = -1.0

    @property
    def needs_language_model(self) -> bool:
        """Whether this request uses the planner; a cover and a repaint use the text unchanged."""
        if self.task_type in ("cover", "repaint"):
            return False
        return self.writes_audio_codes or self.use_cot_metas or self.use_cot_caption or self.use_cot_language

    @property
    def writes_audio_codes(self) -> bool:
        """Whether the language model writes audio codes: none are given, and there is no source recording."""
        return self.thinking and not self.audio_codes and self.task_type == "text2music"


VaeLocation = Literal["gpu", "gpu+cpu buffer", "cpu"]
"""Where the VAE decodes: on the device; there, with the audio collected on the host; on the host."""


@dataclass(frozen=True, slots=True)
class VaeDecoding:
    """How the latents were decoded.

    Attributes:
        rung: where decoding ran.
        tile_length: latent frames of the longest tile.
        overlap: frames of context on each side that faces another tile.
        tiles: tiles of all songs.
        attempts: ways to decode that were tried; 1 when the first one had enough memory.
    """

    rung: VaeLocation
    tile_length: int
    overlap: int
    tiles: int
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """Settings that took effect, as opposed to those requested.

    Attributes:
        device: for example ``cuda:0`` or ``cpu``.
        dtype: of the diffusion transformer, for example ``bfloat16``.
        dit_model: name of the diffusion model.
        lm_model: name of the language model, or ``None`` when it was not used.
        lm_backend: backend that ran it, or ``None``.
        steps: diffusion steps executed.
        shift: timestep shift applied.
        guidance_scale: diffusion guidance applied (1 on turbo models).
        batch_size: songs generated.
        duration: seconds of audio of each song.
        seeds: one per song.
        weights: ``synthetic`` or ``checkpoint``.
        placement: device and format of the models, and whether they were compiled.
        vae_decode: how the latents were decoded.
        adapters: adapters that the songs were rendered with.
        lm_device: device of the language model, if it is a separate one.
    """

    device: str
    dtype: str
    dit_model: str
    lm_model: str | None
    lm_backend: str | None
    steps: int
    shift: float
    guidance_scale: float
    batch_size: int
    duration: float
    seeds: tuple[int, ...]
    weights: str
    placement: Placement
    vae_decode: VaeDecoding
    adapters: tuple[AdapterScale, ...] = ()
    lm_device: str | None = None


@dataclass(frozen=True, slots=True)
class Song:
    """One finished song.

    Attributes:
        audio: float32 on the host, shape ``[2, samples]``, 48 kHz, within -1 ... 1.
        seed: its seed.
        audio_codes: codes from which it was rendered; empty without ``thinking``.
        path: where it was saved, or ``None``.
    """

    audio: torch.Tensor
    seed: int
    audio_codes: tuple[int, ...] = ()
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What ``generate_music`` returns.

    Attributes:
        songs: one per item of the batch.
        request: the unchanged request.
        metadata: metadata that the renderer used (the user's values, completed by the planner).
        effective: settings that took effect.
    """

    songs: tuple[Song, ...]
    request: GenerationRequest
    metadata: SongMetadata
    effective: EffectiveSettings


@dataclass(frozen=True, slots=True)
class SongwritingSettings:
    """How the language model writes a blueprint.

    Attributes:
        sampling: how it samples; guidance is never used on text.
        seed: ``None`` for a random one.
        use_constrained_decoding: constrain the metadata to its grammar. Lyrics are always free text.
        lyrics_token_limit: maximum number of tokens of the lyrics, section tags included; the renderer reads 2,048.
    """

    sampling: SamplingSettings = TEXT_SAMPLING
    seed: int | None = None
    use_constrained_decoding: bool = True
    lyrics_token_limit: int = 2_048


@dataclass(frozen=True, slots=True)
class EffectivePlannerSettings:
    """Settings that took effect in a request without rendering.

    Attributes:
        device: for example ``cuda:0`` or ``cpu``.
        dtype: of the language model, for example ``bfloat16``.
        lm_model: its name.
        lm_backend: backend that ran it.
        seeds: the one seed.
        weights: ``synthetic`` or ``checkpoint``.
        placement: device and format of the model.
        audio_encoder: checkpoint whose VAE and audio tokenizer encoded a recording, or ``None``.
    """

    device: str
    dtype: str
    lm_model: str
    lm_backend: str
    seeds: tuple[int, ...]
    weights: str
    placement: Placement
    audio_encoder: str | None = None


@dataclass(frozen=True, slots=True)
class SongBlueprint:
    """The description of a song as text; returned by ``understand_music``, ``create_sample`` and ``format_sample``.

    Attributes:
        metadata: the user's values, completed by the language model. Without constrained decoding a field for which
            the model wrote no valid value is ``None``.
        lyrics: the text, with section tags.
        lyrics_complete: whether the language model ended the lyrics, rather than the token limit.
        effective: settings that took effect.
        audio_codes: codes that were described, five per second of audio; empty without any.
    """

    metadata: SongMetadata
    lyrics: str
    lyrics_complete: bool
    effective: EffectivePlannerSettings
    audio_codes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of long work: ``done`` of ``total`` units of a stage.

    Stages are ``lm.cot``, ``lm.codes``, ``lm.lyrics``, ``dit`` and ``vae.decode``.

    ``total`` is ``None`` while the length is not known.
    """

    stage: str
    done: int
    total: int | None


ProgressCallback = Callable[[Progress], None]
"""Called between units of work. An exception raised here stops the run and reaches the caller unchanged;
raise ``acestep.errors.Cancelled`` to cancel."""
