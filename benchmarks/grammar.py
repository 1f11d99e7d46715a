"""What does constrained decoding cost, against a general grammar engine (xgrammar)?

    python -m benchmarks.grammar        # from the root of the repository; needs the extra "dev"

Both walk the same metadata blocks on the real Qwen vocabulary. The steps of a token are, for the automaton: allowed
set, accept, and the forced run after it; for xgrammar: fill the mask, accept. Forced are the tokens that need no
sampling.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import numpy as np
import xgrammar
from tokenizers import Tokenizer

from acestep.planner.grammar import MetadataGrammar
from acestep.planner.metadata import LANGUAGES, dump_metadata
from acestep.planner.vocabulary import QWEN3_LAYOUT, Vocabulary
from acestep.types import SongMetadata
from benchmarks.arguments import output_file
from benchmarks.environment import environment, write_result
from tests.planner.qwen_tokenizer import build_qwen_tokenizer

Result = TypeVar("Result")

REPETITIONS = 30
BLOCKS = {
    "long caption": SongMetadata(
        bpm=128,
        caption=(
            "A restless drum and bass track with clipped breakbeats, a sub bass that slides between notes and thin "
            "glassy pads. A low female voice speaks more than it sings, until the second drop opens into a wide, "
            "almost hymn-like chorus over distorted strings."
        ),
        duration=187,
        keyscale="F# minor",
        language="en",
        timesignature="4",
    ),
    "short caption": SongMetadata(
        bpm=72,
        caption="Slow waltz for felt piano and two cellos.",
        duration=240,
        keyscale="G major",
        language="unknown",
        timesignature="3",
    ),
}
# One regular expression for the whole caption: split over rules, filling its mask takes a hundred times longer.
EBNF = rf"""
root ::= "\nbpm: " bpm "\ncaption: " caption "\nduration: " duration "\nkeyscale: " keyscale "\nlanguage: " language "\ntimesignature: " [2346] "\n"
bpm ::= [3-9][0-9] | [12][0-9][0-9] | "300"
caption[max_tokens=512] ::= Regex("[^ \\t\\r\\n`<\\x00-\\x1f]([^\\r\\n`<\\x00-\\x1f]|\\n  [^ \\t\\r\\n`<\\x00-\\x1f])*")
duration ::= [1-9][0-9] | [1-5][0-9][0-9] | "600"
keyscale ::= [A-G] ("#" | "b" | "♯" | "♭")? " " ("major" | "minor")
language ::= {" | ".join(f'"{language}"' for language in LANGUAGES)}
"""  # noqa: E501


def main() -> None:
    """Print compile times, time per token and the share of forced tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()

    tokenizer = build_qwen_tokenizer()
    vocabulary = Vocabulary(tokenizer, QWEN3_LAYOUT)
    classes = _milliseconds(lambda: vocabulary.text_classes)
    compiled = [_milliseconds(lambda: MetadataGrammar(vocabulary)) for _ in range(5)]
    automaton = {"once per vocabulary (ms)": classes, "compile (ms)": median(compiled)}
    grammar = MetadataGrammar(vocabulary)

    info_time, info = _timed(lambda: _tokenizer_info(tokenizer))
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    compiled = [_milliseconds(lambda: compiler.compile_grammar(EBNF)) for _ in range(5)]
    general = {"once per vocabulary (ms)": info_time, "compile (ms)": median(compiled)}
    other = compiler.compile_grammar(EBNF)

    for name, metadata in BLOCKS.items():
        ids = vocabulary.encode("\n" + dump_metadata(metadata) + "\n")
        sampled = _walk_automaton(grammar, ids)[0]
        automaton |= _per_token(name, [_walk_automaton(grammar, ids)[1] for _ in range(REPETITIONS)])
        general |= _per_token(name, [_walk_xgrammar(other, ids) for _ in range(REPETITIONS)])
        automaton[f"{name}: forced (%)"] = 100 * (1 - len(sampled) / len(ids))
        general[f"{name}: forced (%)"] = 100 * _single_choice(other, ids) / len(ids)

    print(f"{'':40}{'automaton':>12}{'xgrammar':>12}")
    for row, value in automaton.items():
        print(f"{row:40}{value:12.1f}{general[row]:12.1f}")
    write_result(options.output, {"environment": environment(), "automaton": automaton, "xgrammar": general})


def _tokenizer_info(tokenizer: Tokenizer) -> xgrammar.TokenizerInfo:
    spelled = [""] * QWEN3_LAYOUT.vocabulary_size
    for token, token_id in tokenizer.get_vocab().items():
        spelled[token_id] = token
    return xgrammar.TokenizerInfo(
        spelled, xgrammar.VocabType.BYTE_LEVEL, stop_token_ids=[QWEN3_LAYOUT.eos], add_prefix_space=False
    )


def _walk_automaton(grammar: MetadataGrammar, ids: list[int]) -> tuple[list[int], list[float]]:
    """Tokens left to sample along a known block, and microseconds of each (allowed, accept, forced run)."""
    cursor = grammar.cursor(SongMetadata(), with_caption=True, with_language=True)
    place = len(cursor.forced()) - 1  # <think> is not part of the text
    sampled, times = [], []
    while not cursor.done:
        start = time.perf_counter()
        cursor.allowed()
        cursor.accept(ids[place])
        run = cursor.forced()
        times.append((time.perf_counter() - start) * 1e6)
        sampled.append(ids[place])
        place += 1 + len(run)
    return sampled, times


def _walk_xgrammar(compiled: xgrammar.CompiledGrammar, ids: list[int]) -> list[float]:
    """Microseconds of each token along a known block (fill the mask, accept)."""
    matcher, mask = xgrammar.GrammarMatcher(compiled), _mask()
    times = []
    for token_id in ids:
        start = time.perf_counter()
        matcher.fill_next_token_bitmask(mask)
        accepted = matcher.accept_token(token_id)
        times.append((time.perf_counter() - start) * 1e6)
        if not accepted:
            raise RuntimeError(f"xgrammar rejected token {token_id}")
    return times


def _single_choice(compiled: xgrammar.CompiledGrammar, ids: list[int]) -> int:
    matcher, mask = xgrammar.GrammarMatcher(compiled), _mask()
    single = 0
    for token_id in ids:
        matcher.fill_next_token_bitmask(mask)
        single += int(np.bitwise_count(mask.view(np.uint32)).sum() == 1)
        matcher.accept_token(token_id)
    return single


def _mask() -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.zeros((1, -(-QWEN3_LAYOUT.vocabulary_size // 32)), dtype=np.int32)


def _per_token(name: str, walks: list[list[float]]) -> dict[str, float]:
    """Microseconds per token; the best of all walks at each place, as other processes only ever add time."""
    best = sorted(min(times) for times in zip(*walks, strict=True))
    return {
        f"{name}: median (µs)": median(best),
        f"{name}: 99 % (µs)": best[int(0.99 * (len(best) - 1))],
        f"{name}: whole block (µs)": sum(best),
    }


def _milliseconds(work: Callable[[], object]) -> float:
    return _timed(work)[0]


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = work()
    return (time.perf_counter() - start) * 1e3, result


if __name__ == "__main__":
    main()
