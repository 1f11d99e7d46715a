"""The models of the service: what the command line names, on one device."""

from __future__ import annotations

import argparse
import gc
import os

import torch

from acestep import TINY_DIT, TINY_LM, Models, ModelSelection, load_models
from acestep.environment_variables import EnvironmentSettings


def load(options: argparse.Namespace) -> Models:
    """The models that the options name.

    Raises:
        AceStepError: they do not exist, or do not fit.
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
    # On a busy machine, tiny models are slower with two threads.
    torch.set_num_threads(1)
    return load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))


def freeze_objects() -> None:
    """Leave the objects of libraries and models out of later garbage collections.

    A full collection passes over half a million of them and stops all threads for a quarter of a second.
    """
    gc.collect()
    gc.freeze()
