"""Sizes of the models, and the work of their passes: sums of operators (``acestep_otel.roofline.work``)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Final

from acestep_otel.roofline.work import Form, Heads, Work

_TIME_FREQUENCIES: Final = 256
"""Width of the sinusoidal embedding of a flow time."""
_MODULATIONS: Final = 6
"""Shifts, scales and gates of a block."""
_DILATED_KERNEL: Final = 7
"""Kernel of the first and last convolution of the VAE and of its residual units, of which a block has three."""
_RESIDUAL_UNITS: Final = 3
_BOTTLENECK_KERNEL: Final = 3


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
