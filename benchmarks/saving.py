"""How long does a song take to encode as FLAC: at once on one thread, and in pieces as the engine does it?

    python -m benchmarks.saving --output benchmarks/results/saving.json

Both ways take turns on the same samples (tones under noise, 16 bits, 48 kHz stereo); the median of each is shown.
Several songs are encoded at the same time, as those of a request are, and the processors are divided among them. Bytes
are those of the pieces over those of the whole.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import soundfile

from acestep.audio import FLAC_EFFORT
from acestep.flac import encode_flac
from acestep.types import SAMPLE_RATE
from benchmarks.arguments import output_file, whole_number
from benchmarks.environment import environment, write_result


def main() -> None:
    """Print a row per duration and number of songs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=whole_number, nargs="+", default=[30, 240], help="seconds of a song")
    parser.add_argument("--songs", type=whole_number, nargs="+", default=[1, 4], help="encoded at the same time")
    parser.add_argument("--repeat", type=whole_number, default=5)
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    rows = []
    print(f"{os.cpu_count()} processors")
    print(f"{'songs':>6}{'s':>6}{'at once':>11}{'in pieces':>11}{'ratio':>8}{'bytes':>9}")
    for duration in options.duration:
        samples = music(duration)
        for songs in options.songs:
            seconds: dict[str, list[float]] = {"at once": [], "in pieces": []}
            sizes = {}
            for _ in range(options.repeat):
                in_pieces = partial(encoded_in_pieces, threads=(os.cpu_count() or 1) // songs)
                for name, encode in (("at once", encoded_at_once), ("in pieces", in_pieces)):
                    start = time.perf_counter()
                    sizes[name] = together(encode, samples, songs)
                    seconds[name].append(time.perf_counter() - start)
            row = {name: median(times) for name, times in seconds.items()}
            ratio, size = row["in pieces"] / row["at once"], sizes["in pieces"] / sizes["at once"]
            rows.append({"songs": songs, "duration": duration, "seconds": row, "ratio": ratio, "bytes": size})
            print(f"{songs:>6}{duration:>6}{row['at once']:>9.3f} s{row['in pieces']:>9.3f} s{ratio:>8.2f}{size:>9.5f}")
    write_result(options.output, {"environment": environment(), "processors": os.cpu_count(), "rows": rows})


def together(encode: Callable[[Any], int], samples: Any, songs: int) -> int:
    """Bytes of one of the songs."""
    with ThreadPoolExecutor(min(songs, os.cpu_count() or 1)) as pool:
        return max(pool.map(encode, [samples] * songs))


def encoded_in_pieces(samples: Any, threads: int) -> int:
    """The engine's way."""
    return len(encode_flac(samples, SAMPLE_RATE, FLAC_EFFORT, threads))


def encoded_at_once(samples: Any) -> int:
    """By libsndfile alone."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, "PCM_16", format="FLAC", compression_level=FLAC_EFFORT)
    return len(buffer.getvalue())


def music(duration: int) -> Any:
    """int16, shape ``[samples, 2]``."""
    length, generator = duration * SAMPLE_RATE, np.random.default_rng(1)
    moments = np.arange(length)[:, None] / SAMPLE_RATE
    tones = np.sin(2 * np.pi * np.array([[220.0, 330.0]]) * moments) * np.sin(moments) ** 2
    noise = generator.standard_normal((length, 1)) + 0.1 * generator.standard_normal((length, 2))
    return np.ascontiguousarray((8_000 * tones + 400 * noise).astype(np.int16))


if __name__ == "__main__":
    main()
