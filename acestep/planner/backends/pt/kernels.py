"""Triton kernels of a decoder layer for a few tokens, where reading the weights is the bottleneck.

A *lane* is one token of a pass: one per row while codes are written, several of one row for a chunk of forced text. All
lanes share every pass over the weights. Five launches make a layer: projection to queries, keys and values; attention;
output projection; gate and up projection; down projection. They include rotary embedding, the write to the cache,
activation and residual, and the norms: the kernel that writes hidden states multiplies them by the weights of the next
norm, whose scale, one number per lane, is applied after the next product. Lengths are read on the device, so one
recorded launch serves all of them, and no result of a lane depends on the number of lanes.

Needs Triton, which comes with PyTorch's CUDA builds for Linux.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

LANE_LIMIT: Final = 16
"""Lanes of one pass: the height of the smallest matrix that tensor cores multiply."""
_LANES = tl.constexpr(LANE_LIMIT)


@triton.jit
def _product(x_ptr, w_ptr, lanes, K: tl.constexpr, N_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, K_PARTS: tl.constexpr):
    """``x @ w.T`` for the first ``N_BLOCK`` rows of ``w``, shape ``[lanes, N_BLOCK]``.

    Warps share the inner dimension: otherwise so few columns and lanes would occupy only one of them.
    """
    part = tl.arange(0, K_PARTS)[:, None, None] * K_BLOCK
    k = tl.arange(0, K_BLOCK)[None, None, :]
    lane = tl.arange(0, _LANES)[None, :, None]
    x_ptrs = x_ptr + lane * K + part + k
    w_ptrs = w_ptr + tl.arange(0, N_BLOCK)[None, :, None] * K + part + k
    product = tl.zeros((K_PARTS, _LANES, N_BLOCK), tl.float32)
    for start in range(0, K, K_PARTS * K_BLOCK):
        w = tl.load(w_ptrs + start)
        x = tl.load(x_ptrs + start, mask=lane < lanes, other=0.0)
        product = tl.dot(x, tl.trans(w, (0, 2, 1)), product, input_precision="ieee")
    return tl.sum(product, axis=0)


@triton.jit
def _prepare_norm(hidden, norm_ptr, scaled_ptr, squares_ptr, lanes, N: tl.constexpr, N_BLOCK: tl.constexpr):
    """Store a block of hidden states times the weights of the norm after it, and the sum of their squares.

    The rest of the norm is one factor per lane, which is applied after the next product.
    """
    lane = tl.arange(0, _LANES)
    n = tl.program_id(0) * N_BLOCK + tl.arange(0, N_BLOCK)
    real = lane[:, None] < lanes
    values = hidden.to(tl.float32)
    scaled = values * tl.load(norm_ptr + n)[None, :].to(tl.float32)
    tl.store(scaled_ptr + lane[:, None] * N + n[None, :], scaled, mask=real)
    squares = squares_ptr + lane * (N // N_BLOCK) + tl.program_id(0)
    tl.store(squares, tl.sum(values * values, axis=1), mask=lane < lanes)


@triton.jit
def _norm_scale(squares_ptr, lanes, eps, K: tl.constexpr, SHARES: tl.constexpr):
    """The rest of the norm, per lane."""
    lane = tl.arange(0, _LANES)
    share = tl.arange(0, triton.next_power_of_2(SHARES))
    real = (lane[:, None] < lanes) & (share[None, :] < SHARES)
    squares = tl.load(squares_ptr + lane[:, None] * SHARES + share[None, :], mask=real, other=0.0)
    return tl.rsqrt(tl.sum(squares, axis=1) / K + eps)[:, None]


@triton.jit
def embed(
    ids_ptr,
    table_ptr,
    norm_ptr,
    hidden_ptr,
    scaled_ptr,
    squares_ptr,
    lanes,
    N: tl.constexpr,
    N_BLOCK: tl.constexpr,
):
    """Hidden states of token ids, ready for the first norm."""
    lane = tl.arange(0, _LANES)
    n = tl.program_id(0) * N_BLOCK + tl.arange(0, N_BLOCK)
    real = lane[:, None] < lanes
    row = tl.load(ids_ptr + lane, mask=lane < lanes, other=0)
    hidden = tl.load(table_ptr + row[:, None] * N + n[None, :], mask=real, other=0.0)
    tl.store(hidden_ptr + lane[:, None] * N + n[None, :], hidden, mask=real)
    _prepare_norm(hidden, norm_ptr, scaled_ptr, squares_ptr, lanes, N, N_BLOCK)


@triton.jit
def project_inputs(
    scaled_ptr,
    squares_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lanes,
    eps,
    K: tl.constexpr,
    SHARES: tl.constexpr,
    Q: tl.constexpr,
    KV: tl.constexpr,
    N_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    K_PARTS: tl.constexpr,
):
    """Queries, keys and values of normalised hidden states, side by side."""
    first = tl.program_id(0) * N_BLOCK
    w_ptr = q_ptr
    column = first
    if first >= Q + KV:
        w_ptr = v_ptr
        column = first - Q - KV
    elif first >= Q:
        w_ptr = k_ptr
        column = first - Q
    lane = tl.arange(0, _LANES)
    n = tl.arange(0, N_BLOCK)
    scale = _norm_scale(squares_ptr, lanes, eps, K, SHARES)
    product = _product(scaled_ptr, w_ptr + column.to(tl.int64) * K, lanes, K, N_BLOCK, K_BLOCK, K_PARTS) * scale
    out = out_ptr + lane[:, None] * (Q + 2 * KV) + (first + n)[None, :]
    tl.store(out, product, mask=lane[:, None] < lanes)


@triton.jit
def gate(
    scaled_ptr,
    squares_ptr,
    gate_ptr,
    up_ptr,
    out_ptr,
    lanes,
    eps,
    K: tl.constexpr,
    SHARES: tl.constexpr,
    N: tl.constexpr,
    N_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    K_PARTS: tl.constexpr,
):
    """``silu(gate(x)) * up(x)`` of normalised hidden states."""
    first = tl.program_id(0).to(tl.int64) * N_BLOCK
    part = tl.arange(0, K_PARTS)[:, None, None] * K_BLOCK
    k = tl.arange(0, K_BLOCK)[None, None, :]
    lane = tl.arange(0, _LANES)
    x_ptrs = scaled_ptr + lane[None, :, None] * K + part + k
    offsets = first * K + tl.arange(0, N_BLOCK)[None, :, None] * K + part + k
    scale = _norm_scale(squares_ptr, lanes, eps, K, SHARES)
    gate = tl.zeros((K_PARTS, _LANES, N_BLOCK), tl.float32)
    up = tl.zeros((K_PARTS, _LANES, N_BLOCK), tl.float32)
    for start in range(0, K, K_PARTS * K_BLOCK):
        gate_w = tl.load(gate_ptr + offsets + start)
        up_w = tl.load(up_ptr + offsets + start)
        x = tl.load(x_ptrs + start, mask=lane[None, :, None] < lanes, other=0.0)
        gate = tl.dot(x, tl.trans(gate_w, (0, 2, 1)), gate, input_precision="ieee")
        up = tl.dot(x, tl.trans(up_w, (0, 2, 1)), up, input_precision="ieee")
    gates = tl.sum(gate, axis=0) * scale
    activated = gates * tl.sigmoid(gates) * (tl.sum(up, axis=0) * scale)
    n = first + tl.arange(0, N_BLOCK)
    tl.store(out_ptr + lane[:, None] * N + n[None, :], activated, mask=lane[:, None] < lanes)


@triton.jit
def project_onto(
    x_ptr,
    w_ptr,
    norm_ptr,
    hidden_ptr,
    scaled_ptr,
    squares_ptr,
    lanes,
    K: tl.constexpr,
    N: tl.constexpr,
    N_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    K_PARTS: tl.constexpr,
):
    """Add ``x @ w.T`` to the hidden states, in place, and make them ready for the next norm."""
    lane = tl.arange(0, _LANES)
    first = tl.program_id(0).to(tl.int64) * N_BLOCK
    hidden_ptrs = hidden_ptr + lane[:, None] * N + (first + tl.arange(0, N_BLOCK))[None, :]
    before = tl.load(hidden_ptrs, mask=lane[:, None] < lanes, other=0.0)
    product = _product(x_ptr, w_ptr + first * K, lanes, K, N_BLOCK, K_BLOCK, K_PARTS)
    hidden = (before + product).to(before.dtype)
    tl.store(hidden_ptrs, hidden, mask=lane[:, None] < lanes)
    _prepare_norm(hidden, norm_ptr, scaled_ptr, squares_ptr, lanes, N, N_BLOCK)


@triton.jit
def _rotated(low, high, norm_ptr, frequencies, place, eps, HALF: tl.constexpr):
    """Norm over the head, then rotary embedding; heads are ``[heads, HALF]`` twice, their lower and upper halves."""
    d = tl.arange(0, HALF)
    scale = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / (2 * HALF) + eps)[:, None]
    low *= scale * tl.load(norm_ptr + d)[None, :].to(tl.float32)
    high *= scale * tl.load(norm_ptr + HALF + d)[None, :].to(tl.float32)
    angle = place.to(tl.float32) * frequencies
    cosine, sine = tl.cos(angle)[None, :], tl.sin(angle)[None, :]
    return low * cosine - high * sine, high * cosine + low * sine


@triton.jit
def _slot(pages_ptr, place, PAGE: tl.constexpr, PAGE_STRIDE: tl.constexpr, SLOT_STRIDE: tl.constexpr):
    """Where a position of a row begins, relative to the row or, in pages, to the buffer."""
    slot = place * SLOT_STRIDE
    if PAGE > 0:
        page = tl.load(pages_ptr + place // PAGE).to(tl.int64)
        slot = page * PAGE_STRIDE + place % PAGE * SLOT_STRIDE
    return slot


@triton.jit
def attend(
    qkv_ptr,
    q_norm_ptr,
    k_norm_ptr,
    frequencies_ptr,
    places_ptr,
    keys_ptr,
    values_ptr,
    rows_ptr,
    table_width,
    partial_ptr,
    maxima_ptr,
    sums_ptr,
    arrivals_ptr,
    out_ptr,
    eps,
    scale,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    PAGE: tl.constexpr,
    PAGE_STRIDE: tl.constexpr,
    SLOT_STRIDE: tl.constexpr,
    HEAD_STRIDE: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Attention of one lane, one key-value head and one share of the cached keys.

    The last share also takes the keys of this pass, and writes the lane's own to the cache. The last program to finish
    combines the shares.

    A row's slots are consecutive (``PAGE`` is 0, and ``rows_ptr`` points to the number of slots of each row), or in
    pages of ``PAGE`` slots, a multiple of ``KEY_BLOCK`` (``rows_ptr`` points to a table of ``table_width`` pages per
    row).
    """
    lane, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    D: tl.constexpr = 2 * HALF
    WIDTH: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
    row, first_lane = lane // TOKENS, lane // TOKENS * TOKENS
    place = tl.load(places_ptr + lane)
    cached = tl.load(places_ptr + first_lane)

    group = tl.arange(0, _LANES)  # query heads of this key-value head; those from GROUP on are padding
    half, d = tl.arange(0, HALF), tl.arange(0, D)
    real = (group < GROUP)[:, None]
    frequencies = tl.load(frequencies_ptr + half)
    q_ptrs = qkv_ptr + lane * WIDTH + (kv_head * GROUP + group)[:, None] * D + half[None, :]
    q_low, q_high = _rotated(
        tl.load(q_ptrs, mask=real, other=0.0).to(tl.float32),
        tl.load(q_ptrs + HALF, mask=real, other=0.0).to(tl.float32),
        q_norm_ptr,
        frequencies,
        place,
        eps,
        HALF,
    )
    dtype = keys_ptr.dtype.element_ty
    q_low, q_high = q_low.to(dtype), q_high.to(dtype)

    cache = kv_head * HEAD_STRIDE
    pages_ptr = rows_ptr
    if PAGE == 0:
        cache = tl.load(rows_ptr) * row * SLOT_STRIDE + kv_head * HEAD_STRIDE
    else:
        pages_ptr += row * table_width
    maximum = tl.full((_LANES,), float("-inf"), tl.float32)
    total = tl.zeros((_LANES,), tl.float32)
    mixed = tl.zeros((_LANES, D), tl.float32)
    share = tl.cdiv(tl.cdiv(cached, SPLITS), KEY_BLOCK) * KEY_BLOCK
    for start in range(split * share, tl.minimum((split + 1) * share, cached), KEY_BLOCK):
        block = tl.arange(0, KEY_BLOCK)
        inside = start + block < cached
        slots = cache + _slot(pages_ptr, start, PAGE, PAGE_STRIDE, SLOT_STRIDE) + block[:, None] * SLOT_STRIDE
        k_ptrs = keys_ptr + slots + half[None, :]
        k_low = tl.load(k_ptrs, mask=inside[:, None], other=0.0)
        k_high = tl.load(k_ptrs + HALF, mask=inside[:, None], other=0.0)
        v = tl.load(values_ptr + slots + d[None, :], mask=inside[:, None], other=0.0)
        scores = tl.dot(q_low, tl.trans(k_low), input_precision="ieee")
        scores = tl.dot(q_high, tl.trans(k_high), scores, input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, axis=1))
        weights = tl.exp(scores - higher[:, None])
        decay = tl.exp(maximum - higher)
        total = total * decay + tl.sum(weights, axis=1)
        mixed = tl.dot(weights.to(dtype), v, mixed * decay[:, None], input_precision="ieee")
        maximum = higher

    if (split == SPLITS - 1) & (place >= 0):
        for other in range(first_lane, lane + 1):
            k_ptr = qkv_ptr + other * WIDTH + (HEADS + kv_head) * D
            other_place = tl.load(places_ptr + other)
            k_low, k_high = _rotated(
                tl.load(k_ptr + half).to(tl.float32)[None, :],
                tl.load(k_ptr + HALF + half).to(tl.float32)[None, :],
                k_norm_ptr,
                frequencies,
                other_place,
                eps,
                HALF,
            )
            k_low, k_high = k_low.to(dtype), k_high.to(dtype)
            v = tl.load(k_ptr + KV_HEADS * D + d)
            if other == lane:
                slot = cache + _slot(pages_ptr, place, PAGE, PAGE_STRIDE, SLOT_STRIDE)
                tl.store(keys_ptr + slot + half[None, :], k_low)
                tl.store(keys_ptr + slot + HALF + half[None, :], k_high)
                tl.store(values_ptr + slot + d, v)
            low_scores = tl.sum(q_low.to(tl.float32) * k_low.to(tl.float32), axis=1)
            score = (low_scores + tl.sum(q_high.to(tl.float32) * k_high.to(tl.float32), axis=1)) * scale
            higher = tl.maximum(maximum, score)
            weight = tl.exp(score - higher)
            decay = tl.exp(maximum - higher)
            total = total * decay + weight
            mixed = mixed * decay[:, None] + weight[:, None] * v[None, :].to(tl.float32)
            maximum = higher

    head = lane * HEADS + kv_head * GROUP + group
    tl.store(maxima_ptr + head * SPLITS + split, maximum, mask=group < GROUP)
    tl.store(sums_ptr + head * SPLITS + split, total, mask=group < GROUP)
    tl.store(partial_ptr + (head[:, None] * SPLITS + split) * D + d[None, :], mixed, mask=real)
    tl.debug_barrier()
    arrival = arrivals_ptr + lane * KV_HEADS + kv_head
    if tl.atomic_add(arrival, 1, sem="acq_rel") == SPLITS - 1:
        tl.store(arrival, 0)
        highest = tl.full((_LANES,), float("-inf"), tl.float32)
        for part in tl.static_range(SPLITS):
            highest = tl.maximum(
                highest,
                tl.load(maxima_ptr + head * SPLITS + part, mask=group < GROUP, other=0.0, cache_modifier=".cg"),
            )
        total = tl.zeros((_LANES,), tl.float32)
        mixed = tl.zeros((_LANES, D), tl.float32)
        for part in tl.static_range(SPLITS):
            maximum = tl.load(maxima_ptr + head * SPLITS + part, mask=group < GROUP, other=0.0, cache_modifier=".cg")
            # A share without keys has no maximum, and a lane without a place has no keys at all.
            weight = tl.where(maximum == float("-inf"), 0.0, tl.exp(maximum - highest))
            sums = tl.load(sums_ptr + head * SPLITS + part, mask=group < GROUP, other=0.0, cache_modifier=".cg")
            total += weight * sums
            parts = partial_ptr + (head[:, None] * SPLITS + part) * D + d[None, :]
            mixed += weight[:, None] * tl.load(parts, mask=real, other=0.0, cache_modifier=".cg")
        mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out_ptr + head[:, None] * D + d[None, :], mixed, mask=real)
