"""Cells on the nodes of a Ray cluster: an actor on each card, cells assigned longest first, all spans in one trace.

A lost actor is recorded with the reason, and its cell is run elsewhere once. Retries are implemented here, because
Ray's own are used up before a lost node is detected.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

from opentelemetry.trace import Span, StatusCode, set_span_in_context

from acestep.cards import Card
from acestep.types import GenerationRequest
from acestep_otel import __version__, semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.matrix import Cell, CellResult, Failure
from acestep_otel.profiler.benchmark.protocol import Order, Ready
from acestep_otel.profiler.benchmark.workers import combined, orders_of, warn_of_different_models
from acestep_otel.profiler.children.cards import card_attributes, card_json
from acestep_otel.profiler.children.processes import carrier_of, send_where_options_say
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.run.progress import CellBar, loading
from acestep_otel.profiler.telemetry.providers import Telemetry
from acestep_otel.profiler.terminal import echo, warn
from acestep_otel.profiler.tier_test.protocol import Refused

ATTEMPTS: Final = 2
"""How often a cell is started if its actors are lost."""
START_SECONDS: Final = 120.0
"""Seconds that the cluster may take to start the actors."""
CLOSE_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 1.0


@dataclass
class _Actor:
    """One actor.

    Attributes:
        index: index of its card.
        handle: Ray's handle.
        span: span of its process.
        card: its card; ``None`` before it is known.
        order: cell that it has; ``None`` while it has none.
    """

    index: int
    handle: Any
    span: Span
    card: Card | None = None
    order: Order | None = None


class RayCells:
    """Cells on a Ray cluster (``acestep_otel.profiler.benchmark.mode.Cells``).

    Used as a context manager: entering connects, starts an actor on every card, and waits until all know their device.
    """

    def __init__(self, options: Options, telemetry: Telemetry) -> None:
        """Check the options, without connecting.

        Raises:
            SetupError: Ray is not installed, or ``--gpus`` names cards of one host.
        """
        assert options.ray is not None
        try:
            import ray
        except ImportError:
            raise SetupError("--ray needs Ray: pip install 'acestep-otel[ray]'") from None
        if options.gpus is not None and options.gpus != "all" and not options.gpus.startswith("cpu:"):
            raise SetupError(f"--gpus {options.gpus} names cards of one host: with --ray choose all, or cpu:N")
        self._ray = ray
        self._on_cpu = options.gpus is not None and options.gpus.startswith("cpu:")
        self._options = replace(options, device="cpu" if self._on_cpu else "cuda")
        self._telemetry = telemetry
        self._tracer = telemetry.tracer_provider.get_tracer("acestep_otel", __version__, schema_url=semconv.SCHEMA_URL)
        self._actors: list[_Actor] = []
        self._calls: dict[Any, _Actor] = {}
        self._attempts: dict[Order, int] = {}
        self._waiting: deque[Order] = deque()
        self.cards: tuple[Card, ...] = ()
        self.memory = 0.0
        self.environment = Environment.current(ask_pytorch=False)
        self.models_line: str | None = None
        self.model_name = ""
        self.lost: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._root = self._tracer.start_span(semconv.BENCHMARK, attributes={semconv.CLOCK: "host"})
        try:
            self._connect()
            for index in range(self._count()):
                self._start(index)
            with loading(f"{len(self._actors)} actors", enabled=not self._options.no_progress):
                self._prepare()
        except BaseException:
            self._end()
            raise
        warn_of_different_models(self.cards)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def results(self, requests: Mapping[Cell, GenerationRequest]) -> Iterator[CellResult]:
        """Run every cell, longest first, and yield each result when it is complete.

        Raises:
            SetupError: an actor refuses the work.
            RunFailed: no actor is left for the remaining cells.
        """
        cells = list(requests)
        self._waiting.extend(orders_of(requests))
        left = len(cells)
        try:
            with CellBar(cells, enabled=not self._options.no_progress) as bar:
                for actor in self._actors:
                    self._load(actor)
                heard = time.monotonic()
                while left:
                    ended, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=_PATIENCE_SECONDS)
                    if ended or any(actor.card is not None for actor in self._calls.values()):
                        heard = time.monotonic()
                    elif time.monotonic() - heard > START_SECONDS:
                        raise RunFailed(
                            f"{left} of {len(cells)} cells were not run, no node has resources for an actor"
                        )
                    for call in ended:
                        result = self._receive(call, bar)
                        if result is not None:
                            left -= 1
                            bar.finish(result.cell)
                            yield result
        finally:
            self._end()

    def lines(self) -> Iterator[str]:
        """The lost actors, a line each."""
        for lost in self.lost:
            cell = "" if lost["cell"] is None else f" while it ran {Cell(**lost['cell'])}"
            yield f"{lost['card']['label']} on {lost['card']['host']} was lost{cell}: {lost['error']['message']}"

    # --- Actors ---------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        address = self._options.ray
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level="CRITICAL", ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SetupError(
                f"--ray {address}: no cluster responds ({first}): start one with `ray start --head`, "
                "or name its address"
            ) from error

    def _count(self) -> int:
        if self._on_cpu:
            return int(str(self._options.gpus).removeprefix("cpu:"))
        count = int(self._ray.cluster_resources().get("GPU", 0))
        if not count:
            raise SetupError(f"--ray {self._options.ray}: no node has a GPU; --gpus cpu:N runs N actors on CPUs")
        return count

    def _start(self, index: int) -> _Actor:
        from acestep_otel.profiler.benchmark.ray_actor import CellActor

        span = self._tracer.start_span(
            semconv.BENCHMARK_PROCESS, context=set_span_in_context(self._root), attributes={semconv.CLOCK: "host"}
        )
        resources = {"num_cpus": 1} if self._on_cpu else {"num_gpus": 1}
        remote = self._ray.remote(CellActor).options(
            **resources,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": actor_environment(os.environ, self._options)},
        )
        self._actors.append(_Actor(index, remote.remote(self._options, index), span))
        return self._actors[-1]

    def _prepare(self) -> None:
        """Wait until every actor has determined its device."""
        calls = {actor.handle.prepare.remote(): actor for actor in self._actors}
        ended, waiting = self._ray.wait(list(calls), num_returns=len(calls), timeout=START_SECONDS)
        if waiting:
            raise SetupError(
                f"--ray {self._options.ray}: {len(waiting)} of {len(calls)} actors were not started within "
                f"{START_SECONDS:g} s: the cluster has too few free resources"
            )
        ready: list[Ready] = []
        for call in ended:
            try:
                answer = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                raise SetupError(
                    f"--ray {self._options.ray}: an actor could not be started: {_reason(error)}"
                ) from error
            if isinstance(answer, Refused):
                raise SetupError(answer.failure.message)
            said, calls[call].card, _ = answer
            ready.append(said)
        self.cards = tuple(actor.card for actor in self._actors if actor.card is not None)
        together = combined(ready)
        self.memory, self.environment = together.memory, together.environment

    def _receive(self, call: Any, bar: CellBar) -> CellResult | None:
        """Process the end of a call; returns a row if a cell is complete."""
        actor = self._calls.pop(call)
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayTaskError as error:
            # A defect in the actor; it stays usable.
            return self._over(actor, bar, Failure("Crashed", _reason(error), None))
        except self._ray.exceptions.RayError as error:
            return self._lose(actor, bar, error)
        if isinstance(answer, Refused):
            raise SetupError(answer.failure.message)
        if actor.card is None:
            _, actor.card, _ = answer
            self._load(actor)
            return None
        said, spans = answer
        for otlp in spans:
            self._telemetry.adopt(FinishedSpan.from_otlp_json([otlp]))
        self._telemetry.write_ended_spans()
        if actor.order is None:
            self._describe(said.model_name, said.placement)
            self._hand_out(actor, bar)
            return None
        self.models_line = said.models_line or self.models_line
        actor.order = None
        self._hand_out(actor, bar)
        result: CellResult = said.result
        return replace(result, card=actor.card)

    def _load(self, actor: _Actor) -> None:
        assert actor.card is not None
        actor.span.set_attributes(card_attributes(actor.card))
        self._calls[actor.handle.load.remote(carrier_of(actor.span))] = actor

    def _describe(self, model_name: str, placement: tuple[str, ...]) -> None:
        """Print the placement of the models once: it is equal for every actor."""
        if not self.model_name:
            self.model_name = model_name
            for line in placement:
                echo(line)

    def _hand_out(self, actor: _Actor, bar: CellBar) -> None:
        """Give an actor the next cell, if there is one; it remains for cells that other actors may lose."""
        assert actor.card is not None
        if not self._waiting:
            bar.show_card(actor.card, None)
            return
        actor.order = order = self._waiting.popleft()
        self._attempts[order] = self._attempts.get(order, 0) + 1
        bar.start(order.cell, actor.card)
        self._calls[actor.handle.run.remote(order, carrier_of(actor.span))] = actor

    def _over(self, actor: _Actor, bar: CellBar, failure: Failure) -> CellResult | None:
        order, actor.order = actor.order, None
        if order is None:
            raise RunFailed(f"the models could not be loaded: {failure.message}")
        self._hand_out(actor, bar)
        return CellResult(order.cell, (), failure, (), actor.card)

    def _lose(self, actor: _Actor, bar: CellBar, error: Exception) -> CellResult | None:
        """Record a lost actor, queue its cell once more, and request another actor."""
        order, actor.order = actor.order, None
        failure = Failure(type(error).__name__, _reason(error), None)
        actor.span.set_attribute(semconv.ERROR_TYPE, failure.type)
        actor.span.set_status(StatusCode.ERROR, failure.type)
        actor.span.end()
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)
        self._actors.remove(actor)
        if actor.card is not None:
            cell = None if order is None else asdict(order.cell)
            self.lost.append({"card": card_json(actor.card), "cell": cell, "error": asdict(failure)})
            warn(list(self.lines())[-1])
            bar.show_card(actor.card, None)
        # It starts when a node has room for it: at once, if only the process was lost.
        another = self._start(actor.index)
        self._calls[another.handle.prepare.remote()] = another
        if order is None:
            return None
        if self._attempts[order] >= ATTEMPTS:
            return CellResult(order.cell, (), failure, (), actor.card)
        self._waiting.appendleft(order)
        # An idle actor takes it at once; otherwise the next one that becomes idle.
        busy = list(self._calls.values())
        idle = next((other for other in self._actors if not any(other is found for found in busy)), None)
        if idle is not None:
            self._hand_out(idle, bar)
        return None

    def _end(self) -> None:
        """Have every actor deliver its telemetry, and end it."""
        if self._ray.is_initialized():
            with suppress(Exception):
                idle = [actor for actor in self._actors if actor.order is None and actor.card is not None]
                closing = [actor.handle.close.remote() for actor in idle]
                if closing:
                    self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
            for actor in self._actors:
                self._ray.kill(actor.handle)
            self._ray.shutdown()
        for actor in self._actors:
            actor.span.end()
        self._actors.clear()
        self._calls.clear()
        if self._root.is_recording():
            self._root.end()


def actor_environment(inherited: Mapping[str, str], options: Options) -> dict[str, str]:
    """The variables of an actor in addition to its node's: the driver's telemetry settings.

    Args:
        inherited: the driver's own.
        options: of the command line.
    """
    environment = {name: value for name, value in inherited.items() if name.startswith(("OTEL_", "ACESTEP_"))}
    # Spans go through the driver, which outlives the actor.
    environment["OTEL_TRACES_EXPORTER"] = "none"
    send_where_options_say(environment, options)
    return environment


def _reason(error: Exception) -> str:
    """The first line of an error of Ray, which may continue with a page of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
