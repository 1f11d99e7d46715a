import pytest
import torch

from acestep.planner.budget import LanguageModel
from acestep.planner.grammar import MetadataGrammar
from acestep.planner.vocabulary import QWEN3_LAYOUT, Vocabulary
from acestep.synthetic.language_model import build_language_model
from tests.planner.qwen_tokenizer import build_qwen_tokenizer


@pytest.fixture(scope="session")
def qwen() -> Vocabulary:
    """The vocabulary of the released models."""
    return Vocabulary(build_qwen_tokenizer(), QWEN3_LAYOUT)


@pytest.fixture(scope="session")
def qwen_grammar(qwen: Vocabulary) -> MetadataGrammar:
    return MetadataGrammar(qwen)


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return build_language_model("acestep-5Hz-lm-tiny", device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="session")
def tiny_grammar(tiny: LanguageModel) -> MetadataGrammar:
    return MetadataGrammar(tiny.vocabulary)
