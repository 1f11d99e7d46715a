"""Patches of third-party libraries: their targets, what they record, and how they are applied and removed."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import wrapt

from acestep_otel import semconv
from acestep_otel.recording.background_emission import follow_forks
from acestep_otel.recording.call import Call, LoadDefinition, RequestDefinition, StageDefinition, StageRecorder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("acestep_otel")

Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]
"""wrapt's form: ``(wrapped, instance, args, kwargs) -> result``."""
Definition = TypeVar("Definition")


@dataclass(frozen=True, slots=True)
class CustomWrapper:
    """A wrapper that needs the recorder and is more than one definition.

    Attributes:
        bind: creates it for a recorder.
    """

    bind: Callable[[StageRecorder], Wrapper]


@dataclass(frozen=True, slots=True)
class Patch:
    """One function or method to patch.

    Attributes:
        module: module that defines the function.
        path: name inside it, dotted for a method.
        record: how a call of it is recorded; a plain wrapper is called in the function's place.
        optional: whether some versions of the library are known to lack it.
        spans: names of the spans that depend on it, where ``record`` does not say so itself.
        everywhere: whether a function is also replaced in modules that imported it by name before it was patched.
    """

    module: str
    path: str
    record: RequestDefinition | StageDefinition | LoadDefinition | CustomWrapper | Wrapper
    optional: bool = False
    spans: tuple[str, ...] = ()
    everywhere: bool = False

    @property
    def affects(self) -> tuple[str, ...]:
        """Names of the spans that are missing, or less complete, in a version that lacks the function."""
        record = self.record
        if isinstance(record, LoadDefinition):
            return (semconv.MODEL_LOAD,)
        return (record.span,) if isinstance(record, RequestDefinition | StageDefinition) else self.spans

    def wrapper(self, recorder: StageRecorder) -> Wrapper:
        """The replacement of the function."""
        record = self.record
        if isinstance(record, CustomWrapper):
            return record.bind(recorder)
        if isinstance(record, StageDefinition):
            return _recorded(recorder.stage, record)
        if isinstance(record, RequestDefinition):
            return _recorded(recorder.request, record)
        if isinstance(record, LoadDefinition):
            return _recorded(recorder.load, record)
        return record


def _recorded(run: Callable[[Definition, Call], Any], definition: Definition) -> Wrapper:
    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run(definition, Call(wrapped, instance, args, kwargs))

    return wrapper


class Patcher:
    """Applies patches now, or when their module is imported, and removes them again.

    Importing the layer must not import torch, so a module that is not loaded yet is patched by a post-import hook.
    Such a hook cannot be removed; it checks which patches are wanted when it runs.
    """

    def __init__(self, recorder: StageRecorder) -> None:
        self._recorder = recorder
        self._wanted: dict[str, list[tuple[Patch, Callable[[], bool]]]] = {}
        self._hooked: set[str] = set()
        self._applied: list[tuple[Any, str, Any, bool, Any]] = []
        self._everywhere: list[tuple[Any, str, Any]] = []

    def apply(self, patches: Iterable[Patch], applicable: Callable[[], bool] = lambda: True) -> None:
        """Patch every function whose module is loaded; the others follow their module.

        Args:
            patches: what to patch.
            applicable: called when a module is loaded: whether it is the library that the patches are meant for.
        """
        patches = list(patches)
        for patch in patches:
            self._wanted.setdefault(patch.module, []).append((patch, applicable))
        for module in {patch.module: None for patch in patches}:
            if module in sys.modules:
                here = [patch for patch in patches if patch.module == module and applicable()]
                self._patch_all(sys.modules[module], here)
            elif module not in self._hooked:
                self._hooked.add(module)
                wrapt.register_post_import_hook(self._patch, module)

    def remove(self) -> None:
        """Restore every original, newest first, also in modules that imported its replacement."""
        self._wanted.clear()
        for owner, name, original in self._everywhere:
            for holder, held in _importers(vars(owner)[name], owner):
                setattr(holder, held, original)
        self._everywhere.clear()
        while self._applied:
            owner, name, original, own, wrapper = self._applied.pop()
            if vars(owner).get(name) is not wrapper:
                # Replaced by another library since. A wrapper of it records nothing once the recorder is closed.
                continue
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    def _patch(self, module: ModuleType) -> None:
        self._patch_all(module, [patch for patch, applicable in self._wanted.get(module.__name__, ()) if applicable()])

    def _patch_all(self, module: ModuleType, patches: Iterable[Patch]) -> None:
        for patch in patches:
            *owners, name = patch.path.split(".")
            owner: Any = module
            try:
                for part in owners:
                    owner = getattr(owner, part)
                original = getattr(owner, name)
            except AttributeError:
                # A name that this version of the library lacks turns off one span, not the layer.
                level = logging.DEBUG if patch.optional else logging.WARNING
                logger.log(
                    level,
                    "no %s.%s in this version: it will not be traced (%s)",
                    patch.module,
                    patch.path,
                    ", ".join(patch.affects) or "details of its span",
                )
                continue
            wrapper = wrapt.FunctionWrapper(vars(owner).get(name, original), patch.wrapper(self._recorder))
            self._applied.append((owner, name, vars(owner).get(name, original), name in vars(owner), wrapper))
            setattr(owner, name, wrapper)
            if patch.everywhere:
                self._everywhere.append((owner, name, original))
                for holder, held in _importers(original, owner):
                    setattr(holder, held, wrapper)


def _importers(function: Any, owner: Any) -> Iterator[tuple[ModuleType, str]]:
    """Modules that hold a function under a name of their own, and that name: ``from owner import function``."""
    for module in list(sys.modules.values()):
        if module is owner or not isinstance(module, ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if value is function:
                yield module, name


class Gaps:
    """Logs once, by name, what is missing from the traces of this process, and why."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def met(self, what: str, why: str) -> None:
        """Log a gap that was found at run time.

        Args:
            what: names of the spans that are missing.
            why: the difference from what was expected.
        """
        if what not in self._named:
            self._named.add(what)
            logger.warning("%s will be missing: %s", what, why)


_FORK_SECONDS: Final = 1.0
"""Seconds that a fork waits at most for a change that is in progress."""


@dataclass(slots=True)
class _Temporary:
    """An object that is wrapped now: its own attribute of that name, if it had one, and how many calls use it."""

    own: Any
    users: int = 1


class TemporaryPatches:
    """Wraps methods of one object and removes the wrapper again, so that copies and files never contain it.

    Calls that overlap share the wrapper, which the last of them removes. A fork waits for a change that is in progress:
    the child inherits neither a lock that no thread of it releases nor half a change.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._patched: dict[tuple[int, str], _Temporary] = {}
        follow_forks(self._before_fork, self._after_fork, self._start_afresh)

    def _before_fork(self) -> None:
        self._lock.acquire(timeout=_FORK_SECONDS)

    def _after_fork(self) -> None:
        # Not held if the change took too long for the fork to wait for it.
        with suppress(RuntimeError):
            self._lock.release()

    def _start_afresh(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def wrapped(self, owner: Any, name: str, wrapper: Wrapper) -> Iterator[None]:
        """Wrap ``owner.name`` inside the block; an object without that method is not changed."""
        if getattr(owner, name, None) is None:
            yield
            return
        self._wrap(owner, name, wrapper)
        try:
            yield
        finally:
            self._unwrap(owner, name)

    def _wrap(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        with self._lock:
            if (patched := self._patched.get((id(owner), name))) is not None:
                patched.users += 1
                return
            self._patched[id(owner), name] = _Temporary(vars(owner).get(name))
            setattr(owner, name, wrapt.FunctionWrapper(getattr(owner, name), wrapper))

    def _unwrap(self, owner: Any, name: str) -> None:
        with self._lock:
            patched = self._patched[id(owner), name]
            patched.users -= 1
            if patched.users:
                return
            del self._patched[id(owner), name]
            if patched.own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, patched.own)


@dataclass(frozen=True, slots=True)
class _Host:
    """Stands in for a device in a process that has not loaded PyTorch."""

    type: str


def device_named(name: str) -> torch.device:
    """The device of a name, with its number: ``cuda`` alone is whatever device is current."""
    loaded = sys.modules.get("torch")
    if loaded is None:
        return cast("torch.device", _Host(name))
    if name == "cuda":
        name = f"cuda:{loaded.cuda.current_device()}"
    return cast("torch.device", loaded.device(name))
