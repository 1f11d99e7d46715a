"""The PyTorch backend: a Qwen3 body from transformers under a decode loop of its own.

Three things make it fast without a compiler. Guidance is combined on hidden states before the head, which is linear
and then has half the rows to compute. The head is a view of the rows that can be sampled at all. And what the grammar
forces is never sampled: it rides along with the next pass as a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch

from acestep.errors import BackendUnavailable, InvalidOutput
from acestep.planner.backends import COMPOSING, LYRICS, PROGRESS_INTERVAL, REASONING, PhaseTokens
from acestep.planner.backends.choices import GATHER_LIMIT
from acestep.planner.backends.decode_state import Candidates, DecodeState
from acestep.planner.backends.text import ConstrainedText, FreeText, GrammarWalk, TextGuide
from acestep.planner.backends.timing import share_saved
from acestep.planner.grammar import AllowedTokens, GrammarCursor
from acestep.planner.models import LanguageModel
from acestep.planner.sampling import item_keys, sample
from acestep.types import Progress, ProgressCallback, SamplingSettings


class PtBackend(GrammarWalk):
    """``PlannerBackend`` on PyTorch, for every device that PyTorch has.

    Args:
        model: a loaded language model.
    """

    name = "pt"

    def __init__(self, model: LanguageModel) -> None:
        self._model: LanguageModel | None = model
        layout = model.vocabulary.layout
        self._code_candidates = Candidates.rows(model.head, layout.code_base, layout.code_count)
        self._text_candidates = Candidates.rows(model.head, 0, layout.text_size)
        self._candidates: WeakKeyDictionary[AllowedTokens, Candidates] = WeakKeyDictionary()

    @property
    def model(self) -> LanguageModel:
        """The language model.

        Raises:
            BackendUnavailable: it was unloaded.
        """
        if self._model is None:
            raise BackendUnavailable("the language model was unloaded: load it again")
        return self._model

    def unload(self) -> None:
        """Let go of the model (see ``PlannerBackend.unload``)."""
        self._model = None
        self._candidates.clear()
        for views in ("_lyrics_candidates", "_code_candidates", "_text_candidates"):
            vars(self).pop(views, None)

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
        if cursor is None:
            guide = FreeText(self._text_candidates, frozenset({layout.think_close, layout.eos, layout.pad}))
        else:
            guide = ConstrainedText(cursor, self.constrain, self.accept)
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
        guide = FreeText(self._lyrics_candidates, frozenset({self.model.vocabulary.layout.eos}))
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
        state = self.prefill(prompts, capacity=count)
        state.repeat(len(seeds))
        pending: torch.Tensor | None = None
        written: list[torch.Tensor] = []
        for step in range(count):
            drawn = self.decode(state, pending, self._code_candidates, sampling, keys[step])
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

    def prefill(self, prompts: Sequence[Sequence[int]], capacity: int = 0) -> DecodeState:
        """One pass over the prompts, one row each, padded on the left.

        Args:
            prompts: token ids.
            capacity: positions that will be decoded behind the prompts; needed when their lengths differ.

        Returns:
            Rows whose ``hidden`` belongs to the last token of each prompt.
        """
        return DecodeState.start(self.model, prompts, capacity)

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
        hidden = state.hidden.float()
        if len(hidden) > len(keys):
            conditional, unconditional = hidden.chunk(2)
            hidden = unconditional + sampling.guidance_scale * (conditional - unconditional)
        return candidates.token_ids(sample(candidates.logits(hidden), sampling, keys))

    def constrain(self, cursor: GrammarCursor) -> Candidates:
        """The candidates that the grammar leaves at this place."""
        allowed = cursor.allowed()
        candidates = self._candidates.get(allowed)
        if candidates is None:
            candidates = self._candidates[allowed] = self._compile(allowed)
        return candidates

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
        plain, guided = (
            DecodeState.start(self.model, [prompt], 0),
            DecodeState.start(self.model, [prompt, prompt[1:]], 1),
        )
        for state in (plain, guided):
            state.repeat(rows)
        return share_saved(self.model.device, plain.time_advance, guided.time_advance)

    @torch.inference_mode()
    def measure_prefill_guidance_share(self, tokens: int) -> float:
        """The same for the pass over the prompts, of which the conditional one has ``tokens`` tokens."""
        prompt = [self.model.vocabulary.layout.pad] * tokens
        return share_saved(
            self.model.device,
            lambda: DecodeState.start(self.model, [prompt], 0),
            lambda: DecodeState.start(self.model, [prompt, prompt[1:]], 0),
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
        state = self.prefill([[*prompt, *written]])
        pending: torch.Tensor | None = None
        sampled = 0
        while not guide.done and sampled < token_limit:
            drawn = self.decode(state, pending, guide.candidates(), sampling, keys[sampled : sampled + 1])
            chunk = guide.accept(int(drawn))
            written += chunk
            sampled += 1
            pending = torch.tensor([chunk], device=self.model.device)
            if progress is not None:
                progress(Progress(stage, len(written), None))
        self._require_finite(state, stage)
        return PhaseTokens(
            ids=(tuple(written),),
            prompt_tokens=len(prompt),
            sampled_tokens=sampled,
            forced_tokens=len(written) - sampled,
            unconditional_tokens=0,
            forwards=state.forwards,
        )

    @cached_property
    def _lyrics_candidates(self) -> Candidates:
        vocabulary = self.model.vocabulary
        ids = np.append(vocabulary.text_ids, vocabulary.layout.eos)
        return Candidates.masked(
            self.model.head, vocabulary.layout.text_size, torch.from_numpy(ids).to(self.model.device)
        )

    def _compile(self, allowed: AllowedTokens) -> Candidates:
        ids = torch.from_numpy(allowed.ids).to(self.model.device)
        if len(ids) <= GATHER_LIMIT:
            return Candidates.gathered(self.model.head, ids)
        return Candidates.masked(self.model.head, self.model.vocabulary.layout.text_size, ids)

    def _require_finite(self, state: DecodeState, stage: str) -> None:
        if not state.is_finite():
            raise InvalidOutput(f"the language model {self.model.name} produced NaN or infinity", stage=stage)
