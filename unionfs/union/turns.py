"""What the parts of ``Union`` share: one operation at a time, errors that name the path they are about, kinds of names.

Runs in the threads of the program that uses the union; a lock lets them take turns.
"""

from __future__ import annotations

import os
from _thread import RLock

from unionfs.union.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from unionfs.union.mutate import Mutations
    from unionfs.union.nodes import AnyNode
    from unionfs.union.paths import Place
    from unionfs.union.stack import Stack

    StrPath = str | os.PathLike[str]
    BytesPath = bytes | os.PathLike[bytes]
    Path = StrPath | BytesPath


class Base:
    """An open stack, how its paths are found, and the lock that its threads share."""

    def __init__(self, stack: Stack) -> None:
        self._open_stack: Stack | None = stack
        self._paths = Paths(stack.view)
        self._lock = RLock()

    @property
    def _stack(self) -> Stack:
        assert self._open_stack is not None  # a turn has begun
        return self._open_stack

    def _turn(self, path: Path | None = None, other: Path | None = None) -> Turn:
        return Turn(self, path, other)

    def _writable(self) -> Mutations:
        """Return what changes this union. Raises OSError (EROFS) where it has no writable layer."""
        return self._stack.writable()

    def _locate(self, path: Path, *, follow: bool = True) -> Place:
        return self._paths.locate(os.fsencode(path), follow=follow)

    def _node(self, path: Path, *, follow: bool = True) -> AnyNode:
        return self._paths.node(os.fsencode(path), follow=follow)


class Turn:
    """One operation: alone in the union, its errors naming ``path`` (and ``other``), the tables trimmed after it."""

    __slots__ = ("_base", "_other", "_path")

    def __init__(self, base: Base, path: Path | None, other: Path | None) -> None:
        self._base = base
        self._path = path
        self._other = other

    def __enter__(self) -> None:
        self._base._lock.acquire()
        if self._base._open_stack is None:
            self._base._lock.release()
            raise ValueError("operation on a closed union")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._base._paths.trim()
        finally:
            self._base._lock.release()
        if isinstance(error, OSError) and self._path is not None:
            error.filename = os.fspath(self._path)
            del error.filename2
            if self._other is not None:
                error.filename2 = os.fspath(self._other)


def like(path: Path, name: bytes) -> str | bytes:
    """Return ``name`` as str or bytes, whichever ``path`` is."""
    return name if isinstance(os.fspath(path), bytes) else os.fsdecode(name)
