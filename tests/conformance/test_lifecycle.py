"""Starting and unloading, on every language-model backend."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch

from acestep.checkpoints import TINY_DIT, TINY_LM, ModelSelection, load_models
from acestep.errors import BackendUnavailable, InvalidOutput
from acestep.inference import generate_music
from acestep.planner.backends.registry import create_planner
from acestep.types import GenerationRequest, SamplingSettings
from tests.conformance.conftest import BACKEND, HERE

SAMPLED = SamplingSettings()


def test_r14_r15_r16_a_song_is_made_on_the_backend_that_was_asked_for(tmp_path):
    models = load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device="cpu", lm_backend=BACKEND))
    request = GenerationRequest(caption="calm piano", duration=10, inference_steps=2, thinking=True, use_cot_metas=True)
    result = generate_music(models, request, save_dir=tmp_path)
    assert result.effective.lm_backend == models.planner.backend.name == BACKEND
    assert result.songs[0].path.stat().st_size > 10_000
    models.planner.backend.unload()


def test_not_a_number_is_an_error_and_unloading_frees_the_weights(tiny, conditional, unconditional):
    body = copy.deepcopy(tiny.body)
    with torch.no_grad():
        body.norm.weight.fill_(torch.nan)
    poisoned = replace(tiny, body=body, head=body.embed_tokens.weight)
    planner = create_planner(BACKEND, poisoned, 1, HERE)
    with pytest.raises(InvalidOutput, match="NaN") as caught:
        planner.backend.generate_codes(conditional, unconditional, 3, SAMPLED, [1])
    assert caught.value.stage == "lm.codes"

    weights = weakref.ref(body)
    del body, poisoned, caught
    planner.backend.unload()
    planner.backend.unload()
    gc.collect()
    assert weights() is None
    with pytest.raises(BackendUnavailable, match="unloaded"):
        planner.backend.generate_codes(conditional, unconditional, 3, SAMPLED, [1])
