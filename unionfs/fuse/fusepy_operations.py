"""The callbacks of libfuse, one short method each, on the nodes of one stack: names and signatures are fusepy's.

A handle is the id of the node that is open: the real descriptor belongs to the node, and follows it into the writable
layer. Not here, so that the kernel answers by itself: access (``default_permissions``), flush, locks. This module knows
nothing of mounting. All of it runs in the one thread in which libfuse serves.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.fuse.fusepy_library import ENCODING
from unionfs.fuse.fusepy_paths import Paths
from unionfs.fuse.openfiles import OpenFiles
from unionfs.fuse.wire import abi
from unionfs.layers.layer import DT_REG, DT_UNKNOWN
from unionfs.ondisk import IMMUTABLE
from unionfs.syscalls import files, libfuse, process
from unionfs.union import inode_flags
from unionfs.union.listing import UNKNOWN_INO, offset_after
from unionfs.union.mutate import Caller
from unionfs.union.nodes import AnyNode, DirNode, Node
from unionfs.union.pieces import devices_of_programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.fuse.fusepy_library import ConnectionInfo, FileInfo
    from unionfs.union.stack import Stack

    Attributes = dict[str, int]
    Entry = tuple[str, Attributes, int]

_WANTED = (
    libfuse.CAP_ATOMIC_O_TRUNC
    | libfuse.CAP_BIG_WRITES
    | libfuse.CAP_DONT_MASK
    | libfuse.CAP_IOCTL_DIR
    | libfuse.CAP_POSIX_ACL
)
# The engine leaves it to the kernel to clear set-id bits.
_UNWANTED = libfuse.CAP_HANDLE_KILLPRIV | libfuse.CAP_HANDLE_KILLPRIV_V2
_ENTRIES = 128  # at a time; the smallest buffer holds about as many short names
_DIRECTORY = stat.S_IFDIR
_STATVFS = tuple(name for name in dir(os.statvfs_result) if name.startswith("f_"))
_FLAGS_BYTES, _FSXATTR_BYTES = 4, 28  # the kernel passes an int for flags, whatever their ioctl says: fs/fuse/ioctl.c
_FLAGS = (files.FS_IOC_GETFLAGS, files.FS_IOC_SETFLAGS)


class Operations:
    """Answers libfuse from ``stack``. ``caller`` tells who asks (user, group, umask, process); ``describe`` as for a
    Dispatcher.
    """

    def __init__(
        self,
        stack: Stack,
        caller: Callable[[], tuple[int, int, int, int]],
        describe: Callable[[bytes], bytes | None],
        ready: Callable[[], None],
    ) -> None:
        self._stack = stack
        self._view = stack.view
        self._offers = stack.config.offers
        self._nodes = stack.view.nodes
        self._paths = Paths(stack.view)
        self._files = OpenFiles(stack)
        self._directories: dict[int, int] = {}
        self._caller = caller
        self._describe = describe
        self._ready = ready

    def between(self) -> None:
        """Bound what is kept open and in memory; to be called between two operations."""
        self._view.cache.trim()
        self._paths.trim()

    # -- connection --------------------------------------------------------------------------------------------------

    def init_with_config(self, connection: ConnectionInfo, config: object) -> None:
        """The mount answers from now on."""
        wanted = _WANTED if self._offers.acls else _WANTED & ~libfuse.CAP_POSIX_ACL
        connection.want = (connection.want | connection.capable & wanted) & ~_UNWANTED
        self._ready()

    def statfs(self, path: str) -> dict[str, int]:
        """statvfs(3) of the layer that is written to."""
        found = self._view.statfs()
        return {name: getattr(found, name) for name in _STATVFS}

    # -- attributes --------------------------------------------------------------------------------------------------

    def getattr(self, path: str | None, info: FileInfo | None = None) -> Attributes:
        """stat(2), or fstat(2) where the kernel says by which handle."""
        if info is not None:
            opened = self._open_file(info)
            return self._attributes(opened, self._state(opened))
        hidden = self._paths.hidden(path)
        if hidden is not None:
            return self._attributes_of_hidden(hidden)
        node, state = self._paths.find(path)
        return self._attributes(node, state or self._state(node))

    def _attributes_of_hidden(self, node: Node) -> Attributes:
        """The same, with one link more: libfuse takes it off again, for the name by which it hides the file."""
        attributes = self._attributes(node, self._state(node))
        attributes["st_nlink"] = 1 if node.parent is None else attributes["st_nlink"] + 1
        return attributes

    def _state(self, node: AnyNode) -> os.stat_result:
        descriptor = self._files.descriptor(node) if isinstance(node, Node) and node.data is None else -1
        return self._view.stat(node) if descriptor < 0 else os.stat(descriptor)

    def _attributes(self, node: AnyNode, state: os.stat_result) -> Attributes:
        state = devices_of_programs(self._view.shown(node, state))
        return {
            "st_ino": node.ino,
            "st_mode": state.st_mode,
            "st_nlink": self._view.links(node, state),
            "st_uid": state.st_uid,
            "st_gid": state.st_gid,
            "st_rdev": state.st_rdev,
            "st_size": state.st_size,
            "st_blksize": state.st_blksize,
            "st_blocks": state.st_blocks,
            "st_atime": state.st_atime_ns,
            "st_mtime": state.st_mtime_ns,
            "st_ctime": state.st_ctime_ns,
        }

    def chmod(self, path: str | None, mode: int) -> int:
        """chmod(2)."""
        self._stack.writable().chmod(self._paths.node(path), mode)
        return 0

    def chown(self, path: str | None, uid: int, gid: int) -> int:
        """chown(2); -1 leaves an id as it is."""
        self._stack.writable().chown(self._paths.node(path), uid, gid)
        return 0

    def utimens(self, path: str | None, times: list[tuple[int, int]]) -> int:
        """utimensat(2): access and modification time in seconds and nanoseconds, with UTIME_NOW and UTIME_OMIT."""
        self._stack.writable().utimens(self._paths.node(path), *times)
        return 0

    def truncate(self, path: str | None, size: int, info: FileInfo | None = None) -> int:
        """truncate(2) and ftruncate(2)."""
        node = self._paths.file(path) if info is None else self._open_file(info)
        edit = self._stack.writable()
        edit.change(node, truncate=size == 0)
        edit.truncate(node, size, self._files.descriptor(node))
        return 0

    def readlink(self, path: str) -> str:
        """readlink(2)."""
        return self._view.readlink(self._paths.file(path)).decode(ENCODING)

    # -- names -------------------------------------------------------------------------------------------------------

    def mknod(self, path: str, mode: int, device: int) -> int:
        """mknod(2)."""
        made = self._stack.writable().mknod(*self._paths.entry(path), mode, device, self._owner())
        self._paths.remember(made[0])
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        """mkdir(2)."""
        made = self._stack.writable().mkdir(*self._paths.entry(path), mode, self._owner())
        self._paths.remember(made[0])
        return 0

    def symlink(self, path: str, target: str) -> int:
        """symlink(2): ``path`` is the new name."""
        made = self._stack.writable().symlink(*self._paths.entry(path), target.encode(ENCODING), self._owner())
        self._paths.remember(made[0])
        return 0

    def link(self, path: str, old: str) -> int:
        """link(2): ``path`` is the new name."""
        self._stack.writable().link(self._paths.file(old), *self._paths.entry(path))
        return 0

    def unlink(self, path: str) -> int:
        """unlink(2) of a file that is not open, and the last word on one that was hidden."""
        edit = self._stack.writable()
        node, place = self._paths.node(path), self._paths.entry(path)
        self._paths.removing(node, lambda: edit.unlink(*place))
        return 0

    def rmdir(self, path: str) -> int:
        """rmdir(2)."""
        edit = self._stack.writable()
        node, place = self._paths.node(path), self._paths.entry(path)
        self._paths.removing(node, lambda: edit.rmdir(*place))
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        """rename(2), and renameat2(2) with libfuse 3; or the end of an open file's name (see ``fusepy_paths``)."""
        edit, renames = self._stack.writable(), self._stack.renames
        assert renames is not None
        node, source, target = self._paths.node(old), self._paths.entry(old), self._paths.entry(new)
        if isinstance(node, Node) and self._paths.hides(node, target[1]):
            self._paths.hide(node, target[1], lambda: edit.unlink(*source))
            return 0
        self._paths.removing(self._paths.at(target), lambda: renames.rename(source, target, flags))
        return 0

    # -- extended attributes -----------------------------------------------------------------------------------------

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """getxattr(2)."""
        key = name.encode(ENCODING)
        value = self._describe(key[13:]) if path == "/" and key.startswith(b"user.unionfs.") else None
        if value is None and not self._offers.attributes:
            raise OSError(errno.EOPNOTSUPP, path)
        return self._view.getxattr(self._paths.node(path), key) if value is None else value

    def listxattr(self, path: str) -> list[str]:
        """listxattr(2)."""
        names = self._view.listxattr(self._paths.node(path))
        hidden = b"trusted." if self._caller()[0] else b"\0"  # xattr(7): for CAP_SYS_ADMIN alone
        return [name.decode(ENCODING) for name in names if not name.startswith(hidden)]

    def setxattr(self, path: str, name: str, value: bytes, flags: int, position: int = 0) -> int:
        """setxattr(2)."""
        self._stack.writable().setxattr(self._paths.node(path), name.encode(ENCODING), value, flags)
        return 0

    def removexattr(self, path: str, name: str) -> int:
        """removexattr(2)."""
        self._stack.writable().removexattr(self._paths.node(path), name.encode(ENCODING))
        return 0

    # -- directories -------------------------------------------------------------------------------------------------

    def opendir(self, path: str) -> int:
        """opendir(3)."""
        node = self._paths.directory(path)
        node.lookups += 1
        self._directories[node.id] = self._directories.get(node.id, 0) + 1
        return node.id

    def releasedir(self, path: str | None, handle: int) -> int:
        """closedir(3); the last one ends the listing."""
        node = self._nodes.by_id[handle]
        assert isinstance(node, DirNode)
        self._directories[handle] -= 1
        if not self._directories[handle]:
            del self._directories[handle]
            node.listing = None
        self._nodes.forget(node, 1)
        return 0

    def fsyncdir(self, path: str | None, datasync: int, handle: int) -> int:
        """fsync(2) of a directory."""
        node = self._nodes.by_id[handle]
        assert isinstance(node, DirNode)
        if node.upper is not None and not self._stack.config.volatile:
            os.fsync(node.upper.descriptor())
        return 0

    def readdir_with_offset(self, path: str | None, offset: int, handle: int) -> list[Entry]:
        """Return the next names, each with inode number, type and the offset at which what follows it begins.

        Offsets are those of the node's listing, but for ``.`` and ``..``: they hold while names come and go.
        """
        node = self._nodes.by_id[handle]
        assert isinstance(node, DirNode)
        dots = [(".", node), ("..", node.parent or node)]
        entries = [(name, {"st_ino": it.ino, "st_mode": _DIRECTORY}, at + 1) for at, (name, it) in enumerate(dots)]
        del entries[:offset]
        listing = self._view.listing(node)
        for position, name, kind, ino in listing.entries(listing.position(offset)):
            if len(entries) >= _ENTRIES:
                break
            number = ino or self._number(node, name, position)
            if kind == DT_REG and self._stack.config.owners is not None:
                kind = DT_UNKNOWN  # it may stand for a device: readdir(3)
            if number:
                attributes = {"st_ino": number, "st_mode": kind << 12}
                entries.append((name.decode(ENCODING), attributes, offset_after(position)))
        return entries

    def _number(self, parent: DirNode, name: bytes, position: int) -> int:
        """Return the inode number that only a lookup tells, 0 if the name is gone; the file is soon asked for again."""
        try:
            found = self._view.look_up_listed(parent, name, position)
        except PermissionError:  # as in NameVerbs
            return UNKNOWN_INO
        if found is None:
            return 0
        self._paths.remember(found)
        return found.ino

    # -- files -------------------------------------------------------------------------------------------------------

    def open(self, path: str, info: FileInfo) -> int:
        """open(2) of a file that is there."""
        node = self._paths.file(path)
        if info.flags & os.O_TRUNC and self._caller()[0] != 0:
            self._files.acquire_emptied(node, info.flags, lambda: self._clear_set_ids(node))
        else:
            self._files.acquire(node, info.flags)
        self._opened(node, info)
        return 0

    def create(self, path: str, mode: int, info: FileInfo) -> int:
        """open(2) with O_CREAT of a file that is not there."""
        edit = self._stack.writable()
        node, state, descriptor = edit.create(*self._paths.entry(path), mode, self._owner())
        self._files.adopt(node, descriptor, state, info.flags)
        self._paths.remember(node)
        self._opened(node, info)
        return 0

    def _opened(self, node: Node, info: FileInfo) -> None:
        node.lookups += 1
        info.fh = node.id
        # Only what cannot have been changed by another name, whose pages the kernel keeps apart, is still true.
        info.keep_cache = int(not node.in_upper and node.links is None)

    def _owner(self) -> Caller:
        """Return on whose behalf something is created: who asks."""
        return Caller(*self._caller()[:3])

    def _clear_set_ids(self, node: Node) -> None:
        _uid, gid, _umask, pid = self._caller()
        self._files.clear_set_ids(node, self._state(node), lambda group: process.belongs(pid, gid, group))

    def _open_file(self, info: FileInfo) -> Node:
        node = self._nodes.by_id[info.fh]
        assert isinstance(node, Node)
        return node

    def release(self, path: str | None, info: FileInfo) -> int:
        """The last close(2) of an open(2)."""
        node = self._open_file(info)
        node.lookups -= 1
        self._files.release(node, info.flags)
        if node.opened is None:
            self._paths.closed(node)
        return 0

    def read(self, path: str | None, size: int, offset: int, info: FileInfo) -> bytes:
        """pread(2)."""
        descriptor, _owned = self._files.borrow(self._open_file(info))
        return os.pread(descriptor, size, offset)

    def write(self, path: str | None, data: bytes, offset: int, info: FileInfo) -> int:
        """pwrite(2)."""
        node = self._open_file(info)
        self._stack.writable().change(node, forbidding=IMMUTABLE)
        if info.flags & os.O_APPEND and node.links is not None and not info.writepage:
            # The kernel may not know what another name has appended.
            offset = os.stat(self._files.borrow(node)[0]).st_size
        return self._files.write(node, data, offset, abi.WRITE_CACHE if info.writepage else 0)

    def fsync(self, path: str | None, datasync: int, info: FileInfo) -> int:
        """fsync(2) and fdatasync(2)."""
        descriptor, owned = self._files.borrow_to_sync(self._open_file(info))
        if descriptor < 0:
            return 0
        try:
            (os.fdatasync if datasync else os.fsync)(descriptor)
        finally:
            if owned:
                os.close(descriptor)
        return 0

    def fallocate(self, path: str | None, mode: int, offset: int, size: int, info: FileInfo) -> int:
        """fallocate(2)."""
        node = self._open_file(info)
        self._stack.writable().change(node, forbidding=inode_flags.forbidding_space(mode))
        descriptor, _owned = self._files.borrow(node)
        files.fallocate(descriptor, mode, offset, size)
        return 0

    def ioctl(self, path: str | None, command: int, argument: int, info: FileInfo, flags: int, data: int) -> int:
        """Those of ioctl_iflags(2) and ioctl_xfs_fsgetxattr(2); ``data`` is the address of the argument."""
        node, command = self._nodes.by_id[info.fh], command & 0xFFFFFFFF
        if command not in files.ATTRIBUTE_IOCTLS:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        size = _FLAGS_BYTES if command in _FLAGS else _FSXATTR_BYTES
        if command in files.ATTRIBUTE_CHANGES:
            inode_flags.change(self._stack.writable(), node, command, libfuse.read(data, size))
            self._files.recheck(node)
        else:
            libfuse.write(data, inode_flags.tell(self._view, node, command, libfuse.read(data, size))[:size])
        return 0
