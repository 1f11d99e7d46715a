"""The planner's phases on PyTorch.

Three things make it fast everywhere. Guidance is combined on hidden states before the head, which is linear and then
has half the rows to compute. The head is a view of the rows that can be sampled. Tokens that the grammar forces are
never sampled: they are processed with the next pass as a chunk.

On CUDA, where launching is the bottleneck, small passes can run in the engine's kernels (``FusedForward``), and they
and the choice of a code are replayed as graphs. Elsewhere the body of ``transformers`` runs all passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from acestep.cuda_graphs import reserve_workspaces
from acestep.errors import InvalidOutput
from acestep.planner.backends.base import PlannerBackend, free_memory, seconds_of, unloaded
from acestep.planner.backends.candidates import Candidates
from acestep.planner.backends.choices import TokenChoice
from acestep.planner.backends.phases import COMPOSING, REASONING, CodesPhase, PhaseTokens, TextPhase
from acestep.planner.backends.pt.cache import KeyValueCache
from acestep.planner.backends.pt.decode_state import DecodeState
from acestep.planner.backends.pt.workspace import Workspace, start_apart
from acestep.planner.budget import LanguageModel, PlannerBudget
from acestep.types import SamplingSettings


class PtBackend(PlannerBackend[Candidates]):
    """``PlannerBackend`` on PyTorch, for every device that PyTorch has. Phases of several threads take turns.

    Args:
        model: a loaded language model.
        fuse: run small passes in the engine's kernels; ``None`` does if they run and agree with the body.
    """

    name = "pt"

    def __init__(self, model: LanguageModel, *, fuse: bool | None = None) -> None:
        super().__init__(model)
        reserve_workspaces(model.device)
        self._loaded: Workspace | None = Workspace(model, fuse)
        self.budget = PlannerBudget.of(model, self.held_bytes)

    @property
    def model(self) -> LanguageModel:
        """The language model."""
        return self._workspace.model

    @property
    def decode_path(self) -> str:
        """``fused`` or ``eager``."""
        return "fused" if self._workspace.fuses else "eager"

    @property
    def movable_weights(self) -> nn.Module:
        """The body (see ``PlannerBackend.movable_weights``)."""
        return self.model.body

    def held_bytes(self) -> int:
        """Memory of keys and values that is kept from one phase to the next."""
        return 0 if self._loaded is None else self._loaded.nbytes

    def release(self) -> None:
        """Free keys and values, recorded graphs and copies of weights."""
        with self._turn:
            if self._loaded is not None:
                self._loaded.clear()
            self._forget_candidates()

    def unload(self) -> None:
        """Release the model (see ``PlannerBackend.unload``)."""
        with self._turn:
            if self._loaded is not None:
                device, self._loaded = self.model.device, None
                self._forget_candidates()
                free_memory(device)

    def prefill(self, prompts: Sequence[Sequence[int]], capacity: int, items: int = 1) -> DecodeState:
        """One pass over the prompts, except what an earlier phase of the same request left in the cache.

        Args:
            prompts: token ids.
            capacity: positions that will be decoded after the prompts.
            items: rows of each prompt.

        Returns:
            Rows whose ``hidden`` belongs to the last token of each prompt.
        """
        return self._workspace.start(prompts, capacity, items)

    def decode(
        self,
        state: DecodeState,
        pending: torch.Tensor | None,
        candidates: Candidates,
        sampling: SamplingSettings,
        keys: torch.Tensor,
    ) -> torch.Tensor:
        """One pass for all rows: forward of what is pending, guidance, head, sampling.

        Args:
            state: rows in flight; with guidance the second half of them is unconditional.
            pending: token ids that no pass has processed yet, shape ``[rows, tokens]``; ``None`` right after the
                prefill.
            candidates: what may be drawn.
            sampling: how.
            keys: shape ``[items]``.

        Returns:
            Drawn token ids, shape ``[items]``, on the device.
        """
        if pending is not None:
            state.advance(pending)
        return self._workspace.choose(candidates, sampling, state.hidden, keys)

    @property
    def _workspace(self) -> Workspace:
        if self._loaded is None:
            raise unloaded()
        return self._loaded

    @contextmanager
    def _phase(self, stage: str) -> Iterator[None]:
        """One phase at a time, on weights that may have been moved since the last."""
        with torch.inference_mode(), super()._phase(stage):
            if self._workspace.follow_weights():
                self._forget_candidates()
            if stage == REASONING:
                # Only a later phase of the same request continues from the cache: the cost of a request does not depend
                # on others.
                self._workspace.forget_tokens()
            try:
                yield
            except InvalidOutput:
                # NaN would stay in the cache.
                self._workspace.clear()
                raise

    def _candidates(self, choice: TokenChoice) -> Candidates:
        return Candidates.of(choice, self.model.head)

    def _write_codes(self, phase: CodesPhase) -> PhaseTokens:
        """Ids stay on the device: nothing is read before a report or the end."""
        candidates = self._candidates(TokenChoice.codes(self.vocabulary.layout))
        keys = phase.noise_keys().to(self.model.device)
        state = self.prefill(phase.prompts, phase.count, len(phase.seeds))
        written: list[torch.Tensor] = []
        pending: torch.Tensor | None = None
        for step in range(phase.count):
            drawn = self.decode(state, pending, candidates, phase.sampling, keys[step])
            written.append(drawn)
            pending = drawn.repeat(len(phase.prompts)).unsqueeze(1)
            if phase.progress is not None and phase.is_report_due(len(written)):
                # Reading a value waits for the device: what is reported is complete.
                drawn.tolist()
                phase.report(len(written))
        self._require_finite(state.is_finite(), COMPOSING)
        songs = torch.stack(written, dim=1).tolist()
        return PhaseTokens.of_codes(
            songs, phase.conditional, phase.unconditional, forwards=state.forwards, reused_tokens=state.reused
        )

    def _write_text(self, phase: TextPhase[Candidates]) -> PhaseTokens:
        """One token is read back per pass, for the guide."""
        keys, guide = phase.noise_keys().to(self.model.device), phase.guide
        written = guide.opening()
        fed = [*phase.prompt, *written]
        state = self.prefill([fed], phase.token_limit)
        chunk: list[int] = []
        sampled = 0
        while not guide.done and sampled < phase.token_limit:
            pending = torch.tensor([chunk], device=self.model.device) if chunk else None
            drawn = self.decode(state, pending, guide.candidates(), phase.sampling, keys[sampled : sampled + 1])
            fed += chunk
            chunk = guide.accept(int(drawn))
            written += chunk
            sampled += 1
            phase.report(len(written))
        self._require_finite(state.is_finite(), phase.stage)
        state.cache.held = fed
        return PhaseTokens.of_text(
            written,
            phase.prompt,
            sampled=sampled,
            forwards=state.forwards,
            # The grammar's opening is run with the prompt, but is not part of it.
            reused_tokens=min(state.reused, len(phase.prompt)),
        )

    def _decode_timer(self, songs: int, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        candidates = self._candidates(TokenChoice.codes(self.vocabulary.layout))
        keys = torch.zeros(songs, dtype=torch.long, device=self.model.device)
        state = start_apart(self.model, prompts, songs, self._workspace.fuses)
        ids = torch.zeros(len(state.hidden), 1, dtype=torch.long, device=self.model.device)

        def one_pass() -> None:
            self.decode(state, ids, candidates, SamplingSettings(), keys)
            state.step_back()

        return lambda: seconds_of(self.model.device, one_pass)

    def _prefill_timer(self, prompts: Sequence[Sequence[int]]) -> Callable[[], float]:
        longest = max(map(len, prompts))
        cache = KeyValueCache(self.model, len(prompts) * longest)
        cache.set_row_capacity(longest)
        return lambda: seconds_of(self.model.device, lambda: DecodeState.start(self.model, cache, prompts))
