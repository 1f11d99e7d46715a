"""Errors of the engine: one class for each case that a caller can handle.

Every error has its stage and, as ``__cause__``, the original exception. Nothing in the
engine turns an exception into a string or a status flag.

Messages name the fields of the API (``GenerationRequest``, ``ModelSelection`` and their parts) in backquotes, for
example "leave out `quantization`". ``AceStepError.fields`` has these names, so that a program can replace
them by the names of its options.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from acestep.types import SongMetadata

FIELD: Final = re.compile(r"`([a-z_.]+)`")
"""The name of a field of the API in a message."""


class AceStepError(Exception):
    """Base of all engine errors.

    Attributes:
        stage: where it happened: ``request``, ``model.load``, ``lm.cot``, ``lm.codes``, ``lm.lyrics``, ``condition``,
            ``adapter.switch``, ``dit``, ``vae.encode``, ``vae.decode``, ``audio.tokenize``, ``offload.move`` or
            ``audio.save``.
        metadata: what the language model had decided before writing audio codes failed; ``None`` elsewhere.
    """

    metadata: SongMetadata | None = None

    def __init__(self, message: str, *, stage: str) -> None:
        super().__init__(message)
        self.stage = stage

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the API that the message names, each once; those of a field's value after a dot."""
        return tuple(dict.fromkeys(FIELD.findall(str(self))))


class Cancelled(Exception):
    """The caller cancelled: raised by a progress callback, it stops the run between two steps.

    It is not an ``AceStepError``, because nothing failed.
    """


class InvalidRequest(AceStepError):
    """A value of the request is outside what the model accepts; the message names the value and the range."""

    def __init__(self, message: str, *, stage: str = "request") -> None:
        super().__init__(message, stage=stage)


class AudioReadError(InvalidRequest):
    """A recording cannot be used: missing, not audio, empty, too long, silent where sound is needed, not finite."""


class BudgetExceeded(InvalidRequest):
    """The request needs more positions or more key-value memory than the planner has."""


class CheckpointNotFound(AceStepError):
    """No weights exist under that name; the message lists the paths that were tried and the possible solutions.

    Attributes:
        model: name of the model, if one was looked for.
        looked_for: the message without the solutions.
    """

    def __init__(self, looked_for: str, ways_out: str = "", *, model: str | None = None) -> None:
        super().__init__(f"{looked_for}. {ways_out}" if ways_out else looked_for, stage="model.load")
        self.model = model
        self.looked_for = looked_for


class CheckpointInvalid(AceStepError):
    """The weights cannot be used: corrupt, incomplete, of another shape, or able to run code."""

    def __init__(self, message: str) -> None:
        super().__init__(message, stage="model.load")


class DownloadFailed(AceStepError):
    """Weights could not be downloaded: no network, offline mode, no such model, disk full."""

    def __init__(self, message: str) -> None:
        super().__init__(message, stage="model.load")


class DeviceUnavailable(AceStepError):
    """The requested device does not exist on this machine, or is unknown."""

    def __init__(self, message: str) -> None:
        super().__init__(message, stage="model.load")


class BackendUnavailable(AceStepError):
    """The language-model backend, or another library, that is needed is not installed or cannot run here."""

    def __init__(self, message: str) -> None:
        super().__init__(message, stage="model.load")


class PlacementUnavailable(AceStepError):
    """The device does not support the requested quantisation or compilation; nothing was loaded."""

    def __init__(self, message: str) -> None:
        super().__init__(message, stage="model.load")


class OutOfMemory(AceStepError):
    """The device (or the host) ran out of memory in a stage; the allocator's own message is the cause."""


class BackendFailed(AceStepError):
    """The device failed in a stage (a fault of the driver, the hardware or a kernel); its error is the cause."""


class InvalidOutput(AceStepError):
    """A stage produced NaN or infinity; no song was saved."""


class AudioWriteError(AceStepError):
    """The song could not be written: unknown format, unwritable directory, full disk."""

    def __init__(self, message: str) -> None:
        super().__init__(message, stage="audio.save")


@contextmanager
def stage_errors(stage: str) -> Iterator[None]:
    """Attach the stage to an out-of-memory error inside the block; other exceptions pass unchanged."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(f"out of memory in stage {stage!r}: {error}", stage=stage) from error


@contextmanager
def device_errors(stage: str) -> Iterator[None]:
    """Attach type and stage to every failure of the device inside the block."""
    try:
        with stage_errors(stage):
            yield
    except torch.AcceleratorError as error:
        raise BackendFailed(f"the device failed in stage {stage!r}: {error}", stage=stage) from error
