"""A language model on disk: weights under either spelling, and a vocabulary that is the tokenizer's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from acestep.checkpoints import ModelSelection, load_language_model, load_planner
from acestep.errors import CheckpointInvalid, CheckpointNotFound
from acestep.planner.budget import LanguageModel
from acestep.planner.vocabulary import QWEN3_LAYOUT
from acestep.synthetic.language_model import TINY_LAYOUT, build_language_model
from acestep.types import SongMetadata
from acestep.weights.text_tokenizer import load_vocabulary
from tests.planner.plan_requests import asks
from tests.planner.qwen_tokenizer import build_qwen_tokenizer
from tests.weights.miniature import LANGUAGE_MODEL, change, code_tokens, rewrite, shard, write_language_model

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_language_model(tmp_path / LANGUAGE_MODEL)
    return tmp_path


def load(root: Path, name: str = LANGUAGE_MODEL) -> LanguageModel:
    return load_language_model(ModelSelection(lm=name, checkpoint_root=root), CPU, torch.float32)


def refusal(root: Path, name: str = LANGUAGE_MODEL) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        load(root, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def synthetic() -> LanguageModel:
    return build_language_model("acestep-5Hz-lm-tiny", device=CPU, dtype=torch.float32)


def assert_same(actual: LanguageModel, expected: LanguageModel) -> None:
    ours, theirs = actual.body.state_dict(), expected.body.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert torch.equal(actual.body.rotary_emb.inv_freq, expected.body.rotary_emb.inv_freq)
    assert actual.head.data_ptr() == actual.body.embed_tokens.weight.data_ptr()
    assert actual.vocabulary.layout == expected.vocabulary.layout


@pytest.mark.parametrize("suffix", ["0.6B", "1.7B-v2", "4B-rl-miniature"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_load_with_and_without_the_prefix_under_any_suffix(tmp_path, synthetic, prefix, suffix):
    name = f"acestep-5Hz-lm-{suffix}"
    write_language_model(tmp_path / name, prefix=prefix)
    model = load(tmp_path, name)
    assert_same(model, synthetic)
    assert (model.name, model.weights, model.context_limit) == (name, "checkpoint", 8_192)


def test_shards_load_like_one_file(root, synthetic):
    shard(root / LANGUAGE_MODEL / "model.safetensors", 3)
    assert_same(load(root), synthetic)


def test_a_tied_heads_copy_is_passed_over_and_an_untied_head_refused(root, synthetic):
    folder = root / LANGUAGE_MODEL
    rewrite(folder / "model.safetensors", {"lm_head.weight": torch.zeros(4, 4)})
    assert_same(load(root), synthetic)
    change(folder / "config.json", tie_word_embeddings=False)
    assert "a head that is not tied" in refusal(root)


def test_a_shorter_context_is_respected(root):
    change(root / LANGUAGE_MODEL / "config.json", max_position_embeddings=1_024)
    assert load(root).context_limit == 1_024


def test_a_missing_tensor_is_named_as_the_file_would_name_it(tmp_path):
    folder = write_language_model(tmp_path / LANGUAGE_MODEL, prefix="model.")
    rewrite(folder / "model.safetensors", {"model.norm.weight": None})
    assert "lacks the tensor model.norm.weight" in refusal(tmp_path)


def test_it_plans_like_the_model_that_it_was_made_from(root, synthetic):
    from acestep.planner.planner import Planner

    planners = [load_planner(ModelSelection(lm=LANGUAGE_MODEL, device="cpu", checkpoint_root=root))]
    planners.append(Planner.from_language_model(synthetic))
    from acestep.types import GenerationRequest

    request = GenerationRequest(
        caption="x", lyrics="", metadata=SongMetadata(bpm=90), duration=10, thinking=True, use_cot_metas=True
    )
    plans = [planner.plan(asks(request, [7])) for planner in planners]
    assert plans[0].codes == plans[1].codes
    assert plans[0].metadata == plans[1].metadata


def test_a_renderer_as_language_model_and_nothing_at_all_are_refused_before_anything_loads(root):
    with pytest.raises(CheckpointNotFound, match=r"no weights for 'acestep-5Hz-lm-9B': .*`weights` 'synthetic'"):
        load(root, "acestep-5Hz-lm-9B")
    (root / "empty").mkdir()
    assert "is not a language model" in refusal(root, "empty")


# The released models' tokenizer: Qwen's, five special tokens among others, then 65,535 audio codes.


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    description = json.loads(build_qwen_tokenizer().to_str())
    special = {
        "<|endoftext|>": 151_643,
        "<|im_start|>": 151_644,
        "<|im_end|>": 151_645,
        "<think>": 151_667,
        "</think>": 151_668,
    }
    added = [token | {"id": special.get(token["content"])} for token in _added(special)]
    # Qwen's other special tokens lie between.
    fillers = _added({f"<|reserved_{n}|>": 151_646 + n for n in range(21)})
    description["added_tokens"] = sorted(
        [*added, *fillers, *code_tokens(151_669, range(65_535))], key=lambda token: token["id"]
    )
    (folder / "tokenizer.json").write_text(json.dumps(description))
    return folder


def _added(tokens: dict[str, int]) -> list[dict[str, object]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": token_id, "content": content, **flags} for content, token_id in tokens.items()]


def test_the_released_layout_is_found_in_the_released_tokenizer(released):
    vocabulary = load_vocabulary(released, rows=217_204)
    assert vocabulary.layout == QWEN3_LAYOUT
    assert vocabulary.encode("bpm:") == [65, 5187, 25]
    assert vocabulary.encode("keyscale: B♭ minor") == [10563, 2246, 25, 425, 145761, 8922]
    assert vocabulary.encode("<|audio_code_3|>") != [vocabulary.code_to_id(3)]
    assert vocabulary.decode([151_645, 151_669 + 12]) == "<|im_end|><|audio_code_12|>"
    assert np.all(vocabulary.text_ids < 151_643)


def test_a_tokenizer_without_codes_is_followed_by_them(released, tmp_path):
    description = json.loads((released / "tokenizer.json").read_text())
    description["added_tokens"] = [token for token in description["added_tokens"] if "audio" not in token["content"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    assert load_vocabulary(tmp_path, rows=217_204).layout == QWEN3_LAYOUT


def test_rows_may_be_padded(tmp_path):
    folder = write_language_model(tmp_path / LANGUAGE_MODEL)
    padded = load_vocabulary(folder, rows=TINY_LAYOUT.vocabulary_size + 56)
    assert padded.layout.vocabulary_size == TINY_LAYOUT.vocabulary_size + 56
    assert (padded.layout.code_base, padded.layout.text_size) == (TINY_LAYOUT.code_base, TINY_LAYOUT.text_size)


@pytest.mark.parametrize(
    ("codes", "rows", "complaint"),
    [
        ([1, 0, *range(2, 65_535)], 80_000, "are not consecutive"),
        (range(63_999), 80_000, "has 63999 audio codes, 64000 are needed"),
        (range(65_535), 65_000, "too few for 64000 codes"),
        ([], 65_000, "too few for 64000 codes"),
    ],
)
def test_audio_codes_that_cannot_be_used_are_an_error(tmp_path, codes, rows, complaint):
    folder = write_language_model(tmp_path / LANGUAGE_MODEL, codes=codes)
    with pytest.raises(CheckpointInvalid, match=complaint):
        load_vocabulary(folder, rows=rows)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"added_tokens": 3}', '{"added_tokens": [{"id": 1}]}'])
def test_a_tokenizer_of_something_else_is_named(root, text):
    (root / LANGUAGE_MODEL / "tokenizer.json").write_text(text)
    assert str(root / LANGUAGE_MODEL / "tokenizer.json") in refusal(root)


def test_a_special_token_that_is_missing_is_named(root):
    path = root / LANGUAGE_MODEL / "tokenizer.json"
    path.write_text(path.read_text().replace("</think>", "</thought>"))
    assert "lacks the special token </think>" in refusal(root)
