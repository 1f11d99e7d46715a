"""One suite for every language-model backend: ``ACESTEP_CONFORMANCE_BACKEND`` names the one under test, else it is pt.

The engines' pins differ from the project's own, so each runs in an environment of its own: ``make test-vllm`` and
``make test-mlx``.
"""

import os
from collections.abc import Iterator

import pytest
import torch

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
CPU = torch.device("cpu")
HERE = ModelOffloader(CPU, Placement())
COMPLETE = SongMetadata(bpm=120, duration=60, keyscale="F# minor", language="en", timesignature="4")

# What is special to one engine can only be imported where that engine is installed.
collect_ignore_glob = [f"test_{name}*.py" for name in BACKENDS if name != BACKEND]


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return build_language_model("acestep-5Hz-lm-tiny", device=CPU, dtype=torch.float32)


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
