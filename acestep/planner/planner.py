"""The planner: from a request to metadata and audio codes.

In phase 1 the language model decides the metadata that the user left open. In phase 2 it writes audio codes, five per
second, for the finished metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, Final

import torch

from acestep.errors import AceStepError, InvalidOutput, InvalidRequest, device_errors
from acestep.offloading import LANGUAGE_MODEL, ModelOffloader
from acestep.planner.backends import COMPOSING, REASONING, PhaseTokens, PlannerBackend
from acestep.planner.backends.pt import PtBackend
from acestep.planner.budget import LanguageModel, PlannerBudget
from acestep.planner.grammar import CAPTION_TOKEN_LIMIT, MetadataGrammar
from acestep.planner.metadata import DURATION_RANGE, normalise, parse_metadata
from acestep.planner.plans import CodesTask, Plan, PlanRequest
from acestep.planner.prompts import Prompts
from acestep.planner.vocabulary import Vocabulary
from acestep.types import (
    CODES_PER_SECOND,
    GenerationRequest,
    Placement,
    ProgressCallback,
    SongMetadata,
)

REASONING_TOKEN_LIMIT: Final = CAPTION_TOKEN_LIMIT + 128
"""Maximum number of tokens of a metadata block: the caption and every other field."""
_OPEN_DURATION: Final = 120
"""Seconds that an estimate of the shape assumes while the duration is open."""


class Planner:
    """Plans songs with one language model.

    Args:
        backend: runs the model.
        vocabulary: tokens of the model.
        model_name: for example ``acestep-5Hz-lm-1.7B``.
        weights: ``synthetic`` or ``checkpoint``.
        device: where the model runs.
        dtype: of its weights.
        budget: limits of the model on its device.
        duration_limit: longest song in seconds.
        offloader: decides where the model is between uses; on its device when not given.
    """

    def __init__(
        self,
        backend: PlannerBackend[Any],
        vocabulary: Vocabulary,
        *,
        model_name: str,
        weights: str,
        device: torch.device,
        dtype: torch.dtype,
        budget: PlannerBudget,
        duration_limit: int = DURATION_RANGE[1],
        offloader: ModelOffloader | None = None,
    ) -> None:
        self.backend = backend
        self.model_name = model_name
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.vocabulary = vocabulary
        self.prompts = Prompts(vocabulary)
        self.budget = budget
        self.duration_limit = duration_limit
        self.offloader = offloader or ModelOffloader(device, Placement())

    @classmethod
    def from_language_model(
        cls,
        model: LanguageModel,
        *,
        duration_limit: int = DURATION_RANGE[1],
        offloader: ModelOffloader | None = None,
    ) -> Planner:
        """A planner on the PyTorch backend; ``acestep.planner.backends.registry`` makes the others."""
        return cls.on_backend(PtBackend(model), model, duration_limit=duration_limit, offloader=offloader)

    @classmethod
    def on_backend(
        cls,
        backend: PlannerBackend[Any],
        model: LanguageModel,
        *,
        duration_limit: int = DURATION_RANGE[1],
        offloader: ModelOffloader | None = None,
    ) -> Planner:
        """A planner on a backend that was started with a model; keeps no reference to the model's weights."""
        return cls(
            backend,
            model.vocabulary,
            model_name=model.name,
            weights=model.weights,
            device=model.device if offloader is None else offloader.device,
            dtype=model.dtype,
            budget=backend.budget,
            duration_limit=duration_limit,
            offloader=offloader,
        )

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The model on its device while the block runs; ``plan`` and the backend are only called in such a block.

        With one block around all of a request's calls, the model moves there and back only once.
        """
        body = self.backend.movable_weights if self.offloader.offloads(LANGUAGE_MODEL) else None
        # Kernels that are not launched by PyTorch run on the current device.
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            if body is None:
                yield
                return
            with self.offloader.on_device(**{LANGUAGE_MODEL: body}):
                try:
                    yield
                finally:
                    self.backend.release()

    def plan(self, request: PlanRequest, progress: ProgressCallback | None = None) -> Plan:
        """Decide what the user left open, then write the codes.

        Args:
            request: what to plan.
            progress: called with tokens and codes written; an exception that it raises stops the run.

        Raises:
            InvalidRequest: the duration is beyond the planner's limit.
            BudgetExceeded: the request does not fit; nothing was run.
            OutOfMemory: the device ran out of memory.
            InvalidOutput: the model produced NaN or infinity.
            BackendFailed: the device failed.
            AceStepError: any of these, when raised by phase 2, carries the finished ``metadata``.
        """
        self.require_duration(request.duration)
        if request.writes_audio_codes and request.duration is not None:
            # What phase 1 will add to the prompt is not known yet; the rest should not fail only after it.
            self._check_codes(self._codes_task(request, request.given), len(request.seeds))
        if _leaves_a_choice(request):
            reasoned = self.reason(request, progress)
            metadata = self._completed(request, reasoned)
        else:
            reasoned, metadata = None, request.given
        if not request.writes_audio_codes:
            return Plan(metadata, metadata_tokens=reasoned)
        with _carrying(metadata):
            composed = self.compose_codes(request, metadata, progress)
        codes = tuple(tuple(self.vocabulary.id_to_code(token_id) for token_id in series) for series in composed.ids)
        return Plan(metadata, codes, reasoned, composed)

    def reason(self, request: PlanRequest, progress: ProgressCallback | None = None) -> PhaseTokens:
        """Phase 1: the metadata block, once per request, with the seed of the first song.

        Args:
            request: what to plan.
            progress: called with every sampled token.
        """
        prompt = self.prompts.reasoning(request.caption, request.lyrics)
        self.budget.check(REASONING, prompt_tokens=len(prompt), output_tokens=REASONING_TOKEN_LIMIT, rows=1)
        cursor = None
        if request.use_constrained_decoding:
            cursor = self.grammar.cursor(
                request.given, with_caption=request.use_cot_caption, with_language=request.use_cot_language
            )
        with device_errors(REASONING):
            return self.backend.generate_metadata(
                prompt, cursor, request.sampling, request.seeds[0], REASONING_TOKEN_LIMIT, progress
            )

    def compose_codes(
        self, request: PlanRequest, metadata: SongMetadata, progress: ProgressCallback | None = None
    ) -> PhaseTokens:
        """Phase 2: ``int(5 * duration)`` audio codes per song, no more and no less.

        Args:
            request: what to plan; its own duration, which may be fractional, takes precedence over that of the
                metadata.
            metadata: metadata of the songs.
            progress: called with the codes written.
        """
        task = self._codes_task(request, metadata)
        self._check_codes(task, len(request.seeds))
        with device_errors(COMPOSING):
            return self.backend.generate_codes(
                task.conditional, task.unconditional, task.count, request.sampling, request.seeds, progress
            )

    def codes_shape(self, request: GenerationRequest) -> CodesTask:
        """Phase 2 as far as it is known before phase 1; an open duration counts as 120 s."""
        metadata = normalise(request.metadata)
        duration = metadata.duration if request.duration is None else request.duration
        asked = PlanRequest.of(request, metadata, _OPEN_DURATION if duration is None else duration, seeds=())
        return self._codes_task(asked, asked.given)

    def require_duration(self, duration: float | None) -> None:
        """Reject a duration that this planner does not support; ``None`` leaves it open.

        Raises:
            InvalidRequest: it is out of range.
        """
        if duration is not None and not DURATION_RANGE[0] <= duration <= self.duration_limit:
            raise InvalidRequest(
                f"`duration` {duration:g} s is out of range: {DURATION_RANGE[0]} ... {self.duration_limit} s"
            )

    def found(self, reasoned: PhaseTokens) -> SongMetadata:
        """What the model wrote in phase 1; a duration above the limit (only without a grammar) is reduced to it."""
        found = parse_metadata(self.vocabulary.decode(reasoned.ids[0]))
        if found.duration is None:
            return found
        return replace(found, duration=min(found.duration, self.duration_limit))

    @cached_property
    def grammar(self) -> MetadataGrammar:
        """Compiled when first needed; immutable."""
        return MetadataGrammar(self.vocabulary, self.duration_limit)

    def _codes_task(self, request: PlanRequest, metadata: SongMetadata) -> CodesTask:
        duration = metadata.duration if request.duration is None else request.duration
        if duration is None:
            raise InvalidOutput(
                "the language model wrote no duration: give one, or use constrained decoding", stage=COMPOSING
            )
        sampling = request.sampling
        return CodesTask(
            conditional=self.prompts.codes(request.caption, request.lyrics, metadata),
            unconditional=(
                self.prompts.unconditional_codes(sampling.negative_prompt) if sampling.guidance_scale > 1 else None
            ),
            count=int(duration * CODES_PER_SECOND),
        )

    def _check_codes(self, task: CodesTask, songs: int) -> None:
        self.budget.check(
            COMPOSING,
            prompt_tokens=max(len(task.conditional), len(task.unconditional or ())),
            output_tokens=task.count,
            rows=songs * (1 if task.unconditional is None else 2),
        )

    def _completed(self, request: PlanRequest, reasoned: PhaseTokens) -> SongMetadata:
        """The user's values, then the requested values of the model; its other values are omitted."""
        given, found = request.given, self.found(reasoned)
        wanted = {"duration"} if request.writes_audio_codes else set()
        if request.use_cot_metas:
            wanted |= {"bpm", "duration", "keyscale", "timesignature"}
        if request.use_cot_caption:
            wanted.add("caption")
        if request.use_cot_language:
            wanted.add("language")
        open_fields = {field.name for field in fields(SongMetadata) if getattr(given, field.name) is None}
        return replace(given, **{name: getattr(found, name) for name in wanted & open_fields})


def _leaves_a_choice(request: PlanRequest) -> bool:
    """Whether the model has anything to decide before it writes codes."""
    given = request.given
    metas = (given.bpm, given.duration, given.keyscale, given.timesignature)
    return (
        request.use_cot_caption
        or (request.use_cot_language and given.language is None)
        or (request.use_cot_metas and None in metas)
        or (request.writes_audio_codes and given.duration is None)
    )


@contextmanager
def _carrying(metadata: SongMetadata) -> Iterator[None]:
    """Attach the metadata of phase 1 to an engine error."""
    try:
        yield
    except AceStepError as error:
        error.metadata = metadata
        raise
