"""The result file: configuration, environment and measurements of a run, as one JSON document.

Its form is ``result.schema.json`` beside this module; ``schema_version`` increases when a reader of the old form
would misread the new one. Durations are seconds, sizes bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator

from acestep.documents import DocumentError, read_document
from acestep_otel.profiler.files import replacing
from acestep_otel.profiler.flags import message_of
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.energy import RunEnergy
from acestep_otel.profiler.report.spans import Run
from acestep_otel.profiler.report.stage_work import RunWork
from acestep_otel.profiler.report.statistics import memory_peaks, step_times, tile_times, token_statistics
from acestep_otel.sdk.answers import one_line

if TYPE_CHECKING:
    # Only for its type: reading a result file must not import PyTorch.
    from acestep.types import EffectivePlannerSettings, EffectiveSettings, SongBlueprint
    from acestep_otel.profiler.report.environment import Environment

SCHEMA_VERSION: Final = 1


class NotAResultFile(ValueError):
    """A file is not a result file of this version; the message is one line."""


def read_result(path: Path) -> dict[str, Any]:
    """Read a file of ``--benchmark-output``.

    Raises:
        NotAResultFile: it cannot be read, or is of another kind.
    """
    try:
        document = read_document(path)
    except DocumentError as error:
        raise NotAResultFile(f"{error}: give a result file that --benchmark-output wrote") from error
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise NotAResultFile(f"{path} is not a result file of version {SCHEMA_VERSION}")
    if (problem := best_match(_validator().iter_errors(document))) is not None:
        what = one_line(problem.message)
        raise NotAResultFile(f"{path} is not a result file of version {SCHEMA_VERSION}: {problem.json_path}: {what}")
    return document


@cache
def _validator() -> Validator:
    """Checks documents against the shipped schema; additions of a later version are ignored."""
    schema = json.loads((files("acestep_otel.profiler.report") / "result.schema.json").read_text("utf-8"))
    extend: Any = validators.extend
    checker: Validator = extend(Draft202012Validator, {"additionalProperties": lambda *_: None})(schema)
    return checker


@dataclass(frozen=True, slots=True)
class RunResult:
    """One measured run.

    Attributes:
        run: its spans, or ``None`` if nothing was traced.
        effective: the settings that took effect, or ``None`` if it failed before they were known.
        error: what ended it, or ``None``.
        songs: the files written.
        blueprint: the description of the song, or ``None`` in modes that generate audio.
    """

    run: Run | None
    effective: EffectiveSettings | EffectivePlannerSettings | None
    error: BaseException | None = None
    songs: tuple[Path, ...] = ()
    blueprint: SongBlueprint | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry of ``results``."""
        return {
            "status": "ok" if self.error is None else "error",
            "error": None if self.error is None else _error(self.error),
            "effective_settings": None if self.effective is None else asdict(self.effective),
            "songs": [path.name for path in self.songs],
            "blueprint": None if self.blueprint is None else _blueprint(self.blueprint),
            "measurement": None if self.run is None else _measurement(self.run),
        }


class ResultEntry(Protocol):
    """An entry of a mode's results: a run, a cell of several runs, or a row of a tier test."""

    def to_json(self) -> dict[str, Any]:
        """The entry of ``results``."""


def result_document(
    *,
    mode: str,
    environment: Environment,
    arguments: Mapping[str, Any],
    results: Sequence[ResultEntry],
    benchmark: Mapping[str, Any] | None = None,
    tier_test: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole document.

    Args:
        mode: of the command line.
        environment: hardware and versions.
        arguments: every option of the command line, given or not.
        results: the measured runs, the cells of a benchmark or the rows of a tier test, in order.
        benchmark: how a benchmark's matrix was determined; ``None`` in every other mode.
        tier_test: summary of the rows of a tier test; ``None`` in every other mode.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": mode,
        "environment": asdict(environment),
        "arguments": dict(arguments),
        "benchmark": None if benchmark is None else dict(benchmark),
        "tier_test": None if tier_test is None else dict(tier_test),
        "results": [result.to_json() for result in results],
    }


def write_result(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document as indented JSON.

    Raises:
        OSError: it could not be written; the previous file is unchanged.
    """
    with replacing(path) as stream:
        json.dump(document, stream, ensure_ascii=False, indent=2, allow_nan=False, default=_as_json)
        stream.write("\n")


def _as_json(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be stored in a result file")


def _error(error: BaseException) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": message_of(error), "stage": getattr(error, "stage", None)}


def _blueprint(blueprint: SongBlueprint) -> dict[str, Any]:
    return {
        "metadata": asdict(blueprint.metadata),
        "lyrics": blueprint.lyrics,
        "lyrics_complete": blueprint.lyrics_complete,
    }


def _measurement(run: Run) -> dict[str, Any]:
    breakdown, energy = Breakdown.of(run), RunEnergy.of(run)
    return {
        "trace_id": run.root.trace_id,
        "wall": breakdown.wall,
        "stages": {
            "vae_encode": {"total": breakdown.vae_encode},
            "audio_tokenization": {"total": breakdown.audio_tokenization},
            "llm_planning": {
                "total": breakdown.planner,
                "token_generation": breakdown.token_generation,
                "constrained_decoding": breakdown.constrained_decoding,
                "cfg_overhead": breakdown.guidance,
            },
            "dit_diffusion": {
                "total": breakdown.diffusion,
                "per_step_average": breakdown.step_average,
                "steps": breakdown.steps,
                "step_times": step_times(run),
            },
            "vae_decode": {"total": breakdown.vae_decode, "tile_times": tile_times(run)},
            "audio_save": {"total": breakdown.audio_save},
            "other": {"total": breakdown.other},
        },
        "token_statistics": [asdict(statistics) for statistics in token_statistics(run)],
        "vram_peaks": [asdict(peak) for peak in memory_peaks(run)],
        "roofline": RunWork.of(run).to_json(),
        "energy": None if energy is None else energy.to_json(),
    }
