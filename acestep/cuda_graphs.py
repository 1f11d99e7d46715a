"""Functions recorded as CUDA graphs: the host submits one launch instead of hundreds."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final

import torch

logger = logging.getLogger(__name__)

TensorFunction = Callable[..., torch.Tensor]


def captured(function: TensorFunction, *examples: torch.Tensor) -> TensorFunction:
    """The function for inputs like the examples: a replayed graph on CUDA, itself elsewhere."""
    return CapturedCall(function, *examples) if examples[0].is_cuda else function


def records_on(device: torch.device) -> bool:
    """Whether a device supports graphs."""
    return device.type == "cuda"


class CapturedCall:
    """A recorded function.

    It must not read values on the host, and may keep state only in tensors whose memory does not move. Its result is
    overwritten by the next call.

    Args:
        function: of tensors, to a tensor.
        examples: inputs of the shapes and types that it will be called with.
        pool: of ``torch.cuda.graph_pool_handle``: memory shared with other graphs that are never replayed at the same
            time; a pool of its own when not given.
        warm_up: run the function once before it is recorded, because what is created on first use (kernels, workspaces)
            must not be created while recording.

    Attributes:
        inputs: what the graph reads; to be written by a caller that replays it directly.
        holds: for that caller, what it has written there.
    """

    holds: object = None

    def __init__(
        self, function: TensorFunction, *examples: torch.Tensor, pool: Any = None, warm_up: bool = True
    ) -> None:
        self.inputs = [example.clone() for example in examples]
        # PyTorch's stubs leave graphs untyped.
        cuda: Any = torch.cuda
        self._graph = cuda.CUDAGraph()
        # Kernels of Triton run on the current device, wherever their tensors are.
        with cuda.device(examples[0].device):
            if warm_up:
                function(*self.inputs)
            with _recording(self._graph, pool):
                self._output = function(*self.inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Copy the inputs and replay."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.replay()

    def replay(self) -> torch.Tensor:
        """Run what was recorded on the inputs as they are."""
        self._graph.replay()
        return self._output


class GraphCache:
    """Recorded functions of one kind of work, by stream and shapes; the least recently used one is dropped.

    Graphs of one stream run one after the other, so they share the memory of their intermediate results. If one cannot
    be recorded, because memory is short or the driver reports an error, a warning is logged and no other is recorded.

    Args:
        work: what is recorded, for the warning.
        limit: maximum number of functions that are kept.
    """

    def __init__(self, work: str, limit: int) -> None:
        self._work = work
        self._limit = limit
        self._graphs: OrderedDict[Hashable, CapturedCall] = OrderedDict()
        self._pools: dict[int, Any] = {}
        self.is_open = True

    def find(self, function: TensorFunction, *inputs: torch.Tensor) -> CapturedCall | None:
        """The recording of a function for inputs of these shapes on the current stream."""
        kind = _kind(function, inputs)
        if kind in self._graphs:
            self._graphs.move_to_end(kind)
        return self._graphs.get(kind)

    def record(self, function: TensorFunction, *inputs: torch.Tensor) -> None:
        """Record a function that has just been called with inputs of these shapes; nothing waits for the device."""
        while len(self._graphs) >= self._limit:
            self._graphs.popitem(last=False)
        try:
            pool = self._pool(inputs[0])
            self._graphs[_kind(function, inputs)] = CapturedCall(function, *inputs, pool=pool, warm_up=False)
        # Whatever the driver raises, the same work also runs without a graph, launch by launch.
        except Exception as error:
            self.is_open = False
            self.clear()
            logger.warning("%s could not be recorded as a CUDA graph and runs launch by launch: %s", self._work, error)

    def clear(self) -> None:
        """Drop everything that was recorded."""
        self._graphs.clear()

    def _pool(self, tensor: torch.Tensor) -> Any:
        """Memory of the graphs on the current stream."""
        # PyTorch's stubs leave graphs untyped.
        cuda: Any = torch.cuda
        stream = _stream(tensor)
        if stream not in self._pools:
            self._pools[stream] = cuda.graph_pool_handle() if tensor.is_cuda else None
        return self._pools[stream]


def _kind(function: TensorFunction, inputs: Sequence[torch.Tensor]) -> Hashable:
    return function, _stream(inputs[0]), *(tensor.shape for tensor in inputs)


def _stream(tensor: torch.Tensor) -> int:
    """The stream to which work on a tensor is currently submitted; off CUDA there is only one."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def reserve_workspaces(device: torch.device) -> None:
    """Allocate what matrix products of this thread need, run directly and recorded, before a model is in use.

    The workspaces stay for the life of the process. Created later, they would be part of memory that a model has freed,
    or of a recording's memory, and keep all of it.
    """
    if device.type != "cuda":
        return
    # PyTorch's stubs leave streams untyped.
    cuda: Any = torch.cuda
    with cuda.device(device):
        cuda.empty_cache()
        one = torch.ones(1, 1, device=device)
        one.mm(one)
        cuda.synchronize()
        with cuda.stream(capture_stream(device)):
            one.mm(one)
        cuda.synchronize()


_CAPTURING: Final = threading.Lock()


@contextmanager
def _recording(graph: Any, pool: Any) -> Iterator[None]:
    """Record what the block launches. ``torch.cuda.graph`` would wait for the device and empty the allocator's cache.

    Other threads go on using the device.
    """
    cuda: Any = torch.cuda
    current = cuda.current_stream()
    with _CAPTURING:
        side = capture_stream(current.device)
        side.wait_stream(current)
        with cuda.stream(side):
            graph.capture_begin(**({} if pool is None else {"pool": pool}), capture_error_mode="thread_local")
            try:
                yield
            except BaseException:
                # Ending a recording that failed reports the failure a second time.
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(side)


@cache
def capture_stream(device: torch.device) -> Any:
    """The one stream that is used for recording: matrix products take a workspace of 32 MiB on every stream."""
    # PyTorch's stubs leave streams untyped.
    cuda: Any = torch.cuda
    return cuda.Stream(device)
