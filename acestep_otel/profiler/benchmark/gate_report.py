"""Reports of the gate, for people (text, Markdown) and for continuous integration (JUnit)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from acestep_otel.profiler.benchmark.gate import ALPHA, Judgement, Verdict

_MARKS: Final[dict[Verdict, str]] = {"ok": "✓", "faster": "✓", "slower": "✗", "not judged": "·"}


def _milliseconds(seconds: float | None) -> str:
    return "—" if seconds is None else f"{1000 * seconds:,.1f}"


def _change(judgement: Judgement) -> str:
    return "—" if judgement.change is None else f"{100 * judgement.change:+.1f} %"


def _p(judgement: Judgement) -> str:
    return "—" if judgement.p is None else f"{judgement.p:.4f}"


def render_gate(judgements: Sequence[Judgement]) -> str:
    """A line for each judged figure, and one about the others."""
    lines = [f"{'':2}{'Column':<12}{'Baseline (ms)':>15}{'Now (ms)':>12}{'Change':>10}{'p':>9}  Configuration"]
    for each in judgements:
        if each.verdict == "not judged":
            continue
        lines.append(
            f"{_MARKS[each.verdict]:2}{each.column:<12}{_milliseconds(each.before):>15}{_milliseconds(each.after):>12}"
            f"{_change(each):>10}{_p(each):>9}  {each.cell}{f': {each.why}' if each.why else ''}"
        )
    skipped = [each for each in judgements if each.verdict == "not judged"]
    if skipped:
        reasons = "; ".join(sorted({each.why for each in skipped}))
        lines.append(f"Not judged: {len(skipped)} of {len(judgements)} figures ({reasons})")
    return "\n".join(lines)


def render_markdown(title: str, judgements: Sequence[Judgement]) -> str:
    """A table for the summary of a job: failures first."""
    failed = [each for each in judgements if each.verdict == "slower"]
    order: list[Verdict] = ["slower", "faster", "ok", "not judged"]
    rows = [
        f"| {_MARKS[each.verdict]} {each.verdict} | {each.cell} | {each.column} | {_milliseconds(each.before)} | "
        f"{_milliseconds(each.after)} | {_change(each)} | {_p(each)} | {each.why} |"
        for each in sorted(judgements, key=lambda each: order.index(each.verdict))
    ]
    verdict = f"{len(failed)} of {len(judgements)} figures are slower" if failed else "No figure is slower"
    return "\n".join(
        [
            f"## {title}",
            "",
            f"**{verdict}** (exact rank-sum test, p < {ALPHA:g}, and beyond the tolerance).",
            "",
            "| | Configuration | Column | Baseline (ms) | Now (ms) | Change | p | |",
            "|---|---|---|---:|---:|---:|---:|---|",
            *rows,
            "",
        ]
    )


def render_junit(title: str, judgements: Sequence[Judgement]) -> str:
    """A test suite with one test for each figure; one that was not judged is skipped."""
    failed = sum(each.verdict == "slower" for each in judgements)
    skipped = sum(each.verdict == "not judged" for each in judgements)
    suite = ElementTree.Element(
        "testsuite",
        name=title,
        tests=str(len(judgements)),
        failures=str(failed),
        skipped=str(skipped),
        errors="0",
    )
    for each in judgements:
        time = "0" if each.after is None else f"{each.after:.6f}"
        case = ElementTree.SubElement(suite, "testcase", classname=str(each.cell), name=each.column, time=time)
        words = f"{_milliseconds(each.before)} ms to {_milliseconds(each.after)} ms"
        if each.verdict == "slower":
            ElementTree.SubElement(case, "failure", message=each.why, type="slower").text = words
        elif each.verdict == "not judged":
            ElementTree.SubElement(case, "skipped", message=each.why)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
