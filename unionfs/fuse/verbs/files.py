"""Open files: their data, their space, and getting it to disk."""

from __future__ import annotations

import errno
import os

from unionfs.fuse.openfiles import SMALL_BYTES, taken
from unionfs.fuse.verbs.base import Later, Verbs, untouched
from unionfs.fuse.wire import abi, notify, replies
from unionfs.ondisk import IMMUTABLE
from unionfs.syscalls import files
from unionfs.union import inode_flags
from unionfs.union.mutate import Caller
from unionfs.union.nodes import LACKS_CAPABILITY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.fuse.openfiles import Buffer
    from unionfs.fuse.verbs.base import Buffers, Message, Reply
    from unionfs.fuse.wire.requests import Request
    from unionfs.layers.layer import Pace
    from unionfs.union.nodes import Node

_COPY_AT_ONCE_BYTES = 1 << 18  # what is copied before another thread would have taken over
_SHORT_BYTES = 1 << 17  # what a disk needs hardly longer for than for a page
_FLAGS_OF_WRITES = os.O_DIRECT | os.O_APPEND | os.O_DSYNC | os.O_SYNC
_RWF_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class FileVerbs(Verbs):
    """What the kernel asks of files that somebody has open."""

    def _open(self, request: Request) -> Reply:
        node = self._file(request.nodeid)
        flags, open_flags = request.args
        if flags & os.O_TRUNC and open_flags & abi.OPEN_KILL_SUIDGID:
            how = self.files.acquire_emptied(node, flags, lambda: self._clear_set_ids(node, request))
        else:
            how = self.files.acquire(node, flags)
        if self.files.is_mapped(node, count=1):
            self._look_again(node)
        reply = replies.data(request.unique, replies.opened(0, *how))
        if node.offered or node.in_upper or node.data is not None or how[1]:
            return reply
        node.offered = True
        return self._offer(node, reply)

    def _offer(self, node: Node, reply: bytes) -> Reply:
        """Hand out the data of a small lower file before the ``reply`` to its first OPEN: nobody has to ask for it.

        Neither may there be a READ of the file that waits for this thread, for fuse_notify_store in fs/fuse/dev.c waits
        for the pages that it holds. There is none before somebody has the file open.
        """
        try:
            descriptor, _owned = self.files.borrow(node)
        except OSError:
            return reply  # READ will say why
        state = os.stat(descriptor)
        if not 0 < state.st_size <= SMALL_BYTES:
            return reply
        window = memoryview(self.page)[: state.st_size]
        pace = self.files.pace(state.st_dev, descriptor)
        if _read_at_once(descriptor, window, 0) == len(window):
            self._store(node, window)
        elif pace.quick:
            return Later(lambda: self._offer_late(node, pace, len(window), reply), short=True)
        return reply

    def _offer_late(self, node: Node, pace: Pace, size: int, reply: bytes) -> bytes:
        """Wait for the data to hand out, if still nobody has the file open and nobody has changed it."""
        if self.files.handles(node) == 1 and not node.in_upper:
            window = memoryview(self.page)[:size]
            if pace.wait(os.preadv, self.files.borrow(node)[0], [window], 0) == size:
                self._store(node, window)
        return reply

    def _store(self, node: Node, content: memoryview) -> None:
        self.notify((notify.store(node.id, 0, len(content)), content))

    def _create(self, request: Request) -> Reply:
        mode, umask = request.args[1:3]
        caller = Caller(request.uid, request.gid, umask)
        parent = self._directory(request.nodeid)
        node, state, descriptor = self._edit().create(parent, request.names[0], mode, caller)
        return self._created(request, node, state, descriptor)

    def _tmpfile(self, request: Request) -> Reply:
        mode, umask = request.args[1:3]
        caller = Caller(request.uid, request.gid, umask)
        made = self._edit().tmpfile(self._directory(request.nodeid), mode, caller)
        return self._created(request, *made)

    def _created(self, request: Request, node: Node, state: os.stat_result, descriptor: int) -> Reply:
        node.lacks = LACKS_CAPABILITY
        how = self.files.adopt(node, descriptor, state, request.args[0])
        return replies.data(request.unique, replies.created(self._entry(node, state), replies.opened(0, *how)))

    def _read(self, request: Request) -> Reply:
        """Answer from the page cache at once; the rest is waited for when nobody asks, or elsewhere.

        Of a lower file, what is large is for others in any case: its pages are not copied here, but moved. Those of the
        writable layer cannot be, as truncate(2) would zero them on the way (truncate_inode_partial_folio in
        mm/truncate.c).
        """
        _fh, offset, size = request.args[:3]
        node, unique = self._file(request.nodeid), request.unique
        descriptor, owned = self.files.borrow(node)
        moves = size > _SHORT_BYTES and not node.in_upper
        try:
            window = memoryview(self.page)[:size]
            got = -1 if moves else _read_at_once(descriptor, window, offset)
            if got == size:
                return replies.header(unique, got), window
            state = os.stat(descriptor)
            if got >= 0 and offset + got >= state.st_size:
                return replies.header(unique, got), window[:got]
            pace = self.files.pace(state.st_dev, descriptor)
            if pace.quick and size <= _SHORT_BYTES:
                return Later(lambda: self._read_late(request, pace), short=True)
            waiting = os.dup(descriptor)
        finally:
            if owned:
                os.close(descriptor)
        return Later(lambda: self._read_elsewhere(request, pace, waiting, moves=moves))

    def _read_elsewhere(self, request: Request, pace: Pace, descriptor: int, *, moves: bool) -> Message:
        """In a worker: answer a READ from ``descriptor``, and close it."""
        _fh, offset, size = request.args[:3]
        unique = request.unique
        try:
            piped = self.pipes.reply(unique, descriptor, offset, size) if moves else None
            if piped is not None:
                return piped
            window = memoryview(untouched(size))
            got = pace.wait(os.preadv, descriptor, [window], offset)
        finally:
            os.close(descriptor)
        return replies.header(unique, got), window[:got]

    def _read_late(self, request: Request, pace: Pace) -> Buffers:
        _fh, offset, size = request.args[:3]
        descriptor, owned = self.files.borrow(self._file(request.nodeid))
        try:
            window = memoryview(self.page)[:size]
            got = pace.wait(os.preadv, descriptor, [window], offset)
        finally:
            if owned:
                os.close(descriptor)
        return replies.header(request.unique, got), window[:got]

    def _write(self, request: Request) -> Reply:
        node = self._file(request.nodeid)
        _fh, offset, _size, write_flags = request.args[:4]
        assert request.data is not None
        self._edit().change(node, forbidding=IMMUTABLE)
        if self.files.is_passed(node):
            return self._write_as_opened(request, node, request.data)
        written = self.files.write(node, request.data, offset, write_flags)
        if write_flags & abi.WRITE_KILL_SUIDGID:
            self._clear_set_ids(node, request)
        return replies.data(request.unique, replies.written(written))

    def _write_as_opened(self, request: Request, node: Node, data: Buffer) -> Later:
        """Write through a descriptor with the flags that the program's has now, since nobody else heeds them.

        O_DIRECT wants memory that begins with a page.
        """
        _fh, offset, size, write_flags, _lock_owner, flags = request.args
        if write_flags & abi.WRITE_KILL_SUIDGID:
            self._clear_set_ids(node, request)
        pages = untouched(size)
        pages[:] = data
        descriptor = self.view.open(node, os.O_WRONLY | flags & _FLAGS_OF_WRITES)

        def run() -> bytes:
            try:
                written = os.pwrite(descriptor, pages, offset)
            finally:
                os.close(descriptor)
            return replies.data(request.unique, replies.written(written))

        return Later(run)

    def _fsync(self, request: Request) -> Reply:
        borrowed = self.files.borrow_to_sync(self._file(request.nodeid))
        if borrowed[0] < 0:
            return replies.ok(request.unique)
        sync = os.fdatasync if request.args[1] & abi.FSYNC_FDATASYNC else os.fsync
        return self._sync_soon(request, taken(*borrowed), sync)

    def _syncfs(self, request: Request) -> Reply:
        if self.stack.upper is None or self.stack.config.volatile:
            return replies.ok(request.unique)
        return self._sync(request.unique, os.dup(self.stack.upper.root.fd), files.syncfs)

    def _fallocate(self, request: Request) -> Reply:
        node = self._file(request.nodeid)
        _fh, offset, length, mode = request.args
        self._edit().change(node, forbidding=inode_flags.forbidding_space(mode))
        self._changed_by(request, node)
        working = taken(*self.files.borrow(node, to_write=True))
        return self._sync(request.unique, working, lambda file: files.fallocate(file, mode, offset, length))

    def _changed_by(self, request: Request, node: Node) -> None:
        """Take set-id bits away where the request itself does not say that it should be done, as write(2) would."""
        if request.uid != 0:
            self._clear_set_ids(node, request)

    def _lseek(self, request: Request) -> Reply:
        """Where the real file has a hole, the kernel's cache may have data that somebody wrote to a mapping: then it
        has to write that back first.
        """
        _fh, offset, whence = request.args
        node, unique = self._file(request.nodeid), request.unique
        if not self.mode.seeks:
            return replies.error(unique, errno.ENOSYS)  # never asked again: the kernel then finds data everywhere
        descriptor, owned = self.files.borrow(node)
        try:
            if not self.files.may_hide_data(node) or _is_dense(descriptor, offset, whence):
                return replies.data(unique, replies.lseek(os.lseek(descriptor, offset, whence)))
            seeking = os.dup(descriptor)
        finally:
            if owned:
                os.close(descriptor)

        def run() -> bytes:
            try:
                self.notify(notify.inval_inode(node.id))
                return replies.data(unique, replies.lseek(os.lseek(seeking, offset, whence)))
            finally:
                os.close(seeking)

        return Later(run, asks=True)

    def _copy_file_range(self, request: Request) -> Reply:
        return self._copy(request, replies.written)

    def _copy_file_range_64(self, request: Request) -> Reply:
        return self._copy(request, replies.copied)

    def _copy(self, request: Request, encode: Callable[[int], bytes]) -> Reply:
        _fh_in, off_in, node_out, _fh_out, off_out, length, _flags = request.args
        source, target = self._file(request.nodeid), self._file(node_out)
        self._edit().change(target)
        self._changed_by(request, target)
        unique, reading = request.unique, taken(*self.files.borrow(source))
        try:
            writing = taken(*self.files.borrow(target, to_write=True))
        except OSError:
            os.close(reading)
            raise

        def run() -> bytes:
            try:
                copied = os.copy_file_range(reading, writing, min(length, 1 << 30), off_in, off_out)
            finally:
                os.close(reading)
                os.close(writing)
            return replies.data(unique, encode(copied))

        small = min(length, os.stat(reading).st_size) <= _COPY_AT_ONCE_BYTES
        return run() if small else Later(run)

    def _ioctl(self, request: Request) -> Reply:
        """Hand on those of ioctl_iflags(2) and ioctl_xfs_fsgetxattr(2), which every file system has, and no other."""
        _fh, _flags, command, _argument, _in_size, out_size = request.args
        if command not in files.ATTRIBUTE_IOCTLS:
            return replies.error(request.unique, errno.ENOTTY)
        node, argument = self._node(request.nodeid), bytes(request.data or b"")
        if command in files.ATTRIBUTE_CHANGES:
            told = inode_flags.change(self._edit(), node, command, argument)
            self.files.recheck(node)
            self._look_again(node)
        else:
            told = inode_flags.tell(self.view, node, command, argument)
        return replies.data(request.unique, replies.ioctl(0, 0, told[:out_size]))

    def _flush(self, request: Request) -> Reply:
        return replies.error(request.unique, errno.ENOSYS)  # never asked again: nothing waits for a close


def _is_dense(descriptor: int, offset: int, whence: int) -> bool:
    """Tell whether lseek(2) finds data all the way: then no hole can be hiding any."""
    try:
        found = os.lseek(descriptor, offset, whence)
    except OSError:
        return False
    return found == (offset if whence == os.SEEK_DATA else os.stat(descriptor).st_size)


def _read_at_once(descriptor: int, window: memoryview, offset: int) -> int:
    """Read what is in memory; return how much that is, or -1 for nothing. The disk is asked for what is missing.

    See preadv2(2), RWF_NOWAIT; filemap_get_pages in mm/filemap.c begins the read-ahead.
    """
    try:
        return os.preadv(descriptor, [window], offset, _RWF_NOWAIT)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        return -1
