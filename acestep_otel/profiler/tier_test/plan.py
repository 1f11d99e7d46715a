"""The trials of a tier test: cards, variants, batch sizes, which of them share a child process, and their requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final, Self

from acestep.cards import Card
from acestep.checkpoints import TINY_LM, ModelSelection
from acestep.gpu_config import GPUConfig, gpu_config
from acestep.types import GenerationRequest, Placement
from acestep_otel import semconv
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.example import Example
from acestep_otel.profiler.run.generation_request import build_request, select_models
from acestep_otel.profiler.tier_test.trials import Trial

BATCH_SIZES: Final = (1, 2, 4, 8)
"""Songs at once, in the order that they are tried."""

_LM_NAME: Final = "acestep-5Hz-lm-"


@dataclass(frozen=True, slots=True)
class Planned:
    """One planned row of the table.

    Attributes:
        trial: the trial.
        skipped: why it is not tried, or ``None``.
    """

    trial: Trial
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class Trials:
    """Work for one child process: trials on one card with the same models in the same placement.

    Attributes:
        options: of the command line.
        trials: in order; an out-of-memory error ends the process.
        card: card of the process; ``None`` without ``--gpus``.
    """

    options: Options
    trials: tuple[Trial, ...]
    card: Card | None = None

    def on(self, card: Card) -> Trials:
        """The same work on a card."""
        return replace(self, options=replace(self.options, device=card.device), card=card)

    @property
    def memory(self) -> int:
        """GiB of the simulated card."""
        return self.trials[0].memory

    @property
    def songs(self) -> int:
        """Largest number of songs at once."""
        return max(trial.batch_size for trial in self.trials)


def longest_first(jobs: Iterable[Trials]) -> list[Trials]:
    """Jobs in the order of assignment to several cards: the longest first, so that no long one starts last.

    With a language model a trial takes about four times as long, because the codes are written before the rendering.
    """

    def length(job: Trials) -> float:
        return sum(
            trial.duration * trial.batch_size * trial.inference_steps * (1 if trial.lm_model is None else 4)
            for trial in job.trials
        )

    return sorted(jobs, key=length, reverse=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole tier test.

    Attributes:
        rows: in the order of the table.
        jobs: what is tried, in the same order.
    """

    rows: tuple[Planned, ...]
    jobs: tuple[Trials, ...]

    @classmethod
    def of(cls, options: Options, inference_steps: int) -> Self:
        """Lay out every card of ``--tiers``, each once.

        Args:
            options: of the command line.
            inference_steps: of the example, if the command line has none.
        """
        steps = inference_steps if options.inference_steps is None else options.inference_steps
        rows = tuple(row for memory in dict.fromkeys(options.tiers) for row in _Card(memory, options, steps).rows())
        trials = [row.trial for row in rows if row.skipped is None]
        shared = groupby(trials, key=lambda trial: (trial.memory, trial.placement, trial.lm_model))
        return cls(rows, tuple(Trials(options, tuple(group)) for _, group in shared))


@dataclass(frozen=True, slots=True)
class _Card:
    """The rows of one simulated card."""

    memory: int
    options: Options
    steps: int

    @property
    def config(self) -> GPUConfig:
        return gpu_config(float(self.memory))

    @property
    def placement(self) -> Placement:
        return self.config.placement(skip_compile=self.options.tier_skip_compile)

    @property
    def lm_model(self) -> str | None:
        """The language model that the tier recommends; ``None`` if it recommends none."""
        size = self.config.recommended_lm
        if size is None:
            return None
        return TINY_LM if self.options.tiny else f"{_LM_NAME}{size}"

    def rows(self) -> Iterator[Planned]:
        default = self._trial()
        if self.options.tier_boundary or not self.options.tier_batch_boundary:
            yield Planned(default)
        if self.options.tier_boundary:
            yield from self._boundary(default)
        if self.options.tier_batch_boundary:
            yield from self._batches()

    def _trial(self) -> Trial:
        return Trial(
            memory=self.memory,
            tier=self.config.tier,
            kind="default",
            lm_model=self.lm_model if self.options.tier_with_lm else None,
            placement=self.placement,
            batch_size=1,
            duration=self.options.tier_duration if self.options.duration is None else self.options.duration,
            inference_steps=self.steps,
            supported=self.options.tiny or self.config.supports(self.options.config_path),
        )

    def _boundary(self, default: Trial) -> Iterator[Planned]:
        bare = Placement(compile=not self.options.tier_skip_compile)
        not_quantised = replace(default.placement, quantization=None, compile=bare.compile)
        same = default.placement == not_quantised
        yield Planned(
            replace(default, kind="no-quant", placement=not_quantised),
            f"{default.tier} does not quantise: the result would equal the default" if same else None,
        )
        same = default.placement == bare
        yield Planned(
            replace(default, kind="no-offload", placement=bare),
            f"{default.tier} keeps everything on the GPU already: the result would equal the default" if same else None,
        )

    def _batches(self) -> Iterator[Planned]:
        without = replace(self._trial(), kind="batch-noLM", lm_model=None)
        for batch_size in BATCH_SIZES:
            yield Planned(replace(without, batch_size=batch_size))
        with_lm = replace(without, kind="batch-LM", lm_model=self.lm_model)
        if self.lm_model is None:
            yield Planned(with_lm, f"{with_lm.tier} runs no language model")
            return
        for batch_size in BATCH_SIZES:
            yield Planned(replace(with_lm, batch_size=batch_size))


def trial_request(example: Example, options: Options, trial: Trial) -> GenerationRequest:
    """The example at the trial's size; with a language model, values are left open so that both phases run."""
    thinks = trial.lm_model is not None
    return build_request(
        example,
        replace(
            options,
            duration=trial.duration,
            batch_size=trial.batch_size,
            inference_steps=trial.inference_steps,
            thinking=thinks,
            use_cot_metas=thinks,
        ),
    )


def trial_selection(options: Options, trial: Trial, placement: Placement, songs: int) -> ModelSelection:
    """The models of a trial; the language model is that of the tier, whatever the command line names.

    Args:
        options: of the command line.
        trial: the first trial that uses them.
        placement: their placement.
        songs: largest number of songs at once in a trial with these models.
    """
    selection = select_models(options, with_language_model=False, songs=songs)
    return replace(selection, lm=trial.lm_model, placement=placement)


def trial_attributes(trial: Trial) -> dict[str, str | int]:
    """Attributes that identify the spans and metrics of a trial."""
    return {
        semconv.TIER_NAME: trial.tier,
        semconv.TIER_MEMORY: trial.memory,
        semconv.TIER_VARIANT: trial.variant,
        semconv.TIER_LM: trial.lm_size or "none",
    }
