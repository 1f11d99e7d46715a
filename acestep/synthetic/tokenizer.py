"""A small byte-level BPE tokenizer, trained in process, that splits text the way Qwen's tokenizer does.

It stands in for the real one where there are no files: any text can be encoded, special tokens have the ids of the
model's layout, and the metadata block has its own tokens so that it stays short.
"""

from __future__ import annotations

import json
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from acestep.planner.vocabulary import TokenLayout

SPLIT_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before BPE (the pattern of Qwen's tokenizer files); every digit is separate."""
TEXT_TOKENS: Final = 1_200
"""Maximum number of tokens that training creates."""

_CORPUS: Final = (
    "# Instruction\nGenerate audio semantic tokens based on the given conditions:\n\n",
    "Understand the given musical conditions and describe the audio semantics accordingly:\n\n",
    "Expand the user's input into a more detailed and specific musical description:\n\n",
    "Format the user's input into a more detailed and specific musical description:\n\n",
    "system\nuser\nassistant\n# Caption\n\n\n# Lyric\nNO USER INPUT\ninstrumental: true\ninstrumental: false\n",
    "bpm: 120\ncaption: Warm\nduration: 180\nkeyscale: C# minor\nlanguage: en\ntimesignature: 4\n",
    "keyscale: F♯ major\nkeyscale: B♭ minor\nkeyscale: Eb major\nlanguage: unknown\nlanguage: 'no'\n",
    "Fill the audio semantic mask based on the given conditions:\n\n# Metas\n- bpm: N/A\n- duration: 30 seconds\n",
    "# Languages\nen\n\n# Lyric\n[Verse 1]\n[Pre-Chorus]\n[Chorus]\n[Bridge]\n[Solo]\n[Outro]\n[Instrumental]\n",
    "A slow piano waltz with brushed drums, a double bass and a low, close voice.\n",
    "Bright synth pop with a steady kick, clean guitars and a chorus made for large rooms!\n",
    "Dark ambient drones; distant bells; no drums; no voice;\n",
    "Who hears the river when the town is asleep?\nI left my shoes beside the door,\nand the road kept walking.\n",
    'The singer answers: "stay a while"\n(the strings come back)\nTempo rises - then it falls -\nand so on...\n',
    "El mar repite mi nombre en la arena, y la noche no quiere volver.\n",
    "Der Regen schreibt auf das Fenster, und wir zählen die Züge.\n",
    "La ville dort sous la neige légère, et nos pas dessinent un chemin…\n",
    "Над рекой горит огонь, и песня плывёт до утра.\n",
    "窗外的雨慢慢停了，我还在等你的消息。\n星星落在海面上，风把歌带走！\n",
    "夜の駅で、君の声を思い出す。\n朝が来るまで歌おう、ずっと。\n",
    "바람이 불어오는 길 위에서 우리는 노래해.\n",
    "يا ليل طال السهر، والقمر يسمع لحني.\n",
    "रात की हवा में एक धुन है, जो घर तक जाती है।\n",
)


def build_tokenizer(layout: TokenLayout) -> Tokenizer:
    """Train the tokenizer and place the special tokens.

    The result depends on the layout alone. Ids between the last trained token and the special tokens have no string.

    Args:
        layout: ids of the special tokens; the trained tokens take the ids below them.

    Returns:
        A tokenizer that reads special tokens in a text as such (``acestep.planner.vocabulary`` does not).

    Raises:
        ValueError: the layout has no room for the trained tokens.
    """
    special = {
        "<|endoftext|>": layout.pad,
        "<|im_start|>": layout.turn_start,
        "<|im_end|>": layout.eos,
        "<think>": layout.think_open,
        "</think>": layout.think_close,
    }
    text, merges = _train()
    if len(text) > min(special.values()):
        raise ValueError(f"{len(text)} text tokens do not fit below special token {min(special.values())}")
    tokenizer = _pipeline(models.BPE(vocab=text | special, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _pipeline(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the corpus."""
    tokenizer = _pipeline(models.BPE())
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=TEXT_TOKENS, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    # The serialised form is the only place where the library shows the merges.
    trained = json.loads(tokenizer.to_str())["model"]
    return trained["vocab"], [(left, right) for left, right in trained["merges"]]
