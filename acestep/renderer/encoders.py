"""The encoders of text, lyrics and timbre, which are small: launching them takes many times as long as running them.

On CUDA each is recorded as a graph for lengths in steps of 64, and replayed from then on.
"""

from __future__ import annotations

import threading
from typing import Final

import torch
from torch.nn import functional

from acestep.cuda_graphs import GraphCache, TensorFunction, records_on
from acestep.offloading import ModelOffloader
from acestep.renderer.models import RendererModels

LENGTH_STEP: Final = 64
"""Inputs of recorded encoders are padded to a multiple of this many tokens: few graphs for texts of any length."""
RECORDED_LIMIT: Final = 8
"""Maximum number of recorded lengths that are kept, over all encoders."""


class Encoders:
    """Calls the encoders for one renderer.

    Args:
        models: loaded models.
        offloader: decides where they are; encoders that move are not recorded, because a graph contains addresses.
        record: record them on CUDA.
    """

    def __init__(self, models: RendererModels, offloader: ModelOffloader, *, record: bool) -> None:
        self._models = models
        self._graphs = GraphCache("an encoder", RECORDED_LIMIT)
        moves = offloader.offloads("text_encoder") or offloader.offloads("condition_encoder")
        self._graphs.is_open = record and records_on(models.device) and not moves
        self._lock = threading.Lock()

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states of the text encoder, shape ``[1, tokens, hidden]``, of token ids ``[1, tokens]``."""
        tokens = ids.shape[1]
        if not self._graphs.is_open:
            return self._encode_text(ids)
        # Attention is causal: no token attends to the padding after it.
        return self._recorded(self._encode_text, _padded(ids, 1))[:, :tokens]

    def conditions(self, text: torch.Tensor, lyrics: torch.Tensor, timbre: torch.Tensor) -> torch.Tensor:
        """Lyrics, timbre and text as the transformer reads them, shape ``[1, tokens, hidden]``.

        Args:
            text: hidden states, shape ``[1, tokens, hidden]``.
            lyrics: embeddings, the same.
            timbre: latents, shape ``[1, frames, channels]``.
        """
        if not self._graphs.is_open:
            return self._encode_conditions(text, lyrics, timbre)
        encoder, tokens = self._models.condition_encoder, lyrics.shape[1]
        padded = _padded(lyrics, 1)
        seen = torch.arange(padded.shape[1], device=lyrics.device).unsqueeze(0) < tokens
        encoded = self._recorded(self._encode_lyrics, padded, seen)[:, :tokens]
        return torch.cat([encoded, self._recorded(self._encode_timbre, timbre), encoder.text_projector(text)], dim=1)

    def _encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._models.text_encoder(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def _encode_lyrics(self, embeddings: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._models.condition_encoder.lyric_encoder(embeddings, seen)
        return hidden

    def _encode_timbre(self, latents: torch.Tensor) -> torch.Tensor:
        """The timbre of one reference, shape ``[1, 1, hidden]``.

        diffusers' module reads the number of references from the device; here it is always one, so its parts are
        called.
        """
        encoder = self._models.condition_encoder.timbre_encoder
        encoder.unpack_timbre_embeddings = lambda packed, _: (packed.unsqueeze(0), None)
        try:
            timbre: torch.Tensor = encoder(latents, None)[0]
        finally:
            del encoder.unpack_timbre_embeddings
        return timbre

    def _encode_conditions(self, text: torch.Tensor, lyrics: torch.Tensor, timbre: torch.Tensor) -> torch.Tensor:
        device = text.device
        hidden: torch.Tensor
        hidden, _ = self._models.condition_encoder(
            text_hidden_states=text,
            text_attention_mask=torch.ones(text.shape[:2], dtype=torch.bool, device=device),
            lyric_hidden_states=lyrics,
            lyric_attention_mask=torch.ones(lyrics.shape[:2], dtype=torch.bool, device=device),
            refer_audio_acoustic_hidden_states_packed=timbre,
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=device),
        )
        return hidden

    def _recorded(self, function: TensorFunction, *inputs: torch.Tensor) -> torch.Tensor:
        with self._lock:
            graph = self._graphs.find(function, *inputs) if self._graphs.is_open else None
            if graph is not None:
                return graph(*inputs).clone()
            output = function(*inputs)
            if self._graphs.is_open:
                self._graphs.record(function, *inputs)
            return output


def _padded(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """Filled up with zeros to a multiple of ``LENGTH_STEP``."""
    missing = -tensor.shape[dimension] % LENGTH_STEP
    return functional.pad(tensor, (*(0, 0) * (tensor.dim() - 1 - dimension), 0, missing))
