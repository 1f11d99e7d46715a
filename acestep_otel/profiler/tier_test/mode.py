"""The mode itself, in the parent process: starts children one by one, evaluates their events, and reports.

The parent never uses CUDA, so it uses no memory of any card, and no failure of a child can end it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import Span, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from acestep.validation import validate
from acestep_otel import __version__, semconv
from acestep_otel.errors import SetupError
from acestep_otel.profiler.benchmark.matrix import Failure
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
from acestep_otel.profiler.tier_test.launcher import Ending, child_environment, run_child
from acestep_otel.profiler.tier_test.outputs import Outputs, decisive_failure, record_row
from acestep_otel.profiler.tier_test.plan import Plan, Trials, trial_attributes, trial_request
from acestep_otel.profiler.tier_test.protocol import Event, Finished, Refused, Spans, StageMark, Started
from acestep_otel.profiler.tier_test.trials import TierResult, Trial
from acestep_otel.profiler.tier_test.verdict import ended, judge, skipped
from acestep_otel.recording.instruments import Instruments


def tier_test(options: Options, telemetry: Telemetry) -> None:
    """Run the mode: the tables go to standard output, files go where the options say.

    Raises:
        SetupError: an input cannot be used; nothing was run.
        RunFailed: a tier does not run by its own settings; every row is in the table.
        OSError: the result, the page or the trace could not be written.
    """
    require_tracing("a tier test", options, telemetry)
    require_outputs(options)
    example = load_example(options.example)
    plan = Plan.of(options, example.inference_steps)
    with setup_errors():
        for row in plan.rows:
            validate(trial_request(example, options, row.trial))
    echo(f"{len(plan.rows)} rows, {len(plan.jobs)} processes, one after the other")
    test = _TierTest(options, telemetry, plan)
    try:
        test.run()
    finally:
        # Of work that was refused there is nothing to report.
        if any(result.tried for result in test.rows):
            test.report()
    if (failure := decisive_failure(test.rows)) is not None:
        raise RunFailed(failure)


@dataclass
class _TierTest:
    """A tier test that is being run, and its rows so far."""

    options: Options
    telemetry: Telemetry
    plan: Plan
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
        """Run every job."""
        trials = [trial for job in self.plan.jobs for trial in job.trials]
        with (
            self.tracer.start_as_current_span(semconv.TIER_TEST),
            TrialBar(trials, enabled=not self.options.no_progress) as bar,
        ):
            for job in self.plan.jobs:
                self.run_job(job, bar)
                for trial in job.trials:
                    bar.finish(trial)

    def run_job(self, job: Trials, bar: TrialBar) -> None:
        """Run one child process; afterwards every trial of its job has a row."""
        if (reason := self.pointless(job)) is not None:
            self.skip(job.trials, reason)
            return
        first = job.trials[0]
        attributes = {**trial_attributes(first), semconv.CLOCK: "host"}
        with self.tracer.start_as_current_span(semconv.TIER_PROCESS, attributes=attributes) as span:
            child = _Child(self, job, bar)
            carrier: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(carrier)
            environment = child_environment(os.environ, job, trace_parent=carrier["traceparent"])
            try:
                ending = run_child(job, environment, self.options.tier_timeout, child.receive)
            finally:
                child.stages.trace(self.tracer, span, time.time_ns())
            _describe(span, ending)
        self.telemetry.write_ended_spans()
        if "Traceback (most recent call last):\n" in ending.errors:
            # A defect: its traceback is what helps, and the rows have no place for it.
            echo("".join(ending.errors), err=True)
        self.record_ending(job, child, ending)

    def record_ending(self, job: Trials, child: _Child, ending: Ending) -> None:
        """Give a row to every trial that the child did not get to."""
        left = [trial for trial in job.trials if trial not in self.results]
        if not left:
            return
        done = [self.results[trial] for trial in job.trials if trial in self.results]
        if child.refusal is not None:
            if not any(result.tried for result in self.results.values()):
                raise SetupError(child.refusal.message)
            culprit = TierResult(left.pop(0), "failed", child.refusal)
            self.note(culprit)
        elif done and _ends_its_process(done[-1]):
            culprit = done[-1]
        else:
            running = child.stages.innermost
            culprit = ended(left.pop(0), ending, None if running is None else semconv.stage_of(running))
            self.note(culprit)
        assert culprit.failure is not None
        self.skip(left, f"not tried after {culprit.trial.variant}: {culprit.failure.type}")

    def pointless(self, job: Trials) -> str | None:
        """Why a job would only repeat what its tier's default has shown; known once there was a child."""
        if (
            self.device is None
            or self.device.startswith("cuda")
            or job.trials[0].kind not in ("no-quant", "no-offload")
        ):
            return None
        return f"on {self.device} nothing is quantised or offloaded: the result would equal the default"

    def skip(self, trials: list[Trial] | tuple[Trial, ...], reason: str) -> None:
        """Note trials that are not tried."""
        for trial in trials:
            self.note(skipped(trial, reason))

    def note(self, result: TierResult) -> None:
        """Take in a row: it is measured, whatever comes after it."""
        self.results[result.trial] = result
        record_row(self.instruments, result)
        # A full disk now may have room again at the end; the rows are kept either way.
        with suppress(OSError):
            self.write()

    @property
    def rows(self) -> list[TierResult]:
        """The rows so far, in the plan's order."""
        return [self.results[row.trial] for row in self.plan.rows if row.trial in self.results]

    def write(self) -> None:
        """Write the result file, if one was asked for."""
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
    """State of the running child.

    Attributes:
        stages: that it is in.
        refusal: why it cannot do such work at all, or ``None``.
    """

    def __init__(self, test: _TierTest, job: Trials, bar: TrialBar) -> None:
        self.stages = OpenStages()
        self.refusal: Failure | None = None
        self._test = test
        self._job = job
        self._bar = bar
        self._config: dict[str, Any] = {}

    def receive(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case Started():
                self._config = event.config
                self._test.device = event.device
                self._test.environment = event.environment
            case Refused():
                self.refusal = event.failure
            case StageMark():
                self.stages.follow(event)
                self._bar.show(self._job.trials[event.trial], semconv.stage_of(event.name))
            case Spans():
                self._test.telemetry.adopt(FinishedSpan.from_otlp_json([event.otlp]))
            case Finished():
                self._test.note(judge(self._job.trials[event.trial], self._config, event))


def _ends_its_process(result: TierResult) -> bool:
    """Whether a child stops after such a row by itself: memory ran out, or there are no models."""
    seen = result.observation
    return result.status == "out_of_memory" or (seen is not None and not seen.initialised)


def _describe(span: Span, ending: Ending) -> None:
    span.set_attribute(semconv.TIER_EXIT_CODE, ending.exit_code)
    if ending.timed_out or ending.exit_code != 0:
        span.set_attribute(semconv.ERROR_TYPE, "Timeout" if ending.timed_out else "Crashed")
        span.set_status(StatusCode.ERROR, "Timeout" if ending.timed_out else f"exit code {ending.exit_code}")
