"""Released weights from the Hugging Face hub: the files of each model, their commits, and their download.

Only data is fetched: configurations, tokenizers and weights. The code in the same repositories is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from acestep.errors import DownloadFailed
from acestep.weights.layout import TEXT_ENCODER_FOLDER, VAE_FOLDER


@dataclass(frozen=True, slots=True)
class Source:
    """Part of a repository.

    Attributes:
        repository: on the hub.
        revision: commit; what a branch points to may change, a commit cannot.
        folders: folders of the repository to fetch, under the same names; none is all of it, in a folder of the model's
            name.
    """

    repository: str
    revision: str
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Download:
    """What to fetch for a model, from one source.

    Attributes:
        source: part of a repository.
        target: destination folder.
        bytes: size of the files that are missing or incomplete.
    """

    source: Source
    target: Path
    bytes: int


_DATA: Final = ("*.json", "*.safetensors", "*.txt", "*.jinja", "silence_latent.pt")


def _bundle(*folders: str) -> Source:
    return Source("ACE-Step/Ace-Step1.5", "19671f406d603126926c1b7e2adc169acbcade22", folders)


def _renderer(repository: str, revision: str) -> tuple[Source, ...]:
    return (Source(repository, revision), _bundle(VAE_FOLDER, TEXT_ENCODER_FOLDER))


RELEASED: Final[Mapping[str, tuple[Source, ...]]] = {
    "acestep-v15-turbo": (_bundle("acestep-v15-turbo", VAE_FOLDER, TEXT_ENCODER_FOLDER),),
    "acestep-v15-turbo-shift1": _renderer(
        "ACE-Step/acestep-v15-turbo-shift1", "5b86586cc1faecd5214281b05440c8903b6da20f"
    ),
    "acestep-v15-turbo-shift3": _renderer(
        "ACE-Step/acestep-v15-turbo-shift3", "625a282f7c8d882c930a5e500be4c82800f84fb4"
    ),
    "acestep-v15-turbo-continuous": _renderer(
        "ACE-Step/acestep-v15-turbo-continuous", "f8e893768347fd42f5988e07d1d80675fc3e5718"
    ),
    "acestep-v15-base": _renderer("ACE-Step/acestep-v15-base", "e432212fec32b8965a14ffa57ae653438d6abd14"),
    "acestep-v15-sft": _renderer("ACE-Step/acestep-v15-sft", "c410d249e71ea9385a7b586865e65b1473e1098d"),
    "acestep-v15-xl-turbo": _renderer("ACE-Step/acestep-v15-xl-turbo", "d4a0b288b83ebb7e25a8c0b32c573c22e134e8ee"),
    "acestep-v15-xl-base": _renderer("ACE-Step/acestep-v15-xl-base", "220c1166efbdd9583eafcb12eb160594bbfcb241"),
    "acestep-v15-xl-sft": _renderer("ACE-Step/acestep-v15-xl-sft", "d06de46b4622f781cf07f4a013a67d591ca52819"),
    "acestep-5Hz-lm-0.6B": (Source("ACE-Step/acestep-5Hz-lm-0.6B", "148d8ea0225bdab342ee1ae3a354275ccd60ca80"),),
    "acestep-5Hz-lm-1.7B": (_bundle("acestep-5Hz-lm-1.7B"),),
    "acestep-5Hz-lm-4B": (Source("ACE-Step/acestep-5Hz-lm-4B", "0a3ec94b557aea7d508da38b31cfe7341f6ff737"),),
}
"""Every released model, and the commits that contain its parts."""


def plan_download(name: str, root: Path) -> tuple[Download, ...]:
    """Query the hub for the missing files of a model; nothing is fetched.

    Args:
        name: a key of ``RELEASED``.
        root: folder that contains the models.

    Raises:
        DownloadFailed: no such model, no connection, or not enough room on the disk.
    """
    if name not in RELEASED:
        raise DownloadFailed(f"no released model is named {name!r}: choose {', '.join(RELEASED)}")
    downloads = []
    for source in RELEASED[name]:
        target = root if source.folders else root / name
        with _network_errors(name):
            listing = HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
        wanted = [file for file in listing.siblings or () if any(fnmatch(file.rfilename, p) for p in _patterns(source))]
        missing = [file for file in wanted if not _is_here(target / file.rfilename, file.size)]
        downloads.append(Download(source, target, sum(file.size or 0 for file in missing)))
    needed, free = sum(download.bytes for download in downloads), shutil.disk_usage(_existing(root)).free
    if needed > free:
        raise DownloadFailed(f"{name} needs {needed / 1e9:.1f} GB, but {root} has only {free / 1e9:.1f} GB left")
    return tuple(downloads)


def fetch(name: str, download: Download) -> None:
    """Download the files; an interrupted download is resumed.

    Args:
        name: of the model, for messages.
        download: of ``plan_download``.

    Raises:
        DownloadFailed: the connection failed, or the disk is full.
    """
    with _network_errors(name):
        snapshot_download(
            download.source.repository,
            revision=download.source.revision,
            local_dir=download.target,
            allow_patterns=_patterns(download.source),
        )


def _patterns(source: Source) -> list[str]:
    return [f"{folder}/{pattern}" for folder in source.folders for pattern in _DATA] or list(_DATA)


def _is_here(path: Path, size: int | None) -> bool:
    return path.is_file() and path.stat().st_size == size


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


@contextmanager
def _network_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OfflineModeIsEnabled):
            raise DownloadFailed(f"{name} is not downloaded, because HF_HUB_OFFLINE is set: unset it") from error
        raise DownloadFailed(
            f"{name} could not be downloaded from {constants.ENDPOINT} ({_first_line(cause)}): check the connection "
            f"and run the same command again to resume; or set HF_ENDPOINT to a mirror"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
