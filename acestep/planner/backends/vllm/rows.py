"""Requests in the engine: one per row, of the phases of several threads, run pass by pass.

The engine is vLLM's, in this process: a pass is a call of its ``step``. With asynchronous scheduling the call launches
one pass and waits for the one before, so the host prepares a pass while the device runs another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import copy_context
from dataclasses import dataclass
from threading import Condition
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import torch

from acestep.errors import BackendFailed, BudgetExceeded
from acestep.planner.backends.base import free_memory, unloaded
from acestep.planner.backends.phases import EngineTimes
from acestep.planner.backends.vllm.engine import Reservation, close_engine
from acestep.planner.backends.vllm.selection import PHASE, ROW, CodesSelection, TextSelection, TokenSelector


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

    @property
    def positions(self) -> int:
        """Most positions that it takes in the cache."""
        return len(self.prompt) + self.token_limit


class SharedEngine:
    """One engine for the phases of several threads: a thread that waits for a pass runs it for all.

    A pass has a limited number of rows, tokens and positions. Rows that must be in step start together or not at all:
    those for which there is no room start when there is, in order of arrival, and their prompts are never split. So
    nothing waits in the engine's own queue, and nothing is preempted.

    Args:
        engine: vLLM's.
        selector: decides the tokens.
        reservation: what the engine has room for.
        positions: that its cache holds.
        device: of the engine.

    Attributes:
        passes: run so far.
        group_tokens: most tokens that the prompts of rows that start together may have.
    """

    def __init__(
        self, engine: Any, selector: TokenSelector, reservation: Reservation, positions: int, device: torch.device
    ) -> None:
        self._engine = engine
        self._selector = selector
        self._device = device
        self._changed = Condition()
        self._is_stepping = False
        self._failure: BaseException | None = None
        self._waiting: deque[tuple[EngineRows, Sequence[RowRequest]]] = deque()
        self._leaving: list[EngineRows] = []
        self._running: dict[str, tuple[EngineRows, RowRequest]] = {}
        self._rows_free = reservation.rows
        self._positions_free = positions
        self._pass_tokens: int = engine.vllm_config.scheduler_config.max_num_batched_tokens
        self.passes = 0
        self.group_tokens = self._pass_tokens - reservation.rows

    def enter(self, rows: EngineRows) -> None:
        """Queue all rows of a phase."""
        with self._changed:
            self.require_running()
            self._waiting.extend((rows, group) for group in rows.groups)

    def leave(self, rows: EngineRows) -> None:
        """Take a phase out; what it still runs is stopped."""
        with self._changed:
            self._waiting = deque(entry for entry in self._waiting if entry[0] is not rows)
            self._leaving.append(rows)
            # The thread that runs a pass does it afterwards; until then the phase's selection is in use.
            self._changed.wait_for(lambda: not self._is_stepping)
            self._let_leave()

    def run_until(self, is_reached: Callable[[], bool]) -> None:
        """Run passes, or let another thread run them, until a condition of the caller's rows holds."""
        with self._changed:
            while not is_reached():
                self.require_running()
                if self._is_stepping:
                    self._changed.wait()
                else:
                    self._step()

    def close(self) -> None:
        """Stop the engine and free its memory."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_stepping)
            engine, self._engine = self._engine, None
            if engine is not None:
                self._selector.release()
                close_engine(engine)
                del engine
                free_memory(self._device)
            self._changed.notify_all()

    def require_running(self) -> None:
        """Reject calls after ``close``, or after the engine failed."""
        if self._engine is None:
            raise unloaded()
        if self._failure is not None:
            raise BackendFailed(f"the language model's engine failed ({self._failure}): load it again", stage="lm")

    def _step(self) -> None:
        """Run one pass, without the lock."""
        self._is_stepping = True
        self._let_leave()
        self._admit()
        self._changed.release()
        try:
            with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
                outputs = self._engine.step()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._changed.acquire()
            self._is_stepping = False
            self._changed.notify_all()
        self.passes += 1
        for output in outputs:
            if output.finished and output.request_id in self._running:
                rows, request = self._free(output.request_id)
                rows.take(request.row, output)

    def _admit(self) -> None:
        """Start rows that there is room for."""
        room = self._pass_tokens - len(self._running)
        while self._waiting:
            rows, group = self._waiting[0]
            tokens = sum(len(request.prompt) for request in group)
            positions = sum(request.positions for request in group)
            if tokens > room or len(group) > self._rows_free or positions > self._positions_free:
                return
            self._waiting.popleft()
            room -= tokens
            if rows.selection.number < 0:
                self._selector.add(rows.selection)
            if isinstance(rows.selection, CodesSelection):
                self._selector.start_song(rows.selection, group[0].row)
            for request in group:
                name = f"{uuid4().hex}-{request.row}"
                # As part of the request that it belongs to, whichever thread does it.
                rows.context.run(self._submit, name, rows, request)
                self._running[name] = rows, request
                self._rows_free -= 1
                self._positions_free -= request.positions

    def _submit(self, name: str, rows: EngineRows, request: RowRequest) -> None:
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=request.token_limit,
            stop_token_ids=sorted(request.ends),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={PHASE: rows.selection.number, ROW: request.row},
        )
        self._engine.add_request(name, tokens_input(list(request.prompt)), parameters)

    def _let_leave(self) -> None:
        for rows in self._leaving:
            names = [name for name, (owner, _) in self._running.items() if owner is rows]
            for name in names:
                self._free(name)
            if self._engine is None or self._failure is not None:
                continue
            if names:
                self._engine.abort_request(names)
            if rows.selection.number >= 0:
                rows.finite = self._selector.remove(rows.selection)
        self._leaving.clear()

    def _free(self, name: str) -> tuple[EngineRows, RowRequest]:
        rows, request = self._running.pop(name)
        self._rows_free += 1
        self._positions_free += request.positions
        return rows, request


class EngineRows:
    """The rows of one phase; as a context manager, it leaves nothing in the engine.

    Args:
        engine: shared with other phases.
        stage: of the phase, for errors.
        groups: rows that must be in step.
        selection: decides their tokens.

    Raises:
        BudgetExceeded: the prompts of a group do not fit into one pass.

    Attributes:
        written: tokens of each row, once it has finished.
        finite: whether all hidden states were finite; known at the end.
        times: the engine's own timings of the requests that finished; ``None`` before the first.
    """

    def __init__(
        self,
        engine: SharedEngine,
        stage: str,
        groups: Sequence[Sequence[RowRequest]],
        selection: CodesSelection | TextSelection,
    ) -> None:
        self._engine = engine
        self.groups = groups
        self.selection = selection
        self.context = copy_context()
        self.written: dict[int, list[int]] = {}
        self.finite = True
        self.times: EngineTimes | None = None
        self._rows = sum(map(len, groups))
        self._read = 0
        for group in groups:
            if (needed := sum(len(request.prompt) for request in group)) > engine.group_tokens:
                raise BudgetExceeded(
                    f"the prompts of one song have {needed} tokens together, but the engine takes "
                    f"{engine.group_tokens} in a pass: shorten the lyrics or the negative prompt",
                    stage=stage,
                )

    def __enter__(self) -> Self:
        self._engine.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._engine.leave(self)

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return len(self.written) == self._rows

    def start(self) -> None:
        """Launch the first pass, which processes the prompts and gives the first tokens."""
        self._engine.run_until(lambda: self.finished or self.selection.passes > 0)

    def advance(self) -> None:
        """Launch the pass of the next tokens; those of the first are already launched."""
        self._read += 1
        self._engine.run_until(lambda: self.finished or self.selection.passes >= self._read)

    def finish(self) -> None:
        """Wait until every row has ended."""
        self._engine.run_until(lambda: self.finished)

    def take(self, row: int, output: Any) -> None:
        """Keep what a finished request wrote."""
        self.written[row] = list(output.outputs[0].token_ids)
        self.times = _slowest(self.times, output.metrics)


def _slowest(times: EngineTimes | None, stats: Any) -> EngineTimes:
    """Combine the engine's statistics of a request with those of others."""
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
