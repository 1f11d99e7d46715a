"""Shared by all tests."""

import os

import pytest
import torch

# Triton reads this when it is first imported: without a GPU its kernels run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")

from acestep.checkpoints import TINY_DIT, TINY_LM, ModelSelection, load_models

# Two threads on a busy two-core machine make tiny models fifty times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_models():
    """The tiny models on the CPU, loaded once; nothing that uses them changes them."""
    return load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))
