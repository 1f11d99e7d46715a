"""The MLX backend: mlx-lm's Qwen3 under the decode loop of the PyTorch backend, on MLX arrays.

Guidance is combined on hidden states before the head, the head has the rows that can be drawn at all, and what the
grammar forces rides along with the next pass. The device works one pass ahead of the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np
import torch

from acestep.errors import BackendUnavailable, InvalidOutput
from acestep.planner.backends import COMPOSING, LYRICS, PROGRESS_INTERVAL, REASONING, PhaseTokens
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.mlx.decode_state import Candidates, DecodeState
from acestep.planner.backends.mlx.model import convert
from acestep.planner.backends.mlx.sampling import sample
from acestep.planner.backends.text import ConstrainedText, FreeText, GrammarWalk, TextGuide, reasoning_ends
from acestep.planner.backends.timing import share_saved
from acestep.planner.budget import LanguageModel, PlannerBudget
from acestep.planner.grammar import AllowedTokens, GrammarCursor
from acestep.planner.sampling import item_keys
from acestep.types import Progress, ProgressCallback, SamplingSettings

_HOST: Final = torch.device("cpu")
"""Clock of the timings: a pass is waited for where it is timed."""


class MlxBackend(GrammarWalk):
    """``PlannerBackend`` on MLX.

    Args:
        model: a loaded language model; its weights are copied, the caller can let go of it.
    """

    name = "mlx"

    def __init__(self, model: LanguageModel) -> None:
        self._model_name = model.name
        self._vocabulary = model.vocabulary
        self._body: Any = convert(model)
        self._candidates: WeakKeyDictionary[AllowedTokens, Candidates] = WeakKeyDictionary()
        self.budget = PlannerBudget.of(model)

    def generate_metadata(
        self,
        prompt: Sequence[int],
        cursor: GrammarCursor | None,
        sampling: SamplingSettings,
        seed: int,
        token_limit: int,
        progress: ProgressCallback | None = None,
    ) -> PhaseTokens:
        """Phase 1 (see ``PlannerBackend.generate_metadata``): one token is read back per pass, for the grammar."""
        layout = self._vocabulary.layout
        guide: TextGuide[Candidates]
        if cursor is None:
            candidates = Candidates.of(TokenChoice.text(layout), self._head)
            guide = FreeText(candidates, reasoning_ends(layout))
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
        """Free text (see ``PlannerBackend.generate_lyrics``): one token is read back per pass, to see its end."""
        candidates = Candidates.of(self._lyrics, self._head)
        guide = FreeText(candidates, frozenset({self._vocabulary.layout.eos}))
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
        """Phase 2 (see ``PlannerBackend.generate_codes``): ids stay on the device, the end is known beforehand."""
        prompts = [conditional] if unconditional is None else [conditional, unconditional]
        candidates = Candidates.of(TokenChoice.codes(self._vocabulary.layout), self._head)
        keys = mx.array(np.stack([item_keys(seed, COMPOSING, count).numpy() for seed in seeds], axis=1))
        state = self.prefill(prompts)
        state.repeat(len(seeds))
        written: list[mx.array] = []
        for step in range(count):
            pending = mx.tile(written[-1], len(prompts))[:, None] if written else None
            written.append(self.decode(state, pending, candidates, sampling, keys[step]))
            if len(written) % PROGRESS_INTERVAL == 0 or len(written) == count:
                # Reading a value waits for the device: what is reported has really been done.
                mx.eval(written[-1], state.finite)
                if progress is not None:
                    progress(Progress(COMPOSING, len(written), count))
        self._require_finite(state, COMPOSING)
        series: list[list[int]] = mx.stack(written, axis=1).tolist()
        return PhaseTokens.of_codes(series, conditional, unconditional, forwards=state.forwards)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> DecodeState:
        """One pass over the prompts, one row each; ends when the device has done it."""
        if self._body is None:
            raise BackendUnavailable("the language model was unloaded: load it again")
        state = DecodeState(self._body, prompts, self._vocabulary.layout.pad)
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
            pending: token ids that no pass has seen yet, shape ``[rows, tokens]``; ``None`` right after the prefill.
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

    def constrain(self, cursor: GrammarCursor) -> Candidates:
        """The candidates that the grammar leaves at this place."""
        allowed = cursor.allowed()
        candidates = self._candidates.get(allowed)
        if candidates is None:
            choice = TokenChoice.of_grammar(allowed, self._vocabulary.layout)
            candidates = self._candidates[allowed] = Candidates.of(choice, self._head)
        return candidates

    def measure_guidance_share(self, rows: int, context: int) -> float:
        """Share of a decode pass that the unconditional rows cost (see ``PtBackend.measure_guidance_share``)."""
        prompt = [self._vocabulary.layout.pad] * context
        plain, guided = self.prefill([prompt]), self.prefill([prompt, prompt[1:]])
        for state in (plain, guided):
            state.repeat(rows)
        return share_saved(_HOST, plain.time_advance, guided.time_advance)

    def measure_prefill_guidance_share(self, tokens: int) -> float:
        """The same for the pass over the prompts, of which the conditional one has ``tokens`` tokens."""
        prompt = [self._vocabulary.layout.pad] * tokens
        return share_saved(_HOST, lambda: self.prefill([prompt]), lambda: self.prefill([prompt, prompt[1:]]))

    def unload(self) -> None:
        """Free the model's memory (see ``PlannerBackend.unload``)."""
        self._body = None
        self._candidates.clear()
        mx.clear_cache()

    def _write_text(
        self,
        stage: str,
        prompt: Sequence[int],
        guide: TextGuide[Candidates],
        sampling: SamplingSettings,
        seed: int,
        token_limit: int,
        progress: ProgressCallback | None,
    ) -> PhaseTokens:
        """Decode one row until the guide is done or ``token_limit`` tokens were drawn."""
        keys = mx.array(item_keys(seed, stage, token_limit).numpy())
        written = guide.opening()
        state = self.prefill([[*prompt, *written]])
        pending: mx.array | None = None
        sampled = 0
        while not guide.done and sampled < token_limit:
            drawn = self.decode(state, pending, guide.candidates(), sampling, keys[sampled : sampled + 1])
            chunk = guide.accept(int(drawn.item()))
            written += chunk
            sampled += 1
            pending = mx.array([chunk])
            if progress is not None:
                progress(Progress(stage, len(written), None))
        self._require_finite(state, stage)
        return PhaseTokens.of_text(written, prompt, sampled=sampled, forwards=state.forwards)

    @property
    def _head(self) -> mx.array:
        if self._body is None:
            raise BackendUnavailable("the language model was unloaded: load it again")
        weights: mx.array = self._body.embed_tokens.weight
        return weights

    @cached_property
    def _lyrics(self) -> TokenChoice:
        return TokenChoice.lyrics(self._vocabulary)

    def _require_finite(self, state: DecodeState, stage: str) -> None:
        if not state.finite.item():
            raise InvalidOutput(f"the language model {self._model_name} produced NaN or infinity", stage=stage)
