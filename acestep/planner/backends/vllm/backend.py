"""The planner's phases on vLLM's engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from statistics import median
from threading import Lock
from time import perf_counter
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch

from acestep.errors import BackendFailed, BackendUnavailable, InvalidOutput
from acestep.planner.backends import COMPOSING, LYRICS, PROGRESS_INTERVAL, REASONING, PhaseTokens
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.text import ConstrainedText, FreeText, GrammarWalk, TextGuide, reasoning_ends
from acestep.planner.backends.vllm.draws import CodesDraw, Draw, DrawingDesk, TextDraw
from acestep.planner.backends.vllm.engine import Reservation, build_engine, close_engine
from acestep.planner.backends.vllm.rows import EngineRows, RowRequest
from acestep.planner.budget import LanguageModel, PlannerBudget, bytes_per_position
from acestep.planner.grammar import AllowedTokens, GrammarCursor
from acestep.planner.sampling import item_keys
from acestep.types import Progress, ProgressCallback, SamplingSettings

_TIMED_PASSES: Final = 7
_WARM_UPS: Final = 2


class VllmBackend(GrammarWalk):
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
        self._model_name = model.name
        self._vocabulary = model.vocabulary
        self._device = device
        self._desk = DrawingDesk()
        self._turn = Lock()
        self._choices: WeakKeyDictionary[AllowedTokens, TokenChoice] = WeakKeyDictionary()
        reservation = Reservation.for_songs(model, songs, memory_limit)
        self._engine: Any = build_engine(model, device, reservation, self._desk)
        self.budget = PlannerBudget(
            context_limit=reservation.context_limit,
            bytes_per_position=bytes_per_position(model),
            free_bytes=lambda: reservation.bytes,
            row_limit=reservation.rows,
        )

    def generate_metadata(
        self,
        prompt: Sequence[int],
        cursor: GrammarCursor | None,
        sampling: SamplingSettings,
        seed: int,
        token_limit: int,
        progress: ProgressCallback | None = None,
    ) -> PhaseTokens:
        """Phase 1 (see ``PlannerBackend.generate_metadata``); a forced token takes a pass, like any other."""
        layout = self._vocabulary.layout
        guide: TextGuide[TokenChoice]
        if cursor is None:
            guide = FreeText(TokenChoice.text(layout), reasoning_ends(layout))
        else:
            guide = ConstrainedText(cursor, self.constrain, self.accept)
        return self._write_text(REASONING, prompt, guide, sampling, seed, token_limit, progress)

    def generate_lyrics(
        self,
        prompt: Sequence[int],
        sampling: SamplingSettings,
        seed: int,
        token_limit: int,
        progress: ProgressCallback | None = None,
    ) -> PhaseTokens:
        """Free text (see ``PlannerBackend.generate_lyrics``)."""
        guide = FreeText(self._lyrics, frozenset({self._vocabulary.layout.eos}))
        return self._write_text(LYRICS, prompt, guide, sampling, seed, token_limit, progress)

    def generate_codes(
        self,
        conditional: Sequence[int],
        unconditional: Sequence[int] | None,
        count: int,
        sampling: SamplingSettings,
        seeds: Sequence[int],
        progress: ProgressCallback | None = None,
    ) -> PhaseTokens:
        """Phase 2 (see ``PlannerBackend.generate_codes``): a request per row; guidance pairs two of them."""
        songs = len(seeds)
        keys = torch.stack([item_keys(seed, COMPOSING, count) for seed in seeds], dim=1).to(self._device)
        guided = unconditional is not None
        draw = CodesDraw(TokenChoice.codes(self._vocabulary.layout), sampling, keys, guided=guided)
        with self._rows(COMPOSING, _groups(songs, conditional, unconditional, count), draw) as rows:
            self.prefill(rows)
            while not rows.finished:
                self.decode(rows)
                written = [rows.written[song] for song in range(songs)]
                if guided and not (draw.in_step and _twins_agree(rows, songs)):
                    raise BackendFailed(
                        "vLLM ran the two requests of a guided song in different passes, so their tokens differ: "
                        "take `lm_backend` pt, or a guidance scale of 1",
                        stage=COMPOSING,
                    )
                done = min(map(len, written))
                if progress is not None and (done == count or (done and done % PROGRESS_INTERVAL == 0)):
                    progress(Progress(COMPOSING, done, count))
        return PhaseTokens.of_codes(written, conditional, unconditional, forwards=rows.passes, engine_times=rows.times)

    def prefill(self, rows: EngineRows) -> None:
        """The engine's first pass: it takes the prompts and gives the first token of each row."""
        rows.start()

    def decode(self, rows: EngineRows) -> None:
        """One token of each row: those of the first pass, or of another one."""
        rows.advance()

    def constrain(self, cursor: GrammarCursor) -> TokenChoice:
        """What the grammar leaves at this place."""
        allowed = cursor.allowed()
        choice = self._choices.get(allowed)
        if choice is None:
            choice = self._choices[allowed] = TokenChoice.of_grammar(allowed, self._vocabulary.layout)
        return choice

    def trace_headers(self) -> Mapping[str, str] | None:
        """Headers of the trace that the engine's own spans shall join; the tracing layer provides them from outside."""
        return None

    def measure_guidance_share(self, rows: int, context: int) -> float:
        """Share of a decode pass that the unconditional rows cost.

        Args:
            rows: songs generated together.
            context: positions in the cache.

        Returns:
            ``1 - time(rows) / time(2 * rows)``, from medians, 0 ... 1.
        """
        prompt = [self._vocabulary.layout.pad] * context
        return _saved(
            median(self._pass_seconds(rows, prompt, None)[_WARM_UPS:]),
            median(self._pass_seconds(rows, prompt, prompt[1:])[_WARM_UPS:]),
        )

    def measure_prefill_guidance_share(self, tokens: int) -> float:
        """The same for the pass over the prompts, of which the conditional one has ``tokens`` tokens."""
        prompt = [self._vocabulary.layout.pad] * tokens
        plain = [self._pass_seconds(1, prompt, None, 1)[0] for _ in range(_WARM_UPS + _TIMED_PASSES)]
        guided = [self._pass_seconds(1, prompt, prompt[1:], 1)[0] for _ in range(_WARM_UPS + _TIMED_PASSES)]
        return _saved(median(plain[_WARM_UPS:]), median(guided[_WARM_UPS:]))

    def unload(self) -> None:
        """Stop the engine and free its memory (see ``PlannerBackend.unload``)."""
        with self._turn:
            engine, self._engine = self._engine, None
            if engine is not None:
                close_engine(engine)

    def _write_text(
        self,
        stage: str,
        prompt: Sequence[int],
        guide: TextGuide[TokenChoice],
        sampling: SamplingSettings,
        seed: int,
        token_limit: int,
        progress: ProgressCallback | None,
    ) -> PhaseTokens:
        """Decode one row until the guide is done or ``token_limit`` tokens were drawn."""
        layout = self._vocabulary.layout
        keys = item_keys(seed, stage, token_limit).to(self._device)
        draw = TextDraw(guide, sampling, keys, closing=layout.eos)
        prompted = [*prompt, *draw.opening]
        request = RowRequest(
            0, prompted, self.budget.context_limit + 1 - len(prompted), frozenset({layout.eos, *guide.ends})
        )
        with self._rows(stage, [[request]], draw) as rows:
            if not draw.over:
                self.prefill(rows)
            while not rows.finished:
                if draw.over and not rows.unread:
                    # The text has ended, the engine's request has not: the token that ends it is nobody's.
                    rows.advance()
                    break
                self.decode(rows)
                if progress is not None:
                    progress(Progress(stage, len(draw.written), None))
        return PhaseTokens.of_text(
            draw.written, prompt, sampled=draw.sampled, forwards=rows.passes, engine_times=rows.times
        )

    @contextmanager
    def _rows(self, stage: str, groups: Sequence[Sequence[RowRequest]], draw: Draw) -> Iterator[EngineRows]:
        """A phase's rows, and the desk for its draw alone."""
        with self._turn:
            if self._engine is None:
                raise BackendUnavailable("the language model was unloaded: load it again")
            self._desk.open(draw)
            try:
                with EngineRows(self._engine, stage, groups, self.trace_headers()) as rows:
                    yield rows
                if not self._desk.finite:
                    raise InvalidOutput(f"the language model {self._model_name} produced NaN or infinity", stage=stage)
            finally:
                self._desk.close()

    def _pass_seconds(
        self,
        songs: int,
        conditional: Sequence[int],
        unconditional: Sequence[int] | None,
        passes: int = _WARM_UPS + _TIMED_PASSES,
    ) -> list[float]:
        """Seconds of each pass of a phase 2 that is cut short."""
        keys = torch.zeros(passes, songs, dtype=torch.long, device=self._device)
        draw = CodesDraw(
            TokenChoice.codes(self._vocabulary.layout), SamplingSettings(), keys, guided=unconditional is not None
        )
        seconds = []
        with self._rows(COMPOSING, _groups(songs, conditional, unconditional, passes), draw) as rows:
            while not rows.finished:
                begin = perf_counter()
                rows.advance()
                seconds.append(perf_counter() - begin)
        return seconds

    @cached_property
    def _lyrics(self) -> TokenChoice:
        return TokenChoice.lyrics(self._vocabulary)


def _groups(
    songs: int, conditional: Sequence[int], unconditional: Sequence[int] | None, count: int
) -> list[list[RowRequest]]:
    """A song's rows, which have to be in step."""
    if unconditional is None:
        return [[RowRequest(song, conditional, count)] for song in range(songs)]
    return [
        [RowRequest(song, conditional, count), RowRequest(songs + song, unconditional, count)] for song in range(songs)
    ]


def _twins_agree(rows: EngineRows, songs: int) -> bool:
    return all(rows.written[song][-1:] == rows.written[songs + song][-1:] for song in range(songs))


def _saved(smaller: float, larger: float) -> float:
    return min(max(1 - smaller / larger, 0.0), 1.0)
