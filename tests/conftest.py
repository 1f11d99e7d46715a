"""Shared by all tests."""

import os
import signal
from collections.abc import Generator

import pytest
import torch

# Triton reads this when it is first imported: without a GPU its kernels run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")
# gRPC reads this when it starts: else it logs that a receiver went away while the next test looks at what was printed.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from acestep.import_noise import quiet_imports

with quiet_imports():
    from acestep.checkpoints import TINY_DIT, TINY_LM, ModelSelection, load_models
from acestep_otel.instrumentor import AceStepInstrumentor
from tests import programs
from tests.tracing import Traced

# A shell that starts a command in the background has it ignore SIGINT; so would the tests' own children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Two threads on a busy two-core machine make tiny models fifty times slower.
torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """The outermost wrapper: what it prints is the last line, below pytest's own count."""
    yield
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or hasattr(session.config, "workerinput"):
        return
    skipped = [str(report.longrepr) for report in terminal.stats.get("skipped", [])]
    if line := programs.summary(skipped):
        terminal.write_line(line, yellow=True)


@pytest.fixture(scope="session")
def tiny_models():
    """The tiny models on the CPU, loaded once; nothing that uses them changes them."""
    return load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu"))


@pytest.fixture
def traced():
    """An SDK in memory; the test instruments, and instrumentation is taken off after it."""
    yield Traced()
    AceStepInstrumentor().uninstrument()
