"""Weights on disk: download, conversion to a diffusers repository, adapters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from acestep.checkpoints import ModelSelection, require_weights
from acestep.weights.adapters import Adapter
from acestep.weights.conversion import convert
from acestep.weights.hub import fetch, plan_download
from acestep.weights.layout import DiffusersRenderer, find_renderer
from acestep_otel.errors import SetupError
from acestep_otel.profiler.run.measurement import setup_errors
from acestep_otel.profiler.terminal import echo

_NAMED: Final = re.compile(r"(?P<name>[\w.-]+)=(?P<rest>.+)")


def download_models(names: Iterable[str], root: Path) -> None:
    """Download released models.

    Raises:
        SetupError: no such model, no connection, or not enough room on the disk.
    """
    with setup_errors():
        for name in names:
            fetch_model(name, root)


def fetch_model(name: str, root: Path) -> None:
    """Print size and source of a model's missing files on standard error, then download them.

    Raises:
        DownloadFailed: no such model, no connection, or not enough room on the disk.
    """
    downloads = plan_download(name, root)
    for download in downloads:
        source = download.source
        echo(
            f"{name}: {download.bytes / 1e9:.2f} GB to fetch from {source.repository} at {source.revision[:8]}, "
            f"into {download.target}",
            err=True,
        )
    for download in downloads:
        fetch(name, download)


def convert_model(name: str, root: Path, target: Path) -> None:
    """Write an official diffusion model as a repository that diffusers' own pipeline loads.

    Raises:
        SetupError: no such model, or nothing to convert, or the target exists.
        OSError: the target cannot be written.
    """
    with setup_errors():
        folder = require_weights(name, ModelSelection(checkpoint_root=root), known=())
        found = None if folder is None else find_renderer(folder, root)
        if found is None:
            raise SetupError(f"{name} is built in and has no files to convert")
        if isinstance(found, DiffusersRenderer):
            raise SetupError(f"{found.folder} is a repository of diffusers already")
        try:
            convert(found, target)
        except FileExistsError as error:
            raise SetupError(str(error)) from error
    echo(f"Repository: {target}")


def parse_adapter(text: str) -> Adapter:
    """``PATH``, perhaps with ``NAME=`` before it and ``:SCALE`` after it.

    Raises:
        SetupError: the scale is not finite.
    """
    named = _NAMED.fullmatch(text)
    name, rest = (named["name"], named["rest"]) if named and not Path(text).exists() else (None, text)
    path, separator, tail = rest.rpartition(":")
    try:
        scale = float(tail)
    except ValueError:
        # A colon of the path itself.
        return Adapter(Path(rest), name=name)
    if not separator:
        return Adapter(Path(rest), name=name)
    if not math.isfinite(scale):
        raise SetupError(f"--lora {text}: the scale must be a finite number")
    return Adapter(Path(path), scale, name)
