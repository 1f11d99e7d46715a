"""The mode itself, in the parent process: starts children, judges their results, and reports.

Without ``--gpus`` one child runs after the other, in the plan's order; with it one at a time on each card, the longest
first.

The parent never uses CUDA, so it uses no memory of any card, and no failure of a child can end it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from opentelemetry.trace import Span, StatusCode

from acestep.cards import Card, models_of
from acestep.validation import validate
from acestep_otel import __version__, semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.matrix import Failure
from acestep_otel.profiler.children.cards import card_attributes, card_lines, chosen_cards
from acestep_otel.profiler.children.processes import Child, Children, Ending, carrier_of
from acestep_otel.profiler.errors import RunFailed
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.environment import Environment
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.run.example import load_example
from acestep_otel.profiler.run.measurement import setup_errors
from acestep_otel.profiler.run.outputs import require_outputs, write_outputs
from acestep_otel.profiler.run.progress import TrialBar
from acestep_otel.profiler.telemetry.providers import Telemetry, require_tracing
from acestep_otel.profiler.terminal import echo
from acestep_otel.profiler.tier_test.forwarding import OpenStages
from acestep_otel.profiler.tier_test.launcher import child_environment, start_child
from acestep_otel.profiler.tier_test.outputs import Outputs, decisive_failure, record_row
from acestep_otel.profiler.tier_test.plan import Plan, Trials, longest_first, trial_attributes, trial_request
from acestep_otel.profiler.tier_test.protocol import Event, Finished, Refused, Spans, StageMark, Started, decode
from acestep_otel.profiler.tier_test.trials import TierResult, Trial
from acestep_otel.profiler.tier_test.verdict import ended, judge, skipped
from acestep_otel.recording.instruments import Instruments


def tier_test(options: Options, telemetry: Telemetry) -> None:
    """Run the mode: the tables go to standard output, files go where the options say.

    Raises:
        SetupError: an input cannot be used; nothing was run.
        RunFailed: a tier fails with its own settings; every row is in the table.
        OSError: the result, the page or the trace could not be written.
    """
    require_tracing("a tier test", options, telemetry)
    require_outputs(options)
    example = load_example(options.example)
    plan = Plan.of(options, example.inference_steps)
    with setup_errors():
        for row in plan.rows:
            validate(trial_request(example, options, row.trial))
    cards = () if options.gpus is None else _like_cards(options.gpus, options.device)
    beside = f"on {len(cards)} cards" if len(cards) > 1 else "one after the other"
    echo(f"{len(plan.rows)} rows, {len(plan.jobs)} processes, {beside}")
    for line in card_lines(cards):
        echo(line)
    test = _TierTest(options, telemetry, plan, cards)
    try:
        test.run()
    finally:
        # Refused work has nothing to report.
        if any(result.tried for result in test.rows):
            test.report()
    if (failure := decisive_failure(test.rows)) is not None:
        raise RunFailed(failure)


def _like_cards(gpus: str, device: str) -> tuple[Card, ...]:
    """Require cards of one model: the rows that a boundary combines must be comparable."""
    cards = chosen_cards(gpus, device)
    if len(models := models_of(cards)) > 1:
        raise SetupError(
            f"--gpus {gpus}: the cards are of different models ({', '.join(models)}), and a tier test combines "
            "its rows: choose cards of one model"
        )
    return cards


@dataclass
class _TierTest:
    """A running tier test, and its rows so far."""

    options: Options
    telemetry: Telemetry
    plan: Plan
    cards: tuple[Card, ...] = ()
    environment: Environment = field(default_factory=lambda: Environment.current(ask_pytorch=False))
    results: dict[Trial, TierResult] = field(default_factory=dict)
    device: str | None = None

    def __post_init__(self) -> None:
        self.outputs = Outputs(self.options, self.plan)
        self.instruments = Instruments(self.telemetry.meter_provider.get_meter("acestep_otel", __version__))
        self.tracer = self.telemetry.tracer_provider.get_tracer(
            "acestep_otel", __version__, schema_url=semconv.SCHEMA_URL
        )
        for row in self.plan.rows:
            if row.skipped is not None:
                self.results[row.trial] = skipped(row.trial, row.skipped)

    def run(self) -> None:
        """Run every job: one child at a time on each card."""
        jobs = deque(longest_first(self.plan.jobs) if self.cards else self.plan.jobs)
        free: deque[Card | None] = deque(self.cards or (None,))
        running: dict[Child, _Child] = {}
        trials = [trial for job in self.plan.jobs for trial in job.trials]
        with (
            self.tracer.start_as_current_span(semconv.TIER_TEST),
            TrialBar(trials, enabled=not self.options.no_progress) as bar,
            Children(decode) as children,
        ):
            try:
                while True:
                    while free and (job := self.next_job(jobs, bar)) is not None:
                        started = _Child(self, job, free.popleft(), bar)
                        running[started.start(children)] = started
                    if not running:
                        return
                    child, event = children.next_event()
                    if isinstance(event, Ending):
                        ended = running.pop(child)
                        self.end_job(ended, event)
                        free.append(ended.card)
                    else:
                        if isinstance(event, Finished):
                            child.proceed()
                        running[child].receive(event)
            finally:
                for left in running.values():
                    left.end_spans()

    def next_job(self, jobs: deque[Trials], bar: TrialBar) -> Trials | None:
        """The next job whose result is not already known; ``None`` if there is none."""
        while jobs:
            job = jobs.popleft()
            if (reason := self.pointless(job)) is None:
                return job
            self.skip(job.trials, reason)
            bar.finish(job.trials)
        return None

    def end_job(self, child: _Child, ending: Ending) -> None:
        """Process the end of a child; afterwards every trial of its job has a row."""
        child.end_spans(ending)
        self.telemetry.write_ended_spans()
        if ending.traceback is not None:
            # A defect: the traceback is printed, because the rows have no field for it.
            echo(ending.traceback, err=True)
        self.record_ending(child.job, child, ending)
        child.bar.finish(child.job.trials)

    def record_ending(self, job: Trials, child: _Child, ending: Ending) -> None:
        """Create a row for every trial that the child did not finish."""
        left = [trial for trial in job.trials if trial not in self.results]
        if not left:
            return
        done = [self.results[trial] for trial in job.trials if trial in self.results]
        if child.refusal is not None:
            if not any(result.tried for result in self.results.values()):
                raise SetupError(child.refusal.message)
            culprit = TierResult(left.pop(0), "failed", child.refusal, card=child.card)
            self.note(culprit)
        elif done and _ends_its_process(done[-1]):
            culprit = done[-1]
        else:
            running = child.stages.innermost
            stage = None if running is None else semconv.stage_of(running)
            culprit = replace(ended(left.pop(0), ending, stage), card=child.card)
            self.note(culprit)
        assert culprit.failure is not None
        self.skip(left, f"not tried after {culprit.trial.variant}: {culprit.failure.type}")

    def pointless(self, job: Trials) -> str | None:
        """Why a job would only repeat the result of its tier's default; known after the first child."""
        if (
            self.device is None
            or self.device.startswith("cuda")
            or job.trials[0].kind not in ("no-quant", "no-offload")
        ):
            return None
        return f"on {self.device} nothing is quantised or offloaded: the result would equal the default"

    def skip(self, trials: list[Trial] | tuple[Trial, ...], reason: str) -> None:
        """Add rows for trials that are not tried."""
        for trial in trials:
            self.note(skipped(trial, reason))

    def note(self, result: TierResult) -> None:
        """Add a row, record its metrics and write the result file."""
        self.results[result.trial] = result
        record_row(self.instruments, result)
        # A full disk may have room again at the end; the rows are kept in either case.
        with suppress(OSError):
            self.write()

    @property
    def rows(self) -> list[TierResult]:
        """The rows so far, in the plan's order."""
        return [self.results[row.trial] for row in self.plan.rows if row.trial in self.results]

    def write(self) -> None:
        """Write the result file, if one was requested."""
        self.outputs.write_result(self.rows, self.environment)

    def report(self) -> None:
        """Write the files, and print the tables."""
        self.outputs.record_boundaries(self.instruments, self.rows)
        write_outputs(
            (
                ("Result", self.options.benchmark_output, self.write),
                ("Report", self.options.report, lambda: self.outputs.write_page(self.rows, self.environment)),
                ("Trace", self.options.trace_output, self.telemetry.write_trace_file),
            ),
            lambda: self.outputs.lines(self.rows),
        )


class _Child:
    """The parent's state of a running child.

    Attributes:
        job: its job.
        card: its card; ``None`` if there is only one.
        bar: progress bar that shows its stage.
        stages: its open stages.
        refusal: why it refused the job, or ``None``.
    """

    def __init__(self, test: _TierTest, job: Trials, card: Card | None, bar: TrialBar) -> None:
        self.job = job if card is None else job.on(card)
        self.card = card
        self.bar = bar
        self.stages = OpenStages()
        self.refusal: Failure | None = None
        self._test = test
        self._config: dict[str, Any] = {}

    def start(self, children: Children[Event]) -> Child:
        """Start the process, below a span of its own."""
        card = {} if self.card is None else card_attributes(self.card)
        attributes = {**trial_attributes(self.job.trials[0]), **card, semconv.CLOCK: "host"}
        self._span = self._test.tracer.start_span(semconv.TIER_PROCESS, attributes=attributes)
        inherited: Mapping[str, str] = os.environ
        if self.card is not None:
            inherited = self.card.environment(inherited, cards=len(self._test.cards))
        environment = child_environment(inherited, self.job, trace_parent=carrier_of(self._span)["traceparent"])
        return start_child(children, self.job, environment, self._test.options.tier_timeout)

    def end_spans(self, ending: Ending | None = None) -> None:
        """End the span of the process, and create spans of its open stages.

        Args:
            ending: how it ended; ``None`` if this process ends before it.
        """
        self.stages.trace(self._test.tracer, self._span, time.time_ns())
        if ending is not None:
            _describe(self._span, ending)
        self._span.end()

    def receive(self, event: Event) -> None:
        """Process one event."""
        match event:
            case Started():
                self._config = event.config
                self._test.device = event.device
                self._test.environment = event.environment
            case Refused():
                self.refusal = event.failure
            case StageMark():
                self.stages.follow(event)
                self.bar.show(self.job.trials[event.trial], semconv.stage_of(event.name), self.card)
            case Spans():
                self._test.telemetry.adopt(FinishedSpan.from_otlp_json([event.otlp]))
            case Finished():
                self._test.note(replace(judge(self.job.trials[event.trial], self._config, event), card=self.card))


def _ends_its_process(result: TierResult) -> bool:
    """Whether a child ends itself after such a row: memory ran out, or no models were loaded."""
    seen = result.observation
    return result.status == "out_of_memory" or (seen is not None and not seen.initialised)


def _describe(span: Span, ending: Ending) -> None:
    span.set_attribute(semconv.TIER_EXIT_CODE, ending.exit_code)
    if ending.timed_out or ending.exit_code != 0:
        span.set_attribute(semconv.ERROR_TYPE, "Timeout" if ending.timed_out else "Crashed")
        span.set_status(StatusCode.ERROR, "Timeout" if ending.timed_out else f"exit code {ending.exit_code}")
