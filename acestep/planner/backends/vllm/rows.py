"""Requests in the engine, one per row, run pass by pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from acestep.errors import BackendFailed, BudgetExceeded
from acestep.planner.backends.base import EngineTimes
from acestep.planner.backends.vllm.selection import ROW


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One row to run.

    Attributes:
        row: its number in the phase.
        prompt: token ids.
        token_limit: most tokens of output.
        ends: tokens that end it earlier.
    """

    row: int
    prompt: Sequence[int]
    token_limit: int
    ends: frozenset[int] = frozenset()


class EngineRows:
    """The rows of one phase; as a context manager, it leaves nothing behind in the engine.

    A pass takes only so many tokens. Groups of rows start together or not at all: those that do not fit into the
    first pass beside the others start in the next, and their prompts are never split.

    Args:
        engine: vLLM's.
        stage: of the phase, for errors.
        groups: rows that must be in step.

    Raises:
        BudgetExceeded: the prompts of a group do not fit into one pass.

    Attributes:
        written: tokens of each row.
        unread: whether a pass was run and not read yet.
        passes: run so far.
        times: the engine's own timings of the requests that finished; ``None`` before the first.
    """

    def __init__(
        self,
        engine: Any,
        stage: str,
        groups: Sequence[Sequence[RowRequest]],
    ) -> None:
        self._engine = engine
        self._stage = stage
        self._waiting = deque(groups)
        self._capacity: int = engine.vllm_config.scheduler_config.max_num_batched_tokens
        self._running: dict[str, int] = {}
        self.unread = False
        self.written: dict[int, list[int]] = {request.row: [] for group in groups for request in group}
        self.passes = 0
        self.times: EngineTimes | None = None
        for group in groups:
            if (needed := _prompt_tokens(group)) > self._capacity - len(self.written):
                raise BudgetExceeded(
                    f"the prompts of one song have {needed} tokens together, but the engine takes "
                    f"{self._capacity - len(self.written)} in a pass: shorten the lyrics or the negative prompt",
                    stage=stage,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._running:
            self._engine.abort_request(list(self._running))
            self._running.clear()

    @property
    def finished(self) -> bool:
        """Whether every row has ended and every pass was read."""
        return not (self._running or self._waiting or self.unread)

    def start(self) -> None:
        """Run the first pass, which takes the prompts and gives the first tokens; ``advance`` reads it."""
        self._run_pass()
        self.unread = True

    def advance(self) -> None:
        """Read the first pass, or run another one."""
        if not self.unread:
            self._run_pass()
        self.unread = False

    def _run_pass(self) -> None:
        self._submit()
        outputs = self._engine.step()
        self.passes += 1
        answered = {output.request_id: output for output in outputs}
        if answered.keys() != self._running.keys() or any(len(output.outputs[0].token_ids) != 1 for output in outputs):
            raise BackendFailed(
                f"vLLM answered {len(answered)} of {len(self._running)} rows in a pass, so they are out of step: take "
                "`lm_backend` pt",
                stage=self._stage,
            )
        for name, output in answered.items():
            self.written[self._running[name]] += output.outputs[0].token_ids
            if output.finished:
                del self._running[name]
                self.times = _slowest(self.times, output.metrics)

    def _submit(self) -> None:
        from vllm.inputs.engine import tokens_input

        room = self._capacity - len(self._running)
        while self._waiting and (needed := _prompt_tokens(self._waiting[0])) <= room:
            for request in self._waiting.popleft():
                name = f"{uuid4().hex}-{request.row}"
                self._engine.add_request(name, tokens_input(list(request.prompt)), _parameters(request))
                self._running[name] = request.row
            room -= needed


def _prompt_tokens(group: Sequence[RowRequest]) -> int:
    return sum(len(request.prompt) for request in group)


def _parameters(request: RowRequest) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        # The token is decided by the processor: the only one with a finite logit is the greatest.
        temperature=0.0,
        max_tokens=request.token_limit,
        stop_token_ids=sorted(request.ends),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={ROW: request.row},
    )


def _slowest(times: EngineTimes | None, stats: Any) -> EngineTimes:
    """Join the engine's statistics of a request to those of others."""
    own = EngineTimes(
        queue=stats.scheduled_ts - stats.queued_ts,
        time_to_first_token=stats.first_token_latency,
        prefill=stats.first_token_ts - stats.scheduled_ts,
        decode=stats.last_token_ts - stats.first_token_ts,
    )
    if times is None:
        return own
    return EngineTimes(
        queue=max(times.queue, own.queue),
        time_to_first_token=max(times.time_to_first_token, own.time_to_first_token),
        prefill=max(times.prefill, own.prefill),
        decode=max(times.decode, own.decode),
    )
