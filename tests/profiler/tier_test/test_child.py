"""A job done by the child's own code, in this process: real runs on the tiny models, and errors at critical points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from acestep.errors import BudgetExceeded, OutOfMemory, PlacementUnavailable
from acestep.renderer.renderer import Renderer
from acestep_otel import semconv
from acestep_otel.profiler.options import Options
from acestep_otel.profiler.report.spans import FinishedSpan
from acestep_otel.profiler.tier_test import child
from acestep_otel.profiler.tier_test.child import ran_out_of_memory, serve
from acestep_otel.profiler.tier_test.memory import UseBefore
from acestep_otel.profiler.tier_test.plan import Plan
from acestep_otel.profiler.tier_test.protocol import Event, Finished, Refused, Spans, StageMark, Started


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MAX_CUDA_VRAM", "8")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def served(job: int = 0, **options: Any) -> list[Event]:
    """What a child says of one job on a card of 8 GB."""
    given = {"tiers": (8,), "tiny": True, "device": "cpu", "duration": 10.0, "inference_steps": 2, **options}
    events: list[Event] = []
    serve(Plan.of(Options(mode="tier-test", **given), 8).jobs[job], events.append, UseBefore({}))
    return events


def finished(events: list[Event]) -> list[Finished]:
    return [event for event in events if isinstance(event, Finished)]


def spans(events: list[Event]) -> list[FinishedSpan]:
    return list(FinishedSpan.from_otlp_json([event.otlp for event in events if isinstance(event, Spans)]))


def test_a_child_reports_its_tier_before_loading_and_every_stage_as_it_begins() -> None:
    """R62, R63: tier detection, then the models."""
    events = served(tier_with_lm=True)
    started = events[0]
    assert isinstance(started, Started)
    assert (started.device, started.config["tier"]) == ("cpu", "tier4")
    marks = [(event.name, event.ended) for event in events if isinstance(event, StageMark)]
    loads = [name for name, ended in marks if ended and name == semconv.MODEL_LOAD]
    assert len(loads) == 2
    for name in (semconv.GENERATE_MUSIC, semconv.LM_CODES, semconv.CONDITION, semconv.DIT, semconv.VAE_DECODE):
        assert marks.index((name, False)) < marks.index((name, True))
    (done,) = finished(events)
    seen = done.observation
    assert (done.failure, seen.initialised, seen.cap, seen.memory) == (None, True, None, None)
    assert seen.audio is not None
    assert (seen.audio.songs, seen.audio.durations, seen.audio.thought) == (1, (10.0,), 1)
    assert seen.audio.finite
    assert seen.figures is not None
    assert seen.figures.lm_time > 0
    assert seen.effective is not None
    assert seen.effective["vae_decode"]["rung"] == "cpu"


def test_spans_say_which_trial_they_are_of() -> None:
    events = served(tier_batch_boundary=True, inference_steps=1)
    roots = [span for span in spans(events) if span.name == semconv.GENERATE_MUSIC]
    assert [(root.attributes[semconv.TIER_VARIANT], root.attributes[semconv.BATCH_SIZE]) for root in roots] == [
        (f"batch-noLM-{size}", size) for size in (1, 2, 4, 8)
    ]
    assert {root.attributes[semconv.TIER_NAME] for root in roots} == {"tier4"}


def test_batches_share_one_load_and_end_at_the_first_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """R91."""
    denoise = Renderer.denoise

    def full(renderer: Renderer, conditions: Any, schedule: Any, guidance: Any, noise: Any, *rest: Any) -> Any:
        if noise.shape[0] == 4:
            raise torch.OutOfMemoryError("no room for 3 GiB")
        return denoise(renderer, conditions, schedule, guidance, noise, *rest)

    # Below the tracing layer, which wraps the class's own method.
    monkeypatch.setattr(Renderer, "denoise", full)
    events = served(tier_batch_boundary=True, inference_steps=1)
    assert [(done.trial, done.out_of_memory) for done in finished(events)] == [(0, False), (1, False), (2, True)]
    failed = finished(events)[-1]
    assert failed.failure is not None
    assert "no room for 3 GiB" in failed.failure.message
    assert (failed.observation.initialised, failed.observation.figures) == (True, None)
    assert (
        sum(event.name == semconv.MODEL_LOAD and event.ended for event in events if isinstance(event, StageMark)) == 1
    )


def test_another_failure_does_not_end_the_escalation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode, calls = Renderer.noise, iter([False, True, False, False])

    def fails_once(*arguments: Any) -> Any:
        if next(calls):
            raise ZeroDivisionError("a bug")
        return decode(*arguments)

    monkeypatch.setattr(Renderer, "noise", fails_once)
    events = served(tier_batch_boundary=True, inference_steps=1)
    assert [done.failure is None for done in finished(events)] == [True, False, True, True]
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


def test_models_that_do_not_fit_are_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """R63."""

    def full(selection: Any) -> Any:
        raise OutOfMemory("no room for the weights", stage="model.load")

    monkeypatch.setattr(child, "load_models", full)
    (done,) = finished(served())
    assert done.out_of_memory
    assert done.observation.initialised is False
    assert done.observation.run is not None
    assert done.observation.run["error"]["stage"] == "model.load"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": "tpu"}, "DeviceUnavailable"),
        ({"tiny": False, "config_path": "absent"}, "CheckpointNotFound"),
    ],
)
def test_what_cannot_be_set_up_is_refused(options: dict[str, Any], error: str) -> None:
    refused = served(**options)[-1]
    assert isinstance(refused, Refused)
    assert refused.failure.type == error


def test_memory_is_capped_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """R82: through the engine's one function for it."""
    order: list[str] = []
    load, cap = child.load_models, child.enforce_memory_cap
    monkeypatch.setattr(child, "enforce_memory_cap", lambda *limit: order.append("cap") or cap(*limit))
    monkeypatch.setattr(child, "load_models", lambda selection: order.append("load") or load(selection))
    served()
    assert order == ["cap", "load"]


def test_the_engine_is_as_it_was_afterwards() -> None:
    before = vars(Renderer)["denoise"]
    served()
    assert vars(Renderer)["denoise"] is before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OutOfMemory("no room", stage="dit"), True),
        (torch.OutOfMemoryError("no room"), True),
        (BudgetExceeded("needs 3 GiB, but only 1 GiB are free", stage="lm.codes"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("an illegal memory access was encountered"), False),
        (PlacementUnavailable("no"), False),
        (None, False),
    ],
)
def test_a_lack_of_memory_is_known_by_type_or_by_word(error: BaseException | None, expected: bool) -> None:
    assert ran_out_of_memory(error) is expected


def test_a_lack_of_memory_underneath_counts() -> None:
    error = RuntimeError("the stage failed")
    error.__cause__ = torch.OutOfMemoryError("no room")
    assert ran_out_of_memory(error)
