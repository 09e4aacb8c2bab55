"""Request in, verb on the union, reply out: one short method an opcode, and the only place where OSError becomes an errno.

A reply is the bytes to write, or a tuple of buffers, or ``Later``: work that may block and whose result is the reply. This
module does not know the device, the threads or the mount; the same dispatcher serves a kernel and a test.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.fuse.openfiles import OpenFiles
from unionfs.fuse.wire import abi, negotiate, replies, requests
from unionfs.syscalls import files
from unionfs.union.mutate import Caller
from unionfs.union.nodes import AnyNode, DirNode, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.fuse.openfiles import Backing
    from unionfs.fuse.wire.requests import Request
    from unionfs.union.mutate import Mutations
    from unionfs.union.stack import Stack

    Buffers = tuple[bytes | memoryview, ...]
    Reply = bytes | Buffers | "Later" | None
    Handler = Callable[[Request], Reply]

FOREVER_S = 1 << 31
MAX_WRITE_BYTES = 1 << 20
_WANTED = (
    abi.INIT_ASYNC_READ
    | abi.INIT_ATOMIC_O_TRUNC
    | abi.INIT_EXPORT_SUPPORT
    | abi.INIT_BIG_WRITES
    | abi.INIT_DONT_MASK
    | abi.INIT_DO_READDIRPLUS
    | abi.INIT_READDIRPLUS_AUTO
    | abi.INIT_ASYNC_DIO
    | abi.INIT_NO_OPENDIR_SUPPORT
    | abi.INIT_PARALLEL_DIROPS
    | abi.INIT_POSIX_ACL
    | abi.INIT_ABORT_ERROR
    | abi.INIT_MAX_PAGES
    | abi.INIT_CACHE_SYMLINKS
    | abi.INIT_EXPLICIT_INVAL_DATA
    | abi.INIT_HANDLE_KILLPRIV_V2
    | abi.INIT_SETXATTR_EXT
)
_NEGATIVE = replies.negative_entry(FOREVER_S)
_DT_DIR = 4
_SMALL_BYTES = 1 << 18  # what is copied before another thread would have taken over
_SUID_BITS = stat.S_ISUID | stat.S_ISGID
_KEEP = (0, files.UTIME_OMIT)
_NOW = (0, files.UTIME_NOW)
_RWF_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class Later:
    """Work that may block, to be run in another thread: it returns the reply, or raises OSError."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], bytes | Buffers]) -> None:
        self.run = run


class Dispatcher:
    """Answers the requests of one connection from one stack.

    ``backing`` registers files for passthrough; None where that is not to be had. ``describe`` returns the bytes of the
    virtual attribute ``user.unionfs.NAME`` of the root, by which commands learn what is mounted.
    """

    def __init__(self, stack: Stack, backing: Backing | None = None) -> None:
        self.stack = stack
        self.view = stack.view
        self.nodes = stack.view.nodes
        self.files = OpenFiles(stack)
        self.decode = requests.decode
        self.counts = [0] * (max(requests.OPCODES) + 1)
        self.describe: Callable[[bytes], bytes | None] = lambda _name: None
        self.on_ready: Callable[[], None] = lambda: None
        self.ended = False
        self._backing = backing
        self._page = bytearray(MAX_WRITE_BYTES)
        self._opendir_flags = abi.FOPEN_CACHE_DIR | abi.FOPEN_KEEP_CACHE
        self._no_opendir = False
        self._handlers = self._table()

    def _table(self) -> dict[int, Handler]:
        return {
            code: getattr(self, "_" + opcode.name.lower())
            for code, opcode in requests.OPCODES.items()
            if hasattr(self, "_" + opcode.name.lower())
        }

    def handle(self, request: Request) -> Reply:
        """Answer one request. Raises Pending when a copy-up must come first: then the request is to be handled again."""
        opcode = request.opcode
        handler = self._handlers.get(opcode)
        if handler is None:
            return replies.error(request.unique, errno.ENOSYS)
        self.counts[opcode] += 1
        try:
            return handler(request)
        except OSError as error:
            return self.failure(request.unique, error)

    def failure(self, unique: int, error: OSError) -> bytes:
        """Return the reply for an operation that failed with ``error``."""
        return replies.error(unique, error.errno or errno.EIO)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _directory(self, node_id: int) -> DirNode:
        node = self.nodes.by_id.get(node_id)
        if isinstance(node, DirNode):
            return node
        raise OSError(errno.ESTALE if node is None else errno.ENOTDIR, "")

    def _file(self, node_id: int) -> Node:
        node = self.nodes.by_id.get(node_id)
        if isinstance(node, Node):
            return node
        raise OSError(errno.ESTALE if node is None else errno.EISDIR, "")

    def _node(self, node_id: int) -> AnyNode:
        node = self.nodes.by_id.get(node_id)
        if node is None:
            raise OSError(errno.ESTALE, "")
        return node

    def _edit(self) -> Mutations:
        return self.stack.writable()

    def _entry(self, node: AnyNode, state: os.stat_result) -> bytes:
        """Return the entry for ``node``, counted as one more lookup by the kernel."""
        node.lookups += 1
        return self._entry_payload(node, state)

    def _entry_payload(self, node: AnyNode, state: os.stat_result) -> bytes:
        return replies.entry(node.id, 0, FOREVER_S, FOREVER_S, self._attributes(node, state))

    def _attributes(self, node: AnyNode, state: os.stat_result) -> bytes:
        return replies.attributes(state, node.ino, self.view.links(node, state), state.st_uid, state.st_gid)

    def _state(self, node: AnyNode) -> os.stat_result:
        if isinstance(node, Node) and node.opened is not None:
            opened = self.files.current(node)
            if opened is not None:
                return os.stat(opened.descriptor)
        return self.view.stat(node)

    # -- connection --------------------------------------------------------------------------------------------------

    def _init(self, request: Request) -> Reply:
        wanted = _WANTED | (abi.INIT_PASSTHROUGH if self._backing is not None else 0)
        settings = negotiate.negotiate(negotiate.Offer.from_args(request.args), wanted, MAX_WRITE_BYTES)
        if isinstance(settings, negotiate.Settings):
            self.decode = requests.Decoder(setxattr_ext=settings.setxattr_ext).decode
            self._no_opendir = settings.no_opendir
            if settings.passthrough:
                self.files.backing = self._backing
            self.on_ready()
        return negotiate.init_reply(request.unique, settings)

    def _destroy(self, request: Request) -> Reply:
        self.ended = True
        return replies.ok(request.unique)

    def _interrupt(self, request: Request) -> Reply:
        return None

    def _forget(self, request: Request) -> Reply:
        node = self.nodes.by_id.get(request.nodeid)
        if node is not None:
            self.nodes.forget(node, request.args[0])
        return None

    def _batch_forget(self, request: Request) -> Reply:
        for node_id, count in requests.forgets(request):
            node = self.nodes.by_id.get(node_id)
            if node is not None:
                self.nodes.forget(node, count)
        return None

    # -- lookup and attributes ---------------------------------------------------------------------------------------

    def _lookup(self, request: Request) -> Reply:
        name = request.names[0]
        if name == b"." or name == b"..":
            return self._lookup_dots(request, name)
        found = self.view.lookup(self._directory(request.nodeid), name)
        if found is None:
            return replies.data(request.unique, _NEGATIVE)
        return replies.data(request.unique, self._entry(*found))

    def _lookup_dots(self, request: Request, name: bytes) -> Reply:
        """File handles ask for a node by its id alone (INIT_EXPORT_SUPPORT)."""
        node = self._node(request.nodeid)
        if name == b"..":
            node = node.parent or self.nodes.root
        return replies.data(request.unique, self._entry(node, self._state(node)))

    def _getattr(self, request: Request) -> Reply:
        node = self._node(request.nodeid)
        return replies.data(request.unique, replies.attr(FOREVER_S, self._attributes(node, self._state(node))))

    def _statx(self, request: Request) -> Reply:
        node = self._node(request.nodeid)
        state = self._state(node)
        if node.descriptor >= 0:
            extended = files.statx(node.descriptor, b"")
        else:
            extended = files.statx(*self.view.place(node))
        btime = extended.btime[0] * 10**9 + extended.btime[1] if extended.mask & files.STATX_BTIME else None
        links = self.view.links(node, state)
        payload = replies.statx(FOREVER_S, state, node.ino, links, state.st_uid, state.st_gid, btime_ns=btime)
        return replies.data(request.unique, payload)

    def _setattr(self, request: Request) -> Reply:
        node = self._node(request.nodeid)
        valid, _fh, size, _owner, atime, mtime, _ctime, atime_ns, mtime_ns, _ctime_ns, mode, uid, gid = request.args
        edit = self._edit()
        if valid & abi.FATTR_SIZE and isinstance(node, Node):
            edit.change(node, truncate=size == 0)
            opened = self.files.current(node)
            edit.truncate(node, size, -1 if opened is None else opened.descriptor)
        if valid & (abi.FATTR_UID | abi.FATTR_GID):
            edit.chown(node, uid if valid & abi.FATTR_UID else -1, gid if valid & abi.FATTR_GID else -1)
        if valid & abi.FATTR_MODE:
            edit.chmod(node, mode)
        elif valid & abi.FATTR_KILL_SUIDGID:
            self._clear_set_ids(node)
        if valid & (abi.FATTR_ATIME | abi.FATTR_MTIME):
            accessed = _time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, (atime, atime_ns))
            modified = _time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, (mtime, mtime_ns))
            edit.utimens(node, accessed, modified)
        return replies.data(request.unique, replies.attr(FOREVER_S, self._attributes(node, self._state(node))))

    def _clear_set_ids(self, node: AnyNode) -> None:
        """Take away what a write or a change of owner must not leave (setattr_should_drop_suidgid in fs/attr.c)."""
        mode = self._state(node).st_mode
        drop = mode & stat.S_ISUID | (mode & stat.S_ISGID if mode & stat.S_IXGRP else 0)
        if drop and not stat.S_ISDIR(mode):
            self._edit().chmod(node, mode & ~drop)

    def _readlink(self, request: Request) -> Reply:
        return replies.data(request.unique, self.view.readlink(self._file(request.nodeid)))

    def _statfs(self, request: Request) -> Reply:
        return replies.data(request.unique, replies.statfs(self.view.statfs()))

    # -- names -------------------------------------------------------------------------------------------------------

    def _mknod(self, request: Request) -> Reply:
        mode, rdev, umask = request.args
        device = os.makedev(*replies.decode_dev(rdev))
        caller = Caller(request.uid, request.gid, umask)
        made = self._edit().mknod(self._directory(request.nodeid), request.names[0], mode, device, caller)
        return replies.data(request.unique, self._entry(*made))

    def _mkdir(self, request: Request) -> Reply:
        mode, umask = request.args
        caller = Caller(request.uid, request.gid, umask)
        made = self._edit().mkdir(self._directory(request.nodeid), request.names[0], mode, caller)
        return replies.data(request.unique, self._entry(*made))

    def _symlink(self, request: Request) -> Reply:
        name, target = request.names
        caller = Caller(request.uid, request.gid)
        made = self._edit().symlink(self._directory(request.nodeid), name, target, caller)
        return replies.data(request.unique, self._entry(*made))

    def _link(self, request: Request) -> Reply:
        node = self._file(request.args[0])
        state = self._edit().link(node, self._directory(request.nodeid), request.names[0])
        return replies.data(request.unique, self._entry(node, state))

    def _unlink(self, request: Request) -> Reply:
        self._edit().unlink(self._directory(request.nodeid), request.names[0])
        return replies.ok(request.unique)

    def _rmdir(self, request: Request) -> Reply:
        self._edit().rmdir(self._directory(request.nodeid), request.names[0])
        return replies.ok(request.unique)

    def _rename(self, request: Request) -> Reply:
        return self._move(request, 0)

    def _rename2(self, request: Request) -> Reply:
        return self._move(request, request.args[1])

    def _move(self, request: Request, flags: int) -> Reply:
        self._edit()
        assert self.stack.renames is not None
        old, new = request.names
        source, target = self._directory(request.nodeid), self._directory(request.args[0])
        self.stack.renames.rename((source, old), (target, new), flags)
        return replies.ok(request.unique)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def _getxattr(self, request: Request) -> Reply:
        name = request.names[0]
        value = None
        if request.nodeid == abi.ROOT_ID and name.startswith(b"user.unionfs."):
            value = self.describe(name[13:])
        if value is None:
            value = self.view.getxattr(self._node(request.nodeid), name)
        return _sized(request.unique, value, request.args[0])

    def _listxattr(self, request: Request) -> Reply:
        names = self.view.listxattr(self._node(request.nodeid))
        return _sized(request.unique, b"".join(name + b"\0" for name in names), request.args[0])

    def _setxattr(self, request: Request) -> Reply:
        node, name = self._node(request.nodeid), request.names[0]
        assert request.data is not None
        edit = self._edit()
        edit.setxattr(node, name, bytes(request.data), request.args[1])
        if len(request.args) > 2 and request.args[2] & abi.SETXATTR_ACL_KILL_SGID:
            edit.chmod(node, self._state(node).st_mode & ~stat.S_ISGID)
        return replies.ok(request.unique)

    def _removexattr(self, request: Request) -> Reply:
        self._edit().removexattr(self._node(request.nodeid), request.names[0])
        return replies.ok(request.unique)

    # -- directories -------------------------------------------------------------------------------------------------

    def _opendir(self, request: Request) -> Reply:
        if self._no_opendir:
            return replies.error(request.unique, errno.ENOSYS)
        return replies.data(request.unique, replies.opened(0, self._opendir_flags))

    def _releasedir(self, request: Request) -> Reply:
        return replies.ok(request.unique)

    def _fsyncdir(self, request: Request) -> Reply:
        node = self._directory(request.nodeid)
        if node.upper is None or self.stack.config.volatile:
            return replies.ok(request.unique)
        return self._sync(request.unique, os.dup(node.upper.descriptor()), os.fsync)

    def _readdir(self, request: Request) -> Reply:
        return self._list(request, plus=False)

    def _readdirplus(self, request: Request) -> Reply:
        return self._list(request, plus=True)

    def _list(self, request: Request, *, plus: bool) -> Reply:
        """Fill one buffer. Offsets are positions in the listing, after ``.`` and ``..``; each entry names the next one."""
        node = self._directory(request.nodeid)
        buffer = replies.DirentBuffer(request.args[2])
        offset = request.args[1]
        add = self._add_plus if plus else self._add_plain
        if offset < 2:
            parent = node.parent or node
            for position, (ino, name) in enumerate(((node.ino, b"."), (parent.ino, b".."))):
                if position >= offset:
                    _add_dots(buffer, ino, position + 1, name, plus=plus)
            offset = 2
        listing = self.view.listing(node)
        while listing.reaches(offset - 2):
            name = listing.names[offset - 2]
            offset += 1
            if name is not None and not add(buffer, node, name, offset):
                break
        return replies.data(request.unique, buffer.payload)

    def _add_plus(self, buffer: replies.DirentBuffer, parent: DirNode, name: bytes, offset: int) -> bool:
        found = self.view.lookup(parent, name)
        if found is None:
            return True
        node, state = found
        if buffer.add_plus(self._entry_payload(node, state), node.ino, offset, state.st_mode >> 12, name):
            node.lookups += 1
            return True
        self.nodes.forget(node, 0)
        return False

    def _add_plain(self, buffer: replies.DirentBuffer, parent: DirNode, name: bytes, offset: int) -> bool:
        listing = self.view.listing(parent)
        position = offset - 3
        if listing.inos[position] == 0:
            found = self.view.lookup(parent, name)
            if found is None:
                return True
            listing.inos[position] = found[0].ino
            self.nodes.forget(found[0], 0)
        return buffer.add(listing.inos[position], offset, listing.kinds[position], name)

    # -- files -------------------------------------------------------------------------------------------------------

    def _open(self, request: Request) -> Reply:
        node = self._file(request.nodeid)
        flags, open_flags = request.args
        how = self.files.acquire(node, flags)
        if flags & os.O_TRUNC and open_flags & abi.OPEN_KILL_SUIDGID:
            self._clear_set_ids(node)
        return replies.data(request.unique, replies.opened(0, *how))

    def _create(self, request: Request) -> Reply:
        _flags, mode, umask, _open_flags = request.args
        caller = Caller(request.uid, request.gid, umask)
        parent = self._directory(request.nodeid)
        node, state, descriptor = self._edit().create(parent, request.names[0], mode, caller)
        return self._created(request, node, state, descriptor)

    def _tmpfile(self, request: Request) -> Reply:
        _flags, mode, umask, _open_flags = request.args
        caller = Caller(request.uid, request.gid, umask)
        made = self._edit().tmpfile(self._directory(request.nodeid), mode, caller)
        return self._created(request, *made)

    def _created(self, request: Request, node: Node, state: os.stat_result, descriptor: int) -> Reply:
        how = self.files.adopt(node, descriptor)
        return replies.data(request.unique, replies.created(self._entry(node, state), replies.opened(0, *how)))

    def _release(self, request: Request) -> Reply:
        self.files.release(self._file(request.nodeid))
        return replies.ok(request.unique)

    def _read(self, request: Request) -> Reply:
        """Answer from the page cache at once; what is not there is for another thread to wait for (preadv2(2), RWF_NOWAIT)."""
        _fh, offset, size = request.args[:3]
        descriptor, owned = self.files.borrow(self._file(request.nodeid))
        unique = request.unique
        try:
            window = memoryview(self._page)[:size]
            try:
                got = os.preadv(descriptor, [window], offset, _RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                    raise
                got = -1
            if got == size or (got >= 0 and offset + got >= os.stat(descriptor).st_size):
                return replies.header(unique, got), window[:got]
            waiting = os.dup(descriptor)
        finally:
            if owned:
                os.close(descriptor)
        return Later(lambda: _read_slowly(unique, waiting, offset, size))

    def _write(self, request: Request) -> Reply:
        node = self._file(request.nodeid)
        _fh, offset, _size, write_flags = request.args[:4]
        assert request.data is not None
        self._edit().change(node)
        descriptor, owned = self.files.borrow(node)
        try:
            written = os.pwrite(descriptor, request.data, offset)
        finally:
            if owned:
                os.close(descriptor)
        if write_flags & abi.WRITE_KILL_SUIDGID:
            self._clear_set_ids(node)
        return replies.data(request.unique, replies.written(written))

    def _fsync(self, request: Request) -> Reply:
        node = self._file(request.nodeid)
        if not node.in_upper or self.stack.config.volatile:
            return replies.ok(request.unique)
        descriptor, owned = self.files.borrow(node)
        sync = os.fdatasync if request.args[1] & abi.FSYNC_FDATASYNC else os.fsync
        return self._sync(request.unique, descriptor if owned else os.dup(descriptor), sync)

    def _syncfs(self, request: Request) -> Reply:
        if self.stack.upper is None or self.stack.config.volatile:
            return replies.ok(request.unique)
        return self._sync(request.unique, os.dup(self.stack.upper.root.fd), files.syncfs)

    def _sync(self, unique: int, descriptor: int, sync: Callable[[int], None]) -> Later:
        """Return the work of one sync on ``descriptor``, which it closes."""

        def run() -> bytes:
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)
            return replies.ok(unique)

        return Later(run)

    def _fallocate(self, request: Request) -> Reply:
        node = self._file(request.nodeid)
        _fh, offset, length, mode = request.args
        self._edit().change(node)
        descriptor, owned = self.files.borrow(node)
        working = descriptor if owned else os.dup(descriptor)
        return self._sync(request.unique, working, lambda file: files.fallocate(file, mode, offset, length))

    def _lseek(self, request: Request) -> Reply:
        _fh, offset, whence = request.args
        descriptor, owned = self.files.borrow(self._file(request.nodeid))
        try:
            return replies.data(request.unique, replies.lseek(os.lseek(descriptor, offset, whence)))
        finally:
            if owned:
                os.close(descriptor)

    def _copy_file_range(self, request: Request) -> Reply:
        return self._copy(request, replies.written)

    def _copy_file_range_64(self, request: Request) -> Reply:
        return self._copy(request, replies.copied)

    def _copy(self, request: Request, encode: Callable[[int], bytes]) -> Reply:
        _fh_in, off_in, node_out, _fh_out, off_out, length, _flags = request.args
        source, target = self._file(request.nodeid), self._file(node_out)
        self._edit().change(target)
        opened = [os.dup(self.files.borrow(node)[0]) for node in (source, target)]
        unique = request.unique

        def run() -> bytes:
            try:
                copied = os.copy_file_range(opened[0], opened[1], min(length, 1 << 30), off_in, off_out)
            finally:
                for descriptor in opened:
                    os.close(descriptor)
            return replies.data(unique, encode(copied))

        small = min(length, os.stat(opened[0]).st_size) <= _SMALL_BYTES
        return run() if small else Later(run)

    def _ioctl(self, request: Request) -> Reply:
        """The two that every file system has, ioctl_iflags(2); anything else is not for a union."""
        command = request.args[2]
        if command not in (files.FS_IOC_GETFLAGS, files.FS_IOC_SETFLAGS):
            return replies.error(request.unique, errno.ENOTTY)
        node = self._node(request.nodeid)
        if command == files.FS_IOC_SETFLAGS:
            assert request.data is not None
            flags = int.from_bytes(request.data[:4], "little")
            self._edit().change(node)
            self._with_descriptor(node, lambda descriptor: files.set_inode_flags(descriptor, flags))
            return replies.data(request.unique, replies.ioctl(0))
        value = self._with_descriptor(node, files.inode_flags)
        return replies.data(request.unique, replies.ioctl(0, 0, value.to_bytes(4, "little")))

    def _with_descriptor(self, node: AnyNode, act: Callable[[int], object]) -> int:
        directory, name = self.view.place(node)
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            result = act(descriptor)
            return result if isinstance(result, int) else 0
        finally:
            os.close(descriptor)

    def _flush(self, request: Request) -> Reply:
        return replies.error(request.unique, errno.ENOSYS)  # never asked again: nothing waits for a close


def _time(valid: int, given: int, now: int, value: tuple[int, int]) -> tuple[int, int]:
    if valid & now:
        return _NOW
    return value if valid & given else _KEEP


def _sized(unique: int, value: bytes, size: int) -> bytes:
    """Answer GETXATTR or LISTXATTR: how long the value is, or the value if it fits (getxattr(2))."""
    if size == 0:
        return replies.data(unique, replies.xattr_size(len(value)))
    if len(value) > size:
        return replies.error(unique, errno.ERANGE)
    return replies.data(unique, value)


def _add_dots(buffer: replies.DirentBuffer, ino: int, offset: int, name: bytes, *, plus: bool) -> None:
    if plus:
        buffer.add_plus(replies.NO_ENTRY, ino, offset, _DT_DIR, name)
    else:
        buffer.add(ino, offset, _DT_DIR, name)


def _read_slowly(unique: int, descriptor: int, offset: int, size: int) -> Buffers:
    try:
        content = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    return replies.header(unique, len(content)), content
