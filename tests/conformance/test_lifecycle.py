"""Starting and unloading, on every language-model backend."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch

from acestep.checkpoints import TINY_DIT, TINY_LM, ModelSelection, load_models, load_planner
from acestep.errors import BackendUnavailable, InvalidOutput
from acestep.inference import generate_music
from acestep.planner.backends.registry import create_planner
from acestep.types import GenerationRequest, SamplingSettings
from acestep.weights.qwen3 import load_language_model_folder
from tests.conformance import definition
from tests.conformance.conftest import BACKEND, DEVICE, HERE
from tests.weights.miniature import LANGUAGE_MODEL, change, shard, write_language_model

SAMPLED = SamplingSettings()


def test_r14_r15_r16_a_song_is_made_on_the_backend_that_was_asked_for(tmp_path):
    models = load_models(ModelSelection(dit=TINY_DIT, lm=TINY_LM, device=str(DEVICE), lm_backend=BACKEND))
    request = GenerationRequest(caption="calm piano", duration=10, inference_steps=2, thinking=True, use_cot_metas=True)
    result = generate_music(models, request, save_dir=tmp_path)
    assert result.effective.lm_backend == models.planner.backend.name == BACKEND
    assert result.songs[0].path.stat().st_size > 10_000
    models.planner.backend.unload()


def test_a_checkpoint_as_it_is_published_gives_the_tokens_of_its_weights(tmp_path, tiny, conditional, unconditional):
    """The tokenizer is the folder's own; the weights lie in shards and have the prefix of a model with a head."""
    folder = write_language_model(tmp_path / LANGUAGE_MODEL, prefix="model.")
    shard(folder / "model.safetensors", 2)
    change(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 20_000.0})
    reference = load_language_model_folder(folder, device=DEVICE, dtype=torch.float32)
    selection = ModelSelection(lm=LANGUAGE_MODEL, device=str(DEVICE), lm_backend=BACKEND, checkpoint_root=tmp_path)
    planner = load_planner(selection)
    assert (planner.backend.name, planner.model_name, planner.weights) == (BACKEND, LANGUAGE_MODEL, "checkpoint")
    tokens = planner.backend.generate_codes(conditional, unconditional, 12, SAMPLED, [3])
    planner.backend.unload()
    assert tokens.ids[0] == definition.codes(reference, conditional, unconditional, 12, SAMPLED, 3)
    assert tokens.ids[0] != definition.codes(tiny, conditional, unconditional, 12, SAMPLED, 3)


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


@pytest.mark.skipif(DEVICE.type != "cuda", reason="other devices do not say how much of them is in use")
def test_three_starts_leave_the_memory_as_it_was(conditional, unconditional):
    """The first one may load kernels, which the driver keeps."""
    selection = ModelSelection(lm="acestep-5Hz-lm-0.6B", weights="synthetic", device=str(DEVICE), lm_backend=BACKEND)
    free = []
    for _ in range(4):
        planner = load_planner(selection)
        planner.backend.generate_codes(conditional, unconditional, 8, SAMPLED, [1])
        planner.backend.unload()
        del planner
        free.append(torch.cuda.mem_get_info(DEVICE)[0])
    assert all(abs(later - free[0]) < 50 * 2**20 for later in free[1:])
