"""Functions of tensors, recorded as CUDA graphs: the host launches one thing instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

TensorFunction = Callable[..., torch.Tensor]


def captured(function: TensorFunction, *examples: torch.Tensor) -> TensorFunction:
    """The function for inputs like the examples: a replayed graph on CUDA, itself elsewhere."""
    return CapturedCall(function, *examples) if examples[0].is_cuda else function


class CapturedCall:
    """A recorded function.

    It must not read values on the host, and may keep no state but in tensors that stay where they are. Its result is
    overwritten by the next call.

    Args:
        function: of tensors, to a tensor.
        examples: inputs of the shapes and types that it will be called with.
    """

    def __init__(self, function: TensorFunction, *examples: torch.Tensor) -> None:
        self._inputs = [example.clone() for example in examples]
        # PyTorch's stubs leave graphs untyped.
        cuda: Any = torch.cuda
        self._graph = cuda.CUDAGraph()
        # Kernels of Triton run on the current device, wherever their tensors are.
        with cuda.device(examples[0].device):
            # What is made on first use (kernels, workspaces) must not be made while recording.
            function(*self._inputs)
            # Other threads go on using the device.
            with cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Copy the inputs and replay."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output
