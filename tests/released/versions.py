"""Which spans each public version of the released package would lose, read from its sources without running them.

    python -m tests.released.versions PATH...

A path is a wheel, a folder with the package, or a git repository, of which every version of the files is looked at.
Prints one line for each change of what is missing, and what that turns off. Exit code 1 when a name is missing that
every version is expected to have.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from opentelemetry.metrics import NoOpMeter
from opentelemetry.trace import NoOpTracer

from acestep_otel.patches import official_package
from acestep_otel.patches.patcher import Patch
from acestep_otel.recording.request_tracer import RequestTracer
from acestep_otel.settings import Settings

_PACKAGE = "acestep/"
_ENGINE = "nanovllm/"


@dataclass(frozen=True)
class Names:
    """What a file defines: functions, and classes with their methods and the names of their bases."""

    functions: frozenset[str] = frozenset()
    classes: Mapping[str, tuple[frozenset[str], tuple[str, ...]]] = field(default_factory=dict)


@cache
def names_of(source: bytes) -> Names:
    """Read a file's definitions; one that cannot be parsed has none."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return Names()
    functions = frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    classes = {
        node.name: (
            frozenset(inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)),
            tuple(ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases),
        )
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    return Names(functions, classes)


def missing(files: Mapping[str, bytes], patches: Iterable[Patch]) -> list[Patch]:
    """Those patches whose function a version lacks.

    Args:
        files: sources by their path inside the package's root.
        patches: to look for.
    """
    known = {path: names_of(source) for path, source in files.items()}
    classes = {name: found for names in known.values() for name, found in names.classes.items()}

    def has(owner: str, name: str, seen: frozenset[str] = frozenset()) -> bool:
        if owner in seen or owner not in classes:
            return False
        methods, bases = classes[owner]
        return name in methods or any(has(base, name, seen | {owner}) for base in bases)

    def found(patch: Patch) -> bool:
        path = patch.module.replace(".", "/") + ".py"
        module = next((names for name, names in known.items() if name.endswith(path)), None)
        if module is None:
            return False
        owner, _, method = patch.path.rpartition(".")
        return has(owner, method) if owner else method in module.functions

    return [patch for patch in patches if not found(patch)]


def versions(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Name and sources of every version that a path holds, oldest first."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            yield path.name, {name: wheel.read(name) for name in wheel.namelist() if _concerns(name)}
    elif (path / ".git").exists() or (path / "HEAD").exists():
        yield from _commits(path)
    else:
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*.py")}
        yield path.name, {name: file.read_bytes() for name, file in files.items() if _concerns(name)}


def _concerns(name: str) -> bool:
    inside = name.startswith(_PACKAGE) or _ENGINE in name
    return inside and name.endswith(".py") and not name.endswith("_test.py")


def _commits(repository: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    blobs: dict[str, bytes] = {}
    before: dict[str, str] = {}
    for line in _git(repository, "log", "--reverse", "--format=%H %cs", "--", "acestep").decode().splitlines():
        commit, date = line.split()
        listing = _git(repository, "ls-tree", "-r", commit, "acestep").decode().splitlines()
        tree = {name: entry.split()[2] for entry, name in (line.split("\t") for line in listing) if _concerns(name)}
        if tree == before:
            continue
        before = tree
        for blob in set(tree.values()) - set(blobs):
            blobs[blob] = _git(repository, "cat-file", "blob", blob)
        yield f"{date} {commit[:9]}", {name: blobs[blob] for name, blob in tree.items()}


def _git(repository: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", repository, *arguments], capture_output=True, check=True).stdout


def all_patches() -> list[Patch]:
    """Every patch of the released package, bound to a tracer that records nothing."""
    return official_package.patches(RequestTracer(NoOpTracer(), NoOpMeter("versions"), Settings(), run_id="versions"))


def main(paths: Iterable[str]) -> int:
    """Print what the versions at some paths lack; returns the exit code."""
    patches, unexpected = all_patches(), False
    for path in paths:
        print(path)
        lost: list[Patch] | None = None
        count = 0
        for version, files in versions(Path(path)):
            count += 1
            now = missing(files, patches)
            # nano-vllm is a distribution of its own in some releases.
            if not any(_ENGINE in name for name in files):
                now = [patch for patch in now if not patch.module.startswith("nanovllm")]
            if now != lost:
                _print(version, now)
            lost = now
        unexpected = unexpected or any(not patch.optional for patch in lost or ())
        print(f"  {count} versions looked at")
    return int(unexpected)


def _print(version: str, lost: list[Patch]) -> None:
    print(f"  from {version}: {'nothing is missing' if not lost else ''}".rstrip())
    for patch in lost:
        expected = " (known)" if patch.optional else ""
        print(f"    no {patch.module}.{patch.path}{expected}: {', '.join(patch.affects)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
