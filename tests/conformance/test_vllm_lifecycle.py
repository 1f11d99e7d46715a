"""Starting, tracing and unloading vLLM (R14)."""

import gc
import logging
import os
import random
import weakref
from dataclasses import fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from acestep import blueprints
from acestep.errors import BackendUnavailable
from acestep.planner.backends.pt.cache import KeyValueCache
from acestep.planner.backends.pt.fused import FusedLayers, LayerWeights
from acestep.planner.backends.registry import create_planner
from acestep.planner.backends.vllm import engine
from acestep.planner.backends.vllm.backend import VllmBackend
from acestep.planner.backends.vllm.decode import PagedDecode, decoder_weights
from acestep.synthetic.language_model import build_language_model
from acestep.types import SamplingSettings, SongwritingSettings
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.patches.engine import PATCHES
from acestep_otel.patches.patcher import Patcher
from acestep_otel.profiler.run.profilers import ProfilerRanges
from tests.conformance.conftest import DEVICE, HERE

GATEWAY = yaml.safe_load((Path(__file__).parents[2] / "collectors" / "gateway.yaml").read_text("utf-8"))
SAMPLED = SamplingSettings()


def test_starting_an_engine_leaves_the_process_as_it_was(tiny):
    torch.manual_seed(5)
    before = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        dict(os.environ),
        torch.set_num_threads,
        torch.get_num_threads(),
        os.sched_getaffinity(0),
    )
    backend = VllmBackend(tiny, device=DEVICE, songs=1)
    assert (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        dict(os.environ),
        torch.set_num_threads,
        torch.get_num_threads(),
        os.sched_getaffinity(0),
    ) == before
    backend.unload()


def test_b23_unloading_frees_the_engine_and_another_one_can_start(tiny, conditional, unconditional):
    """In the reference an exit hook keeps the engine for the life of the process."""
    written = []
    for _ in range(2):
        backend = VllmBackend(tiny, device=DEVICE, songs=1)
        written.append(backend.generate_codes(conditional, unconditional, 10, SAMPLED, [1]).ids)
        weights, keys_and_values = weights_and_cache(backend)
        with pytest.raises(BackendUnavailable, match="already runs"):
            VllmBackend(tiny, device=DEVICE, songs=1)
        backend.unload()
        gc.collect()
        assert weights() is None
        assert keys_and_values() is None
    assert written[0] == written[1]


def weights_and_cache(backend) -> list[weakref.ref]:
    runner = backend._engine._engine.model_executor.driver_worker.worker.model_runner
    return [weakref.ref(tensor) for tensor in (next(runner.model.parameters()), runner.kv_caches[0])]


def test_a_compiled_model_is_freed_and_compiled_once(tiny, conditional, monkeypatch, tmp_path):
    """On CUDA the model is compiled; vLLM leaves it, weights included, to the life of the process."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    settings = engine._settings
    monkeypatch.setattr(engine, "_settings", lambda *given: settings(*given) | {"enforce_eager": False})
    compiled, written = [], []
    for _ in range(2):
        backend = VllmBackend(tiny, device=DEVICE, songs=1)
        written.append(backend.generate_codes(conditional, None, 10, SAMPLED, [1]).ids)
        alive = weights_and_cache(backend)
        backend.unload()
        gc.collect()
        assert [tensor() for tensor in alive] == [None, None]
        compiled.append({path.name for path in (tmp_path / "torch_compile_cache").iterdir()})
    assert written[0] == written[1]
    assert compiled[0] == compiled[1]
    assert compiled[0]


def warnings_of(caplog) -> list[str]:
    """The engine's own, without those of vLLM."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("acestep")]


class Body:
    """In the place of the kernels: vLLM's own model runs the passes that go to them."""

    lengths: ClassVar[list[list[int]]] = []

    def __init__(self, model):
        self._body, self.layer_name = model.model, model.model.layers[0].self_attn.attn.layer_name

    def takes(self, tokens):
        return tokens <= 2

    def __call__(self, ids, row_lengths, pages):
        assert len(ids) == len(row_lengths) == len(pages)
        self.lengths.append(sorted(row_lengths.tolist()))
        return self._body(ids, row_lengths.long() - 1)


class Wrong(Body):
    def __call__(self, ids, row_lengths, pages):
        return -super().__call__(ids, row_lengths, pages)


class Broken(Body):
    def __call__(self, ids, row_lengths, pages):
        raise AttributeError("no such kernel")


class Unbuildable(Body):
    def __init__(self, model):
        super().__init__(model)
        # What fails later, where vLLM records its passes.
        del model.model


@pytest.mark.skipif(DEVICE.type == "cuda", reason="what is recorded cannot read lengths")
def test_passes_of_one_token_in_each_row_go_to_the_kernels(tiny, conditional, unconditional, monkeypatch, caplog):
    backend = VllmBackend(tiny, device=DEVICE, songs=1)
    assert backend.decode_path is None
    expected = backend.generate_codes(conditional, unconditional, 6, SAMPLED, [1]).ids
    backend.unload()
    monkeypatch.setattr(PagedDecode, "of", Body)
    backend = VllmBackend(tiny, device=DEVICE, songs=1)
    assert (backend.decode_path, warnings_of(caplog)) == ("fused", [])
    Body.lengths.clear()
    assert backend.generate_codes(conditional, unconditional, 6, SAMPLED, [1]).ids == expected
    prompts = sorted(map(len, (conditional, unconditional)))
    assert Body.lengths == [[length + step for length in prompts] for step in range(1, 6)]
    backend.unload()


@pytest.mark.skipif(DEVICE.type == "cuda", reason="what is recorded cannot read lengths")
@pytest.mark.parametrize(
    ("kernels", "said"),
    [(Wrong, "hidden states differ by"), (Broken, "AttributeError: no such kernel"), (Unbuildable, "no attribute")],
    ids=["wrong result", "fails in a pass", "fails at the start"],
)
def test_kernels_that_fail_are_not_used_and_a_warning_is_logged(tiny, conditional, monkeypatch, caplog, kernels, said):
    monkeypatch.setattr(PagedDecode, "of", kernels)
    with caplog.at_level(logging.WARNING, "acestep"):
        backend = VllmBackend(tiny, device=DEVICE, songs=1)
    assert [said in message for message in warnings_of(caplog)] == [True]
    assert backend.decode_path is None
    assert len(backend.generate_codes(conditional, None, 3, SAMPLED, [1]).ids[0]) == 3
    backend.unload()


def test_the_kernels_can_be_turned_off(tiny, monkeypatch):
    monkeypatch.setattr(PagedDecode, "of", Wrong)
    backend = create_planner("vllm", tiny, 1, HERE, fused_decode=False).backend
    assert backend.decode_path is None
    backend.unload()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the kernels run on CUDA, in bfloat16")
def test_the_kernels_agree_with_vllm_at_true_size(conditional, unconditional):
    model = build_language_model("acestep-5Hz-lm-0.6B", device=DEVICE, dtype=torch.bfloat16)
    backend = VllmBackend(model, device=DEVICE, songs=2)
    assert backend.decode_path == "fused"
    songs = backend.generate_codes(conditional, unconditional, 40, SAMPLED, [1, 2]).ids
    assert [len(set(song)) > 20 for song in songs] == [True, True]
    backend.unload()


@pytest.mark.skipif(DEVICE.type == "cuda", reason="there the engine itself compares its passes")
def test_the_kernels_read_the_weights_where_vllm_has_them(tiny, monkeypatch):
    taken = []

    def of(model):
        # vLLM's CPU build packs weights after they are loaded.
        weights = decoder_weights(model)
        layers = tuple(
            LayerWeights(**{field.name: getattr(layer, field.name).clone() for field in fields(layer)})
            for layer in weights.layers
        )
        taken.append(replace(weights, layers=layers))

    monkeypatch.setattr(PagedDecode, "of", of)
    backend = VllmBackend(tiny, device=DEVICE, songs=1)
    backend.unload()
    cache = KeyValueCache(tiny, 8)
    hidden = FusedLayers(taken[0])(torch.tensor([5, 6, 7, 8]), torch.arange(4), cache.addresses, 4)
    expected = tiny.body(torch.tensor([[5, 6, 7, 8]])).last_hidden_state[0]
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


def test_a_vllm_for_another_device_says_so(tiny):
    other = "cpu" if DEVICE.type == "cuda" else "cuda"
    with pytest.raises(BackendUnavailable, match=f"built for {DEVICE.type}"):
        VllmBackend(tiny, device=torch.device(other), songs=1)


def test_what_vllm_refuses_is_one_line(tiny):
    with pytest.raises(BackendUnavailable, match="vLLM did not start") as caught:
        create_planner("vllm", replace(tiny, context_limit=10**6), 1, HERE)
    assert "\n" not in str(caught.value)


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    AceStepInstrumentor().instrument(tracer_provider=provider)
    yield exporter
    AceStepInstrumentor().uninstrument()


@pytest.fixture
def ranges():
    """What a profiler run puts around the tracing layer at the same patches."""
    patcher = Patcher(ProfilerRanges())
    patcher.apply(PATCHES)
    yield
    patcher.remove()


def test_vllm_spans_and_timings_join_the_trace(spans, ranges, tiny):
    planner = create_planner("vllm", tiny, 1, HERE)
    blueprints.create_sample(planner, "rain", settings=SongwritingSettings(seed=1, lyrics_token_limit=30))
    planner.backend.unload()
    finished = {span.name: span for span in spans.get_finished_spans()}
    root = finished[semconv.CREATE_SAMPLE]
    requests = [span for span in spans.get_finished_spans() if span.name == "llm_request"]
    assert len(requests) == 2
    for request in requests:
        assert request.parent.span_id == root.context.span_id
        assert request.context.trace_id == root.context.trace_id
        assert request.attributes["gen_ai.latency.time_to_first_token"] > 0
        assert request.attributes[semconv.RUN_ID] == root.attributes[semconv.RUN_ID]
        # The sampling settings that vLLM sees are not the request's.
        assert semconv.REQUEST_TOP_P not in request.attributes
        assert set(request.attributes) <= set(GATEWAY["processors"]["redaction"]["allowed_keys"])
    assert finished[semconv.LM].attributes[semconv.LM_BACKEND] == "vllm"
    phase = finished[semconv.LM_COT].attributes
    assert phase[semconv.LM_CONSTRAINED_DECODING_DURATION] > 0
    # Two clocks on the same pass: the engine's and the layer's.
    assert phase[semconv.LM_ENGINE_TIME_TO_FIRST_TOKEN] <= phase[semconv.LM_TIME_TO_FIRST_TOKEN]
    assert phase[semconv.LM_ENGINE_DECODE_DURATION] > 0
    assert "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" not in os.environ
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
