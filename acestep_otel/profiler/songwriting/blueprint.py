"""What ``understand``, ``create_sample`` and ``format_sample`` share: a song in words, and no renderer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from acestep.checkpoints import load_planner
from acestep.planner.planner import Planner
from acestep.types import CODES_PER_SECOND, TEXT_SAMPLING, ProgressCallback, SongBlueprint, SongwritingSettings
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.generation_request import select_models
from acestep_otel.profiler.run.measurement import Outcome
from acestep_otel.profiler.run.placement import describe_placement

_TITLE_RULE: Final = "=" * 100
_ABSENT: Final = "—"

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Songwriting(Generic[Loaded]):
    """The measured call of a verb that writes a song in words.

    Attributes:
        root: name of the verb's root span.
        load: loads the models; no renderer is among them.
        verb: the call, with everything but the models settled.
        options: of the command line.
    """

    root: str
    load: Callable[[], Loaded]
    verb: Callable[[Loaded, ProgressCallback], SongBlueprint]
    options: Options

    def rehearse(self, models: Loaded, progress: ProgressCallback) -> None:
        """The call itself: it writes no files."""
        self.verb(models, progress)

    def calibrate(self, models: Loaded) -> None:
        """Nothing: text is written without guidance."""

    def run(self, models: Loaded, progress: ProgressCallback) -> Outcome:
        """The call."""
        blueprint = self.verb(models, progress)
        return Outcome(
            effective=blueprint.effective, summary=tuple(render_blueprint(blueprint, self.options)), blueprint=blueprint
        )


def language_model(options: Options) -> Callable[[], Planner]:
    """Loads the language model that the options name, and nothing else."""
    return lambda: load_planner(select_models(options, with_language_model=True))


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
    if blueprint.audio_codes:
        seconds = len(blueprint.audio_codes) / CODES_PER_SECOND
        heard_by = f", heard by the audio tokenizer of {done.audio_encoder}" if done.audio_encoder else ""
        yield f"{len(blueprint.audio_codes)} audio codes ({seconds:g} s){heard_by}"
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
