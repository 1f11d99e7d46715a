import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.planner.vocabulary import QWEN3_LAYOUT, Vocabulary
from acestep.synthetic.language_model import TINY_LAYOUT
from acestep.synthetic.tokenizer import build_tokenizer

TINY = Vocabulary(build_tokenizer(TINY_LAYOUT), TINY_LAYOUT)


def test_two_processes_with_different_hash_seeds_build_the_same_tokenizer() -> None:
    script = (
        "from acestep.synthetic.tokenizer import build_tokenizer\n"
        "from acestep.synthetic.language_model import TINY_LAYOUT\n"
        "print(build_tokenizer(TINY_LAYOUT).to_str(), end='')"
    )
    built = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    expected = build_tokenizer(TINY_LAYOUT).to_str().encode()
    assert [hashlib.sha256(text).hexdigest() for text in built] == [hashlib.sha256(expected).hexdigest()] * 2


@pytest.mark.parametrize("layout", [TINY_LAYOUT, QWEN3_LAYOUT], ids=["tiny", "true size"])
def test_special_tokens_have_the_ids_of_the_layout(layout) -> None:
    tokenizer = build_tokenizer(layout)
    placed = {token: tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    assert placed == {"<|endoftext|>": layout.pad, "<|im_start|>": layout.turn_start, "<|im_end|>": layout.eos}
    assert tokenizer.encode("<think>a</think>").ids[::2] == [layout.think_open, layout.think_close]


def test_text_and_codes_do_not_overlap() -> None:
    assert 1000 <= len(build_tokenizer(TINY_LAYOUT).get_vocab()) <= 1500
    assert max(build_tokenizer(TINY_LAYOUT).get_vocab().values()) < TINY_LAYOUT.code_base


def test_a_layout_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit below special token 500"):
        build_tokenizer(replace(TINY_LAYOUT, pad=500))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_encoding(text: str) -> None:
    normal = TINY.decode(TINY.encode(text))
    assert TINY.decode(TINY.encode(normal)) == normal
    assert max(TINY.encode(text), default=0) < TINY_LAYOUT.pad


def test_text_is_normalised_to_nfc() -> None:
    assert TINY.encode("Cafe\u0301") == TINY.encode("Café")


def test_digits_stand_alone() -> None:
    assert [TINY.decode([token_id]) for token_id in TINY.encode(" 120\n")] == [" ", "1", "2", "0", "\n"]
