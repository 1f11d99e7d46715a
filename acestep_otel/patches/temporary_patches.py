"""Methods of single objects, wrapped while a call needs it: for libraries whose classes cannot be named beforehand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import wrapt

from acestep_otel.patches.patcher import Wrapper


@dataclass(slots=True)
class _Loan:
    """An object that is wrapped now: its own attribute of that name, if it had one, and how many calls use it."""

    own: Any
    users: int = 1


class LoanedMethods:
    """Wraps methods of one object and takes the wrapper off again, so that copies and files never contain it.

    Calls that overlap share the wrapper, which the last of them takes off.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loans: dict[tuple[int, str], _Loan] = {}

    @contextmanager
    def wrapped(self, owner: Any, name: str, wrapper: Wrapper) -> Iterator[None]:
        """Wrap ``owner.name`` inside the block; an object without that method is left alone."""
        if getattr(owner, name, None) is None:
            yield
            return
        self._borrow(owner, name, wrapper)
        try:
            yield
        finally:
            self._give_back(owner, name)

    def _borrow(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        with self._lock:
            if (loan := self._loans.get((id(owner), name))) is not None:
                loan.users += 1
                return
            self._loans[id(owner), name] = _Loan(vars(owner).get(name))
            setattr(owner, name, wrapt.FunctionWrapper(getattr(owner, name), wrapper))

    def _give_back(self, owner: Any, name: str) -> None:
        with self._lock:
            loan = self._loans[id(owner), name]
            loan.users -= 1
            if loan.users:
                return
            del self._loans[id(owner), name]
            if loan.own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, loan.own)
