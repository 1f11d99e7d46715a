"""The planner's phases on MLX: the decode loop of the PyTorch backend on MLX arrays.

Guidance is combined on hidden states before the head, the head has only the rows that can be drawn, and tokens that the
grammar forces are processed with the next pass. The device works one pass ahead of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import mlx.core as mx
import torch

from acestep.planner.backends.base import PlannerBackend, seconds_of, unloaded
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.mlx.decode_state import Candidates, DecodeState, convert
from acestep.planner.backends.mlx.sampling import sample
from acestep.planner.backends.phases import COMPOSING, CodesPhase, PhaseTokens, TextPhase
from acestep.planner.budget import LanguageModel, PlannerBudget
from acestep.types import SamplingSettings

_HOST: Final = torch.device("cpu")
"""Clock of the timings: a pass is waited for where it is timed."""


class MlxBackend(PlannerBackend[Candidates]):
    """``PlannerBackend`` on MLX.

    Args:
        model: a loaded language model; its weights are copied, so the caller can release it.
    """

    name = "mlx"

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self._body: Any = convert(model)
        self.budget = PlannerBudget.of(model)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> DecodeState:
        """One pass over the prompts, one row each; ends when the device has done it."""
        if self._body is None:
            raise unloaded()
        state = DecodeState(self._body, prompts, self.vocabulary.layout.pad)
        mx.eval(state.hidden)
        return state

    def decode(
        self,
        state: DecodeState,
        pending: mx.array | None,
        candidates: Candidates,
        sampling: SamplingSettings,
        keys: mx.array,
    ) -> mx.array:
        """One pass for all rows: forward of what is pending, guidance, head, sampling.

        Args:
            state: rows in flight; with guidance the second half of them is unconditional.
            pending: token ids that no pass has processed yet, shape ``[rows, tokens]``; ``None`` right after the
                prefill.
            candidates: what may be drawn.
            sampling: how.
            keys: shape ``[items]``.

        Returns:
            Drawn token ids, shape ``[items]``. The device works one pass ahead: what is waited for are the pending
            ones, and the first pass.
        """
        if pending is not None:
            state.advance(pending)
        hidden = state.hidden.astype(mx.float32)
        if len(hidden) > len(keys):
            conditional, unconditional = mx.split(hidden, 2)
            hidden = unconditional + sampling.guidance_scale * (conditional - unconditional)
        drawn = candidates.token_ids(sample(candidates.logits(hidden), sampling, keys))
        mx.async_eval(drawn)
        mx.eval(drawn if pending is None else pending)
        return drawn

    def unload(self) -> None:
        """Free the model's memory (see ``PlannerBackend.unload``)."""
        with self._turn:
            self._body = None
            self._forget_candidates()
            mx.clear_cache()

    def _candidates(self, choice: TokenChoice) -> Candidates:
        if self._body is None:
            raise unloaded()
        return Candidates.of(choice, self._body.embed_tokens.weight)

    def _write_codes(self, phase: CodesPhase) -> PhaseTokens:
        """Ids stay on the device: nothing is read before a report or the end."""
        candidates = self._candidates(TokenChoice.codes(self.vocabulary.layout))
        keys = mx.array(phase.noise_keys().numpy())
        state = self.prefill(phase.prompts)
        state.repeat(len(phase.seeds))
        written: list[mx.array] = []
        for step in range(phase.count):
            pending = mx.tile(written[-1], len(phase.prompts))[:, None] if written else None
            written.append(self.decode(state, pending, candidates, phase.sampling, keys[step]))
            if phase.is_report_due(len(written)):
                # Reading a value waits for the device: what is reported is complete.
                mx.eval(written[-1], state.finite)
                phase.report(len(written))
        self._require_finite(bool(state.finite.item()), COMPOSING)
        songs: list[list[int]] = mx.stack(written, axis=1).tolist()
        return PhaseTokens.of_codes(songs, phase.conditional, phase.unconditional, forwards=state.forwards)

    def _write_text(self, phase: TextPhase[Candidates]) -> PhaseTokens:
        """One token is read back per pass, for the guide."""
        keys, guide = mx.array(phase.noise_keys().numpy()), phase.guide
        written = guide.opening()
        state = self.prefill([[*phase.prompt, *written]])
        pending: mx.array | None = None
        sampled = 0
        while not guide.done and sampled < phase.token_limit:
            drawn = self.decode(state, pending, guide.candidates(), phase.sampling, keys[sampled : sampled + 1])
            chunk = guide.accept(int(drawn.item()))
            written += chunk
            sampled += 1
            pending = mx.array([chunk])
            phase.report(len(written))
        self._require_finite(bool(state.finite.item()), phase.stage)
        return PhaseTokens.of_text(written, phase.prompt, sampled=sampled, forwards=state.forwards)

    def _decode_timer(self, songs: int, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        state = self.prefill(prompts)
        state.repeat(songs)
        return lambda: seconds_of(_HOST, state.time_advance)

    def _prefill_timer(self, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        return lambda: seconds_of(_HOST, lambda: self.prefill(prompts))
