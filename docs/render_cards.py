"""Draws the trace of a benchmark on several cards as docs/images/cards.svg: a lane per card, a bar per request.

Run `python docs/render_cards.py TRACE.jsonl`, with a trace that `--gpus ... --trace-output TRACE.jsonl` wrote.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from acestep_otel import semconv
from acestep_otel.profiler.report.spans import FinishedSpan

TARGET = Path(__file__).resolve().parent / "images" / "cards.svg"
WIDTH, LEFT, TOP, LANE, BAR = 1100, 90, 54, 44, 26
COLOURS = {"load": "#8b949e", "warm-up": "#79c0ff", "measured": "#1f6feb", "with language model": "#8957e5"}


def kind(span: FinishedSpan) -> str | None:
    """What a bar stands for; ``None`` for a span that has none."""
    if span.name == semconv.MODEL_LOAD:
        return "load"
    if span.name != semconv.GENERATE_MUSIC:
        return None
    if span.attributes.get(semconv.WARMUP):
        return "warm-up"
    return "with language model" if span.attributes.get(semconv.THINKING) else "measured"


def picture(spans: Sequence[FinishedSpan]) -> str:
    """The drawing.

    Raises:
        SystemExit: the trace is not one of several cards.
    """
    lanes: dict[str, list[FinishedSpan]] = defaultdict(list)
    for span in spans:
        if kind(span) is not None and semconv.WORKER in span.attributes:
            lanes[str(span.attributes[semconv.WORKER])].append(span)
    roots = [span for span in spans if span.name == semconv.BENCHMARK]
    if not lanes or len(roots) != 1:
        raise SystemExit("not the trace of one benchmark on several cards: run it with --gpus and --trace-output")
    start, end = roots[0].start_ns, roots[0].end_ns
    scale = (WIDTH - LEFT - 20) / (end - start)
    height = TOP + LANE * len(lanes) + 40
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="15">One trace, {len(lanes)} cards, {len(spans)} spans, '
        f"{(end - start) / 1e9:.1f} s</text>",
        *legend(),
    ]
    for number, (label, found) in enumerate(sorted(lanes.items())):
        top = TOP + LANE * number
        lines.append(f'<text x="8" y="{top + BAR / 2 + 5}">{escape(label)}</text>')
        lines.append(f'<rect x="{LEFT}" y="{top}" width="{(end - start) * scale:.2f}" height="{BAR}" fill="#f0f2f5"/>')
        lines += [bar(span, LEFT + (span.start_ns - start) * scale, top, scale) for span in found]
    lines += list(axis((end - start) / 1e9, height - 22, scale * 1e9))
    return "\n".join([*lines, "</svg>", ""])


def legend() -> Iterator[str]:
    """What the colours mean."""
    x = LEFT
    for name, colour in COLOURS.items():
        yield f'<rect x="{x}" y="30" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 17}" y="41">{name}</text>'
        x += 40 + 8 * len(name)


def bar(span: FinishedSpan, x: float, top: int, scale: float) -> str:
    """One span, with its title for the pointer."""
    what = kind(span)
    assert what is not None
    seconds = (span.end_ns - span.start_ns) / 1e9
    cell = span.attributes.get(semconv.BENCHMARK_CELL)
    title = f"{what}, {seconds:.2f} s" + ("" if cell is None else f", cell {cell}")
    width = max(0.5, (span.end_ns - span.start_ns) * scale - 0.4)
    return (
        f'<rect x="{x:.2f}" y="{top}" width="{width:.2f}" height="{BAR}" fill="{COLOURS[what]}">'
        f"<title>{title}</title></rect>"
    )


def axis(seconds: float, y: float, scale: float) -> Iterator[str]:
    """Marks of a round number of seconds, five to ten of them."""
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 3600) if seconds / step <= 10)
    for number in range(int(seconds / step) + 1):
        x = LEFT + number * step * scale
        yield f'<text x="{x:.1f}" y="{y + 14}" text-anchor="middle" fill="#57606a">{number * step:g} s</text>'


def main() -> None:
    """Draw the trace that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with Path(sys.argv[1]).open(encoding="utf-8") as lines:
        spans = list(FinishedSpan.from_otlp_json(lines))
    TARGET.write_text(picture(spans), "utf-8")
    print(TARGET)  # noqa: T201


if __name__ == "__main__":
    main()
