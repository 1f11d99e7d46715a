"""Draws docs/images/demo.svg from what `make demo` left in output/: the breakdown, and the trace it came from.

Run `make demo`, then `python docs/render_demo.py`.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from acestep_otel import semconv
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.spans import FinishedSpan, Run, measured_runs
from acestep_otel.profiler.report.terminal import render_breakdown

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 100
BAR_WIDTH = 52
COLOURS = {
    semconv.LM: "medium_purple1",
    semconv.CONDITION: "dark_orange",
    semconv.DIT: "dodger_blue1",
    semconv.VAE_DECODE: "spring_green2",
    semconv.AUDIO_SAVE: "gold1",
}


def waterfall(run: Run) -> list[Text]:
    """One line per span: its place in the tree, its duration, and when it ran."""
    children: dict[str | None, list[FinishedSpan]] = {}
    for span in sorted(run.spans, key=lambda span: span.start_ns):
        children.setdefault(span.parent_id, []).append(span)

    lines: list[Text] = []

    def add(span: FinishedSpan, depth: int, colour: str) -> None:
        colour = COLOURS.get(span.name, colour)
        name = ("  " * depth + span.name.removeprefix("acestep.")).ljust(22)
        scale = BAR_WIDTH / (run.root.end_ns - run.root.start_ns)
        start = int((span.start_ns - run.root.start_ns) * scale)
        length = max(1, round((span.end_ns - span.start_ns) * scale))
        line = Text(f"  {name}{span.seconds * 1e3:>10.1f} ms  ")
        line.append(" " * start + "█" * min(length, BAR_WIDTH - start), style=colour)
        lines.append(line)
        for child in children.get(span.span_id, ()):
            add(child, depth + 1, colour)

    add(run.root, 0, "white")
    return lines


def main() -> None:
    """Draw the picture."""
    trace = ROOT / "output" / "trace.jsonl"
    run = measured_runs(list(FinishedSpan.from_otlp_json(trace.read_text(encoding="utf-8").splitlines())))[-1]
    console = Console(record=True, width=WIDTH + 4, force_terminal=True)
    console.print(Text("$ make demo", style="bold"))
    console.print(Text(render_breakdown(Breakdown.of(run))))
    console.print()
    for line in waterfall(run):
        console.print(line, no_wrap=True, overflow="crop")
    path = ROOT / "docs" / "images" / "demo.svg"
    console.save_svg(str(path), title="where did the time go?", theme=MONOKAI)


if __name__ == "__main__":
    main()
