"""Triton kernels of the renderer: the operations between the matrix products of the transformer, and the VAE's decoder.

Sums are in float32, whatever the dtype of the tensors; a result is rounded once, where it is stored. Needs Triton,
which comes with PyTorch's CUDA builds for Linux.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def modulated_norm(
    hidden_ptr,
    added_ptr,
    gate_ptr,
    gate_embedding_ptr,
    weight_ptr,
    shift_ptr,
    shift_embedding_ptr,
    scale_ptr,
    scale_embedding_ptr,
    out_ptr,
    eps,
    N: tl.constexpr,
    N_BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    GATES: tl.constexpr,
    MODULATES: tl.constexpr,
):
    """Add to the hidden states of one position, in place, then normalise them (RMSNorm and AdaLN).

    Gate, shift and scale are each the sum of a block's own parameters and the timestep's.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, N_BLOCK)
    inside = n < N
    hidden = tl.load(hidden_ptr + row * N + n, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(added_ptr + row * N + n, mask=inside, other=0.0).to(tl.float32)
        if GATES:
            added *= _sum_of_two(gate_ptr, gate_embedding_ptr, n, inside)
        rounded = (hidden + added).to(hidden_ptr.dtype.element_ty)
        tl.store(hidden_ptr + row * N + n, rounded, mask=inside)
        hidden = rounded.to(tl.float32)
    normed = hidden * tl.rsqrt(tl.sum(hidden * hidden, axis=0) / N + eps)
    normed *= tl.load(weight_ptr + n, mask=inside, other=0.0).to(tl.float32)
    if MODULATES:
        normed *= 1.0 + _sum_of_two(scale_ptr, scale_embedding_ptr, n, inside)
        normed += _sum_of_two(shift_ptr, shift_embedding_ptr, n, inside)
    tl.store(out_ptr + row * N + n, normed, mask=inside)


@triton.jit
def _sum_of_two(own_ptr, embedding_ptr, n, inside):
    own = tl.load(own_ptr + n, mask=inside, other=0.0).to(tl.float32)
    return own + tl.load(embedding_ptr + n, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def norm_heads(
    heads_ptr,
    weight_ptr,
    cosine_ptr,
    sine_ptr,
    length,
    eps,
    HEADS: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF: tl.constexpr,
    ROTATES: tl.constexpr,
):
    """Norm over each head of one position, in place; with ``ROTATES``, followed by the rotary embedding."""
    row = tl.program_id(0).to(tl.int64)
    head, d = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, HALF)
    inside = head < HEADS
    low_ptrs = heads_ptr + (row * HEADS + head) * (2 * HALF) + d[None, :]
    low = tl.load(low_ptrs, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(low_ptrs + HALF, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / (2 * HALF) + eps)[:, None]
    low *= scale * tl.load(weight_ptr + d)[None, :].to(tl.float32)
    high *= scale * tl.load(weight_ptr + HALF + d)[None, :].to(tl.float32)
    if ROTATES:
        place = (row % length) * HALF + d
        cosine, sine = tl.load(cosine_ptr + place)[None, :], tl.load(sine_ptr + place)[None, :]
        low, high = low * cosine - high * sine, high * cosine + low * sine
    tl.store(low_ptrs, low, mask=inside)
    tl.store(low_ptrs + HALF, high, mask=inside)


@triton.jit
def gated(gate_ptr, up_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """``silu(gate) * up``, elementwise."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    gate = tl.load(gate_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _snake(x, alpha_ptr, beta_ptr, channel):
    """``x + sin(alpha * x) ** 2 / beta``; both parameters are stored as logarithms.

    The square has half the period of the sine, so its argument is reduced to -pi/2 ... pi/2, where the series up to the
    eleventh power is exact to 1e-7. The device's own sine takes the time of the whole convolution.
    """
    alpha = tl.exp(tl.load(alpha_ptr + channel).to(tl.float32))[None, :]
    beta = tl.exp(tl.load(beta_ptr + channel).to(tl.float32))[None, :] + 1e-9
    angle = x * alpha
    angle -= tl.floor(angle * 0.3183098861837907 + 0.5) * 3.141592653589793
    square = angle * angle
    series = -2.5052108385441718e-08
    series = series * square + 2.7557319223985893e-06
    series = series * square - 1.984126984126984e-04
    series = series * square + 8.333333333333333e-03
    series = series * square - 1.6666666666666666e-01
    sine = angle + angle * square * series
    return x + sine * sine / beta


@triton.jit
def convolve(
    x_source,
    weight_source,
    bias_ptr,
    residual_ptr,
    alpha_ptr,
    beta_ptr,
    plain_ptr,
    activated_ptr,
    frames,
    rows,
    first,
    dilation,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    STORES_PLAIN: tl.constexpr,
    STORES_ACTIVATED: tl.constexpr,
    BY_DESCRIPTOR: tl.constexpr,
    T_BLOCK: tl.constexpr,
    N_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
):
    """A convolution over time in channels-last layout: one matrix product per tap, summed in registers.

    ``out[t] = bias + sum(x[t + first + tap * dilation] @ weight[tap])``, with zeros outside of ``x``, plus the
    residual; stored plain, with the snake activation of what comes next, or both. With a ``STRIDE`` above 1 it is a
    transposed convolution of twice as many taps: a row of the result is ``STRIDE`` samples side by side, and both
    inputs that a sample depends on are taps. ``weight`` has the shape ``[taps, channels, out channels]``.

    ``BY_DESCRIPTOR``, both sources are tensor descriptors of two dimensions, from which the device copies whole blocks
    (and zeros outside of them) without the threads' help; ``N_BLOCK`` divides the out channels. Otherwise pointers.
    """
    COLUMNS: tl.constexpr = STRIDE * OUT_CHANNELS
    blocks: tl.constexpr = tl.cdiv(COLUMNS, N_BLOCK)
    steps: tl.constexpr = CHANNELS // K_BLOCK
    t0 = (tl.program_id(0) // blocks) * T_BLOCK
    n0 = (tl.program_id(0) % blocks) * N_BLOCK
    t, n = t0 + tl.arange(0, T_BLOCK), n0 + tl.arange(0, N_BLOCK)
    k = tl.arange(0, K_BLOCK)
    real = n < COLUMNS
    sample, column = n // OUT_CHANNELS, n % OUT_CHANNELS
    total = tl.zeros((T_BLOCK, N_BLOCK), tl.float32)
    for step in range(TAPS * steps):
        tap = step // steps
        if BY_DESCRIPTOR:
            start = (step % steps) * K_BLOCK
            x = x_source.load([t0 + first + tap * dilation, start])
            row = tap if STRIDE == 1 else (TAPS - 1 - tap) * STRIDE + n0 // OUT_CHANNELS
            w = weight_source.load([row * CHANNELS + start, n0 % OUT_CHANNELS])
        else:
            channel = (step % steps) * K_BLOCK + k
            source = t + first + tap * dilation
            x = tl.load(
                x_source + source.to(tl.int64)[:, None] * CHANNELS + channel[None, :],
                mask=((source >= 0) & (source < frames))[:, None],
                other=0.0,
            )
            # The earlier input reaches a sample through the later taps.
            row = tap if STRIDE == 1 else (TAPS - 1 - tap) * STRIDE + sample
            w_ptrs = weight_source + (row * CHANNELS * OUT_CHANNELS + column)[None, :] + channel[:, None] * OUT_CHANNELS
            w = tl.load(w_ptrs) if COLUMNS % N_BLOCK == 0 else tl.load(w_ptrs, mask=real[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, mask=real, other=0.0)[None, :].to(tl.float32)
    place = t.to(tl.int64)[:, None] * COLUMNS + n[None, :]
    inside = (t < rows)[:, None] & real[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if STORES_PLAIN:
        tl.store(plain_ptr + place, total, mask=inside)
    if STORES_ACTIVATED:
        tl.store(activated_ptr + place, _snake(total, alpha_ptr, beta_ptr, column), mask=inside)
