"""Operations and bytes of the operators that the models are made of, from shapes alone.

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

A model's pass is the sum of its operators (``acestep_otel.roofline.models``). ``tests/roofline/test_models.py``
compares every pass with ``torch.utils.flop_counter`` and with a count of the tensors that go in and out, at tiny and at
true sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

Precision = Literal["float32", "bfloat16", "float16", "int8"]
"""What the products are computed in; accumulation is in float32, or int32."""

_BYTES: Final[dict[Precision, int]] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


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
