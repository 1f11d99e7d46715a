"""Tokenizers from disk: the text encoder's as it is, the language model's as a vocabulary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from acestep.errors import CheckpointInvalid
from acestep.planner.vocabulary import TokenLayout, Vocabulary
from acestep.types import AUDIO_CODE_COUNT
from acestep.weights.layout import read_json

TOKENIZER: Final = "tokenizer.json"
_CODE: Final = re.compile(r"<\|audio_code_(\d+)\|>")
_MARKUP: Final = {
    "eos": "<|im_end|>",
    "pad": "<|endoftext|>",
    "turn_start": "<|im_start|>",
    "think_open": "<think>",
    "think_close": "</think>",
}
"""Special tokens that prompts are built with, by their name in ``TokenLayout``."""


def load_text_tokenizer(folder: Path, *, rows: int) -> Tokenizer:
    """The tokenizer in a folder.

    Args:
        folder: holds ``tokenizer.json``.
        rows: of the embedding that its ids index.

    Raises:
        CheckpointInvalid: no tokenizer, or one with ids that the embedding has no row for.
    """
    path = folder / TOKENIZER
    tokenizer = _parsed(path, read_json(path))
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise CheckpointInvalid(f"{path} has token {largest}, but the embedding ends at row {rows - 1}")
    return tokenizer


def load_vocabulary(folder: Path, *, rows: int) -> Vocabulary:
    """Text tokens, special tokens and where audio codes begin.

    The released tokenizers list every audio code as an added token, which takes half a minute to build. The codes' ids
    are consecutive, so the first one is sufficient, and they are left out. If a tokenizer has no codes, the model
    appended them: they begin after its last token.

    Args:
        folder: holds ``tokenizer.json``.
        rows: of the embedding; there may be more rows than tokens.

    Raises:
        CheckpointInvalid: no tokenizer, special tokens or codes are missing, or codes are not where they must be.
    """
    path = folder / TOKENIZER
    description = read_json(path)
    added = description.get("added_tokens") or []
    try:
        codes = {int(match[1]): token["id"] for token in added if (match := _CODE.fullmatch(token["content"]))}
        description["added_tokens"] = [token for token in added if not _CODE.fullmatch(token["content"])]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CheckpointInvalid(f"{path} lists added tokens in an unknown form: {error!r}") from error
    tokenizer = _parsed(path, description)
    text_ids = tokenizer.get_vocab().values()
    code_base = codes.get(0, max(text_ids, default=-1) + 1)
    if any(token_id != code_base + code for code, token_id in codes.items()):
        raise CheckpointInvalid(f"{path}: the ids of the audio codes are not consecutive")
    if codes and len([code for code in codes if code < AUDIO_CODE_COUNT]) < AUDIO_CODE_COUNT:
        raise CheckpointInvalid(f"{path} has {len(codes)} audio codes, {AUDIO_CODE_COUNT} are needed")
    if max(text_ids, default=-1) >= code_base:
        raise CheckpointInvalid(f"{path} has text tokens after the first audio code, {code_base}")
    if code_base + AUDIO_CODE_COUNT > rows:
        raise CheckpointInvalid(
            f"{path}: audio codes begin at {code_base}, but the embedding has {rows} rows, too few for "
            f"{AUDIO_CODE_COUNT} codes"
        )
    markup: dict[str, int] = {}
    for name, token in _MARKUP.items():
        token_id = tokenizer.token_to_id(token)
        if token_id is None:
            raise CheckpointInvalid(f"{path} lacks the special token {token}")
        markup[name] = token_id
    layout = TokenLayout(text_size=code_base, code_base=code_base, vocabulary_size=rows, **markup)
    return Vocabulary(tokenizer, layout)


def _parsed(path: Path, description: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(description))
    except Exception as error:
        # The library raises a bare Exception for anything it cannot read.
        raise CheckpointInvalid(f"{path} is not a tokenizer: {error}") from error
