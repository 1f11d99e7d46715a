"""Starts the service: ``python -m examples.serving --tiny``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

import torch

from acestep import TINY_DIT, TINY_LM, AceStepError, Models, ModelSelection, load_models
from acestep.environment_variables import EnvironmentSettings
from acestep_otel import ServiceTelemetry, SetupError
from examples.serving.arguments import whole_number
from examples.serving.telemetry import set_up

WRONG_USAGE = 2
"""Exit code for a wrong flag or variable, as for the profiler."""


def main() -> None:
    """Load the models and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="built-in random models, on the CPU in seconds")
    parser.add_argument("--weights", choices=["checkpoint", "synthetic"], default="checkpoint")
    parser.add_argument("--dit", default="acestep-v15-turbo", help="diffusion model")
    parser.add_argument("--lm", help="language model, for requests with thinking")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; ::1 for IPv6")
    parser.add_argument("--port", type=whole_number(0, 65_535), default=8000, help="0 selects a free one")
    parser.add_argument("--queue", type=whole_number(1, 10_000), default=16, help="requests that may wait")
    parser.add_argument("--kept", type=whole_number(1, 10_000), default=16, help="finished songs that stay on disk")
    options = parser.parse_args()
    try:
        telemetry = set_up()
        models = load(options)
    except (SetupError, AceStepError) as error:
        refuse(str(error))
    serve(options, models, telemetry)


def serve(options: argparse.Namespace, models: Models, telemetry: ServiceTelemetry) -> None:
    """Answer requests until a signal comes."""
    # Propagators and the web framework read the environment while they are imported: only now is it known to be right.
    from examples.serving.app import PATHS, create_app
    from examples.serving.door import Door
    from examples.serving.server import Server

    app = create_app(models, telemetry, capacity=options.queue, kept=options.kept)
    server = Server(Door(app, PATHS), stop=lambda: app.state.worker.stop(), host=options.host, port=options.port)
    server.run()


def load(options: argparse.Namespace) -> Models:
    """The models that the options name.

    Raises:
        AceStepError: there are none of that name, or they do not fit.
    """
    if not options.tiny:
        settings = EnvironmentSettings.read(os.environ)
        return load_models(
            ModelSelection(
                dit=options.dit,
                lm=options.lm,
                weights=options.weights,
                device=options.device,
                decode=settings.decode,
                fused_decode=settings.fused_decode,
                fused_render=settings.fused_render,
            )
        )
    # Two threads on a busy machine make tiny models slower, not faster.
    torch.set_num_threads(1)
    return load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))


def refuse(message: str) -> NoReturn:
    """One line, and the exit code of a wrong usage."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(WRONG_USAGE)


if __name__ == "__main__":
    main()
