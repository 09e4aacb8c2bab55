"""Open files: one real descriptor a node, however often it is open, and by which way its data moves.

Where the kernel tells of each open there are two ways, chosen at the first open and kept by all opens of a node that
are live at the same time (the kernel demands that, see fs/fuse/iomode.c): through the kernel's page cache with the data
served by node, so that a reader who came before a copy-up sees what is written after it; or passthrough, where the
kernel reads and writes the real file itself. It does so with the flags of open(2), whatever F_SETFL says later
(``fuse_passthrough_open`` in fs/fuse/passthrough.c). So who opens such a file with O_DIRECT to write alone, as dd(1)
does, which takes the flag away to write an end that is no whole block, is served by us (FOPEN_DIRECT_IO): each of his
requests tells the flags of the moment.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.fuse.wire import abi
from unionfs.layers.layer import pace_of_reads
from unionfs.syscalls import process
from unionfs.union.inode_flags import forbidding
from unionfs.union.nodes import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, TypeAlias

    from unionfs.layers.layer import Pace
    from unionfs.union.nodes import AnyNode
    from unionfs.union.stack import Stack

    Buffer: TypeAlias = bytes | bytearray | memoryview

    class Backing(Protocol):
        """What registers real files with the kernel for passthrough."""

        def open(self, descriptor: int, *, guarded: bool) -> int:
            """Return a backing id for an open file. Raises OSError where the kernel refuses it.

            Writes to a ``guarded`` file take set-id bits away, whoever makes them.
            """
            ...

        def close(self, backing_id: int) -> None:
            """Give a backing id back."""
            ...


SMALL_BYTES = 1 << 17
"""Up to this size a lower file is handed to the kernel whole when it is opened: one READ would bring as much."""

SET_ID_BITS = stat.S_ISUID | stat.S_ISGID
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class OpenFile:
    """The real file behind a node that is open, shared by ``count`` handles.

    ``descriptor`` is -1 until the first use of a lower file that was opened to be read: most of those are read from the
    kernel's cache. ``backing_id`` is 0 when data goes through that cache. ``mappable`` counts the handles whose
    mappings may be written to. ``restricted`` says that the file's flags or its mode may forbid some ways to open it,
    ``access`` what they let the descriptor do (O_RDONLY or O_RDWR, perhaps with O_APPEND).
    """

    __slots__ = ("access", "backing_id", "count", "descriptor", "in_upper", "mappable", "restricted")

    def __init__(self, descriptor: int, *, in_upper: bool) -> None:
        self.access = os.O_RDWR
        self.descriptor = descriptor
        self.in_upper = in_upper
        self.backing_id = 0
        self.count = 0
        self.mappable = 0
        self.restricted = False


class RealFiles:
    """The real files of one stack; what a mode of the mount decides is in the classes below and in ``unopened``."""

    __slots__ = ("_paces", "stack", "view")

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.view = stack.view
        self._paces: dict[int, Pace] = {}

    def acquire(self, node: Node, flags: int) -> tuple[int, int]:
        """Count one more handle of ``node``; return the FOPEN_* flags and backing id to answer with.

        Raises OSError, and Pending where a copy-up comes first.
        """
        raise NotImplementedError

    def adopt(self, node: Node, descriptor: int, state: os.stat_result, flags: int) -> tuple[int, int]:
        """Let ``descriptor``, open on the newly made ``node``, serve it; return as :meth:`acquire` does."""
        raise NotImplementedError

    def release(self, node: Node, flags: int) -> None:
        """One handle of ``node``, opened with ``flags``, was closed and its mappings are gone."""

    def forget(self, node: AnyNode) -> None:
        """The kernel no longer knows ``node``."""

    def borrow(self, node: Node, *, to_write: bool = False) -> tuple[int, bool]:
        """Return a descriptor of the data of ``node`` and whether the caller must close it. Raises OSError."""
        raise NotImplementedError

    def write(self, node: Node, data: Buffer, offset: int, write_flags: int) -> int:
        """Write to the data of ``node``, which is in the writable layer; return how much. Raises OSError."""
        raise NotImplementedError

    def pace(self, device: int, descriptor: int) -> Pace:
        """Return the pace of reads of the file system with that st_dev, on which ``descriptor`` is open."""
        known = self._paces.get(device)
        if known is None:
            known = self._paces[device] = pace_of_reads(device, descriptor)
        return known

    def descriptor(self, node: Node) -> int:
        """Return the descriptor that is open on ``node``, -1 if there is none that may do everything."""
        raise NotImplementedError

    def recheck(self, node: AnyNode) -> None:
        """The file's flags (ioctl_iflags(2)) have changed: who wants to write from now on may not be let."""

    def handles(self, node: Node) -> int:
        """Return how many handles of ``node`` are open, as far as the kernel tells of them."""
        return 0

    def is_mapped(self, node: AnyNode, *, count: int = 0) -> bool:
        """Tell whether a mapping may write to the real file by itself; with ``count``, whether so many handles may."""
        return False

    def is_passed(self, node: Node) -> bool:
        """Tell whether the kernel reads and writes the real file of an open ``node`` by itself."""
        return False

    def may_hide_data(self, node: Node) -> bool:
        """Tell whether a mapping may hold data that only the kernel's cache has, where the real file has a hole."""
        return True

    # -- what opening, writing and syncing have in common ------------------------------------------------------------

    def acquire_emptied(self, node: Node, flags: int, clear: Callable[[], None]) -> tuple[int, int]:
        """Do as :meth:`acquire` for one whose open(2) with O_TRUNC takes set-id bits away, which ``clear`` does.

        If that fails nobody has the file open. Raises OSError, and Pending.
        """
        how = self.acquire(node, flags)
        try:
            clear()
        except OSError:
            self.release(node, flags)
            raise
        return how

    def clear_set_ids(self, node: AnyNode, state: os.stat_result, belongs: Callable[[int], bool]) -> None:
        """Take away what a write or a change of owner must not leave (setattr_should_drop_suidgid in fs/attr.c).

        ``state`` is the real file's; ``belongs`` tells whether who asks may keep a set-group-ID bit for a group that is
        no permission to execute. Raises OSError.
        """
        state = self.view.shown(node, state)
        mode = state.st_mode
        drop = mode & stat.S_ISUID
        if mode & stat.S_IXGRP or not belongs(state.st_gid):
            drop |= mode & stat.S_ISGID
        if drop and not stat.S_ISDIR(mode):
            self.stack.writable().chmod(node, mode & ~drop)

    def borrow_to_sync(self, node: Node) -> tuple[int, bool]:
        """Return, as :meth:`borrow` does, a descriptor of what the writable layer has of ``node``: attributes at least;
        -1 where it has nothing, or nothing is to be synced. Raises OSError.
        """
        if not node.owned or self.stack.config.volatile:
            return -1, False
        return self.borrow(node) if node.in_upper else (self.view.open_own(node, os.O_RDONLY), True)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _try(self, node: Node, flags: int) -> None:
        """Raise OSError where the file's flags, or its mode, do not let it be opened so."""
        os.close(self.view.open(node, flags & (os.O_ACCMODE | os.O_APPEND)))

    def _open(self, node: Node) -> int:
        return self._open_widely(node)[0]

    def _open_widely(self, node: Node) -> tuple[int, int]:
        """Open for as much as can be had; tell what that is.

        A file that its owner may only write to is served as any other: the kernel has seen to who may do what.
        """
        if not node.in_upper:
            return self.view.open(node, os.O_RDONLY), os.O_RDONLY
        for access in (os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDONLY):
            try:
                return self.view.open(node, access), access
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
                    raise
        own = (node.descriptor, b"") if node.descriptor >= 0 else self.view.place(node)
        assert self.view.upper is not None
        return self.view.upper.with_owners_rights(lambda: self.view.open(node, os.O_RDWR), own), os.O_RDWR


class OpenFiles(RealFiles):
    """Opens, reopens and closes real files as programs open and close those of the mount."""

    __slots__ = ("_may_read_all", "backing")

    def __init__(self, stack: Stack, backing: Backing | None = None) -> None:
        super().__init__(stack)
        self.backing = backing
        self._may_read_all = process.is_superuser()

    def acquire(self, node: Node, flags: int) -> tuple[int, int]:
        """Count one more handle of ``node``; return the FOPEN_* flags and backing id to answer with.

        Raises OSError, and Pending where a copy-up comes first.
        """
        opened = self._writable(node, flags) if _is_writing(flags) else self.current(node)
        if opened is None:
            later = self._may_read_all and not node.in_upper and (node.offered or not self._shares)
            opened = self._enter(node, -1) if later else self._open_first(node, flags)
        elif opened.restricted and _is_writing(flags):
            self._try(node, flags)
            if not opened.access & os.O_ACCMODE:
                self._renew(node, opened)
        return self._count(opened, flags)

    def adopt(self, node: Node, descriptor: int, state: os.stat_result, flags: int) -> tuple[int, int]:
        """Let ``descriptor``, open on the newly made ``node``, serve it; return as :meth:`acquire` does."""
        return self._count(self._enter(node, descriptor, state), flags)

    def release(self, node: Node, flags: int) -> None:
        """One handle of ``node``, opened with ``flags``, was closed and its mappings are gone."""
        opened = self.current(node)
        if opened is None:
            return
        opened.count -= 1
        opened.mappable -= _is_mappable(flags)
        if opened.count > 0:
            return
        node.opened = None
        if opened.descriptor >= 0:
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
            if opened.descriptor >= 0:
                self._renew(node, opened)
            opened.in_upper = node.in_upper
        return opened

    def borrow(self, node: Node, *, to_write: bool = False) -> tuple[int, bool]:
        """Return a descriptor of the data of ``node`` and whether the caller must close it. Raises OSError."""
        opened = self.current(node)
        if opened is None:
            return self._open(node), True
        if opened.descriptor < 0:
            opened.descriptor = self._open(node)
        return opened.descriptor, False

    def write(self, node: Node, data: Buffer, offset: int, write_flags: int) -> int:
        """Write as :meth:`RealFiles.write` says; what a mapping has written makes no file longer.

        An open(2) with O_TRUNC may overtake the pages that the kernel is writing back, for it waits for none of them
        (fuse_open in fs/fuse/file.c): those beyond the end are from before it.
        """
        descriptor, owned = self.borrow(node, to_write=True)
        try:
            room = len(data)
            if write_flags & abi.WRITE_CACHE:
                room = min(room, max(os.stat(descriptor).st_size - offset, 0))
            return os.pwrite(descriptor, memoryview(data)[:room], offset) + len(data) - room
        finally:
            if owned:
                os.close(descriptor)

    def handles(self, node: Node) -> int:
        """Return how many handles of ``node`` are open."""
        opened = self.current(node)
        return 0 if opened is None else opened.count

    def is_mapped(self, node: AnyNode, *, count: int = 0) -> bool:
        """Tell whether a mapping may write to the real file by itself; with ``count``, whether so many handles may."""
        opened = node.opened if isinstance(node, Node) else None
        if opened is None:
            return False
        assert isinstance(opened, OpenFile)
        return opened.backing_id != 0 and (opened.mappable == count if count else opened.mappable > 0)

    def is_passed(self, node: Node) -> bool:
        """Tell whether the kernel reads and writes the real file of an open ``node`` by itself."""
        opened = self.current(node)
        return opened is not None and opened.backing_id != 0

    def recheck(self, node: AnyNode) -> None:
        """The file's flags (ioctl_iflags(2)) have changed: who wants to write from now on may not be let."""
        if isinstance(node, Node) and isinstance(node.opened, OpenFile):
            node.opened.restricted = True

    def may_hide_data(self, node: Node) -> bool:
        """Tell whether a mapping may hold data that only the kernel's cache has, where the real file has a hole."""
        opened = self.current(node)
        return opened is not None and opened.mappable > 0 and not opened.backing_id

    def descriptor(self, node: Node) -> int:
        """Return the descriptor that is open on ``node``, -1 if there is none that may do everything."""
        opened = self.current(node)
        return -1 if opened is None or opened.restricted else opened.descriptor

    # -- parts -------------------------------------------------------------------------------------------------------

    def _writable(self, node: Node, flags: int) -> OpenFile | None:
        """Bring ``node`` into the writable layer for a writer, and empty it if that is asked for."""
        edit = self.stack.writable()
        truncate = bool(flags & os.O_TRUNC)
        edit.change(node, truncate=truncate, forbidding=forbidding(flags))
        opened = self.current(node)
        if truncate:
            edit.truncate(node, 0, self.descriptor(node))
        return opened

    def _open_first(self, node: Node, flags: int) -> OpenFile:
        """Open the real file, which must allow what ``flags`` ask for: it may be immutable, or only appended to."""
        descriptor, access = self._open_widely(node)
        restricted = node.in_upper and access != os.O_RDWR
        if restricted and _is_writing(flags):
            try:
                self._try(node, flags)
            except OSError:
                os.close(descriptor)
                raise
        opened = self._enter(node, descriptor)
        opened.access, opened.restricted = access, restricted
        return opened

    def _renew(self, node: Node, opened: OpenFile) -> None:
        """Let the descriptor stand for the file as it is now. Raises OSError."""
        fresh, opened.access = self._open_widely(node)
        os.dup2(fresh, opened.descriptor, inheritable=False)  # a read under way goes on with the old file
        os.close(fresh)

    def _enter(self, node: Node, descriptor: int, state: os.stat_result | None = None) -> OpenFile:
        opened = OpenFile(descriptor, in_upper=node.in_upper)
        node.opened = opened
        if self.backing is not None and (node.in_upper or (descriptor >= 0 and self._is_shared(descriptor))):
            opened.backing_id = self._register(self.backing, descriptor, state)
        return opened

    @property
    def _shares(self) -> bool:
        """Whether lower files may be passthrough too: where nothing can be written, no reader has to follow a copy-up.

        The layer's own pages are then all that memory holds, however many mounts share it.
        """
        return self.backing is not None and self.stack.upper is None

    def _is_shared(self, descriptor: int) -> bool:
        """Tell whether a lower file is worth it: small ones are opened more often than they are read."""
        return self._shares and os.stat(descriptor).st_size > SMALL_BYTES

    def _register(self, backing: Backing, descriptor: int, state: os.stat_result | None) -> int:
        """Return a backing id, or 0 for a file that we have to serve.

        Through passthrough the kernel writes in the server's name, so that set-id bits would outlast a stranger's
        write (fuse_setattr leaves them to the server, which never hears of it). Set-id files are therefore served by
        us; a file that could become one while a stranger has it open is guarded.
        """
        if state is None:
            state = os.stat(descriptor)
        if state.st_mode & SET_ID_BITS:
            return 0
        try:
            return backing.open(descriptor, guarded=bool(state.st_uid or state.st_mode & _OTHERS_WRITE))
        except OSError as error:
            if error.errno == errno.ELOOP:  # the writable layer is too deeply stacked: no file will ever be taken
                self.backing = None
            return 0

    def _count(self, opened: OpenFile, flags: int) -> tuple[int, int]:
        opened.count += 1
        opened.mappable += _is_mappable(flags)
        if opened.backing_id:
            direct = flags & (os.O_ACCMODE | os.O_DIRECT) == os.O_WRONLY | os.O_DIRECT
            return abi.FOPEN_PASSTHROUGH | (abi.FOPEN_DIRECT_IO if direct else 0), opened.backing_id
        # Pages in the cache may be older than what went past it through an earlier backing file.
        stale = opened.in_upper and self.backing is not None and opened.count == 1
        return 0 if stale else abi.FOPEN_KEEP_CACHE, 0


def taken(descriptor: int, owned: bool) -> int:
    """Return a descriptor like one that was borrowed, which the caller must close."""
    return descriptor if owned else os.dup(descriptor)


def _is_mappable(flags: int) -> bool:
    """Tell whether a handle can have writable shared mappings; they take one for reading and writing, see mmap(2)."""
    return flags & os.O_ACCMODE == os.O_RDWR


def _is_writing(flags: int) -> bool:
    return bool(flags & (os.O_ACCMODE | os.O_TRUNC))
