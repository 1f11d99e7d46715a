"""The fused pass on the CPU: Triton interprets its kernels, and compiles them without a GPU."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from acestep.offloading import ModelOffloader
from acestep.planner.backends import candidates
from acestep.planner.backends.pt import PtBackend, workspace
from acestep.planner.backends.pt.cache import KeyValueCache
from acestep.planner.backends.pt.decode_state import DecodeState
from acestep.planner.backends.pt.fused import FusedForward, FusedLayers, can_fuse, knows
from acestep.planner.backends.pt.workspace import kernels_agree
from acestep.planner.backends.registry import create_planner
from acestep.planner.backends.vllm.decode import PagedDecode
from acestep.planner.budget import LanguageModel
from acestep.planner.grammar import MetadataGrammar
from acestep.planner.prompts import Prompts
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS, qwen3_config
from acestep.types import Placement, SamplingSettings, SongMetadata

GREEDY = SamplingSettings(temperature=0)
SAMPLED = SamplingSettings()
COMPLETE = SongMetadata(bpm=120, duration=60, keyscale="F# minor", language="en", timesignature="4")
SHARED_MEMORY = 101_376
"""Bytes that a block can have on every GPU from compute capability 8.0 on (8.6 and 8.9 have the least)."""


def rows(model: LanguageModel, prompts: list[list[int]], fuse: bool, capacity: int = 800) -> DecodeState:
    cache = KeyValueCache(model, len(prompts) * capacity)
    cache.set_row_capacity(capacity)
    fused = FusedForward(model, cache.addresses) if fuse else None
    return DecodeState.start(model, cache, prompts, fused=fused)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("seeds", [[1], [1, 2, 3]], ids=["one song", "three songs"])
def test_codes_are_those_of_the_eager_path(tiny: LanguageModel, settings, guided, seeds) -> None:
    prompts = Prompts(tiny.vocabulary)
    conditional = prompts.codes("calm piano", "[Verse]\nhello", COMPLETE)
    unconditional = prompts.unconditional_codes() if guided else None
    results = [
        PtBackend(tiny, fuse=fuse).generate_codes(conditional, unconditional, 3, settings, seeds)
        for fuse in (False, True)
    ]
    assert results[0] == results[1]


def test_constrained_text_is_that_of_the_eager_path(tiny: LanguageModel, tiny_grammar: MetadataGrammar) -> None:
    prompt = Prompts(tiny.vocabulary).reasoning("calm", "")
    given, written = replace(COMPLETE, bpm=None, keyscale=None), []
    for fuse in (False, True):
        cursor = tiny_grammar.cursor(given, with_caption=True, with_language=True, caption_token_limit=6)
        written.append(PtBackend(tiny, fuse=fuse).generate_metadata(prompt, cursor, SAMPLED, 4, 600))
    assert written[0] == written[1]


@pytest.mark.parametrize("length", [1, 64, 65, 130, 513])
def test_a_pass_sees_all_of_a_prompt_of_any_length(tiny: LanguageModel, length: int) -> None:
    """Keys are read in blocks and shared among programs; lengths lie around the borders of both."""
    prompts = [list(range(length)), list(range(300, 300 + (length + 1) // 2))]
    states = [rows(tiny, prompts, fuse) for fuse in (False, True)]
    for step in range(2):
        for state in states:
            state.advance(torch.tensor([[40 + step], [80 + step]]))
        torch.testing.assert_close(states[1].hidden, states[0].hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 3, 5, 16])
def test_a_chunk_is_causal_and_its_keys_stay(tiny: LanguageModel, tokens: int) -> None:
    states = [rows(tiny, [list(range(70))], fuse) for fuse in (False, True)]
    for chunk in (list(range(100, 100 + tokens)), [7]):
        for state in states:
            state.advance(torch.tensor([chunk]))
        torch.testing.assert_close(states[1].hidden, states[0].hidden, rtol=1e-4, atol=1e-4)
    held = [state.cache.keys[:, : 70 + tokens + 1] for state in states]
    torch.testing.assert_close(held[1], held[0], rtol=1e-4, atol=1e-4)
    # What fills a chunk up to a power of two is stored nowhere.
    assert not states[1].cache.keys[:, 70 + tokens + 1 :].any()


def test_a_chunk_too_long_for_the_kernels_runs_in_the_body(tiny: LanguageModel) -> None:
    states = [rows(tiny, [list(range(20))], fuse) for fuse in (False, True)]
    for state in states:
        state.advance(torch.arange(100, 117).unsqueeze(0))
    assert torch.equal(states[0].hidden, states[1].hidden)


def test_a_row_does_not_depend_on_the_others_to_the_last_bit(tiny: LanguageModel) -> None:
    states = [rows(tiny, [[5, 6, 7]] * count, True) for count in (1, 3)]
    for state, ids in zip(states, ([[9]], [[9], [10], [11]]), strict=True):
        state.advance(torch.tensor(ids))
    assert torch.equal(states[0].hidden[0], states[1].hidden[0])


def as_in_vllm(model: LanguageModel, caches: list[torch.Tensor]) -> SimpleNamespace:
    """The parts of vLLM's ``Qwen3ForCausalLM`` that a pass of the kernels reads; some of its projections are joined."""

    def joined(*projections: torch.nn.Module) -> SimpleNamespace:
        return SimpleNamespace(weight=torch.cat([projection.weight for projection in projections]))

    layers = [
        SimpleNamespace(
            input_layernorm=layer.input_layernorm,
            post_attention_layernorm=layer.post_attention_layernorm,
            self_attn=SimpleNamespace(
                qkv_proj=joined(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                q_norm=layer.self_attn.q_norm,
                k_norm=layer.self_attn.k_norm,
                o_proj=layer.self_attn.o_proj,
                attn=SimpleNamespace(kv_cache=cache),
            ),
            mlp=SimpleNamespace(
                gate_up_proj=joined(layer.mlp.gate_proj, layer.mlp.up_proj), down_proj=layer.mlp.down_proj
            ),
        )
        for layer, cache in zip(model.body.layers, caches, strict=True)
    ]
    body = SimpleNamespace(layers=layers, embed_tokens=model.body.embed_tokens, norm=model.body.norm)
    return SimpleNamespace(config=model.body.config, model=body)


@pytest.mark.parametrize("heads_first", [False, True], ids=["slots first", "heads first"])
@pytest.mark.parametrize("page", [32, 128])
def test_a_pass_over_pages_is_that_over_rows(tiny: LanguageModel, page: int, heads_first: bool) -> None:
    lengths = [150, 31, 64]
    state = rows(tiny, [list(range(length)) for length in lengths], True, capacity=256)
    layers, slots, heads, size = state.cache.keys.shape
    count = slots // page
    # A page before those of the rows, which are in any order, and a row that is not there.
    order = 1 + torch.randperm(count, generator=torch.Generator().manual_seed(1))
    table = torch.cat([order.view(len(lengths), -1), torch.zeros(1, count // len(lengths), dtype=torch.long)])
    held = torch.cat([state.cache.keys, state.cache.values], dim=-1).view(layers, count, page, heads, 2 * size)
    caches = []
    for layer in held:
        cache = torch.zeros(count + 1, heads, page, 2 * size)
        if not heads_first:
            cache = torch.zeros(count + 1, page, heads, 2 * size).transpose(1, 2)
        cache[order] = layer.transpose(1, 2)
        caches.append(cache)
    # vLLM makes its models with PyTorch's default dtype set to theirs.
    torch.set_default_dtype(torch.bfloat16)
    try:
        decode = PagedDecode(as_in_vllm(tiny, caches))
    finally:
        torch.set_default_dtype(torch.float32)
    for step in range(2):
        ids = torch.tensor([40, 80, 120]) + step
        places = torch.tensor([*(length + step + 1 for length in lengths), 0], dtype=torch.int32)
        state.advance(ids.unsqueeze(1))
        hidden = decode(torch.cat([ids, torch.zeros(1, dtype=torch.long)]).int(), places, table.int())
        assert torch.equal(hidden[:3], state.hidden)
    assert not any(cache[0].any() for cache in caches)


def test_kernels_are_tried_before_they_are_used(tiny: LanguageModel, caplog, monkeypatch) -> None:
    monkeypatch.setattr(workspace, "can_fuse", lambda model: True)
    assert PtBackend(tiny).decode_path == "fused"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [(lambda *_: None, "differ by"), (lambda *_: 1 / 0, "ZeroDivisionError")],
    ids=["wrong result", "cannot be built"],
)
def test_kernels_that_fail_are_not_used_and_a_warning_is_logged(tiny, caplog, monkeypatch, broken, said) -> None:
    monkeypatch.setattr(workspace, "can_fuse", lambda model: True)
    monkeypatch.setattr(FusedLayers, "_feed_forward", broken)
    with caplog.at_level(logging.WARNING):
        backend = PtBackend(tiny)
        assert backend.decode_path == "eager"
    assert said in caplog.text
    assert len(backend.generate_codes([1, 2, 3], None, 2, GREEDY, [1]).ids[0]) == 2


def test_a_choice_that_cannot_be_recorded_keeps_the_kernels_off(tiny: LanguageModel, caplog, monkeypatch) -> None:
    def unrecordable(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(candidates, "captured", unrecordable)
    assert not kernels_agree(tiny)
    assert "capturing" in caplog.text


def test_running_out_of_memory_is_not_a_verdict_on_the_kernels(tiny: LanguageModel, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(FusedLayers, "_feed_forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        kernels_agree(tiny)


@pytest.mark.parametrize("name", [name for name in LANGUAGE_MODEL_CONFIGS if not name.endswith("tiny")])
def test_the_kernels_know_every_released_size(name: str) -> None:
    assert knows(qwen3_config(LANGUAGE_MODEL_CONFIGS[name]))


def test_the_kernels_leave_other_architectures_alone() -> None:
    config = qwen3_config(LANGUAGE_MODEL_CONFIGS["acestep-5Hz-lm-0.6B"])
    for change in ({"attention_bias": True}, {"hidden_act": "gelu"}, {"rope_parameters": {"rope_type": "yarn"}}):
        assert not knows(SimpleNamespace(**{**config.to_dict(), **change}))


@pytest.mark.parametrize(("fused_decode", "path"), [(True, "fused"), (False, "eager")])
def test_kernels_are_used_unless_the_caller_says_no(tiny: LanguageModel, monkeypatch, fused_decode, path) -> None:
    monkeypatch.setattr(workspace, "can_fuse", lambda model: True)
    planner = create_planner("pt", tiny, 1, ModelOffloader(tiny.device, Placement()), fused_decode=fused_decode)
    assert planner.backend.decode_path == path


def test_off_cuda_the_body_does_all_passes(tiny: LanguageModel) -> None:
    assert not can_fuse(tiny)
    assert PtBackend(tiny).decode_path == "eager"


@pytest.mark.parametrize("page", [0, 128], ids=["rows", "pages"])
@pytest.mark.parametrize(("name", "capability"), [("acestep-5Hz-lm-1.7B", 90), ("acestep-5Hz-lm-4B", 80)])
def test_the_kernels_compile_for_a_gpu_and_fit_it(name: str, capability: int, page: int) -> None:
    # In a process of its own, as Triton decides once whether to compile or to interpret.
    command = [sys.executable, "-m", "tests.planner.compile_kernels", name, str(capability), str(page)]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout.splitlines()[-1])
    assert {kernel["name"] for kernel in compiled} == {"embed", "project_inputs", "attend", "gate", "project_onto"}
    for kernel in compiled:
        assert kernel["cubin_bytes"] > 0
        assert kernel["shared_memory"] <= SHARED_MEMORY
    for kernel in (kernel for kernel in compiled if kernel["name"] != "embed"):
        # Weights and keys stream in behind the arithmetic, which tensor cores do.
        assert kernel["asynchronous_copies"] > 0
        assert kernel["tensor_core_products"] > 0
