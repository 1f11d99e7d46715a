"""A seam: a function or method of somebody else's library, the wrapper that goes around it, and how it gets there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import wrapt

logger = logging.getLogger("acestep_otel")

Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]
"""wrapt's form: ``(wrapped, instance, args, kwargs) -> result``."""


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a wrapper goes.

    Attributes:
        module: module that defines the function.
        path: name inside it, dotted for a method.
        wrapper: called in the function's place.
        optional: whether some versions of the library are known to lack it.
    """

    module: str
    path: str
    wrapper: Wrapper
    optional: bool = False


class Patches:
    """Applies seams now, or when their module is imported, and takes them off again.

    Importing the layer must not import torch, so a module that is not loaded yet is patched by a post-import hook.
    Such a hook cannot be removed; it looks at what is wanted at the time it fires.
    """

    def __init__(self) -> None:
        self._wanted: dict[str, list[tuple[Seam, Callable[[], bool]]]] = {}
        self._hooked: set[str] = set()
        self._applied: list[tuple[Any, str, Any, bool]] = []

    def apply(self, seams: Iterable[Seam], present: Callable[[], bool] = lambda: True) -> None:
        """Patch every seam whose module is loaded; the others follow their module.

        Args:
            seams: where wrappers go.
            present: asked when a module is there, whether it is the library that the seams are meant for.
        """
        seams = list(seams)
        for seam in seams:
            self._wanted.setdefault(seam.module, []).append((seam, present))
        for module in {seam.module: None for seam in seams}:
            if module in sys.modules:
                self._patch_all(sys.modules[module], [seam for seam in seams if seam.module == module and present()])
            elif module not in self._hooked:
                self._hooked.add(module)
                wrapt.register_post_import_hook(self._patch, module)

    def remove(self) -> None:
        """Restore every original, newest first."""
        self._wanted.clear()
        while self._applied:
            owner, name, original, own = self._applied.pop()
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    def _patch(self, module: ModuleType) -> None:
        self._patch_all(module, [seam for seam, present in self._wanted.get(module.__name__, ()) if present()])

    def _patch_all(self, module: ModuleType, seams: Iterable[Seam]) -> None:
        for seam in seams:
            *owners, name = seam.path.split(".")
            owner: Any = module
            try:
                for part in owners:
                    owner = getattr(owner, part)
                original = getattr(owner, name)
            except AttributeError:
                # A name that this version of the library lacks turns off one span, not the layer.
                level = logging.DEBUG if seam.optional else logging.WARNING
                logger.log(level, "no %s.%s in this version: it will not be traced", seam.module, seam.path)
                continue
            own = name in vars(owner)
            self._applied.append((owner, name, vars(owner).get(name, original), own))
            setattr(owner, name, wrapt.FunctionWrapper(vars(owner).get(name, original), seam.wrapper))
