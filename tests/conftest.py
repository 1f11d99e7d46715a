"""Shared by all tests."""

import os

import pytest
import torch

# Triton reads this when it is first imported: without a GPU its kernels run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# gRPC reads this when it starts: else it logs that a receiver went away while the next test looks at what was printed.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from acestep.checkpoints import TINY_DIT, TINY_LM, ModelSelection, load_models
from acestep_otel.instrumentor import AceStepInstrumentor
from tests.tracing import Traced

# Two threads on a busy two-core machine make tiny models fifty times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_models():
    """The tiny models on the CPU, loaded once; nothing that uses them changes them."""
    return load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))


@pytest.fixture
def traced():
    """An SDK in memory; the test instruments, and instrumentation is taken off after it."""
    yield Traced()
    AceStepInstrumentor().uninstrument()
