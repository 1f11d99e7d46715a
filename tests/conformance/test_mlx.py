"""What is special to the MLX backend."""

import gc
import weakref

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.planner import sampling
from acestep.planner.backends.mlx.backend import MlxBackend
from acestep.planner.backends.mlx.decode_state import as_mlx
from acestep.planner.backends.mlx.sampling import noise, sample
from acestep.synthetic.language_model import build_language_model
from acestep.types import SamplingSettings


@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=4), st.integers(1, 300))
def test_the_noise_is_that_of_pytorch_to_the_bit(keys, count):
    expected = sampling.noise(torch.tensor(keys), count).numpy()
    assert np.array(noise(mx.array(np.array(keys)), count)).tobytes() == expected.tobytes()


@given(
    st.integers(0, 2**31),
    st.sampled_from([(0.0, 0, 1.0), (0.85, 0, 0.9), (1.3, 40, 0.5), (0.5, 7, 1.0), (1.0, 0, 0.999), (1.0, 0, 1e-6)]),
    st.sampled_from([1e-3, 1.0, 8.0]),
)
def test_the_same_logits_give_the_same_token_as_on_pytorch(seed, setting, spread):
    temperature, top_k, top_p = setting
    settings = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    logits = torch.randn(3, 2_000, generator=torch.Generator().manual_seed(seed)) * spread
    keys = sampling.item_keys(seed, "lm.codes", 3)
    drawn = sample(mx.array(logits.numpy()), settings, mx.array(keys.numpy()))
    assert drawn.tolist() == sampling.sample(logits, settings, keys).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_converted_to_the_bit(dtype):
    tensor = torch.randn(5, 7).to(dtype)
    assert np.array_equal(np.array(as_mlx(tensor).astype(mx.float32)), tensor.float().numpy())


def test_bfloat16_models_run(conditional, unconditional):
    model = build_language_model("acestep-5Hz-lm-tiny", device=torch.device("cpu"), dtype=torch.bfloat16)
    backend = MlxBackend(model)
    assert len(backend.generate_codes(conditional, unconditional, 5, SamplingSettings(), [1]).ids[0]) == 5


def test_unloading_frees_the_converted_weights(tiny, conditional):
    backend = MlxBackend(tiny)
    backend.generate_codes(conditional, None, 2, SamplingSettings(), [1])
    converted = weakref.ref(backend._body)
    backend.unload()
    gc.collect()
    assert converted() is None
