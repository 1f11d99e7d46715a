"""The formulas against two counts of the real modules: PyTorch's of operations, and one of the tensors that are moved.

True sizes run on the meta device, which has shapes and no memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from acestep.checkpoints import Models
from acestep.inference import generate_music
from acestep.renderer.preparation import fold_weight_norm
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS, qwen3_config
from acestep.synthetic.renderer import RENDERER_CONFIGS, diffusers_modules, text_encoder_config
from acestep.types import GenerationRequest
from acestep.weights.meta_modules import empty_qwen3
from acestep_otel import semconv
from acestep_otel.instrumentor import AceStepInstrumentor
from acestep_otel.patches import engine_work
from acestep_otel.roofline.models import Blocks, LanguageModelPhase
from acestep_otel.roofline.work import Form, Heads, Work
from tests.roofline.counting import counted
from tests.tracing import Traced

SIZES = ["acestep-v15-tiny", "acestep-v15-turbo", "acestep-v15-xl-turbo"]
LANGUAGE_MODELS = ["acestep-5Hz-lm-tiny", "acestep-5Hz-lm-0.6B", "acestep-5Hz-lm-1.7B", "acestep-5Hz-lm-4B"]
BFLOAT16 = Form.plain("bfloat16")
TOLERANCE = 0.02
REPEATED = 0.05
"""For bytes of Qwen3: transformers repeats keys and values for heads that share them, and attention reads those."""


def agrees(formula: Work, count: Work, of_bytes: float = TOLERANCE) -> None:
    assert formula.operations == pytest.approx(count.operations, rel=TOLERANCE)
    assert formula.bytes == pytest.approx(count.bytes, rel=of_bytes)


def modules(name: str) -> dict[str, Any]:
    found = diffusers_modules(RENDERER_CONFIGS[name])
    fold_weight_norm(found["vae"])
    return {role: module.to(torch.bfloat16).eval() for role, module in found.items()}


def tensor(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=torch.bfloat16)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("batch", "frames", "tokens"), [(1, 750, 120), (2, 6000, 700), (4, 251, 33)])
def test_the_diffusion_transformer(name: str, batch: int, frames: int, tokens: int) -> None:
    transformer = modules(name)["transformer"]
    model = engine_work.transformer_of(transformer, BFLOAT16)

    def run() -> None:
        transformer(
            hidden_states=tensor(batch, frames, model.channels),
            timestep=tensor(batch),
            timestep_r=tensor(batch),
            encoder_hidden_states=tensor(batch, tokens, model.condition),
            context_latents=tensor(batch, frames, model.inputs - model.channels),
        )

    agrees(model.forward(batch, frames, tokens), counted(run))


@pytest.mark.parametrize("name", SIZES[:2])
@pytest.mark.parametrize("frames", [1, 250, 512])
def test_the_decoder_and_the_encoder_of_the_vae(name: str, frames: int) -> None:
    vae = modules(name)["vae"]
    decoder, encoder = engine_work.decoder_of(vae, BFLOAT16), engine_work.encoder_of(vae, BFLOAT16)
    latents, audio = tensor(1, decoder.outer, frames), tensor(1, 2, frames * 1920)
    agrees(decoder.decode(frames), counted(lambda: vae.decoder(latents)))
    agrees(encoder.encode(frames * 1920), counted(lambda: vae.encoder(audio)))


@pytest.mark.parametrize("name", SIZES)
def test_the_encoders_of_the_conditions(name: str) -> None:
    config = RENDERER_CONFIGS[name]
    text_encoder = empty_qwen3(text_encoder_config(config)).to(torch.bfloat16)
    blocks = engine_work.blocks_of(text_encoder.config, text_encoder.config.num_hidden_layers, BFLOAT16)
    ids = torch.zeros(1, 200, dtype=torch.long, device="meta")
    # Made here, because the encoder's own mask reads values, which a tensor without memory has not.
    mask = {"full_attention": torch.ones(1, 1, 200, 200, dtype=torch.bool, device="meta")}
    agrees(blocks.forward(1, 200), counted(lambda: text_encoder(ids, mask, use_cache=False)), REPEATED)

    encoder = modules(name)["condition_encoder"]
    model = engine_work.condition_encoder_of(encoder, BFLOAT16)
    timbre = encoder.timbre_encoder

    def run() -> None:
        # The same of the encoder's own forward.
        encoder.text_projector(tensor(1, 90, model.text))
        encoder.lyric_encoder(
            inputs_embeds=tensor(1, 400, model.text),
            attention_mask=torch.ones(1, 400, dtype=torch.bool, device="meta"),
        )
        hidden = timbre.embed_tokens(tensor(1, 750, model.channels))
        positions = tensor(750, timbre.head_dim), tensor(750, timbre.head_dim)
        for layer in timbre.layers:
            hidden = layer(hidden, positions, None)

    agrees(model.forward(90, 400, 750), counted(run))


@pytest.mark.parametrize("name", SIZES[:2])
def test_the_audio_tokenizer_and_the_detokenizer(name: str) -> None:
    found = modules(name)
    tokenizer, detokenizer = found["audio_tokenizer"], found["audio_token_detokenizer"]
    model = engine_work.code_model_of(tokenizer, tokenizer.quantizer, BFLOAT16)
    back = engine_work.code_model_of(detokenizer, tokenizer.quantizer, BFLOAT16)
    latents, codes = tensor(1, 500, model.channels), tensor(1, 100, model.codes)
    agrees(model.tokenize(100), counted(lambda: tokenizer.tokenize(latents)))
    agrees(back.detokenize(100, from_ids=False), counted(lambda: detokenizer(codes)))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize(("rows", "tokens", "keys"), [(2, 180, 180), (4, 1, 1200), (1, 3, 90)])
def test_a_pass_of_the_language_model(name: str, rows: int, tokens: int, keys: int) -> None:
    config = qwen3_config(LANGUAGE_MODEL_CONFIGS[name])
    body = empty_qwen3(config).to(torch.bfloat16)
    blocks = engine_work.blocks_of(config, config.num_hidden_layers, BFLOAT16)

    class Window:
        """Keys and values of ``keys`` positions."""

        def update(self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
            shape = (key.shape[0], key.shape[1], keys, key.shape[3])
            return tensor(*shape), tensor(*shape)

    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    seen = torch.ones(rows, 1, tokens, keys, dtype=torch.bool, device="meta")
    places = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    count = counted(lambda: body(ids, {"full_attention": seen}, places, Window(), use_cache=True))
    agrees(blocks.forward(rows, tokens, keys), count, REPEATED)


def test_the_passes_of_a_phase_are_a_series() -> None:
    """What is worked out in one go is the sum over the passes."""
    blocks = Blocks(2, 16, 32, Heads(4, 2, 8), BFLOAT16)
    phase = LanguageModelPhase(
        blocks, 2, 90, 100, rows=4, passes=7, pass_tokens=1, drawn=16, drawn_together=2, candidates=640
    )
    each = [blocks.forward(4, 1, 100 + number) for number in range(1, 8)]
    heads = [BFLOAT16.linear(2, 16, 640)] * 8
    added = sum([*each, *heads], Work())
    assert phase.decode().operations == pytest.approx(added.operations)
    assert phase.decode().bytes == pytest.approx(added.bytes)


REQUESTS = {
    "text alone": GenerationRequest(caption="a song", duration=10, inference_steps=2),
    "guided codes of two songs": GenerationRequest(
        caption="a song", lyrics="la la la", duration=10, inference_steps=2, thinking=True, batch_size=2
    ),
    "a metadata block and codes": GenerationRequest(
        caption="a song", duration=12, inference_steps=1, thinking=True, use_cot_metas=True, use_cot_caption=True
    ),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_the_work_of_a_whole_request_is_what_pytorch_counts(
    traced: Traced, tiny_models: Models, request_: GenerationRequest
) -> None:
    """Every pass of every stage is noted, once."""
    traced.instrument()
    count = counted(lambda: generate_music(tiny_models, request_))
    AceStepInstrumentor().flush()
    (root,) = [span for span in traced.spans if span.name == semconv.GENERATE_MUSIC]
    assert root.attributes[semconv.WORK_OPERATIONS] == pytest.approx(count.operations, rel=TOLERANCE)
    # Products of the sampler and of the noise are counted as well.
    assert root.attributes[semconv.WORK_BYTES] == pytest.approx(count.bytes, rel=0.05)


@pytest.mark.parametrize("detail", ["stage", "step"])
def test_below_detail_step_the_stages_have_the_same_work(traced: Traced, tiny_models: Models, detail: str) -> None:
    traced.instrument(detail=detail)
    generate_music(tiny_models, REQUESTS["text alone"])
    AceStepInstrumentor().flush()
    works = {span.name: span.attributes.get(semconv.WORK_OPERATIONS) for span in traced.spans}
    transformer = engine_work.transformer_of(tiny_models.renderer.models.transformer, Form.plain("float32"))
    tokens = works[semconv.DIT]
    assert tokens is not None
    assert works[semconv.GENERATE_MUSIC] == pytest.approx(
        works[semconv.CONDITION] + works[semconv.DIT] + works[semconv.VAE_DECODE]
    )
    assert works[semconv.DIT] > 2 * transformer.forward(1, 250, 1).operations


def test_quantised_products_read_fewer_bytes_and_attention_stays() -> None:
    transformer = modules("acestep-v15-turbo")["transformer"]
    plain, int8, dynamic = (
        engine_work.transformer_of(transformer, BFLOAT16, form) for form in (None, "int8_weight_only", "w8a8_dynamic")
    )
    shape = (1, 750, 100)
    assert plain.forward(*shape).operations == int8.forward(*shape).operations == dynamic.forward(*shape).operations
    saved = plain.forward(*shape).bytes - int8.forward(*shape).bytes
    weights = sum(parameter.numel() for block in transformer.layers for parameter in block.parameters())
    assert saved == pytest.approx(weights, rel=0.01)
    assert dynamic.blocks.form.precision == "int8"
    assert dynamic.remainder(*shape) == plain.remainder(*shape)


def test_the_engines_own_kernels_leave_out_what_no_step_needs() -> None:
    transformer = modules("acestep-v15-turbo")["transformer"]
    plain, fused = (engine_work.transformer_of(transformer, BFLOAT16, fused=fused) for fused in (False, True))
    positions, conditions = 3_000, 200
    saved = (
        plain.forward(1, 2 * positions, conditions).operations - fused.forward(1, 2 * positions, conditions).operations
    )
    config = transformer.config
    queries, keys = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
    # Every other block slides; keys and values of the conditions are of every block.
    outside = 4 * queries * positions * (positions - 2 * config.sliding_window - 1) * config.num_hidden_layers // 2
    told = 2 * conditions * config.hidden_size * 2 * keys * config.num_hidden_layers
    embedded = 2 * conditions * (config.encoder_hidden_size or config.hidden_size) * config.hidden_size
    assert saved == outside + told + embedded
    assert fused.forward(1, 20, conditions).operations < plain.forward(1, 20, conditions).operations
