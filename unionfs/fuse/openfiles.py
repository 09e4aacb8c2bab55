"""Open files: one real descriptor a node, however often it is open, and by which way its data moves.

Three ways, chosen at the first open and kept by all opens of a node that are live at the same time (the kernel demands
that, see fs/fuse/iomode.c): through the kernel's page cache with the data served by node, so that a reader who came before
a copy-up sees what is written after it; or passthrough, where the kernel reads and writes the real file by itself.
"""

from __future__ import annotations

import errno
import os

from unionfs.fuse.wire import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from unionfs.union.nodes import Node
    from unionfs.union.stack import Stack

    class Backing(Protocol):
        """What registers real files with the kernel for passthrough."""

        def open(self, descriptor: int) -> int:
            """Return a backing id for an open file. Raises OSError where the kernel refuses it."""
            ...

        def close(self, backing_id: int) -> None:
            """Give a backing id back."""
            ...


class OpenFile:
    """The real file behind a node that is open: ``count`` handles share ``descriptor``; ``backing_id`` 0 means cached."""

    __slots__ = ("backing_id", "count", "descriptor", "in_upper")

    def __init__(self, descriptor: int, *, in_upper: bool) -> None:
        self.descriptor = descriptor
        self.in_upper = in_upper
        self.backing_id = 0
        self.count = 0


class OpenFiles:
    """Opens, reopens and closes the real files of one stack."""

    __slots__ = ("backing", "stack", "view")

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.view = stack.view
        self.backing: Backing | None = None  # set once passthrough was negotiated

    def acquire(self, node: Node, flags: int) -> tuple[int, int]:
        """Count one more handle of ``node``; return the FOPEN_* flags and backing id to answer with. Raises OSError, Pending."""
        opened = self._writable(node, flags) if _is_writing(flags) else self.current(node)
        if opened is None:
            opened = self._enter(node, self._open(node))
        return self._count(opened)

    def adopt(self, node: Node, descriptor: int) -> tuple[int, int]:
        """Let ``descriptor``, open on the newly made ``node``, serve it; return as :meth:`acquire` does."""
        return self._count(self._enter(node, descriptor))

    def release(self, node: Node) -> None:
        """One handle of ``node`` was closed."""
        opened = self.current(node)
        if opened is None:
            return
        opened.count -= 1
        if opened.count > 0:
            return
        node.opened = None
        os.close(opened.descriptor)
        if opened.backing_id and self.backing is not None:
            self.backing.close(opened.backing_id)
        if node.lookups <= 0:
            self.view.nodes.forget(node, 0)

    def current(self, node: Node) -> OpenFile | None:
        """Return the open file of ``node``, which follows the node into the writable layer; None if it is not open."""
        opened = node.opened
        if opened is None:
            return None
        assert isinstance(opened, OpenFile)
        if opened.in_upper is not node.in_upper:
            fresh = self._open(node)
            os.dup2(fresh, opened.descriptor, inheritable=False)  # a read that is under way goes on with the old file
            os.close(fresh)
            opened.in_upper = node.in_upper
        return opened

    def borrow(self, node: Node) -> tuple[int, bool]:
        """Return a descriptor of the data of ``node`` and whether the caller must close it. Raises OSError."""
        opened = self.current(node)
        return (opened.descriptor, False) if opened is not None else (self._open(node), True)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _writable(self, node: Node, flags: int) -> OpenFile | None:
        """Bring ``node`` into the writable layer for a writer, and empty it if that is asked for."""
        edit = self.stack.writable()
        truncate = bool(flags & os.O_TRUNC)
        was_lower = not node.in_upper
        edit.change(node, truncate=truncate)
        opened = self.current(node)
        if truncate and not was_lower:
            edit.truncate(node, 0, -1 if opened is None else opened.descriptor)
        return opened

    def _open(self, node: Node) -> int:
        if not node.in_upper:
            return self.view.open(node, os.O_RDONLY)
        try:
            return self.view.open(node, os.O_RDWR)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
                raise
            return self.view.open(node, os.O_RDONLY)

    def _enter(self, node: Node, descriptor: int) -> OpenFile:
        opened = OpenFile(descriptor, in_upper=node.in_upper)
        node.opened = opened
        if node.in_upper and self.backing is not None:
            try:
                opened.backing_id = self.backing.open(descriptor)
            except OSError:
                opened.backing_id = 0  # not on this file system (another FUSE, an overlay): served by us, then
        return opened

    def _count(self, opened: OpenFile) -> tuple[int, int]:
        opened.count += 1
        if opened.backing_id:
            return abi.FOPEN_PASSTHROUGH, opened.backing_id
        # Pages in the cache may be older than what went past it through an earlier backing file.
        stale = opened.in_upper and self.backing is not None and opened.count == 1
        return 0 if stale else abi.FOPEN_KEEP_CACHE, 0


def _is_writing(flags: int) -> bool:
    return bool(flags & (os.O_ACCMODE | os.O_TRUNC))
