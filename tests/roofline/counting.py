"""Counts, independently of the formulas, what a pass does: operations by PyTorch, bytes by the tensors that move."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from acestep_otel.roofline.work import Work

aten = torch.ops.aten
_COUNTED = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default}


def _held(tensor: torch.Tensor) -> int:
    """Bytes in memory: a weight that is expanded over a batch is there once."""
    stored = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(stored) * tensor.element_size()


class _Operators(TorchDispatchMode):
    """Adds up operands and results of products and convolutions; biases, which are a thousandth, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.paused = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in _COUNTED and not self.paused:
            operands = args[1:] if function in (aten.addmm.default, aten.baddbmm.default) else args[:2]
            self.bytes += sum(_held(operand) for operand in operands if isinstance(operand, torch.Tensor))
            self.bytes += _held(result)
        return result


class _Attention(TorchFunctionMode):
    """Counts attention as one operator: queries, keys, values and result."""

    def __init__(self, operators: _Operators) -> None:
        super().__init__()
        self._operators = operators

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        self._operators.paused += 1
        result = function(*args, **kwargs)
        self._operators.paused -= 1
        named = [*args[:3], *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)]
        self._operators.bytes += sum(map(_held, [*named, result]))
        return result


@torch.inference_mode()
def counted(run: Callable[[], object]) -> Work:
    """What a call does; attention runs as plain products, which ``flop_counter`` sees on every device.

    PyTorch's count comes first: it takes composite operators apart.
    """
    flops, operators = FlopCounterMode(display=False), _Operators()
    with sdpa_kernel(SDPBackend.MATH), operators, flops, _Attention(operators):
        run()
    return Work(flops.get_total_flops(), operators.bytes)
