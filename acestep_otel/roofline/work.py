"""Operations and bytes of every pass of the models, from shapes alone.

Derivation
----------
*Operations* are those of matrix products, convolutions and attention, two per multiply-add, which is how
``torch.utils.flop_counter`` counts. Norms, activations, residuals, rotary embedding, softmax and look-ups are not
counted: together they are below one percent of the operations.

*Bytes* are the traffic with the device's memory that these operators cannot do without: each one reads its operands and
its weights once and writes its result once. What lies between them counts as fused, and nothing counts as kept in a
cache between two operators. A program that runs elementwise operators by themselves moves more.

With ``e`` bytes per activation and ``w`` per weight:

=============================================  =============================  ======================================
operator                                       operations                     bytes
=============================================  =============================  ======================================
product, ``t`` rows, ``i`` to ``o`` columns    ``2 t i o``                    ``e (t i + t o) + w i o``
convolution, ``l`` outputs, kernel ``k``       ``2 b l k i o``                ``e b (l_in i + l o) + w k i o``
the same transposed, ``l_in`` inputs           ``2 b l_in k i o``             the same
attention, ``q`` queries, ``s`` keys,          ``4 b h q s d``                ``2 e b d (h q + g s)``
``h`` heads of ``d``, ``g`` key-value heads
=============================================  =============================  ======================================

Attention is the dense kind: a mask, causal or sliding, leaves work out of the result, and not out of the kernel. Only
where the transformer runs in the engine's own kernels does sliding attention read no more than its window. Attention
keeps its scores on the chip (as flash attention does).

A model's pass is the sum of its operators. ``tests/roofline/test_work.py`` compares every pass with
``torch.utils.flop_counter`` and with a count of the tensors that go in and out, at tiny and at true sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import Any, Final, Literal

Precision = Literal["float32", "bfloat16", "float16", "int8"]
"""What the products are computed in; accumulation is in float32, or int32."""

_BYTES: Final[dict[Precision, int]] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_TIME_FREQUENCIES: Final = 256
"""Width of the sinusoidal embedding of a flow time."""
_MODULATIONS: Final = 6
"""Shifts, scales and gates of a block."""
_DILATED_KERNEL: Final = 7
"""Kernel of the first and last convolution of the VAE and of its residual units, of which a block has three."""
_RESIDUAL_UNITS: Final = 3
_BOTTLENECK_KERNEL: Final = 3


@dataclass(frozen=True, slots=True)
class Work:
    """Operations and bytes.

    Attributes:
        operations: two per multiply-add.
        bytes: read and written.
    """

    operations: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __sub__(self, other: Work) -> Work:
        return Work(self.operations - other.operations, self.bytes - other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.bytes * times)

    __rmul__ = __mul__


@dataclass(frozen=True, slots=True)
class Form:
    """How numbers are held and computed.

    Attributes:
        precision: of the products.
        activation: bytes of an activation.
        weight: bytes of a weight.
    """

    precision: Precision
    activation: float
    weight: float

    @classmethod
    def plain(cls, precision: Precision) -> Form:
        """Weights and activations in the type that the products are computed in."""
        return cls(precision, _BYTES[precision], _BYTES[precision])

    def linear(self, rows: float, inputs: int, outputs: float) -> Work:
        """A product of activations with weights."""
        moved = self.activation * rows * (inputs + outputs) + self.weight * inputs * outputs
        return Work(2 * rows * inputs * outputs, moved)

    def convolution(self, batch: int, channels: tuple[int, int], kernel: int, lengths: tuple[int, int]) -> Work:
        """A convolution over time; a transposed one where the output is longer than the input.

        Args:
            batch: songs.
            channels: of input and output.
            kernel: taps.
            lengths: of input and output.
        """
        taps = kernel * channels[0] * channels[1]
        moved = self.activation * batch * (lengths[0] * channels[0] + lengths[1] * channels[1]) + self.weight * taps
        return Work(2 * batch * min(lengths) * taps, moved)

    def attention(self, heads: Heads, batch: int, queries: float, keys: float) -> Work:
        """Scores and weighted values, without projections."""
        moved = 2 * self.activation * batch * heads.size * (heads.count * queries + heads.key_value * keys)
        return Work(4 * batch * heads.count * queries * keys * heads.size, moved)


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads.

    Attributes:
        count: of queries.
        key_value: of keys and values.
        size: width of one.
    """

    count: int
    key_value: int
    size: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """A stack of equal transformer blocks, each with self-attention and a gated feed-forward layer.

    Attributes:
        layers: blocks.
        hidden: width.
        intermediate: width inside the feed-forward layer.
        heads: of the attention.
        form: of weights and activations.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: Heads
    form: Form

    def projections(self, rows: float, context_rows: float) -> Work:
        """Queries and output of some rows, keys and values of others: the products around one attention."""
        wide, narrow = self.heads.count * self.heads.size, self.heads.key_value * self.heads.size
        linear = self.form.linear
        return (
            linear(rows, self.hidden, wide)
            + 2 * linear(context_rows, self.hidden, narrow)
            + linear(rows, wide, self.hidden)
        )

    def feed_forward(self, rows: float) -> Work:
        """Gate, value and output."""
        linear = self.form.linear
        return 2 * linear(rows, self.hidden, self.intermediate) + linear(rows, self.intermediate, self.hidden)

    def forward(self, batch: int, tokens: float, keys: float | None = None) -> Work:
        """All blocks over ``tokens`` of each sequence, which attend to ``keys`` positions (to themselves)."""
        one = (
            self.projections(batch * tokens, batch * tokens)
            + self.form.attention(self.heads, batch, tokens, tokens if keys is None else keys)
            + self.feed_forward(batch * tokens)
        )
        return self.layers * one


@dataclass(frozen=True, slots=True)
class DiffusionTransformer:
    """Sizes of the diffusion transformer.

    Attributes:
        blocks: its blocks, which have a cross-attention besides.
        inputs: channels that go in: context, mask and latents.
        channels: of the latents.
        patch: latent frames of one position.
        condition: width of the conditions.
        form: of everything outside the blocks, which is never quantised, and of attention.
        windowed: blocks whose attention leaves out the keys outside a window, instead of masking them.
        window: positions of that window, on both sides together.
        shared: what a request's steps share (keys and values of the conditions) is computed outside of the steps.
    """

    blocks: Blocks
    inputs: int
    channels: int
    patch: int
    condition: int
    form: Form
    windowed: int = 0
    window: int = 0
    shared: bool = False

    def forward(self, batch: int, frames: int, conditions: int) -> Work:
        """One evaluation of the velocity.

        Args:
            batch: songs, twice as many with guidance.
            frames: latent frames.
            conditions: positions of the cross-attention.
        """
        return self.products(batch, frames, conditions) + self.remainder(batch, frames, conditions)

    def products(self, batch: int, frames: int, conditions: int) -> Work:
        """Of one evaluation, the products of the blocks: what quantisation changes."""
        rows, blocks = batch * ceil(frames / self.patch), self.blocks
        conditioned_rows = 0 if self.shared else batch * conditions
        return blocks.layers * (
            blocks.projections(rows, rows) + blocks.projections(rows, conditioned_rows) + blocks.feed_forward(rows)
        )

    def remainder(self, batch: int, frames: int, conditions: int) -> Work:
        """Of one evaluation, everything else: attention, and what is before and behind the blocks."""
        form, hidden, positions = self.form, self.blocks.hidden, ceil(frames / self.patch)
        padded = positions * self.patch
        time = (
            form.linear(batch, _TIME_FREQUENCIES, hidden)
            + form.linear(batch, hidden, hidden)
            + form.linear(batch, hidden, _MODULATIONS * hidden)
        )
        heads, whole = self.blocks.heads, self.blocks.layers - self.windowed
        conditioned = Work(0, 0) if self.shared else form.linear(batch * conditions, self.condition, hidden)
        return (
            # The time, and its distance to another one.
            2 * time
            + form.convolution(batch, (self.inputs, hidden), self.patch, (padded, positions))
            + conditioned
            + whole * form.attention(heads, batch, positions, positions)
            + self.windowed * form.attention(heads, batch, positions, min(positions, self.window))
            + self.blocks.layers * form.attention(heads, batch, positions, conditions)
            + form.convolution(batch, (hidden, self.channels), self.patch, (positions, padded))
        )


@dataclass(frozen=True, slots=True)
class ConditionEncoder:
    """Sizes of the encoders of lyrics and timbre, and of the projection of the text.

    Attributes:
        lyrics: blocks over the lyrics.
        timbre: blocks over the reference.
        text: width of text and lyrics.
        channels: of the latents.
    """

    lyrics: Blocks
    timbre: Blocks
    text: int
    channels: int

    def forward(self, text_tokens: int, lyrics_tokens: int, timbre_frames: int) -> Work:
        """One fusion of text, lyrics and timbre."""
        form, hidden = self.lyrics.form, self.lyrics.hidden
        return (
            form.linear(text_tokens, self.text, hidden)
            + form.linear(lyrics_tokens, self.text, hidden)
            + self.lyrics.forward(1, lyrics_tokens)
            + form.linear(timbre_frames, self.channels, hidden)
            + self.timbre.forward(1, timbre_frames)
        )


@dataclass(frozen=True, slots=True)
class CodeModel:
    """Sizes of the audio tokenizer or of the detokenizer: small blocks over the frames of each code by themselves.

    Attributes:
        blocks: over the frames of one code.
        channels: of the latents.
        window: frames of a code.
        levels: numbers that a code is quantised to.
        codes: width of what the quantiser takes and gives.
    """

    blocks: Blocks
    channels: int
    window: int
    levels: int
    codes: int

    def tokenize(self, codes: int) -> Work:
        """Latents to codes; the blocks also see one position that stands for the whole."""
        form, hidden, frames = self.blocks.form, self.blocks.hidden, codes * self.window
        return (
            form.linear(frames, self.channels, hidden)
            + form.linear(frames, hidden, hidden)
            + self.blocks.forward(codes, self.window + 1)
            + self._quantiser(codes)
            + _QUANTISER.linear(codes, self.codes, self.levels)
        )

    def _quantiser(self, codes: int) -> Work:
        # Its two projections are computed in float32, from weights that are converted.
        return _QUANTISER.linear(codes, self.levels, self.codes)

    def detokenize(self, codes: int, *, from_ids: bool) -> Work:
        """Codes to latents; ``from_ids`` also looks their vectors up."""
        form, hidden, frames = self.blocks.form, self.blocks.hidden, codes * self.window
        looked_up = self._quantiser(codes) if from_ids else Work()
        return (
            looked_up
            + form.linear(codes, hidden, hidden)
            + self.blocks.forward(codes, self.window)
            + form.linear(frames, hidden, self.channels)
        )


_QUANTISER: Final = Form.plain("float32")


@dataclass(frozen=True, slots=True)
class Oobleck:
    """Sizes of one side of the VAE.

    Attributes:
        widths: channels before each block and behind the last, in the order of the forward pass.
        strides: of the blocks.
        outer: channels at the end that faces the latents (of a decoder its input, of an encoder its output).
        audio: channels of the audio.
        form: of weights and activations.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    outer: int
    audio: int
    form: Form

    def decode(self, frames: int) -> Work:
        """Latents of one song to audio."""
        length, convolve = frames, self.form.convolution
        work = convolve(1, (self.outer, self.widths[0]), _DILATED_KERNEL, (length, length))
        for (before, after), stride in zip(pairwise(self.widths), self.strides, strict=True):
            longer = _upsampled(length, stride)
            work += convolve(1, (before, after), 2 * stride, (length, longer)) + self._residual(after, longer)
            length = longer
        return work + convolve(1, (self.widths[-1], self.audio), _DILATED_KERNEL, (length, length))

    def encode(self, samples: int) -> Work:
        """Audio to the parameters of its latents."""
        length, convolve = samples, self.form.convolution
        work = convolve(1, (self.audio, self.widths[0]), _DILATED_KERNEL, (length, length))
        for (before, after), stride in zip(pairwise(self.widths), self.strides, strict=True):
            shorter = (length + 2 * ceil(stride / 2) - 2 * stride) // stride + 1
            work += self._residual(before, length) + convolve(1, (before, after), 2 * stride, (length, shorter))
            length = shorter
        return work + convolve(1, (self.widths[-1], self.outer), _BOTTLENECK_KERNEL, (length, length))

    def _residual(self, width: int, length: int) -> Work:
        convolve = self.form.convolution
        unit = convolve(1, (width, width), _DILATED_KERNEL, (length, length)) + convolve(
            1, (width, width), 1, (length, length)
        )
        return _RESIDUAL_UNITS * unit


def _upsampled(length: int, stride: int) -> int:
    return (length - 1) * stride - 2 * ceil(stride / 2) + 2 * stride


@dataclass(frozen=True, slots=True)
class LanguageModelPhase:
    """One phase of the language model: its prompts, then a pass for each token.

    Attributes:
        blocks: of the model.
        prompts: sequences that are run at first.
        prompt_tokens: tokens of each that are run, padding included.
        prompt_keys: positions that they attend to.
        rows: sequences that are decoded together.
        passes: decode passes behind the prompts.
        pass_tokens: tokens of a row in one pass, on average.
        drawn: sampled tokens, over all songs.
        drawn_together: of them in one pass.
        candidates: rows of the head that a sampled token is drawn from, on average.
    """

    blocks: Blocks
    prompts: int
    prompt_tokens: int
    prompt_keys: int
    rows: int
    passes: int
    pass_tokens: float
    drawn: int
    drawn_together: int
    candidates: float

    def prefill(self) -> Work:
        """The pass over the prompts."""
        return self.blocks.forward(self.prompts, self.prompt_tokens, self.prompt_keys)

    def decode(self) -> Work:
        """All passes behind the prompts, and the heads.

        The work of a pass is linear in the positions that it sees, which grow by the tokens of a pass: an arithmetic
        series.
        """

        def one(keys: float) -> Work:
            return self.blocks.forward(self.rows, self.pass_tokens, keys)

        first = one(self.prompt_keys + self.pass_tokens)
        growth = one(self.prompt_keys + 2 * self.pass_tokens) - first
        bodies = self.passes * first + (self.passes * (self.passes - 1) / 2) * growth
        head = self.blocks.form.linear(self.drawn_together, self.blocks.hidden, self.candidates)
        return bodies + (self.drawn / self.drawn_together) * head if self.drawn else bodies


@dataclass(frozen=True, slots=True)
class Part:
    """The work of one pass, and in which precision it is done.

    Attributes:
        work: operations and bytes.
        precision: of the products.
    """

    work: Work
    precision: Precision


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass that was run, before anything is worked out: taking note of it costs as much as making a tuple.

    Attributes:
        work: gives its work.
        sizes: what ``work`` is called with.
        precision: of its products.
    """

    work: Callable[..., Work]
    sizes: tuple[Any, ...]
    precision: Precision

    def part(self) -> Part:
        """Its work."""
        return _part(self)


@lru_cache(maxsize=1024)
def _part(of: Pass) -> Part:
    return Part(of.work(*of.sizes), of.precision)
