"""Rows of a tier test: trial, observation of the child process, and result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

from acestep.cards import Card
from acestep.memory_cap import MemoryCap
from acestep.types import Placement
from acestep_otel.profiler.benchmark.matrix import Failure, Figures
from acestep_otel.profiler.children.cards import card_json

GIB: Final = 2**30

Kind = Literal["default", "no-quant", "no-offload", "batch-noLM", "batch-LM"]
Status = Literal["ok", "failed", "out_of_memory", "killed", "timeout", "skipped"]
DriverSource = Literal["nvml_process", "nvml_device", "reserved_and_reference_context"]
"""The source of the driver's view of a process: its own entry in the driver's list of processes; the growth of the
device's use since before the process began; or, without NVML, the allocator and a context of typical size."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One generation on one simulated card.

    Attributes:
        memory: GiB that the card has.
        tier: tier of such a card.
        kind: the tier's own settings (``default``); without quantisation; without that and offload; or the tier's own
            settings for batches of songs, without and with its language model.
        lm_model: language model of the planner, or ``None``.
        placement: device and format of the models.
        batch_size: songs per request.
        duration: seconds of each.
        inference_steps: diffusion steps.
        supported: whether the model's authors support the diffusion model on the tier.
    """

    memory: int
    tier: str
    kind: Kind
    lm_model: str | None
    placement: Placement
    batch_size: int
    duration: float
    inference_steps: int
    supported: bool = True

    @property
    def variant(self) -> str:
        """Name within the tier."""
        return f"{self.kind}-{self.batch_size}" if self.is_batch else self.kind

    @property
    def is_batch(self) -> bool:
        """Whether it tests how many songs fit at once."""
        return self.kind in ("batch-noLM", "batch-LM")

    @property
    def decides(self) -> bool:
        """Whether it has the tier's own settings, so that its failure is a failure of the command."""
        return self.supported and (self.kind == "default" or (self.is_batch and self.batch_size == 1))

    @property
    def lm_size(self) -> str | None:
        """Short name of the language model: the end of its name."""
        return None if self.lm_model is None else self.lm_model.rpartition("-")[2]

    @property
    def limit(self) -> int:
        """The card's memory in bytes."""
        return self.memory * GIB

    def __str__(self) -> str:
        lm = "" if self.lm_size is None else f", LM {self.lm_size}"
        return f"{self.memory}GB {self.variant}{lm}"

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(**{**found, "placement": Placement(**found["placement"])})


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Maximum bytes during one stage; ``None`` if not read.

    Attributes:
        stage: for example ``vae.decode``.
        allocated: in live tensors.
        reserved: reserved by the caching allocator.
        driver: used by the process, as the driver reports it.
    """

    stage: str
    allocated: int | None
    reserved: int | None
    driver: int | None


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Device memory of one trial, in bytes.

    Attributes:
        source: where ``driver`` comes from.
        context: memory of the process beyond the allocator's: the CUDA context, kernels, libraries.
        allocated: maximum in live tensors.
        reserved: maximum reserved by the caching allocator.
        driver: maximum reading of the whole process; ``None`` without NVML.
        stages: the same by stage.
    """

    source: DriverSource
    context: int
    allocated: int
    reserved: int
    driver: int | None
    stages: tuple[StageMemory, ...] = ()

    @property
    def computed_peak(self) -> int:
        """The allocator's peak plus the context, which misses no short peak."""
        return self.reserved + self.context

    @property
    def peak(self) -> int:
        """The larger of the computed peak and the driver's."""
        return max(self.computed_peak, self.driver or 0)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(**{**found, "stages": tuple(StageMemory(**stage) for stage in found["stages"])})


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """Properties of the generated audio.

    Attributes:
        songs: number of songs.
        durations: seconds of each.
        finite: whether every sample is finite.
        quietest: peak level of the quietest song, 0 ... 1.
        thought: songs that the language model wrote codes for.
    """

    songs: int
    durations: tuple[float, ...]
    finite: bool
    quietest: float
    thought: int

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""
        return cls(**{**found, "durations": tuple(found["durations"])})


@dataclass(frozen=True, slots=True)
class Observation:
    """The measurements of a child process in one trial.

    Attributes:
        device: device that it ran on.
        cap: the allocator's hard limit; ``None`` off CUDA, where there is none.
        initialised: whether every model was loaded.
        figures: seconds, or ``None`` if the run left no trace.
        memory: ``None`` off CUDA.
        audio: ``None`` if no audio was generated.
        run: the run's entry of the result file, or ``None`` if it did not begin.
    """

    device: str
    cap: MemoryCap | None
    initialised: bool
    figures: Figures | None = None
    memory: MemoryUse | None = None
    audio: AudioFacts | None = None
    run: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what ``asdict`` made."""

        def read(name: str, reader: Callable[[dict[str, Any]], Any]) -> Any:
            return None if found[name] is None else reader(found[name])

        return cls(
            **{
                **found,
                "cap": read("cap", lambda value: MemoryCap(**value)),
                "figures": read("figures", lambda value: Figures(**value)),
                "memory": read("memory", MemoryUse.from_json),
                "audio": read("audio", AudioFacts.from_json),
            }
        )

    @property
    def cap_enforced(self) -> bool:
        """Whether the allocator's limit was below the device's memory."""
        return self.cap is not None and self.cap.is_capped

    @property
    def effective(self) -> dict[str, Any] | None:
        """The settings that took effect."""
        return None if self.run is None else self.run["effective_settings"]


@dataclass(frozen=True, slots=True)
class TierResult:
    """One row.

    Attributes:
        trial: the requested trial.
        status: the outcome.
        failure: what ended it; for a skipped trial, why it was not tried.
        observation: the report of the child process before it ended, or ``None``.
        exit_code: of a child process that this row ended; negative for a signal; ``None`` for any other row.
        notes: short remarks on the run.
        card: card that it ran on; ``None`` without ``--gpus``.
    """

    trial: Trial
    status: Status
    failure: Failure | None = None
    observation: Observation | None = None
    exit_code: int | None = None
    notes: tuple[str, ...] = ()
    card: Card | None = None

    @property
    def passed(self) -> bool:
        """Whether the trial ran as requested, within the limit."""
        return self.status == "ok"

    @property
    def tried(self) -> bool:
        """Whether it was run."""
        return self.status != "skipped"

    @property
    def capped(self) -> bool:
        """Whether the allocator's limit is known to have been below the device's memory."""
        return self.observation is not None and self.observation.cap_enforced

    @property
    def peak(self) -> int | None:
        """Peak memory of the process in bytes; ``None`` if it was not read."""
        memory = None if self.observation is None else self.observation.memory
        return None if memory is None else memory.peak

    def to_json(self) -> dict[str, Any]:
        """The entry of ``results``: requested settings and measurements."""
        trial, seen = self.trial, self.observation
        figures = None if seen is None else seen.figures
        effective = None if seen is None else seen.effective
        return {
            "tier_gb": trial.memory,
            "tier": trial.tier,
            "test_variant": trial.variant,
            "use_lm": trial.lm_model is not None,
            "lm_model": trial.lm_model,
            "lm_backend": None if effective is None else effective["lm_backend"],
            "offload": trial.placement.offload_to_cpu,
            "offload_dit": trial.placement.offload_dit_to_cpu,
            "quantization": trial.placement.quantization,
            "compile": trial.placement.compile,
            "duration": trial.duration,
            "batch_size": trial.batch_size,
            "inference_steps": trial.inference_steps,
            "status": self.status,
            "error": None if self.failure is None else asdict(self.failure),
            "init_success": seen is not None and seen.initialised,
            "gen_success": seen is not None and seen.audio is not None,
            **(dict.fromkeys(_FIGURES) if figures is None else asdict(figures)),
            "peak_vram_gb": None if self.peak is None else round(self.peak / GIB, 3),
            "cap_enforced": self.capped,
            "cap": None if seen is None or seen.cap is None else asdict(seen.cap),
            "memory": None if seen is None or seen.memory is None else asdict(seen.memory),
            "audio": None if seen is None or seen.audio is None else asdict(seen.audio),
            "notes": list(self.notes),
            "exit_code": self.exit_code,
            "card": card_json(self.card),
            "run": None if seen is None else seen.run,
        }


_FIGURES: Final = ("wall_time", "lm_time", "dit_time", "vae_time")
