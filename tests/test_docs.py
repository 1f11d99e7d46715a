"""The guide in two languages: every command in it runs, both say the same, and the reference is the command line's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acestep_otel.cli import command, main
from acestep_otel.errors import SetupError
from acestep_otel.modes.options import DEFAULTS, require_available
from acestep_otel.report.breakdown import Breakdown
from acestep_otel.report.terminal import render_breakdown
from tests.report.recorded import guide_spans, run_of

ROOT = Path(__file__).resolve().parent.parent
GUIDES = {language: ROOT / "docs" / language / "BENCHMARK.md" for language in ("en", "zh")}

# What picks weights, hardware or the amount of work is left out of a command of the guide, and the smallest put in.
LEFT_OUT = {
    "--config-path", "--lm-model", "--weights", "--device", "--lm-backend", "--duration", "--inference-steps",
}  # fmt: skip
LEFT_OUT_ALONE = {"--tiny"}
SMALLEST = ("--tiny", "--device", "cpu", "--inference-steps", "2", "--lyrics-token-limit", "16")
# A song made from a recording is as long as that.
SHORTEST = ("--duration", "10")

BUILT_IN_PART = {"mode"}
"""Some of its values work, others end with "not available yet"."""


def text(language: str) -> str:
    return GUIDES[language].read_text("utf-8")


def blocks(language: str) -> list[str]:
    """Fenced shell commands; those of one block run one after the other, in one folder."""
    return re.findall(r"```bash\n(.*?)```", text(language), re.DOTALL)


def made_small(arguments: list[str]) -> list[str]:
    """A command of the guide, by the rule above."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in LEFT_OUT:
            next(rest)
        elif argument not in LEFT_OUT_ALONE:
            kept.append(argument)
    return [*kept, *SMALLEST, *(() if "--src-audio" in kept else SHORTEST)]


def run(line: str) -> int:
    """Run one line: our own command in this process, another tool in its own."""
    words = shlex.split(line)
    if words[:2] == ["python", "profile_inference.py"]:
        return main(made_small(words[2:]))
    if words[0] == "acestep-otel":
        # On a busy machine tiny runs differ by far more than a gate should allow.
        return main([*words[1:], "--threshold", "1000"])
    assert words[0] == "python", f"the guide shows a command that this test cannot run: {line}"
    return subprocess.run([sys.executable, *words[1:]], capture_output=True).returncode


@pytest.mark.parametrize("block", blocks("en"))
def test_every_command_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in block.strip().splitlines():
        assert run(line) == 0, line


def test_both_languages_show_the_same_commands_and_the_same_table() -> None:
    assert blocks("en") == blocks("zh")
    table = render_breakdown(Breakdown.of(run_of(guide_spans())))
    for language in GUIDES:
        assert f"```\n{table}\n```" in text(language)


def test_the_rule_keeps_what_a_command_is_about() -> None:
    assert made_small(["--weights", "synthetic", "--thinking", "--duration", "30", "--tiny"]) == [
        "--thinking",
        *SMALLEST,
        *SHORTEST,
    ]


@pytest.mark.parametrize("language", GUIDES)
def test_links_lead_somewhere(language: str) -> None:
    anchors = {_anchor(heading) for heading in re.findall(r"^#+ (.*)$", text(language), re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", text(language)):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (GUIDES[language].parent / target).is_file(), target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("language", GUIDES)
def test_the_reference_lists_every_flag_that_works_and_its_default(language: str) -> None:
    (reference,) = [section for section in text(language).split("\n## ") if "\n| `--device` |" in section]
    listed = dict(re.findall(r"^\| `(--[\w-]+)` \| (.+?) \|", reference, re.MULTILINE))
    assert set(listed) == set(working_flags())
    for flag, default in working_flags().items():
        if default is not None and not isinstance(default, (bool, tuple)):
            assert listed[flag] == f"`{default}`", flag


def working_flags() -> dict[str, Any]:
    """Every flag that does not end with "not available yet", and its default."""
    return {
        flag: getattr(DEFAULTS, str(option.name))
        for group in command.option_groups
        for option in group.options
        if option.name in BUILT_IN_PART or is_built(str(option.name))
        for flag in (*option.opts, *option.secondary_opts)
    }


def is_built(name: str) -> bool:
    try:
        require_available(replace(DEFAULTS, **{name: "something else"}))
    except SetupError as error:
        return "not available yet" not in str(error)
    return True
