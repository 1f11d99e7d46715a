"""The guide in two languages: every command in it runs, both say the same, and the reference is the command line's."""

from __future__ import annotations

import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
import torch
from transformers import Qwen3Model

from acestep.gpu_config import GPU_CONFIGS, gpu_config
from acestep.renderer import preparation
from acestep.renderer.preparation import compile_models
from acestep.synthetic.language_model import LANGUAGE_MODEL_CONFIGS, qwen3_config
from acestep.synthetic.renderer import RENDERER_CONFIGS, diffusers_modules, text_encoder_config
from acestep.types import BackendName
from acestep_otel.patches.engine import PATCHES
from acestep_otel.profiler.cli import command, main
from acestep_otel.profiler.options import DEFAULTS, require_available
from acestep_otel.profiler.report.breakdown import Breakdown
from acestep_otel.profiler.report.terminal import render_breakdown
from docs.render_demo import demo_command
from tests.profiler.report.recorded import guide_spans, run_of
from tests.programs import program
from tests.weights.hub import Hub, miniature_hub, serve, use_endpoint
from tests.weights.test_adapters import write_adapter

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "docs" / "checkpoints.md"
GUIDES = {language: ROOT / "docs" / language / "BENCHMARK.md" for language in ("en", "zh")}

# What picks weights, hardware or the amount of work is left out of a command of the guide, and the smallest put in.
LEFT_OUT = {
    "--config-path", "--lm-model", "--weights", "--device", "--lm-backend", "--duration", "--inference-steps",
}  # fmt: skip
LEFT_OUT_ALONE = {"--tiny", "--download"}
SMALLEST = ("--tiny", "--device", "cpu")
FEWEST_STEPS = ("--inference-steps", "2")
# A song made from a recording is as long as that.
SHORTEST = ("--duration", "10")
SHORT_LYRICS = ("--lyrics-token-limit", "16")
WORDS = ("understand", "create_sample", "format_sample")
"""Modes that write in words."""


def text(language: str) -> str:
    return GUIDES[language].read_text("utf-8")


def blocks(language: str) -> list[str]:
    """Fenced shell commands of the guide."""
    return fenced(GUIDES[language])


def fenced(path: Path, language: str = "bash") -> list[str]:
    """Fenced blocks; the shell commands of one run one after the other, in one folder."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text("utf-8"), re.DOTALL)


def made_small(arguments: list[str]) -> list[str]:
    """A command of the guide, by the rule above."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in LEFT_OUT:
            next(rest)
        elif argument not in LEFT_OUT_ALONE:
            kept.append(argument)
    if set(kept) & set(WORDS):
        return [*kept, *SMALLEST, *SHORT_LYRICS]
    return [*kept, *SMALLEST, *FEWEST_STEPS, *(() if "--src-audio" in kept else SHORTEST)]


def run(line: str) -> int:
    """Run one line: our own command in this process, another tool in its own."""
    words = shlex.split(line)
    if words[:2] == ["python", "profile_inference.py"]:
        return main(made_small(words[2:]))
    if words[:2] == ["acestep-otel", "compare"]:
        # On a busy machine tiny runs differ by far more than a gate should allow.
        return main([*words[1:], "--threshold", "1000"])
    if words[0] == "acestep-otel":
        return main(words[1:])
    assert words[0] == "python", f"the guide shows a command that this test cannot run: {line}"
    return subprocess.run([sys.executable, *words[1:]], capture_output=True).returncode


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """Models that the guide downloads: miniatures."""
    with serve(miniature_hub()) as running:
        yield running


@pytest.fixture
def reader_of_the_guide(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with a network and two LoRA adapters."""
    monkeypatch.chdir(tmp_path)
    # PyTorch's own compiler takes a minute for what is quantised.
    monkeypatch.setattr(preparation, "compile_models", partial(compile_models, backend="eager"))
    use_endpoint(hub.url, monkeypatch)
    for name in ("piano", "strings"):
        write_adapter(tmp_path / name)


@pytest.mark.usefixtures("reader_of_the_guide")
@pytest.mark.parametrize("block", [*blocks("en"), *fenced(CHECKPOINTS)])
def test_every_command_runs(block: str) -> None:
    if "--quantization" in block:
        program("c++")  # what is quantised is compiled
    for line in block.strip().splitlines():
        assert run(line) == 0, line


@pytest.mark.parametrize("path", ["README.md", "docs/zh/index.md", "docs/api/acestep.md"])
def test_the_python_example_runs(path: str) -> None:
    example, *_ = re.findall(r"```python\n(.*?)```", (ROOT / path).read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    (song,) = names["result"].songs
    assert song.audio.shape == (2, 10 * 48_000)


def test_the_picture_of_the_demo_is_what_its_command_prints(tmp_path: Path) -> None:
    picture = ElementTree.parse(ROOT / "docs" / "images" / "demo.svg")
    drawn: dict[float, str] = {}
    for word in picture.iter("{http://www.w3.org/2000/svg}text"):
        # A line is drawn in pieces of one style; the title of the window has a class of another name.
        if (word.get("class") or "").rpartition("-")[2].startswith("r"):
            line = float(word.get("y", "0"))
            drawn[line] = drawn.get(line, "") + (word.text or "").replace("\xa0", " ")
    python, script, *options = demo_command()
    fewest = ("--duration", "10", "--no-warmup", "--no-progress")
    done = subprocess.run(
        [python, str(ROOT / script), *options, *fewest], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, *lines = (drawn[line] for line in sorted(drawn))
    assert first.strip() == "$ make demo"
    assert without_figures(lines) == without_figures(done.stdout.splitlines())


def without_figures(lines: Iterable[str]) -> list[str]:
    """The words of each line that has any: a figure is of one run."""
    words = (re.findall(r"[^\W\d_]+", line.replace("tiles", "tile")) for line in lines)
    return [" ".join(found) for found in words if found]


def test_the_sizes_of_downloads_are_those_of_the_models() -> None:
    def gigabytes(*modules: torch.nn.Module) -> str:
        return f"{2 * sum(weight.numel() for module in modules for weight in module.parameters()) / 1e9:.1f}"

    with torch.device("meta"):
        planners = {
            name: gigabytes(Qwen3Model(qwen3_config(config))) for name, config in LANGUAGE_MODEL_CONFIGS.items()
        }
        parts = {}
        for name in ("acestep-v15-turbo", "acestep-v15-xl-turbo"):
            modules, encoder = (
                diffusers_modules(RENDERER_CONFIGS[name]),
                Qwen3Model(text_encoder_config(RENDERER_CONFIGS[name])),
            )
            vae = modules.pop("vae")
            parts[name] = [gigabytes(*modules.values(), vae, encoder), gigabytes(*modules.values()), gigabytes(vae)]
    (whole, alone, vae_size), (xl, xl_alone, _) = parts.values()
    readme = (ROOT / "README.md").read_text("utf-8")
    assert (
        f"| a diffusion model, the VAE ({vae_size} GB) and the text encoder (1.2 GB) | {whole} GB; XL {xl} GB |"
        in readme
    )
    assert f"| a further diffusion model | {alone} GB; XL {xl_alone} GB |" in readme
    sizes = "; ".join(f"{size} {planners[f'acestep-5Hz-lm-{size}']} GB" for size in ("0.6B", "1.7B", "4B"))
    assert f"| a language model | {sizes} |" in readme
    assert f"# {float(whole) + float(planners['acestep-5Hz-lm-1.7B']):.1f} GB" in readme


def test_both_languages_show_the_same_commands_and_the_same_table() -> None:
    """R166."""
    assert blocks("en") == blocks("zh")
    table = render_breakdown(Breakdown.of(run_of(guide_spans())))
    for language in GUIDES:
        assert f"```\n{table}\n```" in text(language)


def test_every_name_that_an_observer_may_wrap_exists() -> None:
    """Those that the page names by module, and those that follow them on the same class or module."""
    section = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("## What an observer may wrap")[1]
    names = re.findall(
        r"`(acestep(?:\.\w+)+|\.\w+|[A-Z]\w+\.\w+)`", "\n".join(re.findall(r"^\| (.+?) \|", section, re.M))
    )
    owners: dict[str, Any] = {}
    owner: Any = None
    for name in names:
        if name.startswith("."):
            assert callable(getattr(owner, name[1:])), name
            continue
        *path, last = name.split(".")
        owner = owners[path[0]] if path[0] in owners else pkgutil.resolve_name(".".join(path))
        owners[path[-1]] = owner
        assert callable(getattr(owner, last)), name
    assert len(names) > 20


def test_the_layer_wraps_what_an_observer_may_and_nothing_else_of_the_engine() -> None:
    section = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("## What an observer may wrap")[1]
    allowed: set[tuple[str, str]] = set()
    owner = ""
    for written in re.findall(r"`([\w.]+)`", "\n".join(re.findall(r"^\| (.+?) \|", section, re.MULTILINE))):
        path, _, name = written.rpartition(".")
        owner = path.rpartition(".")[2] or (owner if written.startswith(".") else "every backend")
        allowed.add((owner, name))
    backends = "acestep.planner.backends."
    wrapped = set()
    for patch in PATCHES:
        if patch.module.startswith("acestep."):
            cls, _, name = patch.path.rpartition(".")
            of_backend = bool(cls) and patch.module.startswith(backends)
            wrapped.add(("every backend" if of_backend else cls or patch.module.rpartition(".")[2], name))
    assert wrapped == allowed


def test_the_rule_keeps_what_a_command_is_about() -> None:
    assert made_small(["--weights", "synthetic", "--thinking", "--duration", "30", "--tiny"]) == [
        "--thinking",
        *SMALLEST,
        *FEWEST_STEPS,
        *SHORTEST,
    ]
    assert made_small(["--tiny", "--mode", "understand"]) == ["--mode", "understand", *SMALLEST, *SHORT_LYRICS]


@pytest.mark.parametrize("language", GUIDES)
def test_links_lead_somewhere(language: str) -> None:
    """R166: one of them to the other language."""
    (other,) = GUIDES.keys() - {language}
    assert f"](../{other}/BENCHMARK.md)" in text(language)
    for target in re.findall(r"\]\(([^)]+)\)", text(language)):
        page, _, anchor = target.partition("#")
        path = GUIDES[language].parent / page if page else GUIDES[language]
        assert path.is_file(), target
        assert not anchor or anchor in _anchors(path), target


def _anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    return {_anchor(heading) for heading in re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)}


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


TIERS = (ROOT / "docs" / "tiers.md").read_text("utf-8")


def tier_commands() -> list[str]:
    """Arguments of every command on the page, the shell's variables put in."""
    (shared,) = re.findall(r'^TIERS="python profile_inference.py (.*)"$', TIERS, re.MULTILINE)
    written_out = re.sub(r"^ *\$TIERS", f"python profile_inference.py {shared}", TIERS, flags=re.MULTILINE)
    lines: list[str] = re.findall(r"^python profile_inference.py (.*)$", written_out, re.MULTILINE)
    return [line.replace("$OUT", "benchmarks/results").replace("$CARD", "8") for line in lines]


@pytest.mark.parametrize("line", tier_commands())
def test_every_command_about_tiers_is_understood(line: str) -> None:
    """They need a GPU to run; that their flags exist and go together needs none."""
    values = command.make_context("test", shlex.split(line)).params
    assert values["mode"] == "tier-test"
    require_available(replace(DEFAULTS, **{name: value for name, value in values.items() if hasattr(DEFAULTS, name)}))


def test_the_page_about_tiers_has_the_table_that_the_code_has() -> None:
    rows = [re.split(r" *\| *", row.strip("| ")) for row in re.findall(r"^\| \d+ GB \|.*$", TIERS, re.MULTILINE)]
    assert [row[1] for row in rows] == [config.tier for config in GPU_CONFIGS]
    for card, _, lm, xl, offload, int8, *songs in rows:
        config = gpu_config(float(card.split()[0]))
        assert lm == (config.recommended_lm or "none")
        assert xl == ("with offload" if config.xl == "offload" else config.xl)
        places = ("no", "all but DiT", "all, DiT too")
        assert offload == places[config.offload_to_cpu + config.offload_dit_to_cpu]
        assert int8 == ("yes" if config.int8 else "no")
        assert songs == [
            f"{limits.batch_size} song{'s' * (limits.batch_size > 1)} of {limits.duration} s"
            for limits in (config.without_lm, config.with_lm)
        ]


@pytest.mark.parametrize("language", GUIDES)
def test_the_reference_lists_every_flag_and_its_default(language: str) -> None:
    (reference,) = [section for section in text(language).split("\n## ") if "\n| `--device` |" in section]
    listed = dict(re.findall(r"^\| `(--[\w-]+)` \| (.+?) \|", reference, re.MULTILINE))
    assert set(listed) == set(flags())
    for flag, default in flags().items():
        if default is not None and not isinstance(default, (bool, tuple)):
            assert listed[flag] == f"`{default}`", flag


@pytest.mark.parametrize("path", [*GUIDES.values(), ROOT / "docs" / "settings.md"], ids=lambda path: path.parent.name)
def test_every_backend_is_in_the_tables(path: Path) -> None:
    rows = re.findall(r"^\| `(?:--lm-backend|ACESTEP_LM_BACKEND)` \|.*`auto`.*$", path.read_text("utf-8"), re.MULTILINE)
    assert rows
    for row in rows:
        assert set(get_args(BackendName)) <= set(re.findall(r"`([\w-]+)`", row))


def flags() -> dict[str, Any]:
    """Every flag and its default."""
    return {
        flag: getattr(DEFAULTS, str(option.name))
        for group in command.option_groups
        for option in group.options
        for flag in (*option.opts, *option.secondary_opts)
    }
