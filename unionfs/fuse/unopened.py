"""Files that the kernel opens without asking (FUSE_NO_OPEN_SUPPORT): every request names the node alone.

So there is nothing to count: any node may be read or written at any time until the kernel forgets it, and a bounded
number of real descriptors is kept for those that were used last. What open(2) would have been refused, the first
request that needs it is. This only works for a server that may open each file again, whatever its mode has become.
"""

from __future__ import annotations

import errno
import os

from unionfs.fuse.openfiles import OpenFile, RealFiles
from unionfs.fuse.wire import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.fuse.openfiles import Buffer
    from unionfs.union.nodes import AnyNode, Node
    from unionfs.union.stack import Stack

MOST_KEPT = 128


class UnopenedFiles(RealFiles):
    """Opens real files when their data is asked for, and closes those that have not been used for longest."""

    __slots__ = ("_kept",)

    def __init__(self, stack: Stack) -> None:
        super().__init__(stack)
        self._kept: dict[int, OpenFile] = {}  # by node id, first in, first out

    @property
    def kept(self) -> int:
        """How many descriptors are open."""
        return len(self._kept)

    def acquire(self, node: Node, flags: int) -> tuple[int, int]:
        """Refuse OPEN, which is then never asked again."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def adopt(self, node: Node, descriptor: int, state: os.stat_result, flags: int) -> tuple[int, int]:
        """Let ``descriptor``, open on the newly made ``node``, serve it for a while."""
        self._keep(node, OpenFile(descriptor, in_upper=True))
        return 0, 0

    def forget(self, node: AnyNode) -> None:
        """The kernel no longer knows ``node``: close its real file, or an unlinked one would go on to take space."""
        opened = self._kept.pop(node.id, None)
        if opened is not None:
            os.close(opened.descriptor)

    def borrow(self, node: Node, *, to_write: bool = False) -> tuple[int, bool]:
        """Return a descriptor of the data of ``node``, good until the next one is borrowed. Raises OSError."""
        opened = self._kept.get(node.id)
        if opened is None or opened.in_upper is not node.in_upper:
            self.forget(node)
            opened = self._reopen(node)
        if to_write and opened.restricted:
            self._try(node, os.O_WRONLY | os.O_APPEND)
        return opened.descriptor, False

    def write(self, node: Node, data: Buffer, offset: int, write_flags: int) -> int:
        """Write as :meth:`RealFiles.write` does; what may only be appended to is written to at its end alone."""
        descriptor = self.borrow(node, to_write=True)[0]
        if self._kept[node.id].restricted and offset != os.stat(descriptor).st_size:
            self._try(node, os.O_WRONLY)
        return os.pwrite(descriptor, data, offset)

    def descriptor(self, node: Node) -> int:
        """Return the descriptor that is kept of ``node``, -1 if there is none that may do everything."""
        opened = self._kept.get(node.id)
        usable = opened is not None and opened.in_upper and not opened.restricted
        return opened.descriptor if opened is not None and usable else -1

    def recheck(self, node: AnyNode) -> None:
        """The file's flags have changed: open it anew, which may now be refused or allowed."""
        self.forget(node)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _reopen(self, node: Node) -> OpenFile:
        descriptor, access = self._open_widely(node)
        opened = OpenFile(descriptor, in_upper=node.in_upper)
        opened.restricted = node.in_upper and access != os.O_RDWR
        self._keep(node, opened)
        return opened

    def _keep(self, node: Node, opened: OpenFile) -> None:
        kept = self._kept
        kept[node.id] = opened
        if len(kept) > MOST_KEPT:
            os.close(kept.pop(next(iter(kept))).descriptor)


class WrittenBackFiles(UnopenedFiles):
    """Files whose writes the kernel gathers (FUSE_WRITEBACK_CACHE): it knows their size and times better than we do."""

    __slots__ = ()

    def write(self, node: Node, data: Buffer, offset: int, write_flags: int) -> int:
        """Write; data that the kernel had gathered leaves the time of the last change as the kernel last set it.

        It sets the time by itself, but not if it thinks that this is as it was (fuse_write_inode in fs/fuse/inode.c).
        """
        if not write_flags & abi.WRITE_CACHE:
            return super().write(node, data, offset, write_flags)
        descriptor = self.borrow(node, to_write=True)[0]
        before = os.stat(descriptor)
        written = super().write(node, data, offset, write_flags)
        try:
            os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
        except PermissionError:
            pass  # another's file that may be written to: its times follow the write
        return written
