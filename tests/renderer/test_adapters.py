"""Adapters in use: what a request renders with, switches between requests, and restored weights that are bit-identical.
A switched transformer is compared with another one whose weights were changed by the formula of LoRA, written out here.
"""

from __future__ import annotations

import threading
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acestep.checkpoints import TINY_DIT, Models, ModelSelection, load_models
from acestep.errors import CheckpointInvalid, CheckpointNotFound, InvalidOutput, InvalidRequest, OutOfMemory
from acestep.inference import generate_music
from acestep.offloading import ModelOffloader
from acestep.renderer.adapters import AdapterSet
from acestep.renderer.preparation import prepare
from acestep.renderer.renderer import Renderer
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import AdapterScale, GenerationRequest, GenerationResult, Placement
from acestep.weights.adapters import Adapter, merge_adapters, read_adapter
from tests.weights.test_adapters import LAYER, added, write_adapter, write_dora, write_lokr

CPU = torch.device("cpu")
SONG = GenerationRequest(caption="bright synth pop", duration=10, seeds=(3,), inference_steps=2)
TOLERANCE = 1e-5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four adapters, each in a different form."""
    for seed, name in enumerate(("piano", "strings")):
        write_adapter(tmp_path / name, seed=seed)
    write_dora(tmp_path / "voice")
    write_lokr(tmp_path / "drums" / "lokr_weights.safetensors")
    return tmp_path


def load(*adapters: Adapter, **selection: object) -> Models:
    return load_models(ModelSelection(dit=TINY_DIT, lm=None, device="cpu", adapters=adapters, **selection))


def song(models: Models, *adapters: AdapterScale) -> torch.Tensor:
    return generate_music(models, replace(SONG, adapters=adapters)).songs[0].audio


def weights(models: Models) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in models.renderer.models.transformer.state_dict().items()}


def latents(renderer: Renderer) -> torch.Tensor:
    """The transformer's velocity for fixed input, without a run."""
    transformer = renderer.models.transformer
    generator = torch.Generator().manual_seed(0)
    channels = transformer.config.audio_acoustic_hidden_dim

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.inference_mode():
        return transformer(
            hidden_states=drawn(1, 16, channels),
            timestep=torch.tensor([0.5]),
            timestep_r=torch.tensor([0.5]),
            encoder_hidden_states=drawn(1, 6, transformer.config.encoder_hidden_size or transformer.config.hidden_size),
            context_latents=drawn(1, 16, transformer.config.in_channels - channels),
            return_dict=False,
        )[0]


def merged_by_hand(models: Models, folder: Path, scales: dict[str, float]) -> Renderer:
    """W + scale * alpha / r * B A, in the weights of another renderer; alpha / r is 2 in these files."""
    plain = deepcopy(models.renderer.models)
    for ours, theirs in (("to_q", "q_proj"), ("to_out.0", "o_proj")):
        weight = plain.transformer.get_submodule(f"{LAYER}.{ours}").weight
        with torch.no_grad():
            for name, scale in scales.items():
                weight += scale * 2 * added(folder / name, theirs)
    return Renderer(plain)


@pytest.mark.parametrize("scales", [{"piano": 1.0}, {"piano": 0.3, "strings": -0.7}])
def test_outputs_equal_those_of_weights_that_were_merged_by_hand(folder, scales):
    models = load(*(Adapter(folder / name) for name in scales))
    expected = latents(merged_by_hand(models, folder, scales))
    adapters = models.renderer.adapters
    with adapters.applied(adapters.resolve(tuple(AdapterScale(name, scale) for name, scale in scales.items()))):
        found = latents(models.renderer)
    assert torch.allclose(found, expected, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(latents(load().renderer), expected, atol=1e-2)


def test_a_song_equals_that_of_weights_that_were_merged_by_hand(folder):
    models = load(Adapter(folder / "piano"))
    by_hand = replace(models, renderer=merged_by_hand(models, folder, {"piano": 0.3}))
    expected = generate_music(by_hand, replace(SONG, adapters=())).songs[0].audio
    assert torch.allclose(song(models, AdapterScale("piano", 0.3)), expected, atol=TOLERANCE, rtol=0)


def test_switching_leaves_no_trace_whatever_the_order(folder):
    """R139: every kind, at once and in turn; without adapters the song is that of the loaded weights, bit for bit."""
    before = song(load())
    models = load(*(Adapter(folder / name) for name in ("piano", "strings", "voice", "drums")))
    loaded = weights(models)
    piano, voice, drums = AdapterScale("piano"), AdapterScale("voice", 0.5), AdapterScale("drums", 2.0)
    first = [song(models, *used) for used in ((piano,), (voice, drums), (piano, drums))]
    again = [song(models, *used) for used in ((piano, drums), (piano,), (voice, drums))]
    assert all(map(torch.equal, first, (again[1], again[2], again[0])))
    assert len({tuple(audio.flatten().tolist()) for audio in first}) == 3
    assert torch.equal(song(models), before)
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in weights(models).items())


def test_nothing_is_written_for_a_request_with_the_adapters_of_the_one_before(folder, monkeypatch):
    models = load(Adapter(folder / "piano"))
    switched = []
    original = AdapterSet.switch

    def switch(self: AdapterSet, adapters: tuple[AdapterScale, ...]) -> None:
        switched.append(adapters)
        original(self, adapters)

    monkeypatch.setattr(AdapterSet, "switch", switch)
    for scale in (1.0, 1.0, 0.0, 0.0, 0.5):
        song(models, AdapterScale("piano", scale))
    assert switched == [(AdapterScale("piano"),), (), (AdapterScale("piano", 0.5),)]


def test_a_request_that_names_none_uses_all_that_are_loaded(folder):
    models = load(
        Adapter(folder / "piano", 0.3), Adapter(folder / "strings", 0), Adapter(folder / "voice", name="alto")
    )
    result = generate_music(models, SONG)
    used = (AdapterScale("piano", 0.3), AdapterScale("alto"))
    assert result.effective.adapters == used
    assert torch.equal(result.songs[0].audio, song(models, *used))
    assert generate_music(models, replace(SONG, adapters=())).effective.adapters == ()


def test_adapters_are_loaded_and_unloaded_while_models_stay_loaded(folder):
    models = load()
    before = song(models)
    assert models.load_adapter(Adapter(folder / "piano", name="keys")) == "keys"
    assert models.adapters == ("keys",)
    changed = song(models, AdapterScale("keys"))
    assert not torch.equal(changed, before)
    models.unload_adapter("keys")
    assert models.adapters == ()
    assert torch.equal(song(models), before)
    with pytest.raises(InvalidRequest, match="`adapters` has no 'keys': none is loaded"):
        song(models, AdapterScale("keys"))
    with pytest.raises(InvalidRequest, match="no 'keys'"):
        models.unload_adapter("keys")


def test_an_adapter_that_is_unloaded_while_a_request_waits_is_named(folder):
    adapters = load(Adapter(folder / "piano")).renderer.adapters
    used = adapters.resolve((AdapterScale("piano"),))
    adapters.unload("piano")
    with pytest.raises(InvalidRequest, match="piano was unloaded before"), adapters.applied(used):
        pass
    with adapters.applied(()):
        pass


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ((AdapterScale("flute"),), "`adapters` has no 'flute': choose from piano"),
        ((AdapterScale("piano"), AdapterScale("piano", 2)), "`adapters` has 'piano' twice"),
        ((AdapterScale("piano", float("nan")),), "the scale of adapter piano is nan"),
        ((AdapterScale("piano", "1"),), "the scale of adapter piano is '1'"),
    ],
)
def test_adapters_that_cannot_be_used_are_refused_before_anything_runs(folder, adapters, message):
    models = load(Adapter(folder / "piano"))
    with pytest.raises(InvalidRequest, match=message):
        generate_music(models, replace(SONG, adapters=adapters))


def test_names_are_taken_once(folder):
    with pytest.raises(InvalidRequest, match="two adapters are called 'piano'"):
        load(Adapter(folder / "piano"), Adapter(folder / "strings", name="piano"))
    models = load(Adapter(folder / "piano"))
    with pytest.raises(InvalidRequest, match="two adapters are called 'piano'"):
        models.load_adapter(Adapter(folder / "piano"))


def test_an_adapter_that_cannot_be_read_changes_nothing(folder):
    models = load(Adapter(folder / "piano"))
    with pytest.raises(CheckpointNotFound, match="no LoRA adapter at"):
        models.load_adapter(Adapter(folder / "nowhere"))
    (folder / "broken.safetensors").write_bytes(b"nothing of the sort")
    with pytest.raises(CheckpointInvalid, match="is corrupt or incomplete"):
        models.load_adapter(Adapter(folder / "broken.safetensors"))
    assert models.adapters == ("piano",)
    song(models, AdapterScale("piano"))


def test_quantised_weights_contain_their_adapters_permanently(folder):
    # As `load_models` does it, except for the compilation.
    loaded = build_renderer_models(TINY_DIT, device=CPU, dtype=torch.float32)
    loaded = replace(loaded, adapters=(read_adapter(Adapter(folder / "piano", 0.5), loaded.transformer),))
    merge_adapters(loaded.transformer, loaded.adapters)
    offloader = ModelOffloader(CPU, Placement(quantization="int8_weight_only"))
    prepare(loaded, offloader)
    models = Models(Renderer(loaded, offloader), None, CPU)
    used = (AdapterScale("piano", 0.5),)
    assert generate_music(models, replace(SONG, adapters=used)).effective.adapters == used
    assert generate_music(models, SONG).effective.adapters == used
    for other in ((), (AdapterScale("piano", 1.0),)):
        with pytest.raises(InvalidRequest, match=r"`adapters` cannot be changed: the weights are quantised \(int8"):
            generate_music(models, replace(SONG, adapters=other))
    with pytest.raises(InvalidRequest, match="adapter strings cannot be added: the weights are quantised"):
        models.load_adapter(Adapter(folder / "strings"))
    with pytest.raises(InvalidRequest, match="adapter piano cannot be removed: the weights are quantised"):
        models.unload_adapter("piano")


def test_a_scale_beyond_every_number_is_an_output_that_cannot_be_used(folder):
    models = load(*(Adapter(folder / name) for name in ("piano", "voice", "drums")))
    plain = song(models)
    for name in models.adapters:
        with pytest.raises(InvalidOutput, match="stage 'dit' produced NaN or infinity"):
            song(models, AdapterScale(name, 3e38))
        assert torch.equal(song(models), plain)


@pytest.mark.parametrize("offload_dit", [False, True])
def test_models_that_wait_on_the_host_are_switched_there(folder, offload_dit):
    """R133: a copy of the loaded weights on the host would bring the former adapters back."""
    device = torch.device("cpu", 0)  # The same memory, but another device to a model.
    offloader = ModelOffloader(device, Placement(offload_to_cpu=True, offload_dit_to_cpu=offload_dit))
    models = build_renderer_models(TINY_DIT, device=CPU, dtype=torch.float32)
    models = replace(models, adapters=(read_adapter(Adapter(folder / "piano"), models.transformer),))
    prepare(models, offloader)
    offloaded, resident = Models(Renderer(models, offloader), None, CPU), load(Adapter(folder / "piano"))
    for scale in (1.0, 0.5, 0.0, 1.0):
        assert torch.equal(song(offloaded, AdapterScale("piano", scale)), song(resident, AdapterScale("piano", scale)))


def test_weights_in_half_precision_do_not_drift(folder):
    models = build_renderer_models(TINY_DIT, device=CPU, dtype=torch.bfloat16)
    models = replace(models, adapters=(read_adapter(Adapter(folder / "piano"), models.transformer),))
    renderer = Renderer(models)
    weight = models.transformer.get_submodule(f"{LAYER}.to_q").weight
    loaded = weight.clone()
    for number in range(1, 20):
        with renderer.adapters.applied((AdapterScale("piano", number / 7),)):
            exact = loaded.float() + number / 7 * 2 * added(folder / "piano", "q_proj")
            assert torch.equal(weight, exact.bfloat16())
    with renderer.adapters.applied(()):
        assert torch.equal(weight, loaded)


def test_requests_with_other_adapters_wait_for_each_other(folder):
    """Two threads, eight songs each: every song is as if it had been generated alone."""
    models = load(Adapter(folder / "piano"), Adapter(folder / "drums"))
    choices = [(AdapterScale("piano"),), (AdapterScale("drums"),), (), (AdapterScale("piano"), AdapterScale("drums"))]
    alone = [song(models, *choice) for choice in choices]
    results: dict[tuple[int, int], torch.Tensor] = {}

    def generate(worker: int) -> None:
        for turn in range(8):
            results[worker, turn] = song(models, *choices[(worker + turn) % 4])

    threads = [threading.Thread(target=generate, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(results) == 16
    for (worker, turn), audio in results.items():
        assert torch.equal(audio, alone[(worker + turn) % 4])


def test_after_a_switch_that_failed_the_next_one_is_whole(folder, monkeypatch):
    models = load(Adapter(folder / "piano"))
    expected = song(models, AdapterScale("piano"))
    plain = song(models)
    change = models.renderer.adapters._loaded["piano"].change
    original, calls = type(change).difference, []

    def difference(self: object, layer: str, weight: torch.Tensor, scale: float) -> torch.Tensor:
        calls.append(layer)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no room")
        return original(self, layer, weight, scale)

    monkeypatch.setattr(type(change), "difference", difference)
    with pytest.raises(OutOfMemory, match="no room") as caught:
        song(models, AdapterScale("piano"))
    assert caught.value.stage == "adapter.switch"
    assert torch.equal(song(models), plain)
    assert torch.equal(song(models, AdapterScale("piano")), expected)


def test_compiled_code_is_not_compiled_again_for_other_adapters(folder):
    """The weights change in place, so compiled code stays valid."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    models = load(Adapter(folder / "piano"))
    for block in models.renderer.models.transformer.layers:
        block.compile(dynamic=True, backend=backend)
    first = song(models, AdapterScale("piano"))
    compiled = len(graphs)
    assert compiled
    for scale in (0.5, 0.0, 2.0):
        song(models, AdapterScale("piano", scale))
    assert len(graphs) == compiled
    assert torch.equal(song(models, AdapterScale("piano")), first)


def test_the_result_names_what_was_used(folder):
    result: GenerationResult = generate_music(load(Adapter(folder / "piano", 0.3)), SONG)
    assert result.effective.adapters == (AdapterScale("piano", 0.3),)
