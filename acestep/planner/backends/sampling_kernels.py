"""``acestep.planner.sampling.sample`` in four Triton kernels instead of a hundred launches.

Each kernel reads the logits once, in blocks. Between them are the results that need all blocks: the greatest logit and
the total probability, and the two histograms that find where the nucleus ends. Masses are integers, so the order in
which blocks finish does not matter. Needs Triton, which comes with PyTorch's CUDA builds for Linux.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

BINS: Final = 4_096
"""Bins of each histogram, besides one for what is certainly kept and one for what is certainly not."""
_BINS = tl.constexpr(BINS)
_BINS_BLOCK = tl.constexpr(2 * BINS)
_ROW = tl.constexpr(2 * (BINS + 2))
_MASS_UNIT = tl.constexpr(float(2**40))


@triton.jit
def measure(logits_ptr, maxima_ptr, sums_ptr, histograms_ptr, count, BLOCK: tl.constexpr, CLEARED: tl.constexpr):
    """The greatest logit of a block and the sum of the others relative to it; clears a part of the histograms."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = block * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * count + place, mask=place < count, other=float("-inf"))
    greatest = tl.max(logits, axis=0)
    # A block in which nothing may be drawn has no maximum.
    shares = tl.where(logits == float("-inf"), 0.0, tl.exp(logits - greatest))
    cell = row * tl.num_programs(1) + block
    tl.store(maxima_ptr + cell, greatest)
    tl.store(sums_ptr + cell, tl.sum(shares, axis=0))
    cleared = block * CLEARED + tl.arange(0, CLEARED)
    tl.store(histograms_ptr + row * _ROW + cleared, tl.zeros((CLEARED,), tl.int64), mask=cleared < _ROW)


@triton.jit
def _scale(maxima_ptr, sums_ptr, row, log_limit, BLOCKS: tl.constexpr, BLOCKS_BLOCK: tl.constexpr):
    """The greatest logit, the logarithm of the total, and the drop beyond which less than ``1 - top_p`` is left."""
    block = tl.arange(0, BLOCKS_BLOCK)
    maxima = tl.load(maxima_ptr + row * BLOCKS + block, mask=block < BLOCKS, other=float("-inf"))
    sums = tl.load(sums_ptr + row * BLOCKS + block, mask=block < BLOCKS, other=0.0)
    greatest = tl.max(maxima, axis=0)
    log_total = tl.log(tl.sum(tl.where(sums > 0, sums * tl.exp(maxima - greatest), 0.0), axis=0))
    return greatest, log_total, tl.maximum(log_limit - log_total, 0.0) + 1e-3


@triton.jit
def _crossing(histogram_ptr, limit):
    """The bin in which the sum of the masses crosses the limit."""
    place = tl.arange(0, _BINS_BLOCK)
    masses = tl.load(histogram_ptr + place, mask=place < _BINS + 2, other=0)
    below = (tl.cumsum(masses, axis=0) <= limit) & (place < _BINS + 2)
    return tl.minimum(tl.maximum(tl.sum(below.to(tl.int32), axis=0), 1), _BINS)


@triton.jit
def _bins(drops, near, width):
    place = tl.floor((drops - near) / width)
    return tl.minimum(tl.maximum(place, -1.0), _BINS * 1.0).to(tl.int32) + 1


@triton.jit
def count_masses(
    logits_ptr,
    maxima_ptr,
    sums_ptr,
    histograms_ptr,
    count,
    log_limit,
    limit,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_BLOCK: tl.constexpr,
    REFINES: tl.constexpr,
):
    """Add the probabilities of a block to a histogram over the logits; refined, to one over the bin of the crossing."""
    row = tl.program_id(0).to(tl.int64)
    greatest, log_total, far = _scale(maxima_ptr, sums_ptr, row, log_limit, BLOCKS, BLOCKS_BLOCK)
    near, width = 0.0, far / _BINS
    histogram_ptr = histograms_ptr + row * _ROW
    if REFINES:
        near = (_crossing(histogram_ptr, limit) - 1) * width
        width = width / _BINS
        histogram_ptr += _BINS + 2
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * count + place, mask=place < count, other=float("-inf"))
    drops = greatest - logits
    masses = (tl.exp(-drops - log_total) * _MASS_UNIT).to(tl.int64)
    tl.atomic_add(histogram_ptr + _bins(drops, near, width), masses, mask=masses > 0)


@triton.jit
def _shift_right(words, BITS: tl.constexpr):
    return (words >> BITS) & ((1 << (64 - BITS)) - 1)


@triton.jit
def draw(
    logits_ptr,
    maxima_ptr,
    sums_ptr,
    histograms_ptr,
    keys_ptr,
    scores_ptr,
    indices_ptr,
    arrivals_ptr,
    out_ptr,
    count,
    log_limit,
    limit,
    temperature,
    INCREMENT: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCKS_BLOCK: tl.constexpr,
):
    """Run the exponential race over the nucleus in a block; the last block to finish finds the overall winner."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    greatest, _, far = _scale(maxima_ptr, sums_ptr, row, log_limit, BLOCKS, BLOCKS_BLOCK)
    width = far / _BINS
    near = (_crossing(histograms_ptr + row * _ROW, limit) - 1) * width
    last_bin = _crossing(histograms_ptr + row * _ROW + _BINS + 2, limit)
    place = block * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * count + place, mask=place < count, other=float("-inf"))
    kept = _bins(greatest - logits, near, width / _BINS) <= last_bin

    # SplitMix64 (acestep.planner.sampling.noise), in signed arithmetic.
    words = tl.load(keys_ptr + row) + (place + 1).to(tl.int64) * INCREMENT
    words = (words ^ _shift_right(words, 30)) * FIRST
    words = (words ^ _shift_right(words, 27)) * SECOND
    words = words ^ _shift_right(words, 31)
    uniform = (_shift_right(words, 24).to(tl.float32) + 0.5) * 9.094947017729282e-13
    # log1p, by its series where the difference from 1 would lose digits.
    series = 1 / 3 + uniform * (1 / 4 + uniform * (1 / 5 + uniform * (1 / 6)))
    series = uniform * (1.0 + uniform * (0.5 + uniform * series))
    clocks = tl.where(uniform < 1 / 64, series, -tl.log(1.0 - uniform))
    scores = tl.where(kept & (logits > float("-inf")), logits / temperature - tl.log(clocks), float("-inf"))

    cell = row * BLOCKS + block
    tl.store(scores_ptr + cell, tl.max(scores, axis=0))
    tl.store(indices_ptr + cell, block * BLOCK + tl.argmax(scores, axis=0))
    tl.debug_barrier()
    if tl.atomic_add(arrivals_ptr + row, 1, sem="acq_rel") == BLOCKS - 1:
        tl.store(arrivals_ptr + row, 0)
        other = tl.arange(0, BLOCKS_BLOCK)
        real = other < BLOCKS
        best = tl.load(scores_ptr + row * BLOCKS + other, mask=real, other=float("-inf"), cache_modifier=".cg")
        winner = tl.argmax(best, axis=0)
        tl.store(out_ptr + row, tl.load(indices_ptr + row * BLOCKS + winner, cache_modifier=".cg").to(tl.int64))
