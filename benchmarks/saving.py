"""How long does a song take to be saved as FLAC: encoded at once on one thread, and in pieces as the engine does it?

    python -m benchmarks.saving --output benchmarks/results/saving.json

The ways take turns on the same audio (tones under noise, float32, 48 kHz stereo), which is rounded to 16 bits; the
median of each is shown. Several songs are encoded at the same time, as those of a request are, and the processors are
divided among them. *Saved* is the engine's way with the file, as a request does it. Bytes are those of the pieces over
those of the whole.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch

from acestep.audio import FLAC_EFFORT, RoundedSamples, save_audio
from acestep.cards import processors
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
    print(f"{processors()} processors")
    print(f"{'songs':>6}{'s':>6}" + "".join(f"{title:>11}" for title in WAYS) + f"{'ratio':>8}{'bytes':>9}")
    for duration in options.duration:
        audio = music(duration)
        for songs in options.songs:
            seconds: dict[str, list[float]] = {name: [] for name in WAYS}
            sizes = {}
            for _ in range(options.repeat):
                for name, encode in WAYS.items():
                    start = time.perf_counter()
                    sizes[name] = together(encode, audio, songs)
                    seconds[name].append(time.perf_counter() - start)
            row = {name: median(times) for name, times in seconds.items()}
            ratio, size = row["in pieces"] / row["at once"], sizes["in pieces"] / sizes["at once"]
            rows.append({"songs": songs, "duration": duration, "seconds": row, "ratio": ratio, "bytes": size})
            times = "".join(f"{row[name]:>9.3f} s" for name in WAYS)
            print(f"{songs:>6}{duration:>6}{times}{ratio:>8.2f}{size:>9.5f}")
    write_result(options.output, {"environment": environment(), "processors": processors(), "rows": rows})


def together(encode: Callable[[Any, int], int], audio: torch.Tensor, songs: int) -> int:
    """Bytes of one of the songs."""
    threads = processors()
    with ThreadPoolExecutor(min(songs, threads)) as pool:
        return max(pool.map(partial(encode, threads=threads // songs), [audio] * songs))


def encoded_at_once(audio: torch.Tensor, threads: int) -> int:  # noqa: ARG001
    """By libsndfile alone."""
    buffer = io.BytesIO()
    soundfile.write(
        buffer, RoundedSamples(audio)[:], SAMPLE_RATE, "PCM_16", format="FLAC", compression_level=FLAC_EFFORT
    )
    return len(buffer.getvalue())


def encoded_in_pieces(audio: torch.Tensor, threads: int) -> int:
    """The engine's way."""
    return len(encode_flac(RoundedSamples(audio), SAMPLE_RATE, FLAC_EFFORT, threads))


def saved(audio: torch.Tensor, threads: int) -> int:
    """The engine's way, to a file of the temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return save_audio(audio, Path(folder) / "song", "flac", threads).stat().st_size


WAYS = {"at once": encoded_at_once, "in pieces": encoded_in_pieces, "saved": saved}


def music(duration: int) -> torch.Tensor:
    """float32, shape ``[2, samples]``."""
    length, generator = duration * SAMPLE_RATE, np.random.default_rng(1)
    moments = np.arange(length) / SAMPLE_RATE
    tones = np.sin(2 * np.pi * np.array([[220.0], [330.0]]) * moments) * np.sin(moments) ** 2
    noise = generator.standard_normal((1, length)) + 0.1 * generator.standard_normal((2, length))
    return torch.from_numpy((0.25 * tones + 0.0125 * noise).astype(np.float32))


if __name__ == "__main__":
    main()
