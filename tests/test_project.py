"""Files that a maintained project has: decision records, changelog, workflows, templates, hooks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import acestep
import acestep_otel

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))


def test_the_index_lists_every_decision_record_by_its_title() -> None:
    index = (ROOT / "docs" / "adr" / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[(\d{4})\]\((.+?)\) \| (.+?) \|$", index, re.MULTILINE)
    assert listed == [
        (path.name[:4], path.name, path.read_text("utf-8").partition("\n")[0].removeprefix(f"# {path.name[:4]}. "))
        for path in RECORDS
    ]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_decision_record_has_a_date_a_status_and_four_sections(path: Path) -> None:
    text = path.read_text("utf-8")
    assert re.search(
        r"^Date: \d{4}-\d\d-\d\d\. Status: (accepted|superseded by \[\d{4}\]\(.+\))\.$", text, re.MULTILINE
    )
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Alternatives", "Consequences"]


def targets() -> set[str]:
    """What ``make`` can make by name."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def workflow() -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))


def steps() -> list[str]:
    return [step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step]


def test_continuous_integration_runs_the_commands_that_people_run() -> None:
    engines = workflow()["jobs"]["engines"]["strategy"]["matrix"]["target"]
    named = {target for step in steps() for target in re.findall(r"\bmake ([a-z-]+)", step)}
    assert {"test", "demo", "docs"} <= named <= targets()
    assert set(engines) == {"test-vllm", "test-mlx", "test-released", "test-ray"} <= targets()


def test_a_checkout_is_checked_by_targets_of_make_alone() -> None:
    text = (ROOT / ".ci" / "run").read_text("utf-8")
    assert re.findall(r"^make (.*)$", text, re.MULTILINE) == [
        "test",
        "test-vllm",
        "test-mlx",
        "test-released",
        "test-ray",
        "docs",
        "demo",
    ]
    assert set(re.findall(r"install\b[^\n;}]*?(\S+);", text)) == {"make"}


def test_continuous_integration_runs_every_supported_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert workflow()["jobs"]["tests"]["strategy"]["matrix"]["python"] == declared
    assert project["requires-python"] == f">={declared[0]}"


def test_continuous_integration_starts_the_stack_and_queries_it() -> None:
    stack = yaml.safe_load((ROOT / ".github" / "workflows" / "stack.yml").read_text("utf-8"))
    text = " && ".join(step["run"] for step in stack["jobs"]["running"]["steps"] if "run" in step)
    assert "docker compose up --detach --wait" in text
    tests = re.findall(r"tests/\S+\.py", text)
    assert len(tests) == 2
    assert all((ROOT / test).exists() for test in tests)


def test_the_changelog_has_the_version_and_a_place_for_what_comes() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    assert versions[1][0] == acestep_otel.__version__
    assert all(date for _, date in versions[1:])
    links = re.findall(r"^\[(.+?)\]: https://", text, re.MULTILINE)
    assert links == [version for version, _ in versions]
    sections = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_an_issue_template_has_what_github_requires(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= set(form)
    for field in form["body"]:
        assert field["type"] in ("markdown", "textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))


def test_the_hooks_run_files_that_exist() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    for hook in repository["hooks"]:
        for word in hook["entry"].split():
            assert not word.startswith("tests/") or (ROOT / word).exists(), word


@pytest.mark.parametrize("package", [acestep, acestep_otel], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name_once(package: ModuleType) -> None:
    text = (ROOT / "docs" / "api" / f"{package.__name__}.md").read_text("utf-8")
    listed = re.findall(rf"^::: {package.__name__}\.(\w+)$", text, re.MULTILINE)
    assert sorted(name for name in listed if name != "testing") == sorted(package.__all__)


def test_every_page_is_in_the_navigation() -> None:
    """``mkdocs build --strict`` says so too; it does not run here."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not re.search(rf" {re.escape(page)}$", text, re.MULTILINE)} == set()
