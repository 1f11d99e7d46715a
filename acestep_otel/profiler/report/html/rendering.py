"""Rendering and writing of a page, which loads nothing and runs only its own script."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined
from markupsafe import Markup

from acestep_otel.profiler.files import replacing
from acestep_otel.profiler.report.html.charts import RIGHT


def render_page(template: str, **variables: Any) -> str:
    """A page as HTML: no network, no external font, style or script; all data is escaped.

    Its content security policy allows the page's own style and script by their hashes and nothing else.
    """
    # Without autoescape a caption could become markup; a variable that a template misspells is an error.
    templates = Templates(
        loader=PackageLoader("acestep_otel.profiler.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["right"] = RIGHT
    style, script = _asset("page.css"), _asset("page.js")
    return templates.get_template(template).render(
        **variables,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
    )


def write_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        OSError: it could not be written; the previous file is unchanged.
    """
    # A file name that is no UTF-8 contains lone surrogates, which a page cannot contain.
    text = page.encode("utf-8", errors="replace").decode("utf-8")
    with replacing(path) as stream:
        stream.write(text)


def _asset(name: str) -> str:
    return (files("acestep_otel.profiler.report.html") / "templates" / name).read_text("utf-8")


def _hash(source: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
