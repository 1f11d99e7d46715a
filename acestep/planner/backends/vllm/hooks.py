"""Hooks into the engine: a model that returns its hidden states, and samplers that receive them.

vLLM has two model runners. V2, which it uses where Triton is available (CUDA), lets a model supply its own sampler. V1
(the CPU) does not: there a logits processor receives the hidden states as if they were logits, and leaves each row one
token.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor

from acestep.planner.backends.vllm.decode import PagedDecode
from acestep.planner.backends.vllm.selection import PHASE, ROW, Row, TokenSelector


class HiddenStatesModel(Qwen3ForCausalLM):
    """Qwen3 whose logits are its hidden states: the selector needs logits of few tokens, of guided hidden states.

    Small decode passes run in the engine's own kernels.

    Attributes:
        decode: runs these passes; ``None`` where the kernels cannot run.
        selector: of the engine that is started. It is an attribute of the class, because vLLM creates the instance and
            keeps the class of a configuration for the life of the process; it runs one engine at a time.
        fuses: whether that engine may use the kernels.
    """

    decode: PagedDecode | None = None
    selector: ClassVar[TokenSelector | None] = None
    fuses: ClassVar[bool] = False

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states of all tokens; vLLM records the call for batches with one token in each row."""
        if self.decode is not None and self.decode.takes(len(input_ids)):
            # There is none while vLLM measures its memory.
            metadata: Any = get_forward_context().attn_metadata
            if metadata and (rows := metadata[self.decode.layer_name]).max_query_len == 1:
                return self.decode(input_ids, rows.seq_lens, rows.block_table)
        hidden: torch.Tensor = super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)
        return hidden

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The hidden states."""
        return hidden_states

    def load_weights(self, weights: Any) -> Any:
        """Load the weights, and pass the head to the selector."""
        loaded = super().load_weights(weights)
        started_selector().bind(self.lm_head.weight.data)
        if self.fuses:
            self.decode = PagedDecode.of(self)
            started_selector().fuses = self.decode is not None
        return loaded

    @staticmethod
    def get_model_state_cls() -> type[Any]:
        """The state with the sampler, for Model Runner V2."""
        from vllm.config import CUDAGraphMode
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        class SelectingState(DefaultModelState):
            """A state whose model supplies its own sampler, and its own decode passes."""

            def prepare_attn(self, input_batch: Any, cudagraph_mode: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
                """What attention needs to know of a batch: nothing, where a pass of the kernels is replayed."""
                decode, replays = self.model.decode, cudagraph_mode == CUDAGraphMode.FULL
                if replays and decode is not None and decode.takes(input_batch.num_tokens_after_padding):
                    return {}
                metadata: dict[str, Any] = super().prepare_attn(input_batch, cudagraph_mode, *args, **kwargs)
                return metadata

            def custom_sampler(self, sampler: Any) -> tuple[Any, None]:
                """The selector's, around the engine's."""
                return SelectingSampler(started_selector(), sampler, self.max_num_reqs, self.device), None

        return SelectingState


def started_selector() -> TokenSelector:
    """The selector of the engine that is started."""
    if HiddenStatesModel.selector is None:
        raise RuntimeError("no engine is being started")
    return HiddenStatesModel.selector


class SelectingSampler:
    """Replaces the sampler of Model Runner V2.

    Args:
        selector: decides the tokens.
        sampler: the engine's own; everything but the selection is delegated to it.
        rows: most requests of a batch.
        device: of the engine.
    """

    def __init__(self, selector: TokenSelector, sampler: Any, rows: int, device: torch.device) -> None:
        self._selector = selector
        self._sampler = sampler
        self._rows: dict[int, Row | None] = {}
        ones, zeros = (torch.full((rows,), number, dtype=torch.int32, device=device) for number in (1, 0))
        # Of each number of rows: slicing them at every pass takes longer than it looks.
        self._counts = [(ones[:count], zeros[:count]) for count in range(rows + 1)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """Record the row of a slot, which may have belonged to another request."""
        self._rows[req_idx] = _row_of(sampling_params)

    def apply_staged_writes(self) -> None:
        """Does nothing: no setting of the engine's own sampling is used."""

    def __call__(self, hidden: torch.Tensor, input_batch: Any) -> Any:
        """One token for each request of a batch: prompts are never split, so each request gets one."""
        from vllm.v1.worker.gpu.sample.output import SamplerOutput

        rows = tuple(map(self._rows.get, input_batch.idx_mapping_np.tolist()))
        tokens = self._selector.select(hidden, rows)
        sampled, rejected = self._counts[len(rows)]
        return SamplerOutput(
            sampled_token_ids=tokens.view(-1, 1),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=sampled,
            num_rejected=rejected,
        )


class SelectingProcessor(LogitsProcessor):
    """Interface of Model Runner V1: receives changes of the batch, then the model's hidden states as its logits."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self._selector = started_selector()
        self._vocabulary_size = vllm_config.model_config.get_vocab_size()
        self._rows: dict[int, Row] = {}

    def is_argmax_invariant(self) -> bool:
        """Never, because the token is decided here."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Track requests that are added, removed and moved."""
        process_dict_updates(self._rows, batch_update, lambda params, *_: _row_of(params))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits that leave each row one token."""
        tokens = self._selector.select(logits, tuple(map(self._rows.get, range(len(logits)))))
        one = logits.new_full((len(logits), self._vocabulary_size), -torch.inf)
        return one.scatter_(1, tokens.unsqueeze(1), 0.0)


def _row_of(params: Any) -> Row | None:
    extra = params.extra_args or {}
    return (extra[PHASE], extra[ROW]) if ROW in extra else None


class SilentStatistics(PrometheusStatLogger):
    """Keeps the engine's own metrics out of the process's registry: the layer's are the ones that are exported."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:  # noqa: ARG002
        self.engine_indexes = engine_indexes

    def log_engine_initialized(self) -> None:
        """Nothing."""
