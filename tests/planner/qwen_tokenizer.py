"""The real Qwen tokenizer, rebuilt from the ranks that the PyPI package ``dashscope`` carries."""

import base64
from importlib.resources import files

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from acestep.synthetic.tokenizer import SPLIT_PATTERN


def build_qwen_tokenizer() -> Tokenizer:
    lines = files("dashscope").joinpath("resources/qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    spell = _byte_alphabet()
    spelled = {token: "".join(spell[byte] for byte in token) for token in ranks}
    # tiktoken merges any two neighbours whose concatenation has a rank: every split of a token is a merge.
    merges = [
        (rank, ranks[token[:cut]], spelled[token[:cut]], spelled[token[cut:]])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    merges.sort(key=lambda merge: merge[:2])
    tokenizer = Tokenizer(
        models.BPE(
            vocab={spelled[token]: rank for token, rank in ranks.items()},
            merges=[(left, right) for _, _, left, right in merges],
        )
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_alphabet() -> dict[int, str]:
    """The byte-level alphabet of GPT-2: visible Latin-1 characters stand for themselves."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + rank) for rank, byte in enumerate(hidden)}
