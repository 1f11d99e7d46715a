"""The PyTorch backend: a Qwen3 body from transformers under a decode loop of its own.

Three things make it fast everywhere. Guidance is combined on hidden states before the head, which is linear and then
has half the rows to compute. The head is a view of the rows that can be sampled at all. And what the grammar forces is
never sampled: it rides along with the next pass as a chunk.

On CUDA, where launching would be the bottleneck, small passes run in kernels of their own (``FusedForward``), and they
and the choice of a code are replayed as graphs. Elsewhere the body of ``transformers`` does all passes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch

from acestep.errors import InvalidOutput
from acestep.planner.backends import PhaseTokens
from acestep.planner.backends.cache import KeyValueCache
from acestep.planner.backends.capture import TensorFunction, captured
from acestep.planner.backends.decode_state import Candidates, DecodeState
from acestep.planner.backends.fused import FusedForward, can_fuse, weight_addresses
from acestep.planner.backends.text import ConstrainedText, FreeText, TextGuide
from acestep.planner.backends.timing import share_saved
from acestep.planner.budget import rounded_positions
from acestep.planner.grammar import AllowedTokens, GrammarCursor
from acestep.planner.models import LanguageModel
from acestep.planner.sampling import item_keys, sample
from acestep.types import Progress, ProgressCallback, SamplingSettings

REASONING: Final = "lm.cot"
COMPOSING: Final = "lm.codes"
LYRICS: Final = "lm.lyrics"
PROGRESS_INTERVAL: Final = 32
"""Codes between two reports; each report waits for the device."""
_CHOICE_LIMIT: Final = 16
"""Recorded choices that are kept: one per kind of candidates, number of rows and sampling settings."""
_GATHER_LIMIT: Final = 256
"""Up to this many candidates, their rows of the head are copied out; above, a mask hides the other rows."""


class PtBackend:
    """``PlannerBackend`` on PyTorch, for every device that PyTorch has. Phases of several threads take turns.

    Args:
        model: a loaded language model.
        fuse: run small passes in kernels of their own; ``None`` decides by the device.
    """

    name = "pt"

    def __init__(self, model: LanguageModel, *, fuse: bool | None = None) -> None:
        self.model = model
        self._fuses = can_fuse(model) and model.device.type == "cuda" if fuse is None else fuse
        self._turn = Lock()
        self._cache: KeyValueCache | None = None
        self._fused: FusedForward | None = None
        self._addresses: tuple[int, ...] = ()
        self._choices: OrderedDict[tuple[object, ...], TensorFunction] = OrderedDict()
        self._lyrics: Candidates | None = None
        self._candidates: WeakKeyDictionary[AllowedTokens, Candidates] = WeakKeyDictionary()

    def release(self) -> None:
        """Free keys and values, recorded graphs and copies of weights; the next phase makes them anew."""
        with self._turn:
            self._forget()

    def held_bytes(self) -> int:
        """Memory of keys and values that is kept from one phase to the next."""
        return 0 if self._cache is None else self._cache.nbytes

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
        guide: TextGuide
        with self._phase():
            if cursor is None:
                text = Candidates.rows(self.model.head, 0, layout.text_size)
                guide = FreeText(text, frozenset({layout.think_close, layout.eos, layout.pad}))
            else:
                guide = ConstrainedText(cursor, self.constrain, self.accept)
            if self._cache is not None:
                # Only a later phase of the same request goes on from what is there: a request takes what it takes.
                self._cache.held = []
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
            guide = FreeText(self._lyrics_candidates(), frozenset({self.model.vocabulary.layout.eos}))
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
        layout = self.model.vocabulary.layout
        written: list[torch.Tensor] = []
        pending: torch.Tensor | None = None
        with self._phase():
            candidates = Candidates.rows(self.model.head, layout.code_base, layout.code_count)
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
        return PhaseTokens(
            ids=tuple(tuple(series) for series in torch.stack(written, dim=1).tolist()),
            prompt_tokens=len(conditional),
            sampled_tokens=count * len(seeds),
            forced_tokens=0,
            unconditional_tokens=0 if unconditional is None else len(unconditional) + count * len(seeds),
            forwards=state.forwards,
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
        cache = self._reserve(items * len(prompts), max(map(len, prompts)) + capacity)
        shared = cache.shared_with(prompts[0])
        cache.held = []
        if self._fuses and self._fused is None:
            self._fused = FusedForward(self.model, cache)
        return DecodeState.start(self.model, cache, prompts, items=items, shared=shared, fused=self._fused)

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
        return self._choice(candidates, sampling, *inputs)(*inputs)

    def constrain(self, cursor: GrammarCursor) -> Candidates:
        """The candidates that the grammar leaves at this place."""
        allowed = cursor.allowed()
        candidates = self._candidates.get(allowed)
        if candidates is None:
            candidates = self._candidates[allowed] = self._compile(allowed)
        return candidates

    def accept(self, cursor: GrammarCursor, token_id: int | None) -> list[int]:
        """Move the cursor over a drawn token (``None`` at the start) and over all that is forced behind it.

        Returns:
            The drawn token and the forced ones: the chunk that the next pass has to see.
        """
        drawn = []
        if token_id is not None:
            cursor.accept(token_id)
            drawn = [token_id]
        return drawn + cursor.forced()

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
        layout = self.model.vocabulary.layout
        with self._phase():
            candidates = Candidates.rows(self.model.head, layout.code_base, layout.code_count)
            keys = torch.zeros(rows, dtype=torch.long, device=self.model.device)

            def one_pass(prompts: Sequence[Sequence[int]]) -> Callable[[], None]:
                state = self._start_apart(prompts, rows)
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
        guide: TextGuide,
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
        return PhaseTokens(
            ids=(tuple(written),),
            prompt_tokens=len(prompt),
            sampled_tokens=sampled,
            forced_tokens=len(written) - sampled,
            unconditional_tokens=0,
            forwards=state.forwards,
        )

    @contextmanager
    def _phase(self) -> Iterator[None]:
        """One phase at a time, on weights that may have been moved since the last."""
        with self._turn:
            addresses = weight_addresses(self.model)
            if addresses != self._addresses:
                self._forget()
                self._addresses = addresses
            yield

    def _forget(self) -> None:
        self._cache = self._fused = self._lyrics = None
        self._choices.clear()
        self._candidates.clear()

    def _reserve(self, rows: int, positions: int) -> KeyValueCache:
        """A cache dealt out to the rows; what is held in one that grows goes along, recorded passes end with it."""
        capacity = rounded_positions(positions)
        cache, self._cache = self._cache, None
        if cache is None:
            cache = KeyValueCache(self.model, rows * capacity)
        elif cache.slots < rows * capacity:
            self._fused = None
            cache = cache.grown(self.model, rows * capacity)
        cache.deal(capacity)
        self._cache = cache
        return cache

    def _start_apart(self, prompts: Sequence[Sequence[int]], items: int) -> DecodeState:
        """Rows with a cache of their own and room for one token, to be timed."""
        capacity = len(prompts[0]) + 1
        cache = KeyValueCache(self.model, items * len(prompts) * capacity)
        cache.deal(capacity)
        fused = FusedForward(self.model, cache) if self._fuses else None
        return DecodeState.start(self.model, cache, prompts, items=items, fused=fused)

    def _choice(self, candidates: Candidates, sampling: SamplingSettings, *inputs: torch.Tensor) -> TensorFunction:
        """Guidance, head and sampling as one function of hidden states, keys and mask; recorded where that pays."""

        def choose(hidden: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            hidden = hidden.float()
            if len(hidden) > len(keys):
                conditional, unconditional = hidden.chunk(2)
                hidden = unconditional + sampling.guidance_scale * (conditional - unconditional)
            among = replace(candidates, bias=bias)
            return among.token_ids(sample(among.logits(hidden), sampling, keys))

        if not self._fuses or candidates.ids is not None:
            return choose
        shape = (candidates.first, len(candidates.weights), sampling, *map(len, inputs))
        if shape not in self._choices:
            recorded = captured(choose, *inputs)
            # What is drawn outlives the next draw.
            self._choices[shape] = lambda *given: recorded(*given).clone()
            if len(self._choices) > _CHOICE_LIMIT:
                self._choices.popitem(last=False)
        self._choices.move_to_end(shape)
        return self._choices[shape]

    def _lyrics_candidates(self) -> Candidates:
        if self._lyrics is None:
            vocabulary = self.model.vocabulary
            ids = torch.from_numpy(np.append(vocabulary.text_ids, vocabulary.layout.eos)).to(self.model.device)
            self._lyrics = Candidates.masked(self.model.head, vocabulary.layout.text_size, ids)
        return self._lyrics

    def _compile(self, allowed: AllowedTokens) -> Candidates:
        ids = torch.from_numpy(allowed.ids).to(self.model.device)
        if len(ids) <= _GATHER_LIMIT:
            return Candidates.gathered(self.model.head, ids)
        return Candidates.masked(self.model.head, self.model.vocabulary.layout.text_size, ids)

    def _require_finite(self, state: DecodeState, stage: str) -> None:
        if not state.is_finite():
            # NaN would stay in the cache.
            self._forget()
            raise InvalidOutput(f"the language model {self.model.name} produced NaN or infinity", stage=stage)
