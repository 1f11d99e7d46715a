"""Which language-model backend is faster in which case, what do start and stop cost, and what memory remains?

    python -m benchmarks.lm_backends                                           # the tiny model on pt, CPU
    python -m benchmarks.lm_backends --device cuda --backend pt vllm           # 0.6B and 1.7B at true size
    python -m benchmarks.lm_backends --device cuda --backend vllm --profile    # and where the time of a pass goes
    python -m benchmarks.lm_backends --device cuda --backend pt --starts-only  # only memory after each stop

Codes are written with guidance. For songs written together a rate is that of decoding alone, from the difference
between a long and a short run. For requests that overlap it is all codes over the time from the first request's arrival
to the last one's end: one song each, of different lengths, from as many threads, one arriving every few milliseconds. A
backend whose phases take turns runs them one after the other; one with continuous batching lets them share its passes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from acestep.checkpoints import ModelSelection, load_language_model
from acestep.cuda_graphs import reserve_workspaces
from acestep.devices import default_dtype
from acestep.offloading import ModelOffloader
from acestep.planner.backends import PlannerBackend
from acestep.planner.backends.registry import create_planner, storage_device
from acestep.planner.prompts import Prompts
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS
from acestep.types import Placement
from benchmarks.arguments import available_device, output_file, whole_number
from benchmarks.environment import environment, write_result
from benchmarks.lm import METADATA, SAMPLING, decode_rate
from benchmarks.workload import CAPTION, LYRICS

TINY = ("acestep-5Hz-lm-tiny",)
TRUE_SIZES = ("acestep-5Hz-lm-0.6B", "acestep-5Hz-lm-1.7B")
REPETITIONS = 3
PROFILED_PASSES = 100
ENGINE_PARTS = {
    "load weights": ("vllm.v1.worker.gpu_worker", "Worker.load_model"),
    "profile memory": ("vllm.v1.worker.gpu_worker", "Worker.determine_available_memory"),
    "set up the cache": ("vllm.v1.worker.gpu_worker", "Worker.initialize_from_config"),
    "compile and record": ("vllm.v1.worker.gpu_worker", "Worker.compile_or_warm_up_model"),
    "of that, record": ("vllm.v1.worker.gpu.model_runner", "GPUModelRunner.capture_model"),
}
"""Parts of vLLM's start on CUDA, by the methods that do them."""


def main() -> None:
    """Print a row per model, backend and load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=available_device, default="auto")
    parser.add_argument("--backend", nargs="+", choices=["pt", "vllm", "mlx"], default=["pt"])
    parser.add_argument("--lm", nargs="+", choices=LANGUAGE_MODEL_CONFIGS, metavar="NAME", help="models")
    parser.add_argument("--songs", type=whole_number, nargs="+", default=[1, 4], help="songs written together")
    parser.add_argument("--requests", type=whole_number, default=16, help="requests that overlap")
    parser.add_argument("--arrival", type=whole_number, default=50, help="milliseconds from one arrival to the next")
    parser.add_argument("--codes", type=whole_number, default=300, help="codes of a run")
    parser.add_argument("--starts", type=whole_number, default=3, help="times that the backend is started")
    parser.add_argument("--starts-only", action="store_true", help="start and stop, without the loads")
    parser.add_argument("--profile", action="store_true", help="list kernels and host functions of a pass (CUDA)")
    parser.add_argument("--output", type=output_file, help="write the result as JSON")
    options = parser.parse_args()
    if options.codes < 2:
        parser.error("a rate is the difference of a run and of one half as long: 2 codes or more")
    if options.device.type == "cpu":
        torch.set_num_threads(1)
    # What PyTorch keeps for the life of the process, for each thread that multiplies matrices, is not a backend's.
    reserve_workspaces(options.device)
    result: dict[str, Any] = {"environment": environment(), "starts": [], "rates": [], "passes": []}
    for name in options.lm or (TRUE_SIZES if options.device.type == "cuda" else TINY):
        for kind in options.backend:
            for start in range(options.starts):
                backend, row = started(name, kind, options)
                if start == 0 and not options.starts_only:
                    for load in loads(backend, options):
                        result["rates"].append({"model": name, "backend": kind, **load})
                        print(
                            f"{name:22}{kind:>6}  {load['load']:26}{load['codes_per_second']:9.1f} codes/s", flush=True
                        )
                    if options.profile and options.device.type == "cuda":
                        result["passes"].append({"model": name, "backend": kind, **profiled(backend)})
                else:
                    write_codes(backend, 8)
                row |= stopped(backend, row.pop("free_before"), options)
                del backend
                result["starts"].append({"model": name, "backend": kind, "start": start + 1, **row})
                print(f"{name:22}{kind:>6}  start {start + 1}: {row}", flush=True)
                # Written after each row: finished results should not be lost.
                write_result(options.output, result)


def started(name: str, kind: str, options: argparse.Namespace) -> tuple[PlannerBackend[Any], dict[str, Any]]:
    """A backend, and what its start took: seconds of each part, the model's weights included."""
    free = free_mebibytes(options.device)
    offloader = ModelOffloader(options.device, Placement())
    selection = ModelSelection(lm=name, weights="synthetic", device=str(options.device), lm_backend=kind)
    begin = time.perf_counter()
    if kind == "vllm":
        import vllm.v1.engine.llm_engine  # noqa: F401
    imported = time.perf_counter()
    dtype = default_dtype(options.device)
    model = load_language_model(selection, options.device, dtype, storage_device(kind, offloader))
    built = time.perf_counter()
    with timed_parts(ENGINE_PARTS if kind == "vllm" and options.device.type == "cuda" else {}) as parts:
        planner = create_planner(kind, model, max(options.requests, *options.songs), offloader)
        del model
        ready = time.perf_counter()
    write_codes(planner.backend, 2)
    first = time.perf_counter()
    seconds = {
        "import": imported - begin,
        "synthetic weights": built - imported,
        "backend": ready - built,
        **parts,
        "first two codes": first - ready,
    }
    return planner.backend, {"seconds": {part: round(value, 2) for part, value in seconds.items()}, "free_before": free}


@contextmanager
def timed_parts(parts: dict[str, tuple[str, str]]) -> Iterator[dict[str, float]]:
    """Seconds spent in methods while the block runs."""
    seconds: dict[str, float] = {}
    undo: list[tuple[Any, str, Any]] = []

    def timed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - begin

        return run

    for part, (module, path) in parts.items():
        __import__(module)
        owner_name, method_name = path.split(".")
        owner = getattr(sys.modules[module], owner_name)
        method = getattr(owner, method_name)
        undo.append((owner, method_name, method))
        setattr(owner, method_name, timed(part, method))
    try:
        yield seconds
    finally:
        for owner, method_name, method in undo:
            setattr(owner, method_name, method)


def stopped(backend: PlannerBackend[Any], free_before: float, options: argparse.Namespace) -> dict[str, float]:
    """Unload; returns the MiB of device memory in use beyond those before the start."""
    used = free_before - free_mebibytes(options.device)
    begin = time.perf_counter()
    backend.unload()
    seconds = time.perf_counter() - begin
    gc.collect()
    left = {
        "stop_seconds": round(seconds, 2),
        "mebibytes_in_use": round(used, 1),
        "mebibytes_left_behind": round(free_before - free_mebibytes(options.device), 1),
    }
    if options.device.type == "cuda":
        # Of what is in use afterwards: tensors that exist, and blocks that PyTorch has not returned to the driver.
        left["mebibytes_allocated"] = round(torch.cuda.memory_allocated(options.device) / 2**20, 1)
        left["mebibytes_reserved"] = round(torch.cuda.memory_reserved(options.device) / 2**20, 1)
    return left


def free_mebibytes(device: torch.device) -> float:
    """Of the device, by its driver; 0 where there is none to ask."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    return torch.cuda.mem_get_info(device)[0] / 2**20


def loads(backend: PlannerBackend[Any], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Codes per second of songs written together, and of requests that overlap."""
    for songs in options.songs:
        rate = songs * decode_rate(lambda count, songs=songs: write_codes(backend, count, songs), options.codes)
        yield {"load": f"{songs} together", "songs": songs, "codes_per_second": rate}
    runs = [overlapping(backend, options) for _ in range(1 + REPETITIONS)][1:]
    yield {
        "load": f"{options.requests} requests, {options.arrival} ms apart",
        "requests": options.requests,
        "codes_per_second": median(run["codes_per_second"] for run in runs),
        "mean_seconds_per_request": median(run["mean_seconds"] for run in runs),
        "runs": runs,
    }


def write_codes(backend: PlannerBackend[Any], count: int, songs: int = 1, first_seed: int = 0) -> None:
    """A guided phase 2."""
    prompts = Prompts(backend.vocabulary)
    conditional, unconditional = prompts.codes(CAPTION, LYRICS, METADATA), prompts.unconditional_codes()
    backend.generate_codes(conditional, unconditional, count, SAMPLING, range(first_seed, first_seed + songs))


def overlapping(backend: PlannerBackend[Any], options: argparse.Namespace) -> dict[str, float]:
    """Requests of one song each, from half the codes to half as many again."""
    begin = time.perf_counter()
    lengths = [options.codes // 2 + options.codes * (5 * request % 16) // 15 for request in range(options.requests)]

    def serve(request: int) -> float:
        arrival = begin + request * options.arrival / 1e3
        time.sleep(max(arrival - time.perf_counter(), 0.0))
        write_codes(backend, lengths[request], first_seed=request)
        return time.perf_counter() - arrival

    with ThreadPoolExecutor(options.requests) as pool:
        seconds = list(pool.map(serve, range(options.requests)))
    return {
        "codes_per_second": sum(lengths) / (time.perf_counter() - begin),
        "mean_seconds": mean(seconds),
    }


def profiled(backend: PlannerBackend[Any]) -> dict[str, Any]:
    """Of one guided pass of one song: its duration, its kernels, and the host functions that take longest."""
    write_codes(backend, PROFILED_PASSES)
    begin = time.perf_counter()
    write_codes(backend, PROFILED_PASSES)
    duration = (time.perf_counter() - begin) / PROFILED_PASSES * 1e6
    with profile(activities=[ProfilerActivity.CUDA]) as device:
        write_codes(backend, PROFILED_PASSES)
    kernels = sorted(
        (
            {
                "name": event.key,
                "microseconds": event.self_device_time_total / PROFILED_PASSES,
                "launches": event.count / PROFILED_PASSES,
            }
            for event in device.key_averages()
        ),
        key=lambda kernel: -kernel["microseconds"],
    )
    host = cProfile.Profile()
    host.runcall(write_codes, backend, PROFILED_PASSES)
    functions = [
        {
            "name": f"{Path(file).name}:{line} {function}",
            "calls": calls / PROFILED_PASSES,
            "own_microseconds": own / PROFILED_PASSES * 1e6,
            "microseconds": total / PROFILED_PASSES * 1e6,
        }
        for (file, line, function), (_, calls, own, total, _) in pstats.Stats(host).stats.items()  # type: ignore[attr-defined]
    ]
    functions.sort(key=lambda each: -each["microseconds"])
    busy = sum(kernel["microseconds"] for kernel in kernels)
    print(f"    a pass: {duration:.0f} µs, kernels {busy:.0f} µs", flush=True)
    for kernel in kernels[:14]:
        print(f"    {kernel['microseconds']:8.1f} µs {kernel['launches']:7.1f} x  {kernel['name'][:90]}")
    for each in functions[:45]:
        times = f"{each['microseconds']:8.1f} µs, own {each['own_microseconds']:7.1f}"
        print(f"    {times}, {each['calls']:5.1f} x  {each['name']}")
    return {"microseconds": duration, "kernel_microseconds": busy, "kernels": kernels[:40], "host": functions[:60]}


if __name__ == "__main__":
    main()
