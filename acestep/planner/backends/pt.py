"""The PyTorch backend: a Qwen3 body from transformers under a decode loop of its own.

Three things make it fast everywhere. Guidance is combined on hidden states before the head, which is linear and then
has half the rows to compute. The head is a view of the rows that can be sampled at all. And what the grammar forces is
never sampled: it rides along with the next pass as a chunk.

On CUDA, where launching is the bottleneck, small passes can run in kernels of their own (``FusedForward``), and they
and the choice of a code are replayed as graphs. Elsewhere the body of ``transformers`` does all passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import torch

from acestep.errors import BackendUnavailable, InvalidOutput
from acestep.planner.backends import COMPOSING, LYRICS, PROGRESS_INTERVAL, REASONING, PhaseTokens
from acestep.planner.backends.cache import KeyValueCache
from acestep.planner.backends.decode_state import Candidates, DecodeState
from acestep.planner.backends.text import ConstrainedText, FreeText, GrammarWalk, TextGuide, reasoning_ends
from acestep.planner.backends.timing import share_saved
from acestep.planner.backends.workspace import Workspace, start_apart
from acestep.planner.budget import LanguageModel
from acestep.planner.grammar import GrammarCursor
from acestep.planner.sampling import item_keys
from acestep.types import Progress, ProgressCallback, SamplingSettings


class PtBackend(GrammarWalk):
    """``PlannerBackend`` on PyTorch, for every device that PyTorch has. Phases of several threads take turns.

    Args:
        model: a loaded language model.
        fuse: run small passes in kernels of their own; ``None`` does where they run and agree with the body.
    """

    name = "pt"

    def __init__(self, model: LanguageModel, *, fuse: bool | None = None) -> None:
        self._turn = Lock()
        self._loaded: Workspace | None = Workspace(model, fuse)

    def release(self) -> None:
        """Free keys and values, recorded graphs and copies of weights; the next phase makes them anew."""
        with self._turn:
            if self._loaded is not None:
                self._loaded.clear()

    def unload(self) -> None:
        """Let go of the model (see ``PlannerBackend.unload``)."""
        with self._turn:
            self._loaded = None

    def held_bytes(self) -> int:
        """Memory of keys and values that is kept from one phase to the next."""
        return 0 if self._loaded is None else self._loaded.nbytes

    @property
    def decode_path(self) -> str:
        """``fused`` or ``eager``: how small passes run."""
        return "fused" if self._workspace.fuses else "eager"

    @property
    def model(self) -> LanguageModel:
        """The language model."""
        return self._workspace.model

    @property
    def _workspace(self) -> Workspace:
        if self._loaded is None:
            raise BackendUnavailable("the language model was unloaded: load it again")
        return self._loaded

    @torch.inference_mode()
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
        layout = self.model.vocabulary.layout
        guide: TextGuide[Candidates]
        with self._phase():
            if cursor is None:
                guide = FreeText(self._workspace.text(), reasoning_ends(layout))
            else:
                guide = ConstrainedText(cursor, self.constrain, self.accept)
            # Only a later phase of the same request goes on from what is there: a request takes what it takes.
            self._workspace.forget_tokens()
            return self._write_text(REASONING, prompt, guide, sampling, seed, token_limit, progress)

    @torch.inference_mode()
    def generate_lyrics(
        self,
        prompt: Sequence[int],
        sampling: SamplingSettings,
        seed: int,
        token_limit: int,
        progress: ProgressCallback | None = None,
    ) -> PhaseTokens:
        """Free text (see ``PlannerBackend.generate_lyrics``): one token is read back per pass, to see its end."""
        with self._phase():
            guide = FreeText(self._workspace.lyrics(), frozenset({self.model.vocabulary.layout.eos}))
            return self._write_text(LYRICS, prompt, guide, sampling, seed, token_limit, progress)

    @torch.inference_mode()
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
        keys = torch.stack([item_keys(seed, COMPOSING, count) for seed in seeds], dim=1).to(self.model.device)
        written: list[torch.Tensor] = []
        pending: torch.Tensor | None = None
        with self._phase():
            candidates = self._workspace.codes()
            state = self.prefill(prompts, count, len(seeds))
            for step in range(count):
                drawn = self.decode(state, pending, candidates, sampling, keys[step])
                written.append(drawn)
                pending = drawn.repeat(len(prompts)).unsqueeze(1)
                if progress is not None and (len(written) % PROGRESS_INTERVAL == 0 or len(written) == count):
                    # Reading a value waits for the device: what is reported has really been done.
                    drawn.tolist()
                    progress(Progress(COMPOSING, len(written), count))
            self._require_finite(state, COMPOSING)
        songs = torch.stack(written, dim=1).tolist()
        return PhaseTokens.of_codes(
            songs, conditional, unconditional, forwards=state.forwards, reused_tokens=state.reused
        )

    def prefill(self, prompts: Sequence[Sequence[int]], capacity: int, items: int = 1) -> DecodeState:
        """One pass over the prompts, but for what an earlier phase of the same request left in the cache.

        Args:
            prompts: token ids.
            capacity: positions that will be decoded behind the prompts.
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
            pending: token ids that no pass has seen yet, shape ``[rows, tokens]``; ``None`` right after the prefill.
            candidates: what may be drawn.
            sampling: how.
            keys: shape ``[items]``.

        Returns:
            Drawn token ids, shape ``[items]``, on the device.
        """
        if pending is not None:
            state.advance(pending)
        # A mask goes in as a tensor, so that all places of a grammar share one recorded choice.
        inputs = (state.hidden, keys) if candidates.bias is None else (state.hidden, keys, candidates.bias)
        return self._workspace.choice(candidates, sampling, *inputs)(*inputs)

    def constrain(self, cursor: GrammarCursor) -> Candidates:
        """The candidates that the grammar leaves at this place."""
        return self._workspace.of_grammar(cursor.allowed())

    @torch.inference_mode()
    def measure_guidance_share(self, rows: int, context: int) -> float:
        """Share of a decode pass that the unconditional rows cost.

        Args:
            rows: songs generated together.
            context: positions in the cache.

        Returns:
            ``1 - time(rows) / time(2 * rows)``, from medians of alternating passes, 0 ... 1.
        """
        prompt = [self.model.vocabulary.layout.pad] * context
        with self._phase():
            candidates = self._workspace.codes()
            keys = torch.zeros(rows, dtype=torch.long, device=self.model.device)

            def one_pass(prompts: Sequence[Sequence[int]]) -> Callable[[], None]:
                state = start_apart(self.model, prompts, rows, self._workspace.fuses)
                ids = torch.zeros(len(state.hidden), 1, dtype=torch.long, device=self.model.device)

                def work() -> None:
                    self.decode(state, ids, candidates, SamplingSettings(), keys)
                    state.step_back()

                return work

            return share_saved(self.model.device, one_pass([prompt]), one_pass([prompt, prompt[1:]]))

    @torch.inference_mode()
    def measure_prefill_guidance_share(self, tokens: int) -> float:
        """The same for the pass over the prompts, of which the conditional one has ``tokens`` tokens."""
        prompt = [self.model.vocabulary.layout.pad] * tokens
        cache = KeyValueCache(self.model, 2 * tokens)
        cache.deal(tokens)
        with self._phase():
            return share_saved(
                self.model.device,
                lambda: DecodeState.start(self.model, cache, [prompt]),
                lambda: DecodeState.start(self.model, cache, [prompt, prompt[1:]]),
            )

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
        keys = item_keys(seed, stage, token_limit).to(self.model.device)
        written = guide.opening()
        fed = [*prompt, *written]
        state = self.prefill([fed], token_limit)
        chunk: list[int] = []
        sampled = 0
        while not guide.done and sampled < token_limit:
            pending = torch.tensor([chunk], device=self.model.device) if chunk else None
            drawn = self.decode(state, pending, guide.candidates(), sampling, keys[sampled : sampled + 1])
            fed += chunk
            chunk = guide.accept(int(drawn))
            written += chunk
            sampled += 1
            if progress is not None:
                progress(Progress(stage, len(written), None))
        self._require_finite(state, stage)
        state.cache.held = fed
        return PhaseTokens.of_text(
            written,
            prompt,
            sampled=sampled,
            forwards=state.forwards,
            # What the grammar opens with is run with the prompt, and is no part of it.
            reused_tokens=min(state.reused, len(prompt)),
        )

    @contextmanager
    def _phase(self) -> Iterator[None]:
        """One phase at a time, on weights that may have been moved since the last."""
        with self._turn:
            self._workspace.follow_weights()
            yield

    def _require_finite(self, state: DecodeState, stage: str) -> None:
        if not state.is_finite():
            # NaN would stay in the cache.
            self._workspace.clear()
            raise InvalidOutput(f"the language model {self.model.name} produced NaN or infinity", stage=stage)
