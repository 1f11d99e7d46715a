"""Files that a maintained project has: decision records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
