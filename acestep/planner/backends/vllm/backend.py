"""The planner's phases on vLLM's engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Final

import torch

from acestep.errors import BackendFailed, BackendUnavailable
from acestep.planner.backends.base import PlannerBackend, free_memory
from acestep.planner.backends.candidates import Candidates
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.phases import COMPOSING, CodesPhase, PhaseTokens, TextPhase
from acestep.planner.backends.pt.workspace import TOLERANCE
from acestep.planner.backends.vllm.engine import BLOCK, Reservation, build_engine
from acestep.planner.backends.vllm.rows import EngineRows, RowRequest, SharedEngine
from acestep.planner.backends.vllm.selection import CodesSelection, TextSelection, TokenSelector
from acestep.planner.budget import LanguageModel, PlannerBudget, bytes_per_position
from acestep.types import SamplingSettings

logger = logging.getLogger(__name__)

_TIMED_PASSES: Final = 16


class VllmBackend(PlannerBackend[Candidates]):
    """``PlannerBackend`` on vLLM.

    The engine is started with room for a number of songs and allocates no more memory for keys and values afterwards.
    It has no prefix cache, so that a song depends only on its own prompt. Phases of several threads share its
    passes: a request that arrives while others run joins them as soon as there is room (continuous batching).

    Args:
        model: a loaded language model; the engine copies its weights, so the caller can release it.
        device: where the engine runs.
        songs: songs generated together, over all requests.
        memory_limit: bytes for keys and values at most; ``None`` reserves the worst case.
        fuse: run small decode passes in the kernels of the PyTorch backend, if they run and agree with vLLM's model.

    Raises:
        BackendUnavailable: vLLM cannot run here.
        OutOfMemory: the engine does not fit.
    """

    name = "vllm"

    def __init__(
        self,
        model: LanguageModel,
        *,
        device: torch.device,
        songs: int,
        memory_limit: int | None = None,
        fuse: bool = True,
    ) -> None:
        super().__init__(model)
        self._device = device
        reservation = Reservation.for_songs(model, songs, memory_limit)
        self._start(model, reservation, fuse)
        self.budget = PlannerBudget(
            context_limit=reservation.context_limit,
            bytes_per_position=bytes_per_position(model),
            free_bytes=lambda: reservation.bytes,
            row_limit=reservation.rows,
        )

    def _start(self, model: LanguageModel, reservation: Reservation, fuse: bool) -> None:
        """Start an engine; without the kernels if it does not start with them, or if they disagree with its model."""
        codes = TokenChoice.codes(self.vocabulary.layout)
        self._selector = TokenSelector(reservation.rows, reservation.context_limit, codes, self._device)
        reason = None
        try:
            engine = build_engine(model, self._device, reservation, self._selector, fuse)
        except BackendUnavailable as error:
            if not self._selector.fuses:
                raise
            reason = str(error.__cause__ or error)
        else:
            positions = reservation.bytes // bytes_per_position(model)
            self._engine = SharedEngine(engine, self._selector, reservation, positions, self._device)
            if self._selector.fuses:
                # The requests of the comparison are not a user's: a trace does not show them.
                tracing, engine.output_processor.tracing_enabled = engine.output_processor.tracing_enabled, False
                reason = self._disagreement()
                engine.output_processor.tracing_enabled = tracing
                if reason is not None:
                    self._engine.close()
            del engine
        if reason is not None:
            logger.warning("vLLM decodes without the engine's kernels, more slowly: %s", reason)
            free_memory(self._device)
            self._start(model, reservation, fuse=False)

    def _disagreement(self) -> str | None:
        """How the kernels differ from vLLM's model on this GPU, driver and Triton version; ``None`` if they agree.

        Compares the hidden states of a token after two that were decoded with those after a prompt that contains them.
        The longer row continues on a new page.
        """
        prompts = [list(range(2 * BLOCK - 1)), list(range(60, 85))]
        states: list[torch.Tensor] = []
        try:
            for count in (3, 1):
                phase = _cut_short(prompts, 1, count)
                selection = CodesSelection(phase)
                self._selector.seen = {}
                with EngineRows(self._engine, COMPOSING, _groups(phase), selection) as rows:
                    rows.finish()
                states.append(torch.stack([self._selector.seen[selection.number, row] for row in range(2)]))
                prompts = [[*prompt, *rows.written[row][:2]] for row, prompt in enumerate(prompts)]
        except torch.OutOfMemoryError:
            self._engine.close()
            raise
        # Whatever else a driver raises: vLLM's own model still works.
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        self._selector.seen = None
        difference = float((states[0] - states[1]).norm() / states[1].norm())
        return None if difference < TOLERANCE else f"their hidden states differ by {difference:.1%}"

    @property
    def decode_path(self) -> str | None:
        """``fused``, or ``None`` where vLLM's model runs all passes."""
        return "fused" if self._selector.fuses else None

    def prefill(self, rows: EngineRows) -> None:
        """The first pass: it processes the prompts and gives the first token of each row."""
        rows.start()

    def decode(self, rows: EngineRows) -> None:
        """One token of each row: those of the first pass, or of another one."""
        rows.advance()

    def unload(self) -> None:
        """Stop the engine and free its memory (see ``PlannerBackend.unload``)."""
        self._engine.close()
        self._forget_candidates()

    @contextmanager
    def _phase(self, stage: str) -> Iterator[None]:  # noqa: ARG002
        """Phases of several threads run together."""
        self._engine.require_running()
        yield

    def _candidates(self, choice: TokenChoice) -> Candidates:
        return Candidates.of(choice, self._selector.head)

    def _write_codes(self, phase: CodesPhase) -> PhaseTokens:
        """A request per row; guidance pairs two of them."""
        selection = CodesSelection(phase)
        with EngineRows(self._engine, COMPOSING, _groups(phase), selection) as rows:
            self.prefill(rows)
            while selection.written < phase.count:
                self.decode(rows)
                self._require_pairs(selection.in_step)
                if 0 < selection.written < phase.count and phase.is_report_due(selection.written):
                    phase.report(selection.written)
            rows.finish()
            phase.report(phase.count)
        self._require_finite(rows.finite, COMPOSING)
        songs = len(phase.seeds)
        written = [rows.written[song] for song in range(songs)]
        if phase.unconditional is not None:
            self._require_pairs(written == [rows.written[songs + song] for song in range(songs)])
        return PhaseTokens.of_codes(
            written, phase.conditional, phase.unconditional, forwards=selection.passes, engine_times=rows.times
        )

    def _write_text(self, phase: TextPhase[Candidates]) -> PhaseTokens:
        """A forced token takes a pass, like any other."""
        eos, guide = self.vocabulary.layout.eos, phase.guide
        selection = TextSelection(phase, closing=eos, device=self._device)
        prompt = [*phase.prompt, *selection.opening]
        request = RowRequest(0, prompt, self.budget.context_limit + 1 - len(prompt), frozenset({eos, *guide.ends}))
        groups = [] if selection.over else [[request]]
        with EngineRows(self._engine, phase.stage, groups, selection) as rows:
            self.prefill(rows)
            while not rows.finished:
                self.decode(rows)
                phase.report(len(selection.written))
            selection.read()
        self._require_finite(rows.finite, phase.stage)
        return PhaseTokens.of_text(
            selection.written,
            phase.prompt,
            sampled=selection.sampled,
            forwards=selection.passes,
            engine_times=rows.times,
        )

    def _decode_timer(self, songs: int, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        """The passes of a phase that is cut short, one after the other."""
        phase = _cut_short(prompts, songs, _TIMED_PASSES)
        selection, seconds = CodesSelection(phase), []
        with EngineRows(self._engine, COMPOSING, _groups(phase), selection) as rows:
            rows.start()
            while selection.written < phase.count:
                begin = perf_counter()
                rows.advance()
                seconds.append(perf_counter() - begin)
            rows.finish()
        # The first of them is launched with the prompts.
        return iter(seconds[1:]).__next__

    def _prefill_timer(self, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        phase = _cut_short(prompts, 1, 1)

        def timed() -> float:
            begin = perf_counter()
            with EngineRows(self._engine, COMPOSING, _groups(phase), CodesSelection(phase)) as rows:
                rows.finish()
            return perf_counter() - begin

        return timed

    def _require_pairs(self, agree: bool) -> None:
        if not agree:
            raise BackendFailed(
                "vLLM ran the two requests of a guided song in different passes, so their tokens differ: use "
                "`lm_backend` pt, or a guidance_scale of 1",
                stage=COMPOSING,
            )


def _groups(phase: CodesPhase) -> list[list[RowRequest]]:
    """A song's rows, which must take part in the same passes."""
    songs = len(phase.seeds)
    return [
        [RowRequest(song + songs * index, prompt, phase.count) for index, prompt in enumerate(phase.prompts)]
        for song in range(songs)
    ]


def _cut_short(prompts: Sequence[Sequence[int]], songs: int, codes: int) -> CodesPhase:
    unconditional = prompts[1] if len(prompts) > 1 else None
    return CodesPhase(prompts[0], unconditional, codes, SamplingSettings(), [0] * songs)
