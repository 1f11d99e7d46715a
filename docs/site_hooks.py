"""Hooks of the documentation site: pages of the repository outside ``docs/``, and links that lead out of it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "collectors/README.md": "collectors.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/serving/README.md": "serving.md",
}
"""Files of the repository, and the pages that they become."""
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are outside of ``docs/``."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at pages of the site, and at the repository where the site has none."""
    uri = page.file.src_uri
    source = SOURCES.get(uri, f"docs/{uri}")

    def rewritten(match: re.Match[str]) -> str:
        target, hash_, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in PAGES:
            found = PAGES[path]
        elif path.startswith("docs/") and files.get_file_from_path(path.removeprefix("docs/")):
            found = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            return f"{match[1]}{config.repo_url}/{kind}/main/{path}{hash_}{anchor}{match[3]}"
        else:
            return match[0]
        return f"{match[1]}{posixpath.relpath(found, posixpath.dirname(uri) or '.')}{hash_}{anchor}{match[3]}"

    return LINK.sub(rewritten, markdown)
