"""The planner's phases on vLLM's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Final

import torch

from acestep.errors import BackendFailed
from acestep.planner.backends.base import COMPOSING, CodesPhase, PhaseTokens, PlannerBackend, TextPhase, unloaded
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.vllm.engine import Reservation, build_engine, close_engine
from acestep.planner.backends.vllm.rows import EngineRows, RowRequest
from acestep.planner.backends.vllm.selection import CodesSelection, Selection, TextSelection, TokenSelector
from acestep.planner.budget import LanguageModel, PlannerBudget, bytes_per_position
from acestep.types import SamplingSettings

_TIMED_PASSES: Final = 16


class VllmBackend(PlannerBackend[TokenChoice]):
    """``PlannerBackend`` on vLLM.

    The engine is started with room for a number of songs and takes no more memory afterwards. It has no prefix cache,
    so that a song depends on nothing but its own prompt. Phases of several threads take turns.

    Args:
        model: a loaded language model; the engine copies its weights, the caller can let go of it.
        device: where the engine runs.
        songs: made together.
        memory_limit: bytes for keys and values at most; ``None`` reserves the worst case.

    Raises:
        BackendUnavailable: vLLM cannot run here.
        OutOfMemory: the engine does not fit.
    """

    name = "vllm"

    def __init__(
        self, model: LanguageModel, *, device: torch.device, songs: int, memory_limit: int | None = None
    ) -> None:
        super().__init__(model)
        self._device = device
        self._selector = TokenSelector()
        reservation = Reservation.for_songs(model, songs, memory_limit)
        self._engine: Any = build_engine(model, device, reservation, self._selector)
        self.budget = PlannerBudget(
            context_limit=reservation.context_limit,
            bytes_per_position=bytes_per_position(model),
            free_bytes=lambda: reservation.bytes,
            row_limit=reservation.rows,
        )

    def prefill(self, rows: EngineRows) -> None:
        """The engine's first pass: it takes the prompts and gives the first token of each row."""
        rows.start()

    def decode(self, rows: EngineRows) -> None:
        """One token of each row: those of the first pass, or of another one."""
        rows.advance()

    def unload(self) -> None:
        """Stop the engine and free its memory (see ``PlannerBackend.unload``)."""
        with self._turn:
            engine, self._engine = self._engine, None
            if engine is not None:
                close_engine(engine)

    def _candidates(self, choice: TokenChoice) -> TokenChoice:
        return choice

    def _write_codes(self, phase: CodesPhase) -> PhaseTokens:
        """A request per row; guidance pairs two of them."""
        songs, guided = len(phase.seeds), phase.unconditional is not None
        keys = phase.noise_keys().to(self._device)
        selection = CodesSelection(TokenChoice.codes(self._vocabulary.layout), phase.sampling, keys, guided=guided)
        with self._rows(COMPOSING, _groups(phase), selection) as rows:
            self.prefill(rows)
            while not rows.finished:
                self.decode(rows)
                written = [rows.written[song] for song in range(songs)]
                if guided and not (selection.in_step and _pairs_agree(rows, songs)):
                    raise BackendFailed(
                        "vLLM ran the two requests of a guided song in different passes, so their tokens differ: "
                        "take `lm_backend` pt, or a guidance scale of 1",
                        stage=COMPOSING,
                    )
                done = min(map(len, written))
                if done and phase.is_report_due(done):
                    phase.report(done)
        return PhaseTokens.of_codes(
            written, phase.conditional, phase.unconditional, forwards=rows.passes, engine_times=rows.times
        )

    def _write_text(self, phase: TextPhase[TokenChoice]) -> PhaseTokens:
        """A forced token takes a pass, like any other."""
        eos, guide = self._vocabulary.layout.eos, phase.guide
        selection = TextSelection(guide, phase.sampling, phase.noise_keys().to(self._device), closing=eos)
        prompt = [*phase.prompt, *selection.opening]
        request = RowRequest(0, prompt, self.budget.context_limit + 1 - len(prompt), frozenset({eos, *guide.ends}))
        with self._rows(phase.stage, [[request]], selection) as rows:
            if not selection.over:
                self.prefill(rows)
            while not rows.finished:
                if selection.over and not rows.unread:
                    # The text has ended, the engine's request has not: the token that ends it belongs to no text.
                    rows.advance()
                    break
                self.decode(rows)
                phase.report(len(selection.written))
        return PhaseTokens.of_text(
            selection.written, phase.prompt, sampled=selection.sampled, forwards=rows.passes, engine_times=rows.times
        )

    def _decode_timer(self, songs: int, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        """The passes of a phase that is cut short, one after the other."""
        seconds = self._pass_seconds(songs, prompts, _TIMED_PASSES)
        return iter(seconds).__next__

    def _prefill_timer(self, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        return lambda: self._pass_seconds(1, prompts, 1)[0]

    def _pass_seconds(self, songs: int, prompts: Sequence[Sequence[int]], passes: int) -> list[float]:
        unconditional = prompts[1] if len(prompts) > 1 else None
        phase = CodesPhase(prompts[0], unconditional, passes, SamplingSettings(), [0] * songs)
        keys = phase.noise_keys().to(self._device)
        selection = CodesSelection(
            TokenChoice.codes(self._vocabulary.layout), phase.sampling, keys, guided=unconditional is not None
        )
        seconds = []
        with self._rows(COMPOSING, _groups(phase), selection) as rows:
            while not rows.finished:
                begin = perf_counter()
                rows.advance()
                seconds.append(perf_counter() - begin)
        return seconds

    @contextmanager
    def _rows(self, stage: str, groups: Sequence[Sequence[RowRequest]], selection: Selection) -> Iterator[EngineRows]:
        """A phase's rows, with the selector for its selection alone."""
        if self._engine is None:
            raise unloaded()
        self._selector.open(selection)
        try:
            with EngineRows(self._engine, stage, groups) as rows:
                yield rows
            self._require_finite(self._selector.finite, stage)
        finally:
            self._selector.close()


def _groups(phase: CodesPhase) -> list[list[RowRequest]]:
    """A song's rows, which have to be in step."""
    songs = len(phase.seeds)
    return [
        [RowRequest(song + songs * index, prompt, phase.count) for index, prompt in enumerate(phase.prompts)]
        for song in range(songs)
    ]


def _pairs_agree(rows: EngineRows, songs: int) -> bool:
    return all(rows.written[song][-1:] == rows.written[songs + song][-1:] for song in range(songs))
