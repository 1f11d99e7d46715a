"""When graphs are recorded, and what a replay reads; with doubles, because graphs exist on CUDA only."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from acestep import cuda_graphs
from acestep.cuda_graphs import GraphCache
from acestep.offloading import ModelOffloader
from acestep.renderer import encoders as encoders_module
from acestep.renderer import velocity as velocity_module
from acestep.renderer.conditioning import Conditions
from acestep.renderer.renderer import Renderer
from acestep.renderer.velocity import RECORDED_LIMIT, ModuleForward, Velocity
from acestep.synthetic.renderer import build_renderer_models
from acestep.types import Placement, SamplerSettings
from tests.renderer.test_renderer import ask

CPU = torch.device("cpu")


class Graph:
    """Like ``CapturedCall``: what is replayed reads the inputs that it holds, and overwrites its own output."""

    recorded: list["Graph"] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, function: Callable, *examples: torch.Tensor, pool: object = None, warm_up: bool = True) -> None:
        self.inputs = [example.clone() for example in examples]
        self.function, self.pool, self.holds, self.replays = function, pool, None, 0
        self.output: torch.Tensor | None = None
        Graph.recorded.append(self)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.replay()

    def replay(self) -> torch.Tensor:
        self.replays += 1
        result = self.function(*self.inputs)
        self.output = result if self.output is None else self.output.copy_(result)
        return self.output


@pytest.fixture(autouse=True)
def graphs(monkeypatch) -> Iterator[list[Graph]]:
    monkeypatch.setattr(cuda_graphs, "CapturedCall", Graph)
    for module in (encoders_module, velocity_module):
        monkeypatch.setattr(module, "records_on", lambda _: True)
    Graph.recorded.clear()
    yield Graph.recorded
    Graph.recorded.clear()


@pytest.fixture(scope="module")
def renderers() -> dict[str, Renderer]:
    names = {"turbo": "acestep-v15-tiny", "base": "acestep-v15-tiny-base"}
    return {
        short: Renderer(build_renderer_models(name, device=CPU, dtype=torch.float32), fuse=False)
        for short, name in names.items()
    }


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("turbo", {}),
        ("turbo", {"seeds": (1, 2, 3)}),
        ("base", {"guidance_scale": 7.0}),
        ("base", {"guidance_scale": 7.0, "guidance_interval": (0.3, 0.8)}),
        ("base", {"guidance_scale": 4.0, "sampler": SamplerSettings(sampler_mode="heun"), "use_adg": True}),
        ("turbo", {"sampler": SamplerSettings(infer_method="sde", velocity_ema_factor=0.2)}),
    ],
    ids=["turbo", "three songs", "guided", "guided within an interval", "Heun and angles", "SDE, smoothed"],
)
def test_a_song_is_the_same_when_its_steps_are_replayed(renderers, graphs, name, changes) -> None:
    plain = renderers[name]
    recorded = Renderer(plain.models)
    expected = plain.render(ask(**changes)).audio
    # The first song runs its first step of each shape as it is; the second replays all of them.
    for _ in range(2):
        assert (recorded.render(ask(**changes)).audio - expected).abs().max() < 1e-4
    assert sum(graph.replays for graph in graphs) > 0


def test_songs_of_other_texts_share_a_recorded_step(renderers) -> None:
    """A graph holds a copy of its conditions: another song must not be made from those of the one before."""
    plain, recorded = renderers["turbo"], Renderer(renderers["turbo"].models)
    for caption in ("calm piano", "loud metal", "calm piano"):
        expected = plain.render(ask(caption=caption)).audio
        assert (recorded.render(ask(caption=caption)).audio - expected).abs().max() < 1e-4


def request_of(velocity: Velocity, frames: int, seed: int = 0) -> tuple[torch.Tensor, Conditions]:
    config, generator = velocity._models.transformer.config, torch.Generator().manual_seed(seed)
    latents = torch.randn(1, frames, config.audio_acoustic_hidden_dim, generator=generator)
    states = torch.randn(1, 9, config.encoder_hidden_size or config.hidden_size, generator=generator)
    context = torch.randn(1, frames, config.in_channels - config.audio_acoustic_hidden_dim, generator=generator)
    return latents, Conditions(states, context)


@pytest.fixture
def velocity(renderers) -> Velocity:
    return Velocity(renderers["turbo"].models, ModelOffloader(CPU, Placement()), fuse=True)


@torch.inference_mode()
def test_two_requests_that_take_turns_on_one_stream_keep_their_conditions(velocity: Velocity) -> None:
    requests = [request_of(velocity, 128, seed) for seed in (1, 2)]
    plain = ModuleForward(velocity._models.transformer)
    for time in (1.0, 0.5, 0.25):
        for latents, conditions in requests:
            expected = plain(latents, torch.tensor([time]), *plain.prepare(conditions))
            torch.testing.assert_close(velocity(latents, conditions, time), expected)


@torch.inference_mode()
def test_a_velocity_outlives_the_next_step(velocity: Velocity) -> None:
    latents, conditions = request_of(velocity, 128)
    velocity(latents, conditions, 1.0)
    second = velocity(latents, conditions, 0.5)
    kept = second.clone()
    velocity(latents, conditions, 0.1)
    assert torch.equal(second, kept)


@torch.inference_mode()
def test_few_shapes_are_kept(velocity: Velocity, graphs) -> None:
    for frames in (*range(128, 130 + 2 * RECORDED_LIMIT, 2), 128):
        latents, conditions = request_of(velocity, frames)
        for _ in range(2):
            velocity(latents, conditions, 0.5)
    # The first was dropped for the last, so it is recorded again.
    assert len(graphs) == RECORDED_LIMIT + 2
    assert len(velocity._graphs._graphs) == RECORDED_LIMIT


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("not permitted")])
@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_it_is_and_one_warning_says_so(velocity, monkeypatch, caplog, error) -> None:
    def unrecordable(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cuda_graphs, "CapturedCall", unrecordable)
    latents, conditions = request_of(velocity, 128)
    with caplog.at_level(logging.WARNING):
        results = [velocity(latents, conditions, 0.5) for _ in range(3)]
    assert all(torch.equal(result, results[0]) for result in results)
    (warning,) = caplog.records
    assert str(error) in warning.getMessage()


@torch.inference_mode()
def test_a_transformer_whose_layers_change_is_recorded_again(velocity: Velocity, graphs) -> None:
    latents, conditions = request_of(velocity, 128)
    velocity(latents, conditions, 0.5)
    velocity.forget()
    velocity(latents, conditions, 0.5)
    assert len(graphs) == 2


def test_models_that_move_are_not_recorded(renderers, graphs, monkeypatch) -> None:
    models = renderers["turbo"].models
    offloader = ModelOffloader(CPU, Placement(offload_to_cpu=True, offload_dit_to_cpu=True))
    Renderer(models, offloader).render(ask())
    assert graphs == []


def test_texts_of_similar_length_share_a_recorded_encoder(renderers, graphs) -> None:
    renderer = Renderer(renderers["turbo"].models)
    for caption in ("calm", "calm piano", "calm piano in the rain"):
        renderer.render(ask(caption=caption, lyrics="[Verse]\n" + caption))
    functions = [graph.function for graph in graphs if getattr(graph.function, "__self__", None) is renderer.encoders]
    assert len(functions) == len({function.__name__ for function in functions}) == 3


def test_a_cache_is_one_kind_of_work_per_function() -> None:
    cache = GraphCache("a test", 4)
    double, square = (lambda x: x * 2), (lambda x: x * x)
    cache.record(double, torch.ones(2))
    assert cache.find(square, torch.ones(2)) is None
    assert cache.find(double, torch.ones(3)) is None
    found = cache.find(double, torch.ones(2))
    assert found is not None
    assert torch.equal(found(torch.full((2,), 3.0)), torch.full((2,), 6.0))


def test_the_switch_keeps_everything_as_it_is(renderers, graphs) -> None:
    Renderer(replace(renderers["turbo"].models), fuse=False).render(ask())
    assert graphs == []
