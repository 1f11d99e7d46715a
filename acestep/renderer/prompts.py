"""What the renderer's text encoder reads, in the layout that the models were trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from acestep.types import SongMetadata, TaskType

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

CAPTION_TOKEN_LIMIT: Final = 256
"""Tokens of the caption prompt that the text encoder reads."""
LYRICS_TOKEN_LIMIT: Final = 2048
"""Tokens of the lyrics prompt that the lyric encoder reads."""
TEXT_INSTRUCTION: Final = "Fill the audio semantic mask based on the given conditions:"
"""Task line for music from text alone."""
CODES_INSTRUCTION: Final = "Generate audio semantic tokens based on the given conditions:"
"""Task line for music that follows audio codes, written by the language model or encoded from a recording."""
_LONGEST_TOKEN: Final = 128
"""Characters of the longest token in the vocabulary of Qwen3, a run of blanks."""
_INSTRUCTIONS: Final[Mapping[TaskType, str]] = {
    "text2music": TEXT_INSTRUCTION,
    "cover": CODES_INSTRUCTION,
    "repaint": "Repaint the mask area based on the given conditions:",
    "lego": "Generate the track based on the audio context:",
    "extract": "Extract the track from the audio:",
    "complete": "Complete the input track:",
}
_TRACK_INSTRUCTIONS: Final[Mapping[TaskType, str]] = {
    "lego": "Generate the {} track based on the audio context:",
    "extract": "Extract the {} track from the audio:",
    "complete": "Complete the input track with {}:",
}
UNKNOWN: Final = "N/A"
UNKNOWN_LANGUAGE: Final = "unknown"


def task_instruction(task: TaskType, track_names: Sequence[str] = ()) -> str:
    """The instruction that identifies a task to the models, as in their training.

    Args:
        task: what to do.
        track_names: tracks that it is about, for ``lego``, ``extract`` and ``complete``.
    """
    if not track_names:
        return _INSTRUCTIONS[task]
    return _TRACK_INSTRUCTIONS[task].format(" | ".join(name.upper() for name in track_names))


def caption_prompt(caption: str, metadata: SongMetadata, duration: float, instruction: str = TEXT_INSTRUCTION) -> str:
    """The prompt of the text encoder: task, caption and metadata (ACE-Step 1.5's ``SFT_GEN_PROMPT`` layout).

    Args:
        caption: what the music should be like.
        metadata: beats per minute, time signature and key; open fields read ``N/A``.
        duration: seconds; the model reads whole ones.
        instruction: the task.
    """
    metas = (
        f"- bpm: {metadata.bpm or UNKNOWN}\n- timesignature: {metadata.timesignature or UNKNOWN}\n"
        f"- keyscale: {metadata.keyscale or UNKNOWN}\n- duration: {int(duration)} seconds\n"
    )
    return f"# Instruction\n{instruction}\n\n# Caption\n{caption}\n\n# Metas\n{metas}<|endoftext|>\n"


def lyrics_prompt(lyrics: str, language: str | None) -> str:
    """The prompt of the lyric encoder: language (a code, ``unknown`` for ``None``) and words."""
    return f"# Languages\n{language or UNKNOWN_LANGUAGE}\n\n# Lyric\n{lyrics}<|endoftext|>"


def token_ids(tokenizer: Tokenizer, text: str, limit: int) -> list[int]:
    """Tokens of a prompt, cut at the end to ``limit`` with the tokenizer's own closing tokens kept.

    Text beyond the longest that so many tokens can represent is cut before tokenisation, in which a text of 50 MB takes
    12 GB and a minute.
    """
    begin = text[: limit * _LONGEST_TOKEN]
    encoding = tokenizer.encode(begin, add_special_tokens=False)
    room = limit - tokenizer.num_special_tokens_to_add(False)
    if len(encoding) > room:
        least = "" if begin == text else "more than "
        logger.warning("prompt of %s%d tokens cut to the %d that the model reads", least, len(encoding), room)
        encoding.truncate(room)
    ids: list[int] = tokenizer.post_process(encoding).ids
    return ids
