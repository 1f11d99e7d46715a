"""What the language model reads: ChatML prompts in the layout that ACE-Step 1.5's language model was trained on.

Prompts are built as token ids. Special tokens go in by id and the text between two of them is encoded as one
string, so the ids are the canonical ones and no text of a user can become a special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from acestep.planner.metadata import dump_metadata
from acestep.planner.vocabulary import Vocabulary
from acestep.types import INSTRUMENTAL, NO_USER_INPUT, SongMetadata

GENERATE: Final = "Generate audio semantic tokens based on the given conditions:"
UNDERSTAND: Final = "Understand the given musical conditions and describe the audio semantics accordingly:"
INSPIRE: Final = "Expand the user's input into a more detailed and specific musical description:"
REWRITE: Final = "Format the user's input into a more detailed and specific musical description:"


class Prompts:
    """Prompts of every task of the language model, over one vocabulary.

    Each method returns token ids that end where the model continues.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def reasoning(self, caption: str, lyrics: str) -> list[int]:
        """Phase 1: the model answers with metadata in a ``<think>`` block."""
        return self._chat(GENERATE, self._song(caption, lyrics))

    def codes(self, caption: str, lyrics: str, metadata: SongMetadata) -> list[int]:
        """Phase 2: the model continues with audio codes after a closed ``<think>`` block of known metadata."""
        return self._chat(GENERATE, self._song(caption, lyrics)) + self._think_block(dump_metadata(metadata))

    def unconditional_codes(self, negative_prompt: str = NO_USER_INPUT) -> list[int]:
        """Phase 2 without the song, for classifier-free guidance; a blank negative prompt counts as none."""
        text = negative_prompt if negative_prompt.strip() else NO_USER_INPUT
        return self._chat(GENERATE, self._encode(f"user\n{text}")) + self._think_block("")

    def understand(self, codes: Sequence[int]) -> list[int]:
        """Audio codes to metadata and lyrics; without codes the model invents a song."""
        if not codes:
            return self._chat(UNDERSTAND, self._encode(f"user\n{NO_USER_INPUT}"))
        return self._chat(UNDERSTAND, self._encode("user\n") + [self._vocabulary.code_to_id(code) for code in codes])

    def inspire(self, query: str, instrumental: bool) -> list[int]:
        """A short description to metadata and lyrics."""
        wish = f"user\n{query or NO_USER_INPUT}\n\ninstrumental: {str(instrumental).lower()}"
        return self._chat(INSPIRE, self._encode(wish))

    def rewrite(self, caption: str, lyrics: str) -> list[int]:
        """Caption and lyrics to better ones, with metadata. Unlike in phase 1 no newline follows the lyrics."""
        song = f"user\n# Caption\n{caption or NO_USER_INPUT}\n\n# Lyric\n{lyrics or INSTRUMENTAL}"
        return self._chat(REWRITE, self._encode(song))

    def lyrics(self, prompt: Sequence[int], reasoning: Sequence[int]) -> list[int]:
        """The prompt from which the model continues, after its metadata, with the lyrics.

        Args:
            prompt: one of ``understand``, ``inspire`` and ``rewrite``.
            reasoning: the block that the model wrote, from ``<think>`` on; ``</think>`` may be missing at its end.
        """
        close = self._vocabulary.layout.think_close
        closing = [] if reasoning and reasoning[-1] == close else [close]
        return [*prompt, *reasoning, *closing, *self._encode("\n\n")]

    def _song(self, caption: str, lyrics: str) -> list[int]:
        return self._encode(f"user\n# Caption\n{caption}\n\n# Lyric\n{lyrics}\n")

    def _chat(self, instruction: str, user: list[int]) -> list[int]:
        """System turn, user turn, and the start of the assistant's."""
        system = self._encode(f"system\n# Instruction\n{instruction}\n\n")
        start = [self._vocabulary.layout.turn_start, *self._encode("assistant\n")]
        return self._turn(system) + self._turn(user) + start

    def _turn(self, content: list[int]) -> list[int]:
        layout = self._vocabulary.layout
        return [layout.turn_start, *content, layout.eos, *self._encode("\n")]

    def _think_block(self, yaml: str) -> list[int]:
        """A closed ``<think>`` block; the assistant's turn stays open after it, as in training."""
        layout = self._vocabulary.layout
        return [layout.think_open, *self._encode(f"\n{yaml}\n"), layout.think_close, *self._encode("\n\n")]

    def _encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)
