"""Drawing tokens: top-k, top-p, temperature, and noise that belongs to one song.

All of it stays on the logits' device: nothing is read back, and the vocabulary is never sorted.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import torch

from acestep.types import SamplingSettings

_BINS: Final = 4_096
"""Bins of each histogram over the logits; two of them resolve 20 nats to a millionth."""
MASS_UNIT: Final = 2**40
"""Probability 1 as an integer: sums of 64,000 tokens are exact to 1e-7."""
INCREMENT: Final = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS: Final = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
SHIFTS: Final = (30, 27, 31)
"""SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), in signed arithmetic."""
NOISE_BITS: Final = 40
"""Bits of each random word that make a number in [0, 1); small numbers, which decide, keep float32's relative
precision."""


def item_keys(seed: int, phase: str, count: int) -> torch.Tensor:
    """Keys of the noise of one song in one phase, one per draw, on the host.

    They depend on nothing but the arguments: not on the batch, not on the global random state.

    Args:
        seed: the song's seed.
        phase: for example ``lm.codes``.
        count: how many.

    Returns:
        int64, shape ``[count]``; a longer series starts with the shorter one.
    """
    digest = hashlib.sha256(f"{phase}:{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randint(2**62, (count,), generator=generator)


def sample(logits: torch.Tensor, settings: SamplingSettings, keys: torch.Tensor) -> torch.Tensor:
    """Draw one token per row.

    Order: top-k, top-p on the distribution as it is, temperature, draw. What the grammar forbids must already be
    minus infinity.

    Args:
        logits: float32, shape ``[rows, tokens]``.
        settings: temperature (0 is greedy), ``top_k`` and ``top_p``.
        keys: of the noise (``item_keys``), one per row, shape ``[rows]``, on the logits' device.

    Returns:
        Index of the drawn token, int64, shape ``[rows]``.
    """
    if settings.temperature == 0:
        return logits.argmax(dim=-1)
    if 0 < settings.top_k < logits.shape[-1]:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p < 1:
        logits = keep_top_p(logits, settings.top_p)
    return _draw(logits / settings.temperature, keys)


def keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Keep the ``top_k`` greatest, and what ties with the last of them."""
    smallest = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the tokens for which the more probable ones sum to ``top_p`` at most.

    A histogram of the probability over the logits finds the bin in which the sum crosses ``top_p``, and a second
    one over that bin refines it to millionths of a nat; tokens closer than that are kept or dropped together.
    """
    # Relative to the greatest, where float32 is finest: a nearly flat distribution spans very few nats.
    drops = logits.amax(dim=-1, keepdim=True) - logits
    log_total = (-drops).logsumexp(dim=-1, keepdim=True)
    # Integers, so that the order in which a GPU adds them does not matter.
    mass = ((-drops - log_total).exp() * MASS_UNIT).long()
    # All tokens below the far end together have less than 1 - top_p, so the crossing is before it.
    near = torch.zeros_like(log_total)
    far = (math.log(logits.shape[-1] / (1 - top_p)) - log_total).clamp(min=0) + 1e-3
    for _ in range(2):
        width = (far - near) / _BINS
        # Bin 0 holds what is certainly kept, the last one what is certainly not.
        bins = ((drops - near) / width).floor().clamp(-1, _BINS).nan_to_num(_BINS).long() + 1
        histogram = mass.new_zeros(logits.shape[0], _BINS + 2).scatter_add_(1, bins, mass)
        below_limit = histogram.cumsum(dim=-1) <= top_p * MASS_UNIT
        crossing = below_limit.sum(dim=-1, keepdim=True).clamp(1, _BINS)
        near, far = near + (crossing - 1) * width, near + crossing * width
    return logits.masked_fill(bins > crossing, -torch.inf)


def _draw(logits: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Draw the first of exponential times, one per token with its probability as rate (an exponential race).

    Unlike inverting the cumulative distribution, this gives the same token when rounding (which depends on the batch)
    moves another token across the edge of the nucleus.
    """
    clocks = -torch.log1p(-noise(keys, logits.shape[-1]))
    return (logits - clocks.log()).argmax(dim=-1)


def noise(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Uniform float32 numbers of each key, shape ``[keys, count]``, within (0, 1]: SplitMix64 started at the key."""
    words = keys.unsqueeze(-1) + torch.arange(1, count + 1, device=keys.device) * INCREMENT
    for shift, multiplier in zip(SHIFTS[:2], MULTIPLIERS, strict=True):
        words = (words ^ _shift_right(words, shift)) * multiplier
    words = words ^ _shift_right(words, SHIFTS[2])
    return (_shift_right(words, 64 - NOISE_BITS) + 0.5) * 2.0**-NOISE_BITS


def _shift_right(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of words that torch takes for signed."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
