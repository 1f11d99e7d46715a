"""A request is resolved once: checked, its recordings loaded, its open values set; every later stage relies on it.

Values that only the planner can decide (metadata that the user left open, audio codes) stay open here.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.audio import check_output_directory, load_audio, load_reference, song_path
from acestep.errors import InvalidRequest
from acestep.renderer.source import Source
from acestep.types import CODES_PER_SECOND, WINDOW_TASKS, AdapterScale, GenerationRequest, SongMetadata
from acestep.validation import MAX_SEED, checked_metadata, require_task_support

if TYPE_CHECKING:
    import torch

    from acestep.renderer.renderer import Renderer


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A request that can be run as it is.

    Attributes:
        request: as given; every value is in its range.
        metadata: the user's values in the model's spelling; ``None`` where they are open.
        seeds: one per song.
        shift: timestep shift.
        source: the recording to work on, with its window.
        reference: a recording whose timbre the songs should have, float32 on the host, shape ``[2, samples]``, 48 kHz.
        adapters: of the transformer.
        retake_seeds: one per song, or none.
    """

    request: GenerationRequest
    metadata: SongMetadata
    seeds: tuple[int, ...]
    shift: float
    source: Source | None
    reference: torch.Tensor | None
    adapters: tuple[AdapterScale, ...] = ()
    retake_seeds: tuple[int, ...] = ()

    @property
    def duration(self) -> float | None:
        """Seconds of each song as far as they are fixed: by the source, the audio codes, or the user."""
        if self.source is not None:
            return self.source.duration
        if self.request.audio_codes:
            return len(self.request.audio_codes) / CODES_PER_SECOND
        return self.metadata.duration if self.request.duration is None else self.request.duration


def resolve_request(request: GenerationRequest, renderer: Renderer, save_dir: Path | None) -> ResolvedRequest:
    """Check a request and set every value that does not need the planner.

    Args:
        request: as given.
        renderer: the renderer that will render it.
        save_dir: folder that songs will be written to, or ``None``; it is created.

    Raises:
        InvalidRequest: a value is out of range, or not for the loaded model.
        AudioReadError: the source or the reference cannot be used.
        AudioWriteError: the audio format is not available here, or the folder cannot be written to.
    """
    metadata = checked_metadata(request)
    require_task_support(request.task_type, renderer.models)
    adapters = renderer.adapters.resolve(request.adapters)
    seeds = resolve_seeds(request)
    if save_dir is not None:
        check_output_directory(save_dir)
        require_recordings_kept(request, save_dir, seeds)
    return ResolvedRequest(
        request=request,
        metadata=metadata,
        seeds=seeds,
        shift=renderer.models.default_shift if request.shift is None else request.shift,
        source=_source(request),
        reference=None if request.reference_audio is None else load_reference(request.reference_audio),
        adapters=adapters,
        retake_seeds=() if request.retake_seed is None else _counted_up(request.retake_seed, request.batch_size),
    )


def resolve_seeds(request: GenerationRequest) -> tuple[int, ...]:
    """One seed per song, decided once: as given, or counted up from a single one, or random."""
    if len(request.seeds) == request.batch_size:
        return request.seeds
    return _counted_up(request.seeds[0] if request.seeds else secrets.randbelow(MAX_SEED + 1), request.batch_size)


def _counted_up(first: int, songs: int) -> tuple[int, ...]:
    return tuple((first + item) % (MAX_SEED + 1) for item in range(songs))


def song_stems(directory: Path, seeds: Sequence[int]) -> list[Path]:
    """Where songs are saved, without the suffix."""
    return [directory / f"song-{number}-seed{seed}" for number, seed in enumerate(seeds, start=1)]


def require_recordings_kept(request: GenerationRequest, save_dir: Path, seeds: Sequence[int]) -> None:
    """A song replaces an earlier one of the same name, but never the recording that it is generated from.

    Raises:
        InvalidRequest: a song would overwrite the source or the reference.
    """
    targets = {song_path(stem, request.audio_format).resolve() for stem in song_stems(save_dir, seeds)}
    for recording in (request.src_audio, request.reference_audio):
        if recording is not None and recording.resolve() in targets:
            raise InvalidRequest(f"the song would replace {recording}: choose another output directory")


def _source(request: GenerationRequest) -> Source | None:
    if request.src_audio is None:
        return None
    recording = load_audio(request.src_audio)
    if request.task_type not in WINDOW_TASKS:
        return Source.whole(recording)
    return Source.with_window(recording, request.repainting_start, request.repainting_end)
