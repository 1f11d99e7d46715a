"""The prompts of the text encoder are exactly those that it was trained on."""

from __future__ import annotations

import logging

import pytest
from diffusers import AceStepPipeline
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from acestep.renderer.prompts import CODES_INSTRUCTION, TEXT_INSTRUCTION, caption_prompt, lyrics_prompt, token_ids
from acestep.types import SongMetadata


def test_caption_prompt_is_instruction_caption_and_metas():
    metadata = SongMetadata(bpm=73, keyscale="G major", timesignature="4")
    assert caption_prompt("warm piano", metadata, 200.0) == (
        "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n"
        "# Caption\nwarm piano\n\n"
        "# Metas\n- bpm: 73\n- timesignature: 4\n- keyscale: G major\n- duration: 200 seconds\n<|endoftext|>\n"
    )


def test_what_is_not_known_reads_not_available():
    text = caption_prompt("x", SongMetadata(caption="not this one", duration=99), 12.9)
    assert "- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n- duration: 12 seconds\n" in text
    assert "not this one" not in text


def test_lyrics_prompt_is_language_and_words():
    assert lyrics_prompt("[Verse]\nla", "ja") == "# Languages\nja\n\n# Lyric\n[Verse]\nla<|endoftext|>"
    assert lyrics_prompt("[Instrumental]", None).startswith("# Languages\nunknown\n")


@given(
    st.text(),
    st.text(),
    st.none() | st.integers(30, 300),
    st.none() | st.sampled_from(["C major", "E♭ minor", "F# minor"]),
    st.none() | st.sampled_from(["2", "3", "4", "6"]),
    st.floats(1, 600),
    st.sampled_from([TEXT_INSTRUCTION, CODES_INSTRUCTION]),
)
def test_prompts_equal_those_of_diffusers(caption, lyrics, bpm, keyscale, timesignature, duration, instruction):
    theirs = AceStepPipeline._format_prompt(
        AceStepPipeline,
        prompt=caption,
        lyrics=lyrics,
        vocal_language="en",
        audio_duration=duration,
        instruction=instruction,
        bpm=bpm,
        keyscale=keyscale,
        timesignature=timesignature,
    )
    metadata = SongMetadata(bpm=bpm, keyscale=keyscale, timesignature=timesignature)
    assert (caption_prompt(caption, metadata, duration, instruction), lyrics_prompt(lyrics, "en")) == theirs


@pytest.fixture
def closing_tokenizer() -> Tokenizer:
    """Every digit a token, and a closing token after every text, as Qwen3-Embedding's tokenizer has it."""
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(10)} | {"<|endoftext|>": 10}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 10)]
    )
    return tokenizer


def test_a_prompt_within_the_limit_is_kept_whole(closing_tokenizer, caplog):
    assert token_ids(closing_tokenizer, "1234", 5) == [1, 2, 3, 4, 10]
    assert caplog.messages == []


def test_a_prompt_over_the_limit_is_cut_with_a_warning_and_keeps_its_closing_token(closing_tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        assert token_ids(closing_tokenizer, "123456789", 5) == [1, 2, 3, 4, 10]
    assert "prompt of 9 tokens cut to the 4 that the model reads" in caplog.text


def test_what_no_token_of_the_limit_can_reach_is_not_tokenised_and_not_counted(caplog):
    seen = []

    class Counting:
        def encode(self, text, **options):
            seen.append(len(text))
            return tokenizer.encode(text, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    tokenizer = Tokenizer(models.WordLevel({"la": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert token_ids(Counting(), "la " * 10_000_000, 8) == [0] * 8
    assert seen == [8 * 128]
    assert caplog.messages == ["prompt of more than 342 tokens cut to the 8 that the model reads"]
