"""One suite for every language-model backend: ``ACESTEP_CONFORMANCE_BACKEND`` names the one under test, else it is pt.

The engines' pins differ from the project's own, so each runs in an environment of its own: ``make test-vllm`` and
``make test-mlx``. ``ACESTEP_CONFORMANCE_DEVICE`` names the device, else it is the CPU: ``make test-cuda``.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from acestep import checkpoints
from acestep.offloading import ModelOffloader
from acestep.planner.backends.registry import BACKENDS, create_planner
from acestep.planner.budget import LanguageModel
from acestep.planner.grammar import MetadataGrammar
from acestep.planner.planner import Planner
from acestep.planner.prompts import Prompts
from acestep.synthetic.language_model import build_language_model
from acestep.types import Placement, SongMetadata

BACKEND = os.environ.get("ACESTEP_CONFORMANCE_BACKEND", "pt")
SONGS = 3
DEVICE = torch.device(os.environ.get("ACESTEP_CONFORMANCE_DEVICE", "cpu"))
HERE = ModelOffloader(DEVICE, Placement())
COMPLETE = SongMetadata(bpm=120, duration=60, keyscale="F# minor", language="en", timesignature="4")

# What is special to one engine can only be imported where that engine is installed.
collect_ignore_glob = [f"test_{name}*.py" for name in BACKENDS if name != BACKEND]


@pytest.fixture(autouse=True, scope="package")
def everything_in_float32() -> Iterator[None]:
    """The definition and a backend must round alike, which bfloat16 would not let them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "default_dtype", lambda device: torch.float32)
        yield


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return build_language_model("acestep-5Hz-lm-tiny", device=DEVICE, dtype=torch.float32)


@pytest.fixture(scope="module")
def planner(tiny) -> Iterator[Planner]:
    """On the backend under test, started for three songs; a process has one vLLM at a time."""
    planner = create_planner(BACKEND, tiny, SONGS, HERE)
    yield planner
    planner.backend.unload()


@pytest.fixture(scope="module")
def backend(planner):
    return planner.backend


@pytest.fixture(scope="session")
def prompts(tiny) -> Prompts:
    return Prompts(tiny.vocabulary)


@pytest.fixture(scope="session")
def conditional(prompts) -> list[int]:
    return prompts.codes("calm piano", "[Verse]\nhello", COMPLETE)


@pytest.fixture(scope="session")
def unconditional(prompts) -> list[int]:
    return prompts.unconditional_codes()


@pytest.fixture(scope="session")
def reasoning(prompts) -> list[int]:
    return prompts.reasoning("calm", "")


@pytest.fixture(scope="session")
def grammar(tiny) -> MetadataGrammar:
    return MetadataGrammar(tiny.vocabulary)
