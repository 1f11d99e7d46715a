"""vLLM's engine inside this process: configured, given its weights, and stopped.

The engine is vLLM's ``LLMEngine`` with the scheduler and the model in the calling thread, so a step is a function
call, its requests start together, and CUDA events recorded around it are on the same stream.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from acestep.cuda_graphs import capture_stream, reserve_workspaces
from acestep.errors import BackendUnavailable, OutOfMemory
from acestep.planner.backends.vllm.selection import TokenSelector
from acestep.planner.budget import LanguageModel, bytes_per_position

_ARCHITECTURE: Final = "AceStepForCausalLM"
_LOAD_FORMAT: Final = "acestep"
BLOCK: Final = 128
"""Positions in a block of keys and values, the engine's largest default: what a row may take beyond its own."""
_ENVIRONMENT: Final = {
    # The scheduler and the worker in this process, not in children.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # Compiling it takes minutes, and tokens are not sampled by it.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
_LOGGING_LEVELS: Final = ("VLLM_LOGGING_LEVEL", "FLASHINFER_LOGGING_LEVEL")
"""Log levels of the engine and its kernels' library, unless the user's environment sets them."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What the engine reserves when it starts; nothing is added later.

    Attributes:
        rows: sequences that run together: a song, and with guidance its unconditional row.
        context_limit: positions of one row.
        bytes: for keys and values of requests.
    """

    rows: int
    context_limit: int
    bytes: int

    @classmethod
    def for_songs(cls, model: LanguageModel, songs: int, limit: int | None) -> Reservation:
        """Room for the worst case: so many songs, all guided and as long as the model allows.

        Args:
            model: the language model.
            songs: songs generated together.
            limit: bytes that may be reserved at most; ``None`` when the worst case has to fit.

        Raises:
            OutOfMemory: the limit does not even hold one guided song.
        """
        rows, row = 2 * songs, model.context_limit * bytes_per_position(model)
        reserved = rows * row if limit is None else min(rows * row, limit)
        if reserved < 2 * row:
            raise OutOfMemory(
                f"keys and values of one guided song need {2 * row / 2**30:.2f} GiB, but only {reserved / 2**30:.2f} "
                "GiB can be reserved beside the weights: use a smaller language model, or `lm_backend` pt, which "
                "allocates what a request needs",
                stage="model.load",
            )
        return cls(rows, model.context_limit, reserved)


def build_engine(
    model: LanguageModel, device: torch.device, reservation: Reservation, selector: TokenSelector, fuse: bool
) -> Any:
    """Start an engine with the weights of a loaded model, which it copies.

    Args:
        model: the language model; usually in host memory.
        device: where the engine runs.
        reservation: of rows, and of memory for keys and values.
        selector: decides the tokens.
        fuse: run small decode passes in the kernels of the PyTorch backend, where they can run.

    Returns:
        ``vllm.v1.engine.llm_engine.LLMEngine``.

    Raises:
        BackendUnavailable: the installed vLLM is not built for the device, rejects the configuration, or already runs
            in this process.
        OutOfMemory: weights and reservation do not fit.
    """
    with _process_as_it_was():
        import vllm.v1.worker.gpu.sample.logits_processor  # noqa: F401  (Model Runner V2 is part of what is needed)
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory, model_parallel_is_initialized
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.models import ModelRegistry
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine
        from vllm.v1.executor import Executor

        from acestep.planner.backends.vllm.hooks import HiddenStatesModel, SelectingProcessor, SilentStatistics

        if current_platform.device_type != device.type:
            raise BackendUnavailable(
                f"this vLLM is built for {current_platform.device_type or 'no device of this machine'}, "
                f"and the device is {device.type}: use `lm_backend` pt, or install a vLLM for {device.type}"
            )
        if model_parallel_is_initialized():
            # Engines share the process's groups of workers: stopping one would stop the other.
            raise BackendUnavailable("vLLM already runs in this process: unload that language model first")
        reserve_workspaces(device)
        _register_loader(model)
        ModelRegistry.register_model(_ARCHITECTURE, HiddenStatesModel)
        HiddenStatesModel.selector, HiddenStatesModel.fuses = selector, fuse
        try:
            config = EngineArgs(model=_config_folder(model), **_settings(model, device, reservation))
            engine_config = config.create_engine_config()
            if not engine_config.use_v2_model_runner:
                engine_config.model_config.logits_processors = [SelectingProcessor]
            if device.type == "cuda":
                # The executor takes the number of the device from here.
                engine_config.device_config.device = torch.device("cuda", device.index or 0)
            with _recorded_here(device):
                engine = LLMEngine(
                    vllm_config=engine_config,
                    executor_class=Executor.get_class(engine_config),
                    log_stats=True,
                    stat_loggers=[SilentStatistics],
                    multiprocess_mode=False,
                )
        except torch.OutOfMemoryError:
            cleanup_dist_env_and_memory()
            raise
        except Exception as error:
            cleanup_dist_env_and_memory()
            # The kernels can fail in ways of their own: the caller can do without them.
            if not (selector.fuses or isinstance(error, ValueError | RuntimeError)):
                raise
            raise BackendUnavailable(
                f"vLLM did not start: {' '.join(str(error).split())} (or use `lm_backend` pt)"
            ) from error
        finally:
            HiddenStatesModel.selector = None
        # Its recorded metrics are not read: statistics of requests come with their output.
        engine.logger_manager = None
        return engine


def close_engine(engine: Any) -> None:
    """Stop an engine, and release its weights.

    Its own shutdown leaves them on the device, referenced by what compiled them.
    """
    runner = engine.model_executor.driver_worker.worker.model_runner
    _forget_compiled(runner.model)
    del runner
    engine.engine_core.shutdown()


def _forget_compiled(model: torch.nn.Module) -> None:
    """Undo what keeps a compiled model for the life of the process.

    Each compiled module registers hooks on bytecode (a subclass of another one twice, of which vLLM removes one), and
    the compiled function, which holds the inputs that it was traced with, is a global of the model's source file.
    """
    from torch._dynamo import convert_frame, eval_frame
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper

    hooks: dict[int, Any] = convert_frame._bytecode_hooks
    for module in model.modules():
        if not isinstance(module, TorchCompileWithNoGuardsWrapper):
            continue
        for number in [number for number, hook in hooks.items() if getattr(hook, "__self__", None) is module]:
            del hooks[number]
        forward = type(module).forward
        eval_frame.remove_from_cache(forward.__code__)
        for name in [name for name in forward.__globals__ if name.startswith("__compiled_fn_")]:
            del forward.__globals__[name]
        for name in ("_compiled_callable", "aot_compiled_fn"):
            if hasattr(module, name):
                setattr(module, name, None)


def _settings(model: LanguageModel, device: torch.device, reservation: Reservation) -> dict[str, Any]:
    spare = reservation.rows * BLOCK * bytes_per_position(model)
    settings: dict[str, Any] = {
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "load_format": _LOAD_FORMAT,
        "dtype": str(model.dtype).removeprefix("torch."),
        # One position more than is ever requested: the step that ends a request takes one.
        "max_model_len": reservation.context_limit + 1,
        "max_num_seqs": reservation.rows,
        "max_num_batched_tokens": reservation.context_limit + reservation.rows,
        "enable_prefix_caching": False,
        "kv_cache_memory_bytes": reservation.bytes + spare,
        # The host prepares a pass while the device runs the one before.
        "async_scheduling": device.type == "cuda",
        "disable_log_stats": False,
    }
    if device.type == "cuda":
        weights = sum(parameter.nbytes for parameter in model.body.parameters())
        total = torch.cuda.get_device_properties(device).total_memory
        # Not used to size anything here, but the engine requires this share to be free before it starts.
        settings["gpu_memory_utilization"] = min((weights + reservation.bytes + spare) / total, 1.0)
        # Of kernels that are not used: attention is FlashAttention's.
        settings["kernel_config"] = {"enable_flashinfer_autotune": False}
        # A block of the cache holds several blocks of keys of the engine's kernels.
        settings["block_size"] = BLOCK
        settings["compilation_config"] = {
            "cudagraph_capture_sizes": [1, *range(2, reservation.rows + 1, 2)],
            # A pass with prompts has more tokens than any recording.
            "cudagraph_mode": "FULL_DECODE_ONLY",
        }
    else:
        settings["enforce_eager"] = True
    return settings


def _config_folder(model: LanguageModel) -> str:
    """The folder with the model's configuration, one for each: its path is part of the key of vLLM's compile cache."""
    from vllm import envs

    config: dict[str, Any] = model.body.config.to_dict()  # type: ignore[operator, union-attr]
    text = json.dumps(config | {"architectures": [_ARCHITECTURE]}, default=str, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = Path(envs.VLLM_CACHE_ROOT) / "acestep" / digest
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        file.write(text)
    Path(file.name).replace(folder / "config.json")
    return str(folder)


def _register_loader(model: LanguageModel) -> None:
    """Let the engine read the weights from the loaded model: no file is written, whatever its size."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    parameters = {f"model.{name}": parameter for name, parameter in model.body.named_parameters()}

    class LoadedWeights(BaseModelLoader):
        """Copies each weight once, then releases all of them."""

        def download_model(self, model_config: Any) -> None:
            """Nothing to download."""

        def load_weights(self, model: Any, model_config: Any) -> None:  # noqa: ARG002
            """Copy the weights."""
            model.load_weights(iter(parameters.items()))
            parameters.clear()

    register_model_loader(_LOAD_FORMAT)(LoadedWeights)


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Undo what starting an engine does to the rest of the process, and suppress its output.

    It reads settings from the environment and leaves others there, seeds every random generator, and changes the
    compiler's settings, the current device and the number of PyTorch's threads; on the CPU it even disables
    ``torch.set_num_threads``. Its log level is set when vLLM is imported, so that happens in here too.
    """
    from torch._dynamo import config as dynamo

    environment, threads, compiler = dict(os.environ), torch.get_num_threads(), dynamo.get_config_copy()
    python, numpy, set_num_threads = random.getstate(), np.random.get_state(), torch.set_num_threads
    current = torch.cuda.current_device() if torch.cuda.is_available() else None
    os.environ.update(_ENVIRONMENT)
    for variable in _LOGGING_LEVELS:
        os.environ.setdefault(variable, "ERROR")
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
            # PyTorch's deprecation warnings about vLLM's own code.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        for name, value in dynamo.get_config_copy().items():
            if value != compiler[name]:
                setattr(dynamo, name, compiler[name])
        if current is not None:
            torch.cuda.set_device(current)


@contextmanager
def _recorded_here(device: torch.device) -> Iterator[None]:
    """Let the engine record its graphs on the stream that all recordings use, without a bar that no setting turns off.

    It would create a stream at every start, each with a workspace that stays for the life of the process.
    """
    from vllm.distributed.parallel_state import GraphCaptureContext, get_tp_group
    from vllm.v1.worker.gpu import cudagraph_utils

    def graph_capture(device: torch.device) -> Any:
        return get_tp_group().graph_capture(GraphCaptureContext(capture_stream(device)))

    with ExitStack() as undo:
        changes: dict[str, Any] = {"tqdm": lambda iterable, **_: iterable}
        if device.type == "cuda":
            changes["graph_capture"] = graph_capture
        for name, change in changes.items():
            undo.callback(setattr, cudagraph_utils, name, getattr(cudagraph_utils, name))
            setattr(cudagraph_utils, name, change)
        yield
