"""How fast does the PyTorch backend write tokens, against `generate` of transformers on the same weights?

    python -m benchmarks.lm                                  # the tiny model, CPU
    python -m benchmarks.lm --device cuda                    # 0.6B, 1.7B and 4B at true size, random weights
    python -m benchmarks.lm --device cuda --profile          # and which kernels a pass consists of

Codes are written with guidance, so twice as many rows as songs go through the model. `generate` has no guidance in one
batch: it runs one row per song, half the work, over the whole vocabulary. Rates are those of decoding alone, from the
difference between a long and a short run; codes are counted over all songs. The share of constrained decoding is host
time in the grammar over the duration of a metadata phase.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import GenerationConfig, Qwen3ForCausalLM

from acestep.devices import default_dtype
from acestep.planner.backends.pt import PtBackend
from acestep.planner.budget import LanguageModel
from acestep.planner.grammar import GrammarCursor, MetadataGrammar
from acestep.planner.prompts import Prompts
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS, build_language_model
from acestep.types import SamplingSettings, SongMetadata
from benchmarks.arguments import available_device, output_file, whole_number
from benchmarks.environment import environment, write_result
from benchmarks.workload import CAPTION, LYRICS

TINY = ("acestep-5Hz-lm-tiny",)
TRUE_SIZES = ("acestep-5Hz-lm-0.6B", "acestep-5Hz-lm-1.7B", "acestep-5Hz-lm-4B")
METADATA = SongMetadata(bpm=112, duration=120, keyscale="A minor", timesignature="4", language="en")
SAMPLING = SamplingSettings()
REPETITIONS = 3


def main() -> None:
    """Print a row per model and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=available_device, default="auto")
    parser.add_argument(
        "--lm",
        nargs="+",
        choices=LANGUAGE_MODEL_CONFIGS,
        metavar="NAME",
        help="models (default: the tiny one, on CUDA every true size)",
    )
    parser.add_argument("--batch-size", type=whole_number, nargs="+", default=[1, 4], help="songs written together")
    parser.add_argument("--codes", type=whole_number, default=300, help="codes of the long run; the short one has half")
    parser.add_argument("--generate-tokens", type=whole_number, default=64, help="the same for generate, which is slow")
    parser.add_argument("--no-generate", action="store_true", help="leave out generate of transformers")
    parser.add_argument("--profile", action="store_true", help="list the kernels of a pass (CUDA)")
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    if min(options.codes, options.generate_tokens) < 2:
        parser.error("a rate is the difference of a run and of one half as long: 2 tokens or more")
    device = options.device
    if device.type == "cpu":
        torch.set_num_threads(1)

    rows, profiles = [], {}
    print(f"{'model':22}{'songs':>6}{'path':>7}{'pt':>9}{'eager':>9}{'static':>9}{'ratios':>15}{'grammar':>16}")
    for name in options.lm or (TRUE_SIZES if device.type == "cuda" else TINY):
        model = build_language_model(name, device=device, dtype=default_dtype(device))
        backend = PtBackend(model)
        constrained = constrained_decoding(backend)
        for songs in options.batch_size:
            row = {"model": name, "songs": songs, **rates(backend, songs, options), **constrained}
            rows.append(row)
            print(shown(row), flush=True)
            # Written after each row: the reference takes minutes, and finished results should not be lost.
            write_result(options.output, {"environment": environment(), "rows": rows, "kernels_of_a_pass": profiles})
        if options.profile and device.type == "cuda":
            profiles[name] = kernels_of_a_pass(backend)
            for kernel in profiles[name][:20]:
                print(f"    {kernel['microseconds']:8.1f} µs {kernel['launches']:7.1f} x  {kernel['name'][:80]}")
        del backend, model
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    write_result(options.output, {"environment": environment(), "rows": rows, "kernels_of_a_pass": profiles})


def shown(row: dict[str, Any]) -> str:
    """A row of the printed table; a dash for what was not run."""
    widths = {"generate_eager": 9, "generate_static": 9, "ratio_eager": 7, "ratio_static": 8}
    reference = "".join(f"{row[key]:>{width}.1f}" if key in row else f"{'-':>{width}}" for key, width in widths.items())
    return (
        f"{row['model']:22}{row['songs']:>6}{row['decode_path']:>7}{row['pt']:>9.1f}{reference}"
        f"{row['constrained_us_per_token']:>9.1f} µs{row['constrained_share']:>5.1%}"
    )


def rates(backend: PtBackend, songs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second over all songs: this backend with guidance, `generate` without."""
    prompts, model = Prompts(backend.model.vocabulary), backend.model
    conditional, unconditional = prompts.codes(CAPTION, LYRICS, METADATA), prompts.unconditional_codes()

    def write(count: int) -> None:
        backend.generate_codes(conditional, unconditional, count, SAMPLING, range(songs))

    own = songs * decode_rate(write, options.codes)
    result: dict[str, Any] = {"pt": own, "decode_path": backend.decode_path}
    if options.no_generate:
        return result
    reference = causal_model(model)
    ids = torch.tensor([conditional] * songs, device=model.device)
    for kind, cache in (("eager", None), ("static", "static")):
        rate = songs * decode_rate(generating(reference, ids, cache, options.generate_tokens), options.generate_tokens)
        result |= {f"generate_{kind}": rate, f"ratio_{kind}": own / rate}
    return result


def causal_model(model: LanguageModel) -> Any:
    """The same weights with a head, as a model of transformers."""
    config = model.body.config
    with torch.device("meta"):
        causal = Qwen3ForCausalLM(config)
    causal.model = model.body
    causal.lm_head.weight = model.body.embed_tokens.weight
    causal.generation_config = GenerationConfig()
    return causal.eval()


def generating(causal: Any, ids: torch.Tensor, cache: str | None, longest: int) -> Callable[[int], None]:
    """`generate` with nucleus sampling, of the requested length; a static cache is compiled by transformers on CUDA."""
    room = {"cache_implementation": cache, "max_cache_len": ids.shape[1] + longest} if cache else {}

    def run(count: int) -> None:
        causal.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=SAMPLING.temperature,
            top_p=SAMPLING.top_p,
            top_k=0,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
            **room,
        )

    return run


def decode_rate(run: Callable[[int], None], count: int) -> float:
    """Steps per second beyond the first half, which contains the prompt; both lengths are run once before."""
    short = count // 2
    for length in (count, short):
        run(length)
    return median((count - short) / (seconds(run, count) - seconds(run, short)) for _ in range(REPETITIONS))


def seconds(run: Callable[[int], None], count: int) -> float:
    """Of one run, the device's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(count)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Stopwatch(PtBackend):
    """Adds up host time in the grammar."""

    grammar_seconds = 0.0

    def constrain(self, cursor: GrammarCursor) -> Any:
        """Timed."""
        start = time.perf_counter()
        try:
            return super().constrain(cursor)
        finally:
            self.grammar_seconds += time.perf_counter() - start

    def accept(self, cursor: GrammarCursor, token_id: int | None) -> list[int]:
        """Timed."""
        start = time.perf_counter()
        try:
            return super().accept(cursor, token_id)
        finally:
            self.grammar_seconds += time.perf_counter() - start


def constrained_decoding(backend: PtBackend) -> dict[str, float]:
    """Host time in the grammar per sampled token, and its share of a metadata phase; medians over seeds."""
    watched = Stopwatch(backend.model)
    grammar, prompt = MetadataGrammar(backend.model.vocabulary), Prompts(backend.model.vocabulary)
    per_token, shares, phase_rates = [], [], []
    for seed in range(-2, REPETITIONS):  # the first two create masks and recorded passes
        cursor = grammar.cursor(SongMetadata(), with_caption=True, with_language=True, caption_token_limit=120)
        watched.grammar_seconds = 0.0
        reasoning = prompt.reasoning(CAPTION, LYRICS)
        start = time.perf_counter()
        tokens = watched.generate_metadata(reasoning, cursor, SAMPLING, abs(seed), 640)
        duration = time.perf_counter() - start
        if seed >= 0:
            per_token.append(watched.grammar_seconds / tokens.sampled_tokens)
            shares.append(watched.grammar_seconds / duration)
            phase_rates.append(len(tokens.ids[0]) / duration)
    return {
        "constrained_us_per_token": median(per_token) * 1e6,
        "constrained_share": median(shares),
        "metadata_tokens_per_second": median(phase_rates),
    }


def kernels_of_a_pass(backend: PtBackend, passes: int = 40) -> Sequence[dict[str, Any]]:
    """Device time and launches of each kernel in one guided pass of one song, the largest first."""
    prompts = Prompts(backend.model.vocabulary)
    conditional, unconditional = prompts.codes(CAPTION, LYRICS, METADATA), prompts.unconditional_codes()

    def totals(count: int) -> dict[str, tuple[float, int]]:
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            backend.generate_codes(conditional, unconditional, count, SAMPLING, [1])
        return {event.key: (event.self_device_time_total, event.count) for event in profiler.key_averages()}

    # The longer run allocates and records first, so that neither is in the figures.
    totals(1 + passes)
    short, long = totals(1), totals(1 + passes)
    kernels = [
        {
            "name": name,
            "microseconds": (time_us - short.get(name, (0.0, 0))[0]) / passes,
            "launches": (count - short.get(name, (0.0, 0))[1]) / passes,
        }
        for name, (time_us, count) in long.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel["microseconds"])


if __name__ == "__main__":
    main()
