"""From loaded weights to models that run: folded, quantised, compiled, and away from the device between stages."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchao.quantization import Int8Tensor

from acestep.offloading import ModelOffloader, stored_bytes
from acestep.renderer import preparation
from acestep.renderer.models import RendererModels
from acestep.renderer.preparation import MODEL_NAMES, compile_models, fold_weight_norm, prepare, quantize
from acestep.renderer.render_request import RenderRequest
from acestep.renderer.renderer import Renderer
from acestep.renderer.source import Source
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import SAMPLE_RATE, Placement, SongMetadata

CPU = torch.device("cpu")
GPU = torch.device("cpu", 0)
"""Stands in for a GPU."""
OFFLOAD = Placement(offload_to_cpu=True, offload_dit_to_cpu=True)


def build(name: str = "acestep-v15-tiny") -> RendererModels:
    return build_renderer_models(name, device=CPU, dtype=torch.float32)


def ask(seeds: tuple[int, ...] = (1,), duration: float = 8.0, **changes: Any) -> RenderRequest:
    return RenderRequest(
        caption="calm piano",
        lyrics="la la",
        metadata=SongMetadata(),
        duration=duration,
        codes=((),) * len(seeds),
        seeds=seeds,
        steps=2,
        shift=3.0,
        **changes,
    )


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return Renderer(build()).render(ask()).audio


def prepared(placement: Placement) -> Renderer:
    models, offloader = build(), ModelOffloader(GPU, placement)
    prepare(models, offloader)
    return Renderer(models, offloader)


def relative_error(audio: torch.Tensor, reference: torch.Tensor) -> float:
    return float((audio - reference).norm() / reference.norm())


class TestWeightNorm:
    def test_folding_changes_no_bit_of_the_audio(self):
        models = build()
        latents = torch.randn(1, 4, 40, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            before = models.vae.decode(latents).sample
        fold_weight_norm(models.vae)
        with torch.inference_mode():
            assert torch.equal(models.vae.decode(latents).sample, before)

    def test_nothing_is_left_to_compute_per_call(self):
        models = build()
        fold_weight_norm(models.vae)
        names = dict(models.vae.named_parameters())
        assert not [name for name in names if "weight_g" in name or "weight_v" in name]
        assert not any(module._forward_pre_hooks for module in models.vae.modules())
        assert not any(parameter.requires_grad for parameter in names.values())

    def test_it_is_done_once_and_without_warnings(self):
        models = build()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fold_weight_norm(models.vae)
            fold_weight_norm(models.vae)


class TestQuantisation:
    @pytest.mark.parametrize(
        ("form", "tolerance"), [("int8_weight_only", 0.02), ("fp8_weight_only", 0.08), ("w8a8_dynamic", 0.03)]
    )
    def test_the_velocity_stays_close(self, form, tolerance):
        exact, models = build(), build()
        quantize(models.transformer, form, CPU)
        renderers = [Renderer(exact), Renderer(models)]
        conditions = renderers[0].condition(ask())
        noise = renderers[0].noise((1,), 200)
        with torch.inference_mode():
            expected, found = (renderer.predict_velocity(noise, conditions, 0.5) for renderer in renderers)
        assert 0 < relative_error(found, expected) < tolerance

    def test_the_blocks_linear_layers_are_quantised_and_nothing_else(self):
        models = build()
        quantize(models.transformer, "int8_weight_only", CPU)
        for role in MODEL_NAMES:
            for name, module in getattr(models, role).named_modules():
                if isinstance(module, torch.nn.Linear):
                    in_a_block = role == "transformer" and name.startswith("layers.")
                    assert isinstance(module.weight, Int8Tensor) == in_a_block, f"{role}: {name}"

    def test_the_device_never_holds_more_than_one_block_in_its_own_dtype(self, monkeypatch):
        models = build()
        to = torch.nn.Module.to
        held: list[torch.nn.Module] = []
        most = 0

        def move(module, device):
            nonlocal most
            (held.append if device == GPU else held.remove)(module)
            most = max(most, len(held))
            return to(module, device)

        monkeypatch.setattr(torch.nn.Module, "to", move)
        quantize(models.transformer, "int8_weight_only", GPU)
        assert most == 1
        assert held == []

    def test_int8_weights_have_a_scale_per_group_that_fits_every_layer(self):
        """One scale per row would compile to a product that is made for a single token."""
        for widths, group in (((2048, 6144), 128), ((96, 64), 32)):
            block = torch.nn.ModuleList([torch.nn.Linear(width, 32, bias=False) for width in widths])
            quantize(SimpleNamespace(layers=[block]), "int8_weight_only", CPU)
            for layer, width in zip(block, widths, strict=True):
                assert layer.weight.block_size == [1, group]
                assert layer.weight.scale.shape == (32, width // group)

    @pytest.mark.parametrize("form", ["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"])
    def test_the_compiler_keeps_its_settings(self, form):
        settings = torch._inductor.config.save_config_portable()
        quantize(build().transformer, form, CPU)
        assert torch._inductor.config.save_config_portable() == settings

    def test_it_takes_about_half_of_the_memory_that_bfloat16_takes(self):
        models = build_renderer_models("acestep-v15-tiny", device=CPU, dtype=torch.bfloat16)
        block = models.transformer.layers[0]
        before = sum(layer.weight.numel() for layer in block.modules() if isinstance(layer, torch.nn.Linear))
        freed = stored_bytes(block)
        quantize(models.transformer, "int8_weight_only", CPU)
        # Rows of 32 weights, each with a scale and a zero point of 5 to 8 bytes.
        assert freed - stored_bytes(block) == pytest.approx(before * (1 - 6.5 / 32), rel=0.15)


class TestCompilation:
    @pytest.fixture
    def graphs(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Number of calls of each compiled graph, in order of compilation."""
        torch._dynamo.reset()
        calls: list[int] = []

        def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
            number = len(calls)
            calls.append(0)

            def counted(*args: Any) -> Any:
                calls[number] += 1
                return graph.forward(*args)

            return counted

        monkeypatch.setattr(preparation, "compile_models", lambda models: compile_models(models, backend))
        return calls

    def test_r143_what_runs_is_what_was_compiled(self, graphs, reference):
        audio = prepared(Placement(compile=True)).render(ask()).audio
        # A full and a sliding block, once in each of two steps, and the decoder over one tile.
        assert graphs == [2, 2, 1]
        assert relative_error(audio, reference) < 1e-4

    def test_other_lengths_and_moved_weights_need_no_new_graph(self, graphs):
        renderer = prepared(Placement(compile=True, offload_to_cpu=True, offload_dit_to_cpu=True))
        for duration in (8.0, 9.0, 10.4, 30.0):
            renderer.render(ask(duration=duration))
        assert len(graphs) == 3

    def test_a_batch_is_two_more_graphs_whatever_its_size(self, graphs):
        renderer = prepared(Placement(compile=True))
        for seeds in ((1,), (1, 2), (1, 2, 3, 4), (1, 2, 3)):
            renderer.render(ask(seeds))
        assert len(graphs) == 5

    @pytest.mark.parametrize("form", ["int8_weight_only", "fp8_weight_only", "w8a8_dynamic"])
    def test_quantised_blocks_compile_and_move(self, graphs, reference, form):
        renderer = prepared(Placement(True, True, quantization=form, compile=True))
        first, second = (renderer.render(ask()).audio for _ in range(2))
        assert graphs == [4, 4, 2]
        assert torch.equal(first, second)
        assert relative_error(first, reference) < 0.3

    def test_the_decoder_keeps_its_layout_under_the_compiler_that_has_the_choice(self, monkeypatch):
        given = {}
        monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: given.setdefault(module, options))
        for backend, layout in (("inductor", {"options": {"layout_optimization": False}}), ("eager", {})):
            models, expected = build(), {"fullgraph": True, "dynamic": True, "backend": backend}
            compile_models(models, backend)
            assert given[models.vae.decoder] == expected | layout
            assert all(given[block] == expected for block in models.transformer.layers)

    def test_guided_steps_are_a_batch(self, graphs):
        models, offloader = build("acestep-v15-tiny-base"), ModelOffloader(GPU, Placement(compile=True))
        prepare(models, offloader)
        Renderer(models, offloader).render(ask(guidance_scale=7.0))
        assert graphs == [2, 2, 1]

    def test_models_that_are_not_to_be_compiled_are_not(self, graphs):
        prepared(Placement()).render(ask())
        assert graphs == []


class TestOffload:
    """Each model must be on the device while it is used, and none when the song is done."""

    @pytest.fixture
    def base(self) -> Renderer:
        models, offloader = build("acestep-v15-tiny-base"), Watched(GPU, OFFLOAD)
        prepare(models, offloader)
        for name in MODEL_NAMES:
            for module in getattr(models, name).modules():
                module.register_forward_pre_hook(offloader.check(name))
        return Renderer(models, offloader)

    @pytest.mark.parametrize("kind", ["text2music", "codes", "cover", "repaint"])
    def test_r133_r134_idle_models_are_on_the_host(self, base, kind):
        audio = torch.rand(2, 8 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) - 0.5
        request = {
            "text2music": lambda: ask((1, 2), guidance_scale=7.0, reference=audio),
            "codes": lambda: RenderRequest(
                "", "", SongMetadata(), 5.2, codes=(tuple(range(26)),), seeds=(1,), steps=2, shift=1.0
            ),
            "cover": lambda: ask(task="cover", source=Source.whole(audio), cover_strength=0.5),
            "repaint": lambda: ask(task="repaint", source=Source.with_window(audio, 2.0, 4.0), guidance_scale=7.0),
        }[kind]()
        offloader = base.offloader
        rendered = base.render(request)
        assert offloader.present == set()
        assert offloader.worked >= {"text_encoder", "condition_encoder", "transformer", "vae"}
        assert offloader.most_at_once <= 3
        encodes_audio = kind != "codes"
        expected = ["vae"] * encodes_audio + ["text_encoder", "condition_encoder", "transformer", "vae"]
        others = ["audio_tokenizer", "audio_token_detokenizer"] if kind in ("codes", "cover") else []
        assert sorted(offloader.came) == sorted(expected + others)
        expected_audio = Renderer(build("acestep-v15-tiny-base")).render(request).audio
        assert (rendered.audio - expected_audio).abs().max() < 1e-4

    def test_what_runs_out_of_memory_leaves_the_device(self, base, monkeypatch):
        def full(*args, **kwargs):
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(base, "denoise_step", full)
        with pytest.raises(Exception, match="no room"):
            base.render(ask())
        assert base.offloader.present == set()


class Watched(ModelOffloader):
    """Records which models are on the device."""

    def __init__(self, device: torch.device, placement: Placement) -> None:
        super().__init__(device, placement)
        self.present: set[str] = set()
        self.worked: set[str] = set()
        self.came: list[str] = []
        self.most_at_once = 0

    def move(self, name: str, model: torch.nn.Module, destination: torch.device) -> int:
        if destination == self.device:
            self.came.append(name)
            self.present.add(name)
            self.most_at_once = max(self.most_at_once, len(self.present))
        else:
            self.present.remove(name)
        return super().move(name, model, destination)

    def check(self, name: str) -> Callable[..., None]:
        def at_work(*_: Any) -> None:
            assert name in self.present, f"{name} is used while it is off the device"
            self.worked.add(name)

        return at_work
