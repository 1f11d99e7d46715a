"""The soak's own judgement, and a few seconds of it: service, load, SIGTERM and every trace, as in the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from acestep_otel import semconv
from benchmarks.soak import fault_of, growth, verdict
from benchmarks.trace_store import StoredSpan
from examples.serving import __main__ as service
from examples.serving import load

README = (Path(__file__).parents[2] / "examples" / "serving" / "README.md").read_text("utf-8")


def trace(*names, parents=None, **attributes):
    """Spans below the first one, which hangs from a caller."""
    return [
        StoredSpan(name, name.encode(), (parents or {}).get(name, names[0] if number else "caller").encode(), values)
        for number, name in enumerate(names)
        for values in [attributes.get(name.replace(".", "_"), {})]
    ]


WAITED = {semconv.OUTCOME: "ok"}
COMPLETE = [
    "POST /songs",
    semconv.QUEUE_WAIT,
    semconv.GENERATE_MUSIC,
    semconv.CONDITION,
    semconv.DIT,
    semconv.DIT_STEP,
    semconv.VAE_DECODE,
    semconv.AUDIO_SAVE,
]


def test_a_complete_trace_has_no_fault():
    assert fault_of(trace(*COMPLETE, acestep_queue_wait=WAITED, acestep_dit={semconv.DIT_STEPS: 1})) is None


@pytest.mark.parametrize(
    ("spans", "fault"),
    [
        ([], "no span of the request or of its wait"),
        (trace(*COMPLETE[:2], acestep_queue_wait=WAITED), "0 roots of the song"),
        (trace(*COMPLETE[:2], acestep_queue_wait={semconv.OUTCOME: "cancelled"}), None),
        (trace(*COMPLETE[:-1], acestep_queue_wait=WAITED), "a stage is missing"),
        (trace(*COMPLETE, acestep_queue_wait=WAITED, acestep_dit={semconv.DIT_STEPS: 2}), "a step is missing"),
        (trace(*COMPLETE, parents={semconv.DIT: "gone"}, acestep_queue_wait=WAITED), "a lost parent"),
    ],
)
def test_a_fault_of_a_trace_is_named(spans, fault):
    assert fault_of(spans) == fault


def test_memory_is_judged_after_the_warm_up():
    assert growth([50, 80, *[100] * 8]) == 0
    assert growth([100] * 10 + [120] * 10) == pytest.approx(0.2)
    assert growth([1, 2]) == 0


def test_incomplete_traces_are_excused_by_counted_drops_only():
    result = {"incomplete_traces": 3, "spans_dropped": 0, "faults": {}, "ended": {}, "memory_growth": 0}
    assert len(verdict({**result, "exit_seconds": 1})) == 1
    assert verdict({**result, "spans_dropped": 9, "exit_seconds": 1}) == []
    assert len(verdict({**result, "ended": {"lost": 1}, "memory_growth": 0.2, "exit_seconds": 30})) == 4


def test_a_short_soak_of_the_service_ends_well():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.05"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )
    # Memory is still growing in its first seconds; everything else has to hold.
    failures = [line for line in done.stderr.splitlines() if re.search("incomplete|no end|the exit took", line)]
    assert failures == []
    assert re.search(r"accepted [1-9]", done.stdout), done.stderr
    assert "traces incomplete 0" in done.stdout


def test_the_readme_s_commands_are_those_that_exist(capsys, monkeypatch):
    commands = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    for module, main in (("examples.serving", service.main), ("examples.serving.load", load.main)):
        (used, *_) = [line for line in commands if f"python -m {module} " in line]
        monkeypatch.setattr(sys, "argv", ["program", "--help"])
        with pytest.raises(SystemExit, match="0"):
            main()
        shown = capsys.readouterr().out
        assert all(flag in shown for flag in re.findall(r"--[\w-]+", used))
