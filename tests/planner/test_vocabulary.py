import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.planner.budget import LanguageModel
from acestep.planner.vocabulary import QWEN3_LAYOUT, TextClass, TokenLayout, Vocabulary
from acestep.synthetic.language_model import TINY_LAYOUT
from acestep.synthetic.tokenizer import build_tokenizer

TINY = Vocabulary(build_tokenizer(TINY_LAYOUT), TINY_LAYOUT)
MARKUP = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<|audio_code_7|>")


def test_the_layout_of_the_released_models() -> None:
    assert (
        TokenLayout(
            eos=151645,
            pad=151643,
            turn_start=151644,
            think_open=151667,
            think_close=151668,
            text_size=151669,
            code_base=151669,
            vocabulary_size=217204,
            code_count=64000,
        )
        == QWEN3_LAYOUT
    )


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("bpm:", [65, 5187, 25]),
        ("caption:", [23347, 25]),
        ("duration:", [17021, 25]),
        ("keyscale:", [10563, 2246, 25]),
        ("language:", [11528, 25]),
        ("timesignature:", [15136, 622, 1568, 25]),
        (" 120\n", [220, 16, 17, 15, 198]),
        (" G major", [479, 3598]),
        (" C# minor", [356, 2, 8922]),
        (" B♭ minor", [425, 145761, 8922]),
        (" F♯ major", [434, 145346, 3598]),
        (" Eb major", [25570, 3598]),
        (" yue", [379, 361]),
        (".\n", [624]),
        ("\n  word", [198, 220, 3409]),
        ("\n\n# Lyric\n", [271, 2, 15953, 2216, 198]),
    ],
)
def test_canonical_ids_of_the_qwen_vocabulary(qwen: Vocabulary, text: str, ids: list[int]) -> None:
    assert qwen.encode(text) == ids


@pytest.mark.parametrize("markup", MARKUP)
def test_b13_markup_in_a_text_stays_text(qwen: Vocabulary, markup: str) -> None:
    """Text of users and models that looks like a special token must not become one."""
    for vocabulary in (qwen, TINY):
        ids = vocabulary.encode(f"a {markup} b")
        assert max(ids) < vocabulary.layout.pad
        assert vocabulary.decode(ids) == f"a {markup} b"


def test_decoding_spells_special_tokens_and_codes() -> None:
    layout = TINY_LAYOUT
    ids = [layout.think_open, *TINY.encode("\nok\n"), layout.think_close, TINY.code_to_id(0), TINY.code_to_id(63_999)]
    assert TINY.decode(ids) == "<think>\nok\n</think><|audio_code_0|><|audio_code_63999|>"


def test_ids_without_a_string_are_left_out() -> None:
    assert TINY.decode([*TINY.encode("a"), TINY_LAYOUT.pad - 1, *TINY.encode("b")]) == "ab"


@given(st.integers(0, 63_999))
def test_codes_and_ids_are_each_others_inverse(code: int) -> None:
    assert TINY.id_to_code(TINY.code_to_id(code)) == code


@pytest.mark.parametrize("code", [-1, 64_000, 65_534])
def test_invalid_codes_have_no_id(code: int) -> None:
    with pytest.raises(ValueError, match=f"audio code {code} is outside"):
        TINY.code_to_id(code)
    with pytest.raises(ValueError, match="is not an audio code"):
        TINY.id_to_code(TINY_LAYOUT.code_base + code)


def test_text_classes_do_not_overlap(qwen: Vocabulary) -> None:
    for vocabulary in (qwen, TINY):
        everything = vocabulary.ids_of(list(TextClass))
        assert len(set(everything.tolist())) == len(everything)


def test_text_classes_describe_the_form_of_a_token(qwen: Vocabulary) -> None:
    for vocabulary in (qwen, TINY):
        members = {
            text_class: [vocabulary.decode([token_id]) for token_id in ids.tolist()]
            for text_class, ids in vocabulary.text_classes.items()
        }
        assert members[TextClass.SPACE] == [" "]
        assert all(text[0] == " " and text[1] not in " \n\t\r" for text in members[TextClass.SPACED_WORD])
        assert all(not set(text) & set(" \n\t\r") for text in members[TextClass.WORD])
        assert all(text.index("\n") == len(text) - 1 and " " not in text for text in members[TextClass.LINE_END])


def test_b13_b21_no_class_contains_markup_backticks_or_special_tokens(qwen: Vocabulary) -> None:
    """The reference lets end-of-turn, invalid codes and the triple backtick into captions."""
    for vocabulary in (qwen, TINY):
        ids = vocabulary.ids_of(list(TextClass)).tolist()
        assert max(ids) < vocabulary.layout.pad
        assert not any({"`", "<"} & set(vocabulary.decode([token_id])) for token_id in ids)
    assert 73594 not in qwen.ids_of(list(TextClass))  # ```


def test_text_is_every_token_with_a_string_that_is_not_special(qwen: Vocabulary) -> None:
    assert qwen.text_ids.tolist() == list(range(151_643))


def test_ids_without_a_string_are_no_text(tiny: LanguageModel) -> None:
    assert tiny.vocabulary.text_ids.max() < tiny.vocabulary.layout.pad
    assert all(tiny.vocabulary.decode([int(token_id)]) for token_id in tiny.vocabulary.text_ids)
