"""Starts the service: ``python -m examples.serving --tiny``."""

from __future__ import annotations

import argparse
import os

import torch
import uvicorn

from acestep.checkpoints import TINY_DIT, TINY_LM, Models, ModelSelection, load_models
from acestep.environment_variables import EnvironmentSettings
from examples.serving.app import create_app
from examples.serving.telemetry import set_up

GRACE_SECONDS = 2
"""Seconds that open connections get after SIGTERM."""


def main() -> None:
    """Load the models and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="built-in random models, on the CPU in seconds")
    parser.add_argument("--weights", choices=["checkpoint", "synthetic"], default="checkpoint")
    parser.add_argument("--dit", default="acestep-v15-turbo", help="diffusion model")
    parser.add_argument("--lm", help="language model, for requests with thinking")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait")
    parser.add_argument("--kept", type=int, default=16, help="finished songs that stay on disk")
    options = parser.parse_args()
    telemetry = set_up()
    app = create_app(load(options), telemetry, capacity=options.queue, kept=options.kept)
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=GRACE_SECONDS, log_level="warning")


def load(options: argparse.Namespace) -> Models:
    """The models that the options name."""
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
            )
        )
    # Two threads on a busy machine make tiny models slower, not faster.
    torch.set_num_threads(1)
    return load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))


if __name__ == "__main__":
    main()
