"""The environment of a measurement, and the options that all benchmarks share."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from acestep_otel.profiler.report.environment import Environment
from benchmarks.arguments import available_device, output_file, whole_number


def environment() -> dict[str, Any]:
    """Hardware, versions and the command line."""
    command = ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
    return {"command": " ".join(command), **asdict(Environment.current())}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose what is run; without any, the tiny models on the best device."""
    parser.add_argument("--device", type=available_device, default="auto")
    parser.add_argument("--weights", choices=["tiny", "synthetic"], default="tiny")
    parser.add_argument("--dit", default="acestep-v15-turbo", help="diffusion model, with --weights synthetic")
    parser.add_argument("--lm", default="acestep-5Hz-lm-1.7B", help="language model, with --weights synthetic")
    parser.add_argument("--thinking", action="store_true", help="let the language model write audio codes")
    parser.add_argument("--compile", action="store_true", help="compile the code that runs")
    parser.add_argument("--plain", action="store_true", help="render without the fused kernels and recorded graphs")
    parser.add_argument("--duration", type=float, default=30.0)
    parser.add_argument("--batch-size", type=whole_number, default=1, help="songs together; several keep a GPU busy")
    parser.add_argument("--inference-steps", type=whole_number, default=8)
    parser.add_argument("--output", type=output_file, help="write the result as JSON")


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Write JSON if requested."""
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")
