import pytest
import torch
from transformers import Qwen3Model

from acestep.planner.budget import LanguageModel
from acestep.planner.vocabulary import QWEN3_LAYOUT
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS, TINY_LAYOUT, build_language_model, qwen3_config

TINY = "acestep-5Hz-lm-tiny"
CPU = torch.device("cpu")


def build(seed: int = 0) -> LanguageModel:
    return build_language_model(TINY, device=CPU, dtype=torch.float32, seed=seed)


def test_the_tiny_model_takes_a_few_megabytes() -> None:
    size = sum(weight.numel() * weight.element_size() for weight in build().body.parameters())
    assert size < 8e6


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    one, same, other = build(), build(), build(seed=1)
    for (name, weight), again in zip(one.body.named_parameters(), same.body.parameters(), strict=True):
        assert torch.equal(weight, again), name
    assert not torch.equal(one.head, other.head)


def test_the_head_is_the_embedding_itself() -> None:
    model = build()
    assert model.head.data_ptr() == model.body.get_input_embeddings().weight.data_ptr()
    assert model.head.shape == (TINY_LAYOUT.vocabulary_size, 16)


def test_there_are_all_audio_codes_and_invalid_rows_behind_them() -> None:
    assert TINY_LAYOUT.code_count == 64_000
    assert TINY_LAYOUT.vocabulary_size > TINY_LAYOUT.code_base + TINY_LAYOUT.code_count


def test_rotary_frequencies_are_those_of_a_model_that_was_never_on_the_meta_device() -> None:
    body = build().body
    rebuilt = type(body.rotary_emb)(config=body.config)
    assert torch.equal(body.rotary_emb.inv_freq, rebuilt.inv_freq)
    assert torch.equal(body.rotary_emb.original_inv_freq, rebuilt.inv_freq)


def test_positions_make_a_difference() -> None:
    body = build().body
    hidden = body(input_ids=torch.tensor([[5, 6, 7, 6, 5, 7]])).last_hidden_state[0]
    assert not torch.allclose(hidden[2], hidden[5], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "hidden", "layers", "parameters"),
    [
        ("acestep-5Hz-lm-0.6B", 1024, 28, 440e6 + 222e6),
        ("acestep-5Hz-lm-1.7B", 2048, 28, 1409e6 + 445e6),
        ("acestep-5Hz-lm-4B", 2560, 36, 3633e6 + 556e6),
    ],
)
def test_the_named_sizes_are_those_of_the_released_models(
    name: str, hidden: int, layers: int, parameters: float
) -> None:
    config = LANGUAGE_MODEL_CONFIGS[name]
    with torch.device("meta"):
        body = Qwen3Model(qwen3_config(config))
    assert (body.config.hidden_size, body.config.num_hidden_layers) == (hidden, layers)
    assert sum(weight.numel() for weight in body.parameters()) == pytest.approx(parameters, rel=0.005)
    assert config.layout is QWEN3_LAYOUT
    assert body.embed_tokens.weight.shape[0] == 217_204


def test_context_covers_the_longest_song_but_not_all_that_the_model_could() -> None:
    model = build()
    assert model.context_limit == 8192
    assert model.body.config.max_position_embeddings == 40_960


def test_every_named_model_has_an_entry() -> None:
    assert set(LANGUAGE_MODEL_CONFIGS) == {TINY, *(f"acestep-5Hz-lm-{size}" for size in ("0.6B", "1.7B", "4B"))}
