"""What ``understand``, ``create_sample`` and ``format_sample`` share: the language model alone, and a song in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from acestep.checkpoints import load_planner
from acestep.planner.planner import Planner
from acestep.types import TEXT_SAMPLING, ProgressCallback, SongBlueprint, SongwritingSettings
from acestep_otel.modes.measurement import Outcome
from acestep_otel.modes.options import Options
from acestep_otel.modes.placement import describe_placement
from acestep_otel.modes.request import select_models

_TITLE_RULE: Final = "=" * 100
_ABSENT: Final = "—"


class Verb(Protocol):
    """A call of one of the engine's verbs, with everything but the model settled."""

    def __call__(self, planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        """Make it."""


@dataclass(frozen=True, slots=True)
class Songwriting:
    """The measured call of a verb that needs the language model alone.

    Attributes:
        root: name of the verb's root span.
        verb: the call.
        options: of the command line.
    """

    root: str
    verb: Verb
    options: Options

    def load(self) -> Planner:
        """The language model; no renderer."""
        return load_planner(select_models(self.options, with_language_model=True))

    def rehearse(self, models: Planner, progress: ProgressCallback) -> None:
        """The call itself: it writes no files."""
        self.verb(models, progress)

    def calibrate(self, models: Planner) -> None:
        """Nothing: text is written without guidance."""

    def run(self, models: Planner, progress: ProgressCallback) -> Outcome:
        """The call."""
        blueprint = self.verb(models, progress)
        return Outcome(
            effective=blueprint.effective, summary=tuple(render_blueprint(blueprint, self.options)), blueprint=blueprint
        )


def songwriting_settings(options: Options, *, default_seed: int) -> SongwritingSettings:
    """How the options let the language model write; a negative seed asks for a random one."""
    seed = default_seed if options.seed is None else options.seed
    return SongwritingSettings(
        sampling=replace(TEXT_SAMPLING, temperature=options.lm_temperature),
        seed=None if seed < 0 else seed,
        use_constrained_decoding=options.use_constrained_decoding,
        lyrics_token_limit=options.lyrics_token_limit,
    )


def render_blueprint(blueprint: SongBlueprint, options: Options) -> Iterator[str]:
    """Lines for the terminal: what ran, then the metadata and the words."""
    done, metadata = blueprint.effective, blueprint.metadata
    yield f"{done.lm_model} ({done.lm_backend}) on {done.device}, {done.dtype}, weights: {done.weights}"
    yield f"seed {done.seeds[0]}"
    yield from describe_placement(done.placement, options)
    yield ""
    yield "SONG BLUEPRINT"
    yield _TITLE_RULE
    for label, value in (
        ("Caption", metadata.caption),
        ("BPM", metadata.bpm),
        ("Duration", None if metadata.duration is None else f"{metadata.duration} s"),
        ("Key", metadata.keyscale),
        ("Language", metadata.language),
        ("Time signature", metadata.timesignature),
    ):
        yield f"  {label:<16}{_ABSENT if value is None else value}"
    ending = "" if blueprint.lyrics_complete or not blueprint.lyrics else " (cut at the token limit)"
    yield f"  Lyrics{ending}"
    for line in blueprint.lyrics.splitlines() or [_ABSENT]:
        yield f"    {line}".rstrip()
