"""The songwriter: from a prompt to the description and lyrics of a song.

The language model answers in two phases, as it was trained to: a metadata block, then the lyrics as free text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Final

from acestep.errors import InvalidOutput, device_errors
from acestep.planner.backends import LYRICS, REASONING, PhaseTokens
from acestep.planner.metadata import MARKUP, printable
from acestep.planner.planner import REASONING_TOKEN_LIMIT, Planner
from acestep.planner.vocabulary import TokenLayout
from acestep.types import ProgressCallback, SamplingSettings, SongMetadata

_PREAMBLE: Final = re.compile(r"#[ \t]*languages?[ \t]*(?:\n+[^#\n][^\n]*)?(?:\n+|\Z)", re.IGNORECASE)
"""A heading ``# Languages`` and the line below it, as in the renderer's own lyric prompt."""
_HEADER: Final = re.compile(r"#[ \t]*lyrics?[ \t]*(?:\n|\Z)", re.IGNORECASE)


def parse_lyrics(text: str) -> str:
    """Extract the lyrics from what the model wrote after its metadata.

    One ``# Languages`` preamble and one ``# Lyric`` or ``# Lyrics`` heading at the start are removed, and so are
    special tokens, control characters, lone surrogates and white space at the ends of lines. Headings further down are
    part of the lyrics.

    Args:
        text: output of the model; everything up to ``</think>`` is omitted, if present.

    Returns:
        The lyrics, possibly empty.
    """
    _, closed, behind = text.partition("</think>")
    words = printable(MARKUP.sub("", behind if closed else text))
    words = "\n".join(line.rstrip() for line in words.splitlines()).strip()
    for heading in (_PREAMBLE, _HEADER):
        if (match := heading.match(words)) is not None:
            words = words[match.end() :].lstrip()
    return words


_CLOSING_TOKENS: Final = 4
"""Tokens reserved for the text between the block and the lyrics."""


@dataclass(frozen=True, slots=True)
class SongwritingRequest:
    """A request to the songwriter.

    Attributes:
        prompt: token ids (``Prompts.understand``, ``inspire`` or ``rewrite``).
        given: the user's normalised values; they are forced.
        sampling: how to sample.
        seed: of the request.
        use_constrained_decoding: constrain the metadata to its grammar.
        lyrics_token_limit: most tokens of the lyrics.
    """

    prompt: list[int]
    given: SongMetadata
    sampling: SamplingSettings
    seed: int
    use_constrained_decoding: bool
    lyrics_token_limit: int


@dataclass(frozen=True, slots=True)
class Draft:
    """What the language model wrote.

    Attributes:
        metadata: the user's values, completed by the model's.
        lyrics: possibly empty.
        lyrics_complete: whether the model ended the lyrics, rather than the token limit.
        metadata_tokens: of the metadata block.
        lyrics_tokens: of the lyrics; ``None`` when the model ended its turn before them.
    """

    metadata: SongMetadata
    lyrics: str
    lyrics_complete: bool
    metadata_tokens: PhaseTokens
    lyrics_tokens: PhaseTokens | None

    @property
    def phases(self) -> tuple[PhaseTokens, ...]:
        """The phases that ran, in order."""
        return tuple(phase for phase in (self.metadata_tokens, self.lyrics_tokens) if phase is not None)


class Songwriter:
    """Writes songs with a planner's language model.

    Args:
        planner: has the model, its tokens and its limits.
    """

    def __init__(self, planner: Planner) -> None:
        self.backend = planner.backend
        self.model_name = planner.model_name
        self._planner = planner

    def write(self, request: SongwritingRequest, progress: ProgressCallback | None = None) -> Draft:
        """Decide the metadata, then write the lyrics.

        Args:
            request: the request.
            progress: called with every sampled token; an exception that it raises stops the run.

        Raises:
            BudgetExceeded: the request does not fit; nothing was run.
            OutOfMemory: the device ran out of memory.
            InvalidOutput: the model produced NaN or infinity, or nothing that can be read.
            BackendFailed: the device failed.
        """
        self._planner.budget.check(
            LYRICS,
            prompt_tokens=len(request.prompt),
            output_tokens=REASONING_TOKEN_LIMIT + _CLOSING_TOKENS + request.lyrics_token_limit,
            rows=1,
        )
        reasoned = self.reason(request, progress)
        metadata = _completed(request.given, self._planner.found(reasoned))
        # Without a grammar the model may have ended its turn, or never have closed the block.
        goes_on = request.use_constrained_decoding or reasoned.ids[0][-1:] == (self._layout.think_close,)
        lyrics_tokens = self.write_lyrics(request, reasoned.ids[0], progress) if goes_on else None
        written = lyrics_tokens.ids[0] if lyrics_tokens else ()
        lyrics = parse_lyrics(self._planner.vocabulary.decode(written))
        if metadata == SongMetadata() and not lyrics:
            raise InvalidOutput(
                "the language model wrote neither valid metadata nor lyrics: use constrained decoding, or another seed",
                stage=REASONING,
            )
        return Draft(metadata, lyrics, written[-1:] == (self._layout.eos,), reasoned, lyrics_tokens)

    def reason(self, request: SongwritingRequest, progress: ProgressCallback | None = None) -> PhaseTokens:
        """Phase 1: the metadata block, caption and language included."""
        cursor = None
        if request.use_constrained_decoding:
            cursor = self._planner.grammar.cursor(request.given, with_caption=True, with_language=True)
        with device_errors(REASONING):
            return self.backend.generate_metadata(
                request.prompt, cursor, request.sampling, request.seed, REASONING_TOKEN_LIMIT, progress
            )

    def write_lyrics(
        self, request: SongwritingRequest, reasoning: tuple[int, ...], progress: ProgressCallback | None = None
    ) -> PhaseTokens:
        """Phase 2: free text after the metadata block.

        Args:
            request: the request.
            reasoning: the block, from ``<think>`` on.
            progress: called with every token.
        """
        prompt = self._planner.prompts.lyrics(request.prompt, reasoning)
        with device_errors(LYRICS):
            return self.backend.generate_lyrics(
                prompt, request.sampling, request.seed, request.lyrics_token_limit, progress
            )

    @property
    def _layout(self) -> TokenLayout:
        return self._planner.vocabulary.layout


def _completed(given: SongMetadata, found: SongMetadata) -> SongMetadata:
    """The user's values, then the model's."""
    values = {field.name: getattr(given, field.name) for field in fields(SongMetadata)}
    return replace(found, **{name: value for name, value in values.items() if value is not None})
