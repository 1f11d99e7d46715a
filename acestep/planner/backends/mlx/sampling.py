"""``acestep.planner.sampling`` on MLX arrays: the same order, the same noise, the same tokens.

The effect of a seed is defined there; the constants are taken from there.
"""

from __future__ import annotations

import mlx.core as mx

from acestep.planner.sampling import INCREMENT, MASS_UNIT, MULTIPLIERS, NOISE_BITS, SHIFTS
from acestep.types import SamplingSettings


def sample(logits: mx.array, settings: SamplingSettings, keys: mx.array) -> mx.array:
    """Draw one token per row (see ``acestep.planner.sampling.sample``).

    Args:
        logits: float32, shape ``[rows, tokens]``.
        settings: temperature (0 is greedy), ``top_k`` and ``top_p``.
        keys: of the noise, int64, shape ``[rows]``.

    Returns:
        Index of the drawn token, int64, shape ``[rows]``.
    """
    if settings.temperature == 0:
        return mx.argmax(logits, axis=-1).astype(mx.int64)
    if 0 < settings.top_k < logits.shape[-1]:
        smallest = mx.min(mx.topk(logits, settings.top_k, axis=-1), axis=-1, keepdims=True)
        logits = mx.where(logits < smallest, -mx.inf, logits)
    if settings.top_p < 1:
        logits = _keep_top_p(logits, settings.top_p)
    clocks = -mx.log1p(-noise(keys, logits.shape[-1]))
    return mx.argmax(logits / settings.temperature - mx.log(clocks), axis=-1).astype(mx.int64)


def _keep_top_p(logits: mx.array, top_p: float) -> mx.array:
    """Keep the tokens for which the more probable ones sum to ``top_p`` at most.

    Sorts, where PyTorch's version uses two histograms: Apple GPUs cannot add 64-bit integers at computed positions, and
    sorting is fast on them.
    """
    drops = mx.sort(mx.max(logits, axis=-1, keepdims=True) - logits, axis=-1)
    log_total = mx.logsumexp(-drops, axis=-1, keepdims=True)
    mass = (mx.exp(-drops - log_total) * MASS_UNIT).astype(mx.int64)
    before = mx.cumsum(mass, axis=-1) - mass
    kept = (before <= int(top_p * MASS_UNIT)).sum(axis=-1, keepdims=True)
    edge = mx.take_along_axis(drops, kept - 1, axis=-1)
    return mx.where(mx.max(logits, axis=-1, keepdims=True) - logits > edge, -mx.inf, logits)


def noise(keys: mx.array, count: int) -> mx.array:
    """Uniform float32 numbers of each key, shape ``[keys, count]``, within (0, 1]: SplitMix64 started at the key."""
    steps = mx.arange(1, count + 1, dtype=mx.uint64) * _word(INCREMENT)
    words = keys.astype(mx.uint64)[:, None] + steps
    for shift, multiplier in zip(SHIFTS[:2], MULTIPLIERS, strict=True):
        words = (words ^ (words >> mx.array(shift, dtype=mx.uint64))) * _word(multiplier)
    words = words ^ (words >> mx.array(SHIFTS[2], dtype=mx.uint64))
    return ((words >> mx.array(64 - NOISE_BITS, dtype=mx.uint64)).astype(mx.float32) + 0.5) * 2.0**-NOISE_BITS


def _word(signed: int) -> mx.array:
    """A constant that PyTorch's version writes signed, as the unsigned word that it is."""
    return mx.array(signed, dtype=mx.int64).astype(mx.uint64)
