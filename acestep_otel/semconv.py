"""Semantic conventions: the name, type, unit and meaning of everything this package emits, each once.

Spans, attributes and metrics are declared here and nowhere else; code imports the constants. ``gen_ai.*`` names
are those of the OpenTelemetry GenAI conventions (schema gen-ai-dev/1.42.0-dev, the development channel), ``hw.*`` names
those of the conventions for hardware; everything that the conventions do not name is ``acestep.*``. The tables of
``docs/conventions.md`` list the differences and their reasons. Units are UCUM. Durations in attributes are seconds.

Two clocks appear in ``acestep.clock``:

* ``host``: ``perf_counter_ns`` read on the host, mapped to wall time once per trace.
* ``cuda_event``: events recorded on the CUDA stream, read after the request's own synchronisation. Such a span shows
  when the stream did the work, including the time that the stream waited for the host inside the span.

The rows of the time breakdown, and how they sum, are defined in ``docs/measurement.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"

MetricKind = Literal["histogram", "counter", "up_down_counter", "gauge"]


@dataclass(frozen=True, slots=True)
class SpanDefinition:
    """A span: its name, the names of its possible parents (none for a root) and what its duration covers."""

    name: str
    parents: tuple[str, ...]
    covers: str


@dataclass(frozen=True, slots=True)
class AttributeDefinition:
    """An attribute: its name, value type, unit (``""`` for none) and meaning."""

    name: str
    type: type
    unit: str
    meaning: str


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """A metric: instrument kind, unit, meaning, attributes it may carry, and bucket bounds of a histogram.

    An ``observed`` metric is read when metrics are collected; the others are recorded when an event occurs.
    """

    name: str
    kind: MetricKind
    unit: str
    meaning: str
    attributes: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    observed: bool = False


SPANS: Final[dict[str, SpanDefinition]] = {}
ATTRIBUTES: Final[dict[str, AttributeDefinition]] = {}
METRICS: Final[dict[str, MetricDefinition]] = {}


def _span(name: str, covers: str, *parents: str) -> str:
    SPANS[name] = SpanDefinition(name, parents, covers)
    return name


def _attribute(name: str, type_: type, meaning: str, unit: str = "") -> str:
    ATTRIBUTES[name] = AttributeDefinition(name, type_, unit, meaning)
    return name


def _metric(
    name: str,
    kind: MetricKind,
    unit: str,
    meaning: str,
    attributes: tuple[str, ...],
    buckets: tuple[float, ...] = (),
    *,
    observed: bool = False,
) -> MetricDefinition:
    METRICS[name] = MetricDefinition(name, kind, unit, meaning, attributes, buckets, observed)
    return METRICS[name]


# --- Spans ----------------------------------------------------------------------------------------------------
GENERATE_MUSIC = _span(
    "generate_music", "From the call of generate_music to its return, audio files written: the wall time. Host clock."
)
UNDERSTAND_MUSIC = _span(
    "understand_music", "From the call of understand_music to its return: the wall time. Host clock."
)
CREATE_SAMPLE = _span("create_sample", "From the call of create_sample to its return: the wall time. Host clock.")
FORMAT_SAMPLE = _span("format_sample", "From the call of format_sample to its return: the wall time. Host clock.")
MODEL_LOAD = _span(
    "acestep.model.load",
    "One model: from its name to weights submitted to the device, without waiting for the copy. Host clock.",
)
LM = _span(
    "acestep.lm",
    "Everything the language model does for a request: prompts, both phases, parsing. Host clock; the token ids "
    "are read back inside, so the device has finished when it ends.",
    GENERATE_MUSIC,
    UNDERSTAND_MUSIC,
    CREATE_SAMPLE,
    FORMAT_SAMPLE,
)
LM_COT = _span("acestep.lm.cot", "Phase 1: the metadata as YAML, under its grammar.", LM)
LM_CODES = _span("acestep.lm.codes", "Phase 2: the audio codes, five per second of audio.", LM)
LM_LYRICS = _span(
    "acestep.lm.lyrics", "Phase 2 of understand_music, create_sample and format_sample: the lyrics, as free text.", LM
)
LM_TOKENS = _span(
    "acestep.lm.tokens", "A window of 64 decoded tokens (detail level token only).", LM_COT, LM_CODES, LM_LYRICS
)
CONDITION = _span(
    "acestep.condition",
    "Text encoding, lyric embedding, source and reference latents, condition encoder. Device clock.",
    GENERATE_MUSIC,
)
VAE_ENCODE = _span(
    "acestep.vae.encode",
    "Audio to latents, all tiles: once for each recording. Device clock.",
    CONDITION,
    UNDERSTAND_MUSIC,
)
AUDIO_TOKENIZE = _span(
    "acestep.audio.tokenize",
    "Latents of a recording to audio codes, and their copy to the host. Device clock.",
    UNDERSTAND_MUSIC,
)
ADAPTER_SWITCH = _span(
    "acestep.adapter.switch",
    "Change of the transformer's weights to other adapters than those of the previous request, including the wait for "
    "requests that use the previous ones. Device clock.",
    GENERATE_MUSIC,
)
DIT = _span(
    "acestep.dit",
    "The diffusion loop: all steps and the time between them. Device clock.",
    GENERATE_MUSIC,
)
DIT_STEP = _span(
    "acestep.dit.step",
    "One denoising step: transformer forward, guidance and the solver's update. Device clock.",
    DIT,
)
VAE_DECODE = _span(
    "acestep.vae.decode",
    "Latents to audio on the host: all tiles, and the copy to the host, which is the request's own "
    "synchronisation. Device clock.",
    GENERATE_MUSIC,
)
VAE_TILE = _span("acestep.vae.tile", "The decoder over one tile. Device clock.", VAE_DECODE)
OFFLOAD_MOVE = _span(
    "acestep.offload.move",
    "Transfer of one model's weights to or from the device, outside of the stage that needs the model. Models of the "
    "conditioning, and the VAE when a decode falls back to the host, move inside their stage. Device clock.",
    GENERATE_MUSIC,
    UNDERSTAND_MUSIC,
    CREATE_SAMPLE,
    FORMAT_SAMPLE,
    CONDITION,
    VAE_DECODE,
)
REQUEST_HANG = _span(
    "acestep.request.hang",
    "The snapshot of a request past its deadline, emitted while it continues; without a duration. Host clock.",
    GENERATE_MUSIC,
    UNDERSTAND_MUSIC,
    CREATE_SAMPLE,
    FORMAT_SAMPLE,
)
AUDIO_SAVE = _span("acestep.audio.save", "Encoding and writing the audio files. Host clock.", GENERATE_MUSIC)
QUEUE_WAIT = _span(
    "acestep.queue.wait",
    "A service's request, below the service's own span: from its acceptance until a worker takes it or it is "
    "cancelled. Host clock.",
)
TIER_TEST = _span("acestep.tier_test", "All cards and variants of one tier test. Host clock.")
TIER_PROCESS = _span(
    "acestep.tier_test.process",
    "One child process: from its start to its end. Its model loads and requests are children. Host clock.",
    TIER_TEST,
)
BENCHMARK = _span("acestep.benchmark", "All cells of a benchmark on several cards. Host clock.")
BENCHMARK_PROCESS = _span(
    "acestep.benchmark.process",
    "One child process on one card: from its start to its end. Its model loads and requests are children. Host clock.",
    BENCHMARK,
)
DOCTOR = _span("acestep.doctor", "A test span without content, sent by the subcommand doctor. Host clock.")


def stage_of(span_name: str) -> str:
    """The value of ``acestep.stage`` for a span: its name without the namespace."""
    return span_name.removeprefix("acestep.")


# --- Attributes: request and environment ------------------------------------------------------------------------
OPERATION_NAME = _attribute("gen_ai.operation.name", str, "generate_content on root and planner spans.")
PROVIDER_NAME = _attribute("gen_ai.provider.name", str, "Always ace_step.")
REQUEST_MODEL = _attribute(
    "gen_ai.request.model", str, "Model of the span: the DiT on generate_music, the 5 Hz LM below and on the others."
)
OUTPUT_TYPE = _attribute(
    "gen_ai.output.type", str, "music (a custom value: the conventions have none for audio), or text."
)
REQUEST_CHOICE_COUNT = _attribute("gen_ai.request.choice.count", int, "Requested songs (batch size).", "{song}")
REQUEST_TEMPERATURE = _attribute("gen_ai.request.temperature", float, "Sampling temperature of the planner.")
REQUEST_TOP_P = _attribute("gen_ai.request.top_p", float, "Nucleus bound of the planner.")
REQUEST_TOP_K = _attribute("gen_ai.request.top_k", int, "Top-k bound of the planner; absent when off.")
USAGE_INPUT_TOKENS = _attribute("gen_ai.usage.input_tokens", int, "Prompt tokens (conditional prompts).", "{token}")
USAGE_CACHE_READ_INPUT_TOKENS = _attribute(
    "gen_ai.usage.cache_read.input_tokens",
    int,
    "Prompt tokens that an earlier phase of the request had already processed.",
    "{token}",
)
USAGE_OUTPUT_TOKENS = _attribute(
    "gen_ai.usage.output_tokens", int, "Tokens produced, over all songs: sampled and forced.", "{token}"
)
USAGE_REASONING_OUTPUT_TOKENS = _attribute(
    "gen_ai.usage.reasoning.output_tokens", int, "Output tokens of phase 1, which reasons the metadata.", "{token}"
)
USAGE_AUDIO_OUTPUT_TOKENS = _attribute(
    "gen_ai.usage.audio.output_tokens", int, "Output tokens that are audio codes.", "{token}"
)
USAGE_TEXT_OUTPUT_TOKENS = _attribute(
    "gen_ai.usage.text.output_tokens", int, "Output tokens that are text: metadata and lyrics.", "{token}"
)
USAGE_AUDIO_INPUT_TOKENS = _attribute(
    "gen_ai.usage.audio.input_tokens", int, "Audio codes in the prompt of understand_music.", "{token}"
)
REQUEST_SEED = _attribute("gen_ai.request.seed", int, "Seed of the first song, given or random.")
RESPONSE_MODEL = _attribute("gen_ai.response.model", str, "Model that ran; equal to gen_ai.request.model.")
RESPONSE_FINISH_REASONS = _attribute(
    "gen_ai.response.finish_reasons",
    tuple,
    "One for each song or text: stop, or length if a token limit ended it.",
)
LATENCY_E2E = _attribute(
    "gen_ai.latency.e2e", float, "De facto, as vLLM and SGLang emit it: duration of the root span.", "s"
)
LATENCY_TIME_TO_FIRST_TOKEN = _attribute(
    "gen_ai.latency.time_to_first_token", float, "De facto: acestep.lm.time_to_first_token.", "s"
)
LATENCY_PREFILL = _attribute(
    "gen_ai.latency.time_in_model_prefill", float, "De facto: acestep.lm.prefill.duration.", "s"
)
LATENCY_DECODE = _attribute("gen_ai.latency.time_in_model_decode", float, "De facto: acestep.lm.decode.duration.", "s")
LATENCY_QUEUE = _attribute(
    "gen_ai.latency.time_in_queue",
    float,
    "De facto: acestep.lm.engine.queue.duration, if the engine has a queue.",
    "s",
)
INPUT_MESSAGES = _attribute(
    "gen_ai.input.messages",
    str,
    "What the user wrote, in the conventions' JSON; only after opt-in to content capture.",
)
OUTPUT_MESSAGES = _attribute(
    "gen_ai.output.messages", str, "Description of the song, in the same form; only after opt-in to content capture."
)
ERROR_TYPE = _attribute("error.type", str, "Class name of the exception; only on failure.")

TASK = _attribute("acestep.task", str, "text2music, cover, repaint, lego, extract or complete.")
THINKING = _attribute("acestep.thinking", bool, "Whether the planner writes audio codes.")
AUDIO_DURATION_REQUESTED = _attribute(
    "acestep.audio.duration.requested", float, "Requested seconds; absent if the planner decides.", "s"
)
AUDIO_DURATION = _attribute("acestep.audio.duration", float, "Seconds of audio of each song.", "s")
BATCH_SIZE = _attribute("acestep.batch_size", int, "Songs generated together.", "{song}")
CAPTION_LENGTH = _attribute("acestep.caption.length", int, "Characters in the caption.", "{character}")
LYRICS_LENGTH = _attribute("acestep.lyrics.length", int, "Characters in the lyrics.", "{character}")
CAPTION = _attribute("acestep.caption", str, "The caption; only after opt-in to content capture.")
LYRICS = _attribute("acestep.lyrics", str, "The lyrics; only after opt-in to content capture.")
QUERY_LENGTH = _attribute("acestep.query.length", int, "Characters in the query of create_sample.", "{character}")
QUERY = _attribute("acestep.query", str, "The query; only after opt-in to content capture.")
AUDIO_CODES_COUNT = _attribute(
    "acestep.audio_codes.count", int, "Audio codes that understand_music describes, five per second.", "{code}"
)
INSTRUMENTAL = _attribute("acestep.instrumental", bool, "Whether create_sample was called for a song without vocals.")
LYRICS_COMPLETE = _attribute(
    "acestep.lyrics.complete", bool, "Whether the language model ended the lyrics; false when the token limit did."
)
DEVICE = _attribute("acestep.device", str, "Device that the models run on, for example cuda:0.")
DTYPE = _attribute("acestep.dtype", str, "Type of the weights, for example bfloat16.")
WEIGHTS = _attribute("acestep.weights", str, "synthetic or checkpoint.")
OFFLOAD = _attribute("acestep.offload", bool, "Whether models are kept in host memory while they are not in use.")
OFFLOAD_DIT = _attribute("acestep.offload.dit", bool, "Whether that includes the diffusion transformer.")
OFFLOAD_AUTOMATIC = _attribute(
    "acestep.offload.automatic",
    bool,
    "Whether offload was selected because of the size of the GPU, without being requested.",
)
QUANTIZATION = _attribute(
    "acestep.quantization", str, "Form of the DiT's weights: none, int8_weight_only, fp8_weight_only or w8a8_dynamic."
)
COMPILED = _attribute("acestep.compiled", bool, "Whether the DiT's blocks and the VAE's decoder are compiled.")
ADAPTER_NAMES = _attribute(
    "acestep.adapter.names",
    str,
    "Names of the adapters (LoRA, DoRA, LoKr) in use by the DiT, separated by commas; absent if there are none.",
)
ADAPTER_SCALES = _attribute("acestep.adapter.scales", str, "Their scales, in the same order.")
RUN_ID = _attribute("acestep.run.id", str, "Identifies a run of one process; on every span of the run.")
WARMUP = _attribute("acestep.warmup", bool, "True on the spans of a warm-up run, absent otherwise.")
BENCHMARK_CELL = _attribute(
    "acestep.benchmark.cell", int, "Zero-based index of the cell in the benchmark's matrix, on every span of its runs."
)
BENCHMARK_EXIT_CODE = _attribute(
    "acestep.benchmark.exit_code", int, "Exit code of a benchmark's child process; negative if a signal ended it."
)
BENCHMARK_REPEAT = _attribute(
    "acestep.benchmark.repeat", int, "Zero-based index of the run within its cell; absent on warm-ups."
)
WORKER = _attribute(
    "acestep.worker", str, "Worker process, by its card: GPU 0, CPU 1; absent if there is only one process."
)
HOST_NAME = _attribute("host.name", str, "Machine of the worker process; absent if there is only one process.")
TRACE_FORCE = _attribute(
    "acestep.trace.force",
    bool,
    "True on spans of a request whose trace a caller's header forced; an application may set it on any span of a "
    "trace that tail sampling must keep.",
)
TIER_NAME = _attribute("acestep.tier.name", str, "Tier of the simulated card: tier1 ... unlimited.")
TIER_MEMORY = _attribute("acestep.tier.memory", int, "Memory of the simulated card.", "GiBy")
TIER_VARIANT = _attribute(
    "acestep.tier.variant", str, "default, no-quant, no-offload, batch-noLM-N or batch-LM-N: settings of the trial."
)
TIER_LM = _attribute("acestep.tier.lm", str, "Size of the trial's language model, or none.")
TIER_WITH_LM = _attribute("acestep.tier.with_lm", bool, "Whether the language model is on the card as well.")
TIER_CAPABILITY = _attribute(
    "acestep.tier.capability",
    str,
    "Capability of the boundary analysis: running without quantization, or without offload.",
)
TIER_EXIT_CODE = _attribute(
    "acestep.tier_test.exit_code", int, "Exit code of a child process; negative if a signal ended it."
)
TRUNCATED = _attribute(
    "acestep.truncated",
    bool,
    "True if shutdown, or the end of a child process, closed the span before its work was complete.",
)
CLOCK = _attribute("acestep.clock", str, "Clock of the span's start and end: host or cuda_event.")
HOST_DURATION = _attribute(
    "acestep.host.duration",
    float,
    "Seconds that the host spent in the call; below the span's own duration "
    "when the device is the bottleneck, equal to it when launching is.",
    "s",
)
MODEL_NAME = _attribute("acestep.model.name", str, "Model that was loaded.")
MODEL_ROLE = _attribute("acestep.model.role", str, "renderer, planner or audio_encoder.")
STAGE = _attribute(
    "acestep.stage",
    str,
    "A span's name without its namespace: lm.cot, dit, ...; on metrics of a request the root span: generate_music, ...",
)
MODE = _attribute(
    "acestep.mode", str, "Mode of the command line: profile, benchmark, tier-test, understand, create_sample, ..."
)
OUTCOME = _attribute(
    "acestep.outcome",
    str,
    "ok, cancelled (by the caller, which is not an error), or the class name of the error. On spans only if a request "
    "was cancelled, and on the wait in a queue.",
)

# --- Attributes: planner ------------------------------------------------------------------------------------------
LM_BACKEND = _attribute("acestep.lm.backend", str, "Backend that ran: pt, vllm or mlx.")
DIT_PATH = _attribute(
    "acestep.dit.path", str, "What ran the transformer: fused (Triton kernels of the engine), compiled or eager."
)
LM_DECODE_PATH = _attribute(
    "acestep.lm.decode.path", str, "How pt ran small passes: fused (recorded Triton kernels) or eager."
)
LM_GUIDANCE_SCALE = _attribute("acestep.lm.guidance_scale", float, "Classifier-free guidance of the codes; 1 is off.")
LM_CONSTRAINED = _attribute("acestep.lm.constrained", bool, "Whether the metadata was constrained to its grammar.")
LM_SAMPLED_TOKENS = _attribute(
    "acestep.lm.sampled_tokens", int, "Tokens sampled from more than one candidate.", "{token}"
)
LM_FORCED_TOKENS = _attribute(
    "acestep.lm.forced_tokens", int, "Tokens that the grammar determined; processed with the next pass.", "{token}"
)
LM_UNCONDITIONAL_TOKENS = _attribute(
    "acestep.lm.unconditional_tokens", int, "Tokens of the unconditional rows (prompt and output).", "{token}"
)
LM_FORWARDS = _attribute("acestep.lm.forwards", int, "Forward passes of the language model.", "{pass}")
LM_TIME_TO_FIRST_TOKEN = _attribute(
    "acestep.lm.time_to_first_token", float, "From the start of the phase to its first sampled token.", "s"
)
LM_PREFILL_DURATION = _attribute("acestep.lm.prefill.duration", float, "Prompt forward passes, all rows.", "s")
LM_DECODE_DURATION = _attribute("acestep.lm.decode.duration", float, "From the first sampled token to the last.", "s")
LM_ENGINE_QUEUE_DURATION = _attribute(
    "acestep.lm.engine.queue.duration",
    float,
    "Maximum over the rows of the phase, by the engine's clock: time in its scheduler's queue.",
    "s",
)
LM_ENGINE_TIME_TO_FIRST_TOKEN = _attribute(
    "acestep.lm.engine.time_to_first_token",
    float,
    "Maximum over the rows, by the engine's clock: from arrival to the first token.",
    "s",
)
LM_ENGINE_PREFILL_DURATION = _attribute(
    "acestep.lm.engine.prefill.duration",
    float,
    "Maximum over the rows, by the engine's clock: from the first pass to the first token.",
    "s",
)
LM_ENGINE_DECODE_DURATION = _attribute(
    "acestep.lm.engine.decode.duration",
    float,
    "Maximum over the rows, by the engine's clock: from the first token to the last.",
    "s",
)
LM_TOKENS_PER_SECOND = _attribute(
    "acestep.lm.tokens_per_second", float, "Sampled tokens after the first, over the decode duration.", "{token}/s"
)
LM_TOKEN_GAP_P50 = _attribute("acestep.lm.token_gap.p50", float, "Median time between decode passes.", "s")
LM_TOKEN_GAP_P95 = _attribute(
    "acestep.lm.token_gap.p95", float, "95th percentile of the time between decode passes.", "s"
)
LM_TOKEN_GAP_MAX = _attribute("acestep.lm.token_gap.max", float, "Maximum time between decode passes.", "s")
LM_TOKEN_GAP_MAX_INDEX = _attribute(
    "acestep.lm.token_gap.max_index", int, "Index of the decode pass at the end of the longest gap."
)
LM_CONSTRAINED_DECODING_DURATION = _attribute(
    "acestep.lm.constrained_decoding.duration",
    float,
    "Host seconds in the grammar: allowed sets, masks, cursor moves, forced runs. Measured per call.",
    "s",
)
LM_CFG_DURATION = _attribute(
    "acestep.lm.cfg.duration",
    float,
    "Cost of guidance: decode and prefill time multiplied by the share of the unconditional rows in a batched "
    "forward pass. The share is calibrated at the shape of the run; absent if guidance was on without calibration, "
    "zero if it was off.",
    "s",
)
LM_CFG_SHARE = _attribute(
    "acestep.lm.cfg.share",
    float,
    "Calibrated share of a decode pass: 1 - time(conditional rows) / time(all rows).",
    "1",
)
LM_CFG_PREFILL_SHARE = _attribute(
    "acestep.lm.cfg.prefill_share", float, "Calibrated share of the forward pass over the prompts.", "1"
)
LM_TOKEN_GENERATION_DURATION = _attribute(
    "acestep.lm.token_generation.duration",
    float,
    "The planner's total minus constrained decoding and guidance: forward passes, sampling, prompts and parsing.",
    "s",
)
LM_WINDOW_FIRST = _attribute("acestep.lm.window.first", int, "Index of the first token of the window.")
LM_WINDOW_TOKENS = _attribute("acestep.lm.window.tokens", int, "Tokens in the window.", "{token}")

# --- Attributes: renderer -----------------------------------------------------------------------------------------
DIT_STEPS_REQUESTED = _attribute("acestep.dit.steps.requested", int, "Requested steps.", "{step}")
DIT_STEPS = _attribute("acestep.dit.steps", int, "Steps executed.", "{step}")
DIT_SHIFT = _attribute("acestep.dit.shift", float, "Timestep shift of the schedule.")
DIT_INFER_METHOD = _attribute(
    "acestep.dit.infer_method", str, "ode (the velocity is followed) or sde (new noise at every step)."
)
DIT_SAMPLER_MODE = _attribute(
    "acestep.dit.sampler_mode", str, "Solver of the steps: euler (one evaluation of the transformer) or heun (two)."
)
DIT_DCW = _attribute(
    "acestep.dit.dcw", bool, "Whether the latents are corrected after each step (differential correction, DCW)."
)
DIT_GUIDANCE_SCALE = _attribute("acestep.dit.guidance_scale", float, "Classifier-free guidance applied; 1 is off.")
DIT_STEP_INDEX = _attribute("acestep.dit.step.index", int, "Zero-based index of the step.")
DIT_STEP_TIMESTEP = _attribute("acestep.dit.step.timestep", float, "Flow time t at the start of the step, 1 ... 0.")
DIT_STEP_GUIDED = _attribute("acestep.dit.step.guided", bool, "Whether this step ran guidance (twice the batch).")
LATENT_FRAMES = _attribute("acestep.latent.frames", int, "Latent frames of each song (25 per second).", "{frame}")
VAE_RUNG = _attribute("acestep.vae.rung", str, "Where decoding ran: gpu, gpu+cpu buffer or cpu.")
VAE_ATTEMPTS = _attribute(
    "acestep.vae.attempts", int, "Ways to decode that were tried; all but the last ran out of memory.", "{attempt}"
)
VAE_TILE_LENGTH = _attribute("acestep.vae.tile_length", int, "Longest tile, with its overlap.", "{frame}")
VAE_OVERLAP = _attribute("acestep.vae.overlap", int, "Additional frames that a tile reads on each side.", "{frame}")
VAE_TILES = _attribute("acestep.vae.tiles", int, "Tiles decoded or encoded.", "{tile}")
VAE_TILE_INDEX = _attribute("acestep.vae.tile.index", int, "Zero-based index of the tile.")
VAE_TILE_FRAMES = _attribute("acestep.vae.tile.frames", int, "Frames given to the decoder.", "{frame}")
OFFLOAD_MODEL = _attribute(
    "acestep.offload.model", str, "Model that moved: language_model, text_encoder, transformer, vae, ..."
)
OFFLOAD_DIRECTION = _attribute("acestep.offload.direction", str, "to_device or to_host.")
OFFLOAD_BYTES = _attribute(
    "acestep.offload.bytes",
    int,
    "Bytes of the model's weights. Moving to the host frees them without a copy, because the host keeps its own.",
    "By",
)
AUDIO_FORMAT = _attribute("acestep.audio.format", str, "flac, wav, wav32, mp3, ogg or opus.")
AUDIO_FILES = _attribute("acestep.audio.files", int, "Files written.", "{file}")
AUDIO_BYTES = _attribute("acestep.audio.bytes", int, "Bytes written.", "By")

# --- Attributes: work ---------------------------------------------------------------------------------------------
WORK_OPERATIONS = _attribute(
    "acestep.work.operations",
    float,
    "Operations of matrix products, convolutions and attention, two per multiply-add, from the shapes of the passes "
    "(acestep_otel.roofline.work), child spans included.",
    "{operation}",
)
WORK_BYTES = _attribute(
    "acestep.work.bytes",
    float,
    "Bytes that those operators must read and write: operands, weights and results, once each.",
    "By",
)
WORK_OPERATION_RATE = _attribute(
    "acestep.compute.throughput", float, "acestep.work.operations over the span's duration.", "{operation}/s"
)
WORK_BYTE_RATE = _attribute("acestep.memory.throughput", float, "acestep.work.bytes over the span's duration.", "By/s")
ROOFLINE_SHARE = _attribute(
    "acestep.roofline.share",
    float,
    "The shortest time that the device's peaks allow for the work, pass by pass, over the span's duration: 1 is the "
    "roofline. Absent if the device's peaks are not known.",
    "1",
)
ROOFLINE_CEILING = _attribute(
    "acestep.roofline.ceiling", str, "Peak that determines the larger part of that time: compute or memory."
)
ROOFLINE_BOUND = _attribute(
    "acestep.roofline.bound",
    str,
    "launch if the share is below 0.5 and the device waited for the host: the host was busy in the call for at least "
    "0.9 of the device's time (diffusion, steps, tiles), or the device ran passes of the language model as soon as "
    "they were enqueued; otherwise the ceiling.",
)
DEVICE_PEAK_BANDWIDTH = _attribute(
    "acestep.device.peak.bandwidth", float, "Peak bandwidth of the device's memory, on root spans.", "By/s"
)
DEVICE_PEAK_OPERATIONS = _attribute(
    "acestep.device.peak.operations",
    float,
    "Peak rate of the device in the type of the weights (acestep.dtype), on root spans.",
    "{operation}/s",
)
DEVICE_PEAK_SOURCE = _attribute(
    "acestep.device.peak.source",
    str,
    "measured (acestep-otel doctor --measure-device), datasheet, or calculated from clock and multiprocessors.",
)

ENERGY = _attribute(
    "acestep.energy",
    float,
    "Joules that the card used during the span, by its driver's counter, other processes and idle power included; "
    "absent for spans shorter than ten resolutions, and on cards without a counter.",
    "J",
)
ENERGY_RESOLUTION = _attribute(
    "acestep.energy.resolution",
    float,
    "Period of the counter plus the time between two readings, the most by which a span is uncertain; on root spans.",
    "s",
)
ENERGY_SHARED = _attribute(
    "acestep.energy.shared",
    bool,
    "True if another request ran on the card during this one, so that the energy is that of both; on root spans.",
)
ENERGY_PER_MINUTE = _attribute(
    "acestep.energy.per_minute",
    float,
    "Watt-hours of the request over the minutes of audio of all its songs; absent if the energy was shared.",
    "W.h/min",
)

# --- Attributes: stalls -------------------------------------------------------------------------------------------
STALL_EVENT: Final = "acestep.stall"
"""Event of a step or a tile that took many times the running median of its shape."""
STALL_CAUSE = _attribute(
    "acestep.stall.cause",
    str,
    "out_of_memory, allocator (retries, or memory from the driver), offload, throttled, driver_spill, host, or unknown "
    "if no counter explains it.",
)
STALL_EVIDENCE = _attribute("acestep.stall.evidence", str, "Evidence of the cause.")
STALL_RATIO = _attribute("acestep.stall.ratio", float, "Duration over the running median.", "1")
STALL_USUAL = _attribute("acestep.stall.usual", float, "The running median at that time.", "s")
HANG_STAGE = _attribute("acestep.hang.stage", str, "Innermost open stage of a request past its deadline, or unknown.")
HANG_SECONDS = _attribute("acestep.hang.duration", float, "Seconds since the request began.", "s")
HANG_STAGE_SECONDS = _attribute("acestep.hang.stage.duration", float, "Seconds since that stage began.", "s")
HANG_FINISHED = _attribute("acestep.hang.finished", int, "Stages that have ended inside it: steps, tiles.", "{stage}")
HANG_DEVICE_BUSY = _attribute("acestep.hang.device_busy", bool, "Whether the device has not yet reached the last mark.")
HANG_STACK = _attribute(
    "acestep.hang.stack", str, "Python stack of the request's thread: file, line and function, no values."
)

PROFILE_FILE = _attribute(
    "acestep.profile.file", str, "Path or URL of the torch.profiler trace of the request or of the run."
)

SONG_LOCATIONS = _attribute(
    "acestep.song.locations",
    tuple,
    "Path or URL of each song, on root spans; only after opt-in (ACESTEP_OTEL_SONGS).",
)
SONG_HASHES = _attribute("acestep.song.sha256", tuple, "SHA-256 of each song's file, in hexadecimal; as above.")
SONG_MIME_TYPES = _attribute("acestep.song.mime_types", tuple, "MIME type of each song's file; as above.")

# --- Attributes: memory -------------------------------------------------------------------------------------------
VRAM_ALLOCATED = _attribute(
    "acestep.vram.allocated",
    int,
    "Bytes in live tensors when the host left the span, in stream order; absent off CUDA, and on steps and tiles below "
    "detail level token.",
    "By",
)
VRAM_RESERVED = _attribute(
    "acestep.vram.reserved", int, "Bytes that the allocator had reserved at that moment; absent off CUDA.", "By"
)
VRAM_PEAK_ALLOCATED = _attribute(
    "acestep.vram.peak.allocated", int, "Maximum bytes in live tensors during the stage; absent off CUDA.", "By"
)
VRAM_PEAK_RESERVED = _attribute(
    "acestep.vram.peak.reserved", int, "Maximum bytes that the allocator reserved in the stage; absent off CUDA.", "By"
)
VRAM_SHARED = _attribute(
    "acestep.vram.shared",
    bool,
    "True if another request ran on the device during the stage, so the peak includes both.",
)
VRAM_KIND = _attribute(
    "acestep.vram.kind", str, "allocated, reserved or process (all memory of the process, by the driver)."
)
HW_ID = _attribute("hw.id", str, "UUID of the GPU, from its driver.")
HW_MODEL = _attribute("hw.model", str, "Model of the GPU, as its driver reports it.")
HW_VENDOR = _attribute("hw.vendor", str, "Manufacturer of the GPU.")
HW_DRIVER_VERSION = _attribute("hw.driver_version", str, "Version of the GPU's driver.")
HW_TYPE = _attribute("hw.type", str, "Always gpu; on metrics that the conventions define for hardware of all kinds.")
HW_GPU_TASK = _attribute("hw.gpu.task", str, "general: kernels of any kind.")
TOKEN_KIND = _attribute("acestep.token.kind", str, "prompt, sampled, forced or unconditional.")
PROFILE_ROW = _attribute("acestep.profile.row", str, "Row of the time breakdown: planner, diffusion, wall, ...")

# --- Metrics ------------------------------------------------------------------------------------------------------
_DURATION_BUCKETS = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68,
)  # fmt: skip
_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_PER_TOKEN_BUCKETS = (
    0.0005, 0.001, 0.0015, 0.002, 0.0025, 0.0035, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4,
    0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
_ENERGY_BUCKETS = (
    10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 300.0, 500.0, 750.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0,
)  # fmt: skip
_COMPUTE_BUCKETS = (
    0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip

REQUEST_DURATION = _metric(
    "gen_ai.server.request.duration", "histogram", "s", "Duration of the root span.",
    (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, STAGE, ERROR_TYPE), _DURATION_BUCKETS,
)  # fmt: skip
TIME_TO_FIRST_TOKEN = _metric(
    "gen_ai.server.time_to_first_token", "histogram", "s", "acestep.lm.time_to_first_token of each phase.",
    (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, STAGE), _FIRST_TOKEN_BUCKETS,
)  # fmt: skip
TIME_PER_OUTPUT_TOKEN = _metric(
    "gen_ai.server.time_per_output_token", "histogram", "s",
    "Decode duration over the sampled tokens after the first, per phase.",
    (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, STAGE), _PER_TOKEN_BUCKETS,
)  # fmt: skip
STAGE_DURATION = _metric(
    "acestep.stage.duration", "histogram", "s", "Duration of each stage's span.",
    (STAGE, REQUEST_MODEL, ERROR_TYPE), _DURATION_BUCKETS,
)  # fmt: skip
DIT_STEP_DURATION = _metric(
    "acestep.dit.step.duration", "histogram", "s", "Duration of each denoising step.", (REQUEST_MODEL,), _STEP_BUCKETS
)
VAE_TILE_DURATION = _metric(
    "acestep.vae.tile.duration", "histogram", "s", "Duration of each VAE tile.", (REQUEST_MODEL,), _STEP_BUCKETS
)
LM_TOKENS_COUNT = _metric(
    "acestep.lm.tokens", "counter", "{token}", "Tokens of the planner by kind.", (REQUEST_MODEL, STAGE, TOKEN_KIND)
)
WORK_OPERATIONS_COUNT = _metric(
    "acestep.work.operations", "counter", "{operation}",
    "Operations of each stage: matrix products, convolutions and attention.", (STAGE, REQUEST_MODEL),
)  # fmt: skip
WORK_BYTES_COUNT = _metric(
    "acestep.work.bytes", "counter", "By", "Bytes that those operators read and write.", (STAGE, REQUEST_MODEL)
)
WORK_OPERATION_RATE_LAST = _metric(
    "acestep.compute.throughput", "gauge", "{operation}/s", "Operations per second of the last run of each stage.",
    (STAGE, REQUEST_MODEL),
)  # fmt: skip
WORK_BYTE_RATE_LAST = _metric(
    "acestep.memory.throughput",
    "gauge",
    "By/s",
    "Bytes per second of the last run of each stage.",
    (STAGE, REQUEST_MODEL),
)
ROOFLINE_SHARE_LAST = _metric(
    "acestep.roofline.share", "gauge", "{share}",
    "Share of the roofline that the last run of each stage reached, by its bound.",
    (STAGE, REQUEST_MODEL, ROOFLINE_BOUND),
)  # fmt: skip
ENERGY_USED = _metric(
    "acestep.energy", "counter", "J",
    "Joules of requests (stage: their root span) and of stages that are long enough, without requests that shared the "
    "card.", (STAGE, REQUEST_MODEL),
)  # fmt: skip
AUDIO_ENERGY = _metric(
    "acestep.audio.energy", "histogram", "J",
    "Joules of a request over the minutes of audio of all its songs; 3,600 are a watt-hour. Absent if the card was "
    "shared.", (REQUEST_MODEL,), _ENERGY_BUCKETS,
)  # fmt: skip
REQUESTS = _metric(
    "acestep.requests", "counter", "{request}", "Finished requests by outcome.", (REQUEST_MODEL, STAGE, OUTCOME)
)
REQUESTS_ACTIVE = _metric(
    "acestep.requests.active", "up_down_counter", "{request}", "Requests in progress.",
    (REQUEST_MODEL, STAGE),
)  # fmt: skip
PROFILES = _metric(
    "acestep.profiles", "counter", "{profile}",
    "Profiles on demand by outcome: stored, refused (one is running, or has just ended), or the class of the error.",
    (OUTCOME,),
)  # fmt: skip
STALLS = _metric(
    "acestep.stalls", "counter", "{stall}", "Steps and tiles that took many times their running median.",
    (STAGE, REQUEST_MODEL, STALL_CAUSE),
)  # fmt: skip
HANGS = _metric(
    "acestep.requests.hanging", "counter", "{snapshot}", "Snapshots of requests that are past their deadline.",
    (STAGE, REQUEST_MODEL, HANG_STAGE),
)  # fmt: skip
OUT_OF_MEMORY = _metric("acestep.oom", "counter", "{error}", "Out-of-memory errors by stage.", (STAGE, REQUEST_MODEL))
AUDIO_SECONDS = _metric(
    "acestep.audio.generated", "counter", "s", "Seconds of generated audio, over all songs.", (REQUEST_MODEL,)
)
AUDIO_COMPUTE_DURATION = _metric(
    "acestep.audio.compute.duration", "histogram", "s",
    "Wall time of a request divided by the seconds of audio of all its songs: below 1 is faster than real time.",
    (REQUEST_MODEL,), _COMPUTE_BUCKETS,
)  # fmt: skip
VRAM_PEAK = _metric(
    "acestep.vram.peak", "gauge", "By", "Peak of the last run of each stage; absent off CUDA.",
    (STAGE, VRAM_KIND, REQUEST_MODEL),
)  # fmt: skip
VRAM_LIMIT = _metric(
    "acestep.vram.limit", "gauge", "By",
    "Device memory that the process may use: all of it, or the fraction that limits it; absent off CUDA.", (),
)  # fmt: skip
_CARD = (HW_ID, HW_MODEL, HW_VENDOR, HW_DRIVER_VERSION)
HW_GPU_UTILIZATION = _metric(
    "hw.gpu.utilization", "gauge", "1",
    "Share of the driver's last sampling period in which the GPU ran a kernel, of any process; absent without NVML.",
    (*_CARD, HW_GPU_TASK), observed=True,
)  # fmt: skip
HW_GPU_MEMORY_USAGE = _metric(
    "hw.gpu.memory.usage", "up_down_counter", "By",
    "Used memory of the GPU, by all processes; absent without NVML.", _CARD, observed=True,
)  # fmt: skip
HW_GPU_MEMORY_LIMIT = _metric(
    "hw.gpu.memory.limit", "up_down_counter", "By", "Memory of the GPU; absent without NVML.", _CARD, observed=True
)
HW_GPU_MEMORY_UTILIZATION = _metric(
    "hw.gpu.memory.utilization", "gauge", "1", "Share of the GPU's memory that is used, by all processes.", _CARD,
    observed=True,
)  # fmt: skip
HW_ENERGY = _metric(
    "hw.energy", "counter", "J",
    "Joules that the GPU used since its driver was loaded; absent on cards without such a counter.",
    (*_CARD, HW_TYPE), observed=True,
)  # fmt: skip
HW_ERRORS = _metric(
    "hw.errors", "counter", "{error}",
    "Memory errors of the GPU since it was reset (ECC), by error.type: corrected or uncorrected; absent without ECC.",
    (*_CARD, HW_TYPE, ERROR_TYPE), observed=True,
)  # fmt: skip
PROFILE_DURATION = _metric(
    "acestep.profile.duration", "gauge", "s", "A row of the last measured run's time breakdown.",
    (REQUEST_MODEL, STAGE, PROFILE_ROW),
)  # fmt: skip
PROFILE_STEPS = _metric(
    "acestep.profile.steps", "gauge", "{step}", "Denoising steps of the last measured run.", (REQUEST_MODEL, STAGE)
)
PROFILE_TOKEN_DURATION = _metric(
    "acestep.profile.token.duration", "gauge", "s",
    "Duration of each planner phase of the last measured run over the tokens it wrote, forced ones included.",
    (REQUEST_MODEL, STAGE),
)  # fmt: skip
RUN_TIME = _metric(
    "acestep.run.time", "gauge", "s",
    "Unix time at which a run of the command line recorded its figures; identifies the last run.",
    (MODE, REQUEST_MODEL),
)  # fmt: skip
QUEUE_WAIT_DURATION = _metric(
    "acestep.queue.wait.duration", "histogram", "s", "Duration of acestep.queue.wait.", (OUTCOME,), _DURATION_BUCKETS
)
QUEUE_LENGTH = _metric("acestep.queue.length", "up_down_counter", "{request}", "Requests waiting for a worker.", ())
QUEUE_CAPACITY = _metric(
    "acestep.queue.capacity", "up_down_counter", "{request}", "Maximum number of waiting requests.", ()
)
QUEUE_REJECTED = _metric(
    "acestep.queue.rejected", "counter", "{request}", "Requests rejected because the queue was full.", ()
)
TRACES_DROPPED = _metric(
    "acestep.traces.dropped", "counter", "{trace}",
    "Requests whose trace was dropped because a span processor was slower than the requests.", (),
)  # fmt: skip
SDK_SPANS_PROCESSED = MetricDefinition(
    "otel.sdk.processor.span.processed", "counter", "{span}",
    "Spans that the SDK's processor completed; error.type is the reason for a loss. Recorded by the SDK, if enabled.",
    (ERROR_TYPE,),
)  # fmt: skip
_CELL = (REQUEST_MODEL, AUDIO_DURATION_REQUESTED, BATCH_SIZE, THINKING, DIT_STEPS_REQUESTED, HW_MODEL)
BENCHMARK_WALL = _metric(
    "acestep.benchmark.wall", "gauge", "s", "Wall time of a benchmark's cell: the median of its runs.", _CELL
)
BENCHMARK_LM = _metric(
    "acestep.benchmark.lm", "gauge", "s", "Language-model time of a benchmark's cell: the median of its runs.", _CELL
)
BENCHMARK_DIT = _metric(
    "acestep.benchmark.dit", "gauge", "s", "Diffusion time of a benchmark's cell: the median of its runs.", _CELL
)
BENCHMARK_VAE = _metric(
    "acestep.benchmark.vae", "gauge", "s", "VAE decode time of a benchmark's cell: the median of its runs.", _CELL
)
BENCHMARK_CELLS = _metric(
    "acestep.benchmark.cells", "counter", "{cell}", "Finished cells of benchmarks by outcome.", (REQUEST_MODEL, OUTCOME)
)
BENCHMARK_STATUS = _metric(
    "acestep.benchmark.status", "gauge", "{cell}", "1 for a benchmark's cell that ran, 0 for one that failed.", _CELL
)
DOCTOR_TIME = _metric("acestep.doctor.time", "gauge", "s", "Unix time at which the subcommand doctor sent it.", ())
_TRIAL = (TIER_NAME, TIER_MEMORY, TIER_VARIANT, TIER_LM, AUDIO_DURATION_REQUESTED, BATCH_SIZE)
TIER_PEAK = _metric(
    "acestep.tier.peak", "gauge", "By", "Peak memory of a tier test's row, by kind; absent off CUDA.",
    (*_TRIAL, VRAM_KIND),
)  # fmt: skip
TIER_LIMIT = _metric("acestep.tier.limit", "gauge", "By", "Memory of the card that a row simulates.", _TRIAL)
TIER_STATUS = _metric(
    "acestep.tier.status", "gauge", "{row}", "1 for a tier test's row that passed, 0 for one that did not.", _TRIAL
)
TIER_WALL = _metric("acestep.tier.wall", "gauge", "s", "Wall time of a row's generation, compilation included.", _TRIAL)
TIER_BOUNDARY = _metric(
    "acestep.tier.boundary", "gauge", "By",
    "Memory of the smallest card from which on all cards have the capability; absent if none has it.",
    (TIER_CAPABILITY,),
)  # fmt: skip
TIER_BATCH = _metric(
    "acestep.tier.batch", "gauge", "{song}", "Maximum songs at once on a card; 0 if not even one fits.",
    (TIER_NAME, TIER_MEMORY, TIER_WITH_LM),
)  # fmt: skip
