"""Modes ``understand``, ``create_sample`` and ``format_sample``: songs described as text, without a renderer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Generic, TypeVar

from acestep import blueprints
from acestep.audio import require_readable
from acestep.checkpoints import load_audio_encoder, load_planner
from acestep.planner.planner import Planner
from acestep.renderer.audio_encoder import AudioEncoder, require_encodable
from acestep.types import CODES_PER_SECOND, TEXT_SAMPLING, ProgressCallback, SongBlueprint, SongwritingSettings
from acestep.validation import validate_audio_codes, validate_songwriting
from acestep_otel import semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.run.example import Example, load_example
from acestep_otel.profiler.run.generation_request import select_models
from acestep_otel.profiler.run.measurement import Outcome, measure, setup_errors
from acestep_otel.profiler.run.placement import describe_placement
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.recording import GuidanceShare

_TITLE_RULE: Final = "=" * 100
_ABSENT: Final = "—"
_SHOWN_LINES: Final = 60
_SHOWN_CHARACTERS: Final = 2_000
"""Lyrics on the terminal: the limits fit a song and cut the random tokens of synthetic weights."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, slots=True)
class Songwriting(Generic[Loaded]):
    """The measured call of a function that writes a blueprint.

    Attributes:
        root: name of the root span.
        load: loads the models, without a renderer.
        verb: the call, with all arguments except the models.
        options: of the command line.
    """

    root: str
    load: Callable[[], Loaded]
    verb: Callable[[Loaded, ProgressCallback], SongBlueprint]
    options: Options

    def warm_up(self, models: Loaded, progress: ProgressCallback) -> None:
        """The call itself: it writes no files."""
        self.verb(models, progress)

    def measure_guidance(self, _models: Loaded) -> GuidanceShare | None:
        """``None``: text is written without guidance."""
        return None

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
    """The settings of the language model from the options; a negative seed selects a random one."""
    seed = default_seed if options.seed is None else options.seed
    return SongwritingSettings(
        sampling=replace(TEXT_SAMPLING, temperature=options.lm_temperature),
        seed=None if seed < 0 else seed,
        use_constrained_decoding=options.use_constrained_decoding,
        lyrics_token_limit=options.lyrics_token_limit,
    )


def render_blueprint(blueprint: SongBlueprint, options: Options) -> Iterator[str]:
    """Lines for the terminal: models, metadata and lyrics."""
    done, metadata = blueprint.effective, blueprint.metadata
    yield f"{done.lm_model} ({done.lm_backend}) on {done.device}, {done.dtype}, weights: {done.weights}"
    yield f"seed {done.seeds[0]}"
    yield from describe_placement(done.placement, options)
    if blueprint.audio_codes:
        seconds = len(blueprint.audio_codes) / CODES_PER_SECOND
        heard_by = f", encoded by the audio tokenizer of {done.audio_encoder}" if done.audio_encoder else ""
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
    ending = "" if blueprint.lyrics_complete or not blueprint.lyrics else " (truncated at the token limit)"
    yield f"  Lyrics{ending}"
    yield from _shown_lyrics(blueprint.lyrics)


def _shown_lyrics(lyrics: str) -> Iterator[str]:
    """The beginning of the lyrics, for the terminal; the result file contains all of them."""
    lines = lyrics.splitlines() or [_ABSENT]
    room = _SHOWN_CHARACTERS
    for number, line in enumerate(lines):
        if number == _SHOWN_LINES or room <= 0:
            yield f"    … {_counted(len(lines) - number, 'more line')} (--benchmark-output has them all)"
            return
        yield f"    {line[:room]}".rstrip()
        if len(line) > room:
            left = f"{len(line) - room:,} more characters"
            if lines[number + 1 :]:
                left += f" and {_counted(len(lines) - number - 1, 'more line')}"
            yield f"    … {left} (--benchmark-output has them all)"
            return
        room -= len(line)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


_TOKENS: Final = re.compile(r"(?:\s*<\|audio_code_[0-9]{1,9}\|>)+\s*")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


def parse_audio_codes(text: str) -> tuple[int, ...]:
    """Read ``<|audio_code_12|><|audio_code_7|>`` or ``12, 7``; nothing but white space is no codes.

    The engine checks the range of the codes.

    Raises:
        SetupError: something in the text is not an audio code; the message names it.
    """
    if not text.strip():
        return ()
    if _TOKENS.fullmatch(text):
        return tuple(int(number) for number in _NUMBER.findall(text))
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not _NUMBER.fullmatch(word):
            raise SetupError(
                f"{word[:40]!r} is not an audio code: write '<|audio_code_12|><|audio_code_7|>' or '12,7', "
                "each number 0 ... 63999"
            )
    return tuple(map(int, words))


def understand(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (``run.measurement.measure``); without any input the model invents a song."""
    if options.src_audio is not None and options.audio_codes is not None:
        raise SetupError("--src-audio and --audio-codes are two inputs: give one of them")
    settings = songwriting_settings(options, default_seed=Example().seed)
    with setup_errors():
        validate_songwriting(settings)
    if options.src_audio is None:
        measure(options, telemetry, _of_codes(options, settings))
    else:
        measure(options, telemetry, _of_recording(options, options.src_audio, settings))


def _of_codes(options: Options, settings: SongwritingSettings) -> Songwriting[Planner]:
    codes = parse_audio_codes(options.audio_codes or "")
    with setup_errors():
        validate_audio_codes(codes)

    def verb(planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        return blueprints.understand_music(planner, codes, settings=settings, progress=progress)

    return Songwriting(semconv.UNDERSTAND_MUSIC, language_model(options), verb, options)


@dataclass(frozen=True, slots=True)
class _Listener:
    """The models for a recording: audio encoder and language model."""

    audio_encoder: AudioEncoder
    planner: Planner


def _of_recording(options: Options, recording: Path, settings: SongwritingSettings) -> Songwriting[_Listener]:
    with setup_errors():
        require_encodable(require_readable(recording))

    def load() -> _Listener:
        selection = select_models(options, with_language_model=True)
        return _Listener(load_audio_encoder(selection), load_planner(selection))

    def verb(models: _Listener, progress: ProgressCallback) -> SongBlueprint:
        return blueprints.understand_recording(
            models.planner, models.audio_encoder, recording, settings=settings, progress=progress
        )

    return Songwriting(semconv.UNDERSTAND_MUSIC, load, verb, options)


DEFAULT_QUERY: Final = "an unhurried song for a long train ride at night"
"""The default query, so that the mode runs without options."""


def create_sample(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (see ``acestep_otel.profiler.run.measurement.measure``)."""
    query = DEFAULT_QUERY if options.sample_query is None else options.sample_query
    settings = songwriting_settings(options, default_seed=Example().seed)
    with setup_errors():
        validate_songwriting(settings)

    def verb(planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        return blueprints.create_sample(
            planner, query, instrumental=options.instrumental, settings=settings, progress=progress
        )

    measure(options, telemetry, Songwriting(semconv.CREATE_SAMPLE, language_model(options), verb, options))


def format_sample(options: Options, telemetry: Telemetry) -> None:
    """Run the mode (see ``acestep_otel.profiler.run.measurement.measure``).

    The example's metadata is omitted: it would be forced, and the language model would have nothing to decide.
    """
    example = load_example(options.example)
    settings = songwriting_settings(options, default_seed=example.seed)
    with setup_errors():
        validate_songwriting(settings)

    def verb(planner: Planner, progress: ProgressCallback) -> SongBlueprint:
        return blueprints.format_sample(planner, example.caption, example.lyrics, settings=settings, progress=progress)

    measure(options, telemetry, Songwriting(semconv.FORMAT_SAMPLE, language_model(options), verb, options))
