"""The head of a run: the call, its models and device, and the key figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown, breakdown_rows
from acestep_otel.profiler.report.html.figure import preparation_facts
from acestep_otel.profiler.report.html.quantities import duration, number, share, size
from acestep_otel.profiler.report.spans import Preparation, Run
from acestep_otel.profiler.report.statistics import memory_peaks, token_statistics


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure: its name, its value, and its reference."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Headline:
    """The head of a run.

    Attributes:
        title: the call.
        models: names of the models, and the language model's backend.
        setting: device, type and origin of the weights.
        started: ISO 8601, UTC.
        trace_id: of the trace.
        failure: class name of what ended the run, or ``None``.
        tiles: the figures.
        bottleneck: one sentence on the longest component, or ``None`` if there is none.
        preparation: durations of loading and warm-up, as text.
    """

    title: str
    models: tuple[str, ...]
    setting: tuple[str, ...]
    started: str
    trace_id: str
    failure: str | None
    tiles: tuple[Tile, ...]
    bottleneck: str | None = None
    preparation: tuple[str, ...] = ()


def headline(run: Run, preparation: Preparation | None = None, card: int | None = None) -> Headline:
    """Compute it from the spans of a run.

    Args:
        run: the measured run.
        preparation: its preparation.
        card: bytes that the card has; ``None`` off CUDA.
    """
    root = run.root.attributes
    return Headline(
        title=run.root.name,
        models=tuple(_models(run)),
        setting=tuple(str(root[name]) for name in (semconv.DEVICE, semconv.DTYPE, semconv.WEIGHTS) if name in root),
        started=datetime.fromtimestamp(run.root.start_ns // 10**9, UTC).isoformat(),
        trace_id=run.root.trace_id,
        failure=(run.root.error or "error") if run.root.status == "error" else None,
        tiles=tuple(_tiles(run, card)),
        preparation=preparation_facts(preparation),
        bottleneck=_bottleneck(Breakdown.of(run)),
    )


_ADVICE: Final[dict[str, str]] = {
    "planner": "see its phases below: fewer tokens, a smaller language model or another backend shorten it",
    "diffusion": "fewer steps or a turbo model shorten it",
    "vae_decode": "longer tiles, if the memory allows, shorten it",
    "vae_encode": "a shorter source or reference shortens it",
    "audio_tokenization": "a shorter recording shortens it",
    "audio_save": "another audio format or a faster disk shortens it",
    "other": "it is spent outside of the models' rows: conditioning, loading and moving weights",
}


def _bottleneck(breakdown: Breakdown) -> str | None:
    """The longest row without a parent, with advice on how to shorten it."""
    rows = [row for row in breakdown_rows(breakdown) if row.component in _ADVICE and row.value]
    if not rows:
        return None
    longest = max(rows, key=lambda row: row.value or 0.0)
    name = longest.label.removesuffix(" (total)")
    return f"Most of the time is {name}: {share(longest.percent)} of the wall time; {_ADVICE[longest.component]}."


def _models(run: Run) -> Iterator[str]:
    named: dict[str, str] = {}
    for span in (run.root, *run.named(semconv.LM)):
        if (model := span.attributes.get(semconv.REQUEST_MODEL)) is not None:
            named[str(model)] = str(span.attributes.get(semconv.LM_BACKEND, ""))
    for model, backend in named.items():
        yield f"{model} ({backend})" if backend else model


def _tiles(run: Run, card: int | None) -> Iterator[Tile]:
    root = run.root.attributes
    yield Tile("Wall time", duration(run.root.seconds))
    songs, length = root.get(semconv.BATCH_SIZE), root.get(semconv.AUDIO_DURATION)
    if songs and length:
        yield Tile("Audio", f"{songs * length:g} s", f"{songs} × {length:g} s")
        per_second = run.root.seconds / (songs * length)
        yield Tile("Compute per second of audio", duration(per_second), _speed(per_second))
    breakdown = Breakdown.of(run)
    if breakdown.step_average is not None:
        yield Tile("Denoising steps", number(breakdown.steps), f"{duration(breakdown.step_average)} each")
    if phases := token_statistics(run):
        last = phases[-1]
        yield Tile("Tokens per second", number(last.tokens_per_second), last.phase)
    if peaks := memory_peaks(run):
        highest = max(peaks, key=lambda peak: peak.reserved)
        of_card = "" if card is None else f"; {share(100 * highest.reserved / card)} of {size(card)}"
        yield Tile("Peak VRAM", size(highest.reserved), f"reserved, in {highest.stage}{of_card}")


def _speed(seconds_per_second: float) -> str:
    return f"{number(1 / seconds_per_second)}× real time" if seconds_per_second else ""
