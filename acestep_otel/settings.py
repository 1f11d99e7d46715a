"""Settings of the tracing layer, read from the environment once, when instrumentation is switched on.

The table of all settings is ``docs/settings.md``. Exporters, endpoints and samplers are configured by the standard
``OTEL_*`` variables.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Final, Self

logger = logging.getLogger("acestep_otel")

DETAIL_VARIABLE: Final = "ACESTEP_OTEL_DETAIL"
DEADLINE_VARIABLE: Final = "ACESTEP_OTEL_DEADLINE"
PROFILE_FOLDER_VARIABLE: Final = "ACESTEP_OTEL_PROFILE_DIR"
PROFILE_URL_VARIABLE: Final = "ACESTEP_OTEL_PROFILE_URL"
PROFILE_TOKEN_VARIABLE: Final = "ACESTEP_OTEL_PROFILE_TOKEN"
SONGS_VARIABLE: Final = "ACESTEP_OTEL_SONGS"
CAPTURE_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

DEFAULT_DEADLINE: Final = 600.0
_CAPTURE_VALUES: Final = {
    "NO_CONTENT": False,
    "FALSE": False,
    "SPAN_ONLY": True,
    "SPAN_AND_EVENT": True,
    "TRUE": True,
    # Events are not emitted, so the value for events alone puts nothing on spans.
    "EVENT_ONLY": False,
}


class Detail(IntEnum):
    """Depth of the span tree; each level includes the previous ones."""

    OFF = 0
    """Nothing is patched, nothing is created."""
    STAGE = 1
    """One span per stage: planner and its phases, condition, dit, vae.decode, audio.save."""
    STEP = 2
    """And one per denoising step and VAE tile."""
    TOKEN = 3
    """And one per window of 64 decoded tokens; steps and tiles say how much VRAM is in use when they end."""

    @classmethod
    def parse(cls, word: str) -> Detail:
        """The level of a word such as ``step``.

        Raises:
            ValueError: the word is not a level; the message lists them.
        """
        try:
            return cls[word.strip().upper()]
        except KeyError:
            raise ValueError(f"{word!r} is not a detail level: choose off, stage, step or token") from None


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the tracing layer.

    Attributes:
        detail: how deep the span tree goes.
        capture_content: whether captions and lyrics are put on spans.
        deadline: seconds after which a request that is still running is reported; 0: never.
        profile_folder: folder of profiles on demand; ``None``: no profiles.
        songs: ``path``, or the URL that songs are served under, to put them on root spans; ``None``: not on spans.
        profile_url: URL of the profile folder, for example of the bucket that is mounted there.
    """

    detail: Detail = Detail.STEP
    capture_content: bool = False
    deadline: float = DEFAULT_DEADLINE
    profile_folder: str | None = None
    profile_url: str | None = None
    songs: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the variables.

        Raises:
            ValueError: a variable has an invalid value; the message names both.
        """
        environment = os.environ if environment is None else environment
        capture = environment.get(CAPTURE_VARIABLE, "NO_CONTENT").strip().upper() or "NO_CONTENT"
        if capture not in _CAPTURE_VALUES:
            raise ValueError(f"{CAPTURE_VARIABLE}={capture!r}: choose NO_CONTENT or SPAN_ONLY")
        try:
            detail = Detail.parse(environment.get(DETAIL_VARIABLE, "") or Detail.STEP.name)
        except ValueError as error:
            raise ValueError(f"{DETAIL_VARIABLE}: {error}") from None
        return cls(
            detail=detail,
            capture_content=_CAPTURE_VALUES[capture],
            deadline=_deadline(environment),
            profile_folder=environment.get(PROFILE_FOLDER_VARIABLE, "").strip() or None,
            profile_url=environment.get(PROFILE_URL_VARIABLE, "").strip() or None,
            songs=_songs(environment),
        )

    @classmethod
    def from_environment_or_default(cls) -> Self:
        """Read the variables of a service: an invalid value is a warning, because the service must start."""
        try:
            return cls.from_environment()
        except ValueError as error:
            _warn_once(f"{error}; using the defaults")
            return cls()


def _songs(environment: Mapping[str, str]) -> str | None:
    word = environment.get(SONGS_VARIABLE, "").strip()
    if word and word != "path" and "://" not in word:
        raise ValueError(f"{SONGS_VARIABLE}={word!r}: give path, or the URL that songs are served under")
    return word or None


def _deadline(environment: Mapping[str, str]) -> float:
    word = environment.get(DEADLINE_VARIABLE, "").strip()
    try:
        seconds = float(word) if word else DEFAULT_DEADLINE
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{DEADLINE_VARIABLE}={word!r}: give a number of seconds, or 0 for none")
    return seconds


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)
