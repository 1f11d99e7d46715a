"""The passes of the engine's models that a stage runs, for its operations and bytes.

Only shapes and configurations are read, on the host. Operations and bytes (``acestep_otel.roofline.models``) are
computed when the request is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakKeyDictionary

from acestep_otel.patches.patcher import Patch, Wrapper
from acestep_otel.recording.trace_tree import current_recording, never_raises
from acestep_otel.roofline.models import (
    Blocks,
    CodeModel,
    ConditionEncoder,
    DiffusionTransformer,
    LanguageModelPhase,
    Oobleck,
)
from acestep_otel.roofline.work import Form, Heads, Pass, Precision

if TYPE_CHECKING:
    import torch

    from acestep.planner.backends import PhaseTokens, PlannerBackend
    from acestep.renderer.models import RendererModels
    from acestep.renderer.vae import Tile, VaeModels

Read = Callable[..., Iterator[Pass]]
"""From a call's result, instance, arguments and keyword arguments to the passes that it ran."""

_SAMPLES_PER_FRAME: Final = 1920
_TIMBRE_FRAMES: Final = 750
_SAVED_BITS: Final = {"int8_weight_only": 1, "fp8_weight_only": 1}
_DYNAMIC: Final = "w8a8_dynamic"

_sizes: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()
"""Sizes from a module's configuration, by the part of the module that a pass runs; read once per module."""


def noting(read: Read) -> Wrapper:
    """A wrapper that notes the passes of a call on the innermost open stage.

    Args:
        read: the passes, from the call's result, its instance and its arguments.
    """

    @never_raises
    def note(result: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (recording := current_recording()) is not None:
            recording.innermost.passes.extend(read(result, instance, *args, **kwargs))

    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = wrapped(*args, **kwargs)
        note(result, instance, args, kwargs)
        return result

    return wrapper


def precision_of(dtype: torch.dtype) -> Precision:
    """The precision of products of a type."""
    return cast("Precision", str(dtype).removeprefix("torch."))


def form_of(dtype: torch.dtype) -> Form:
    """Weights and activations in a type.

    Raises:
        KeyError: there is no work in this type.
    """
    return Form.plain(precision_of(dtype))


def blocks_of(config: Any, layers: int, form: Form) -> Blocks:
    """A stack of blocks by the configuration of its model, whose names diffusers and transformers share."""
    heads = Heads(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    return Blocks(layers, config.hidden_size, config.intermediate_size, heads, form)


def _remembered(module: Any, read: Callable[[], Any], part: str = "") -> Any:
    sizes = _sizes.get(module)
    if sizes is None:
        sizes = _sizes[module] = {}
    if (found := sizes.get(part)) is None:
        found = sizes[part] = read()
    return found


def transformer_of(
    module: Any, form: Form, quantization: str | None = None, *, fused: bool = False
) -> DiffusionTransformer:
    """Sizes of ``diffusers.AceStepTransformer1DModel``.

    Args:
        module: the transformer.
        form: of what is not quantised.
        quantization: form of its blocks.
        fused: whether it runs in the engine's own kernels.
    """
    config = module.config
    windowed = sum(block.self_attn.sliding_window is not None for block in module.layers) if fused else 0
    blocks = form
    if quantization == _DYNAMIC:
        blocks = Form("int8", form.activation, 1)
    elif quantization is not None:
        blocks = Form(form.precision, form.activation, _SAVED_BITS[quantization])
    return DiffusionTransformer(
        blocks=blocks_of(config, config.num_hidden_layers, blocks),
        inputs=config.in_channels,
        channels=config.audio_acoustic_hidden_dim,
        patch=config.patch_size,
        condition=config.encoder_hidden_size or config.hidden_size,
        form=form,
        windowed=windowed,
        window=2 * config.sliding_window + 1,
        shared=fused,
    )


def condition_encoder_of(module: Any, form: Form) -> ConditionEncoder:
    """Sizes of diffusers' ``AceStepConditionEncoder``."""
    config = module.config
    return ConditionEncoder(
        lyrics=blocks_of(config, config.num_lyric_encoder_hidden_layers, form),
        timbre=blocks_of(config, config.num_timbre_encoder_hidden_layers, form),
        text=config.text_hidden_dim,
        channels=config.timbre_hidden_dim,
    )


def code_model_of(module: Any, quantizer: Any, form: Form) -> CodeModel:
    """Sizes of diffusers' ``AceStepAudioTokenizer`` or ``AceStepAudioTokenDetokenizer``.

    Args:
        module: one of them.
        quantizer: of the tokenizer.
        form: of the weights.
    """
    config = module.config
    return CodeModel(
        blocks=blocks_of(config, config.num_attention_pooler_hidden_layers, form),
        channels=config.audio_acoustic_hidden_dim,
        window=config.pool_window_size,
        levels=len(quantizer.levels),
        codes=quantizer.project_out.out_features,
    )


def decoder_of(vae: Any, form: Form) -> Oobleck:
    """Sizes of the decoder of ``diffusers.AutoencoderOobleck``."""
    config = vae.config
    multiples = (*reversed(config.channel_multiples), 1)
    return Oobleck(
        widths=tuple(config.decoder_channels * multiple for multiple in multiples),
        strides=tuple(reversed(config.downsampling_ratios)),
        outer=config.decoder_input_channels,
        audio=config.audio_channels,
        form=form,
    )


def encoder_of(vae: Any, form: Form) -> Oobleck:
    """Sizes of its encoder."""
    config = vae.config
    multiples = (1, *config.channel_multiples)
    return Oobleck(
        widths=tuple(config.encoder_hidden_size * multiple for multiple in multiples),
        strides=tuple(config.downsampling_ratios),
        outer=config.encoder_hidden_size,
        audio=config.audio_channels,
        form=form,
    )


def _velocity(
    _result: Any, renderer: Any, latents: torch.Tensor, conditions: Any, *_rest: Any, **_named: Any
) -> Iterator[Pass]:
    models = renderer.models
    quantization = renderer.offloader.placement.quantization
    fused = renderer.velocity.path == "fused"
    model = _remembered(
        models.transformer,
        lambda: transformer_of(models.transformer, form_of(models.dtype), quantization, fused=fused),
        "fused" if fused else "",
    )
    sizes = (latents.shape[0], latents.shape[1], conditions.encoder_hidden_states.shape[1])
    if quantization == _DYNAMIC:
        yield Pass(model.products, sizes, "int8")
        yield Pass(model.remainder, sizes, model.form.precision)
    else:
        yield Pass(model.forward, sizes, model.form.precision)


def _decoded_tile(_result: Any, decoder: Any, latents: torch.Tensor, *, tile: Tile, vae: Any) -> Iterator[Pass]:
    # A decode that fell back to the host is not compared with the device's peaks.
    if latents.device.type == decoder.models.device.type:
        model = _remembered(vae, lambda: decoder_of(vae, form_of(vae.dtype)), "decoder")
        start, stop = tile.window
        yield Pass(model.decode, (stop - start,), model.form.precision)


def _encoded_tile(_result: Any, _instance: Any, models: VaeModels, _audio: Any, tile: Tile) -> Iterator[Pass]:
    model = _remembered(models.vae, lambda: encoder_of(models.vae, form_of(models.dtype)), "encoder")
    start, stop = tile.window
    yield Pass(model.encode, ((stop - start) * _SAMPLES_PER_FRAME,), model.form.precision)


def _encoded_text(
    result: torch.Tensor, _instance: Any, models: RendererModels, _text: str, _encoders: Any
) -> Iterator[Pass]:
    encoder: Any = models.text_encoder
    blocks = _remembered(
        encoder, lambda: blocks_of(encoder.config, encoder.config.num_hidden_layers, form_of(models.dtype))
    )
    yield Pass(blocks.forward, (1, result.shape[1]), blocks.form.precision)


def _encoded_conditions(
    _result: Any, _instance: Any, models: RendererModels, text: Any, lyrics: Any, timbre: Any = None, **_named: Any
) -> Iterator[Pass]:
    encoder = _remembered(
        models.condition_encoder, lambda: condition_encoder_of(models.condition_encoder, form_of(models.dtype))
    )
    frames = _TIMBRE_FRAMES if timbre is None else timbre.shape[1]
    yield Pass(encoder.forward, (text.shape[1], lyrics.shape[1], frames), encoder.lyrics.form.precision)


def _detokenizer(models: RendererModels) -> CodeModel:
    module = models.audio_token_detokenizer
    model: CodeModel = _remembered(
        module, lambda: code_model_of(module, models.audio_tokenizer.quantizer, form_of(models.dtype))
    )
    return model


def _tokenizer(models: Any) -> CodeModel:
    module = models.audio_tokenizer
    model: CodeModel = _remembered(module, lambda: code_model_of(module, module.quantizer, form_of(models.dtype)))
    return model


def _code_latents(_result: Any, _instance: Any, models: RendererModels, codes: Any) -> Iterator[Pass]:
    model = _detokenizer(models)
    yield Pass(_detokenized_ids, (model, len(codes) * len(codes[0])), model.blocks.form.precision)


def _detokenized_ids(model: CodeModel, codes: int) -> Any:
    return model.detokenize(codes, from_ids=True)


def _detokenized_vectors(model: CodeModel, codes: int) -> Any:
    return model.detokenize(codes, from_ids=False)


def _cover_latents(_result: Any, _instance: Any, models: RendererModels, source: torch.Tensor) -> Iterator[Pass]:
    model, back = _tokenizer(models), _detokenizer(models)
    codes = ceil(source.shape[1] / model.window)
    yield Pass(model.tokenize, (codes,), model.blocks.form.precision)
    yield Pass(_detokenized_vectors, (back, codes), back.blocks.form.precision)


def _tokenized(_result: Any, encoder: Any, latents: torch.Tensor) -> Iterator[Pass]:
    model = _tokenizer(encoder.models)
    yield Pass(model.tokenize, (ceil(latents.shape[1] / model.window),), model.blocks.form.precision)


def list_of_passes(backend: PlannerBackend[Any], tokens: PhaseTokens, candidates: float | None) -> list[Pass]:
    """The passes of a phase of the language model; none for a backend whose passes are not visible.

    Args:
        backend: backend that ran it.
        tokens: what it wrote.
        candidates: tokens that each was drawn from, on average; ``None`` for audio codes, or text without a grammar.
    """
    model: Any = getattr(backend, "model", None)
    if not hasattr(model, "body") or not tokens.forwards:
        return []
    blocks = _remembered(
        model.body,
        lambda: blocks_of(model.body.config, model.body.config.num_hidden_layers, form_of(model.dtype)),
    )
    songs, passes = len(tokens.ids), tokens.forwards - 1
    prompts = 2 if tokens.unconditional_tokens else 1
    unconditional = max(0, tokens.unconditional_tokens - tokens.sampled_tokens)
    written = tokens.sampled_tokens + tokens.forced_tokens
    layout = backend.vocabulary.layout
    is_text = bool(tokens.ids[0]) and tokens.ids[0][0] < layout.code_base
    # Tokens that are run after the prompt: all of a text except the last one, and one per song and pass of codes.
    per_pass = 1.0 if not is_text or not passes else max(1.0, (written - 1) / passes)
    rest = max(tokens.prompt_tokens - tokens.reused_tokens, unconditional)
    if candidates is None:
        candidates = layout.text_size if is_text else layout.code_count
    phase = LanguageModelPhase(
        blocks=blocks,
        prompts=prompts,
        prompt_tokens=rest,
        prompt_keys=tokens.reused_tokens + rest,
        rows=songs * prompts,
        passes=passes,
        pass_tokens=per_pass,
        drawn=tokens.sampled_tokens,
        drawn_together=songs,
        candidates=candidates,
    )
    return [Pass(phase.prefill, (), blocks.form.precision), Pass(phase.decode, (), blocks.form.precision)]


_MODELS: Final = "acestep.renderer"
PATCHES: Final = (
    Patch(f"{_MODELS}.renderer", "Renderer.predict_velocity", noting(_velocity)),
    Patch(f"{_MODELS}.decoder", "VaeDecoder.decode_tile", noting(_decoded_tile)),
    Patch(f"{_MODELS}.vae", "encode_tile", noting(_encoded_tile)),
    Patch(f"{_MODELS}.conditioning", "encode_text", noting(_encoded_text)),
    Patch(f"{_MODELS}.renderer", "encode_conditions", noting(_encoded_conditions)),
    Patch(f"{_MODELS}.context", "code_latents", noting(_code_latents)),
    Patch(f"{_MODELS}.context", "cover_latents", noting(_cover_latents)),
    Patch(f"{_MODELS}.audio_encoder", "AudioEncoder.tokenize", noting(_tokenized)),
)
"""Applied before those of the stages, so that a pass is noted while its stage is open."""
