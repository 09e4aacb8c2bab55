"""A kernel in this process, for tests: it speaks the protocol with a dispatcher byte for byte, and needs no mount.

It does what Linux's side does with names: looks up what it does not know, keeps names and attributes for as long as the
replies allow, counts lookups and takes them back, and no longer asks for what was once answered with ENOSYS. It checks
no permissions, and has no page cache: each read and write is a request. This module does not know what a union is.
"""

from __future__ import annotations

import errno
import os

from unionfs.fuse.memory_connection import Attr, Connection, Entry, Handle, ProtocolError, dirents, read_entry
from unionfs.fuse.wire import abi
from unionfs.syscalls.files import RENAME_EXCHANGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.fuse.dispatch import Dispatcher
    from unionfs.fuse.memory_connection import Dirent

    AnyPath = str | bytes

_READ_BYTES = 1 << 17
_DIR_BYTES = 4096
_SECONDS_NS = 10**9


class Kernel(Connection):
    """One mount of ``dispatcher``. Methods are named for their system calls and take paths from the mount's root.

    They raise OSError with the errno that was answered, or ProtocolError. ``umask`` is the caller's; ``lookups`` counts
    for each node id what is to be forgotten. Further arguments are those of Connection.
    """

    def __init__(self, dispatcher: Dispatcher, **offer: int) -> None:
        super().__init__(dispatcher, **offer)
        self.umask = 0
        self.lookups: dict[int, int] = {}
        self._open: dict[int, int] = {}
        self._dentries: dict[tuple[int, bytes], int] = {}
        self._attrs: dict[int, Attr] = {}

    # -- names and attributes ----------------------------------------------------------------------------------------

    def walk(self, path: AnyPath) -> int:
        """Return the id of the node at ``path``, following no link. Raises FileNotFoundError."""
        nodeid = abi.ROOT_ID
        for name in _names(path):
            nodeid = self._look_up(nodeid, name)
            if not nodeid:
                raise _error(errno.ENOENT, path)
        return nodeid

    def _place(self, path: AnyPath) -> tuple[int, bytes]:
        *above, name = _names(path)
        return self.walk(b"/".join(above)), name

    def _look_up(self, parent: int, name: bytes) -> int:
        """Return the id of a node, 0 for none, from the cache if it holds (fuse_dentry_revalidate in fs/fuse/dir.c)."""
        known = self._dentries.get((parent, name))
        if known is not None:
            return known
        try:
            entry = read_entry(self.send(abi.LOOKUP, parent, names=(name,)))
        except FileNotFoundError:
            return 0
        return self._enter(parent, name, entry)

    def _enter(self, parent: int, name: bytes, entry: Entry) -> int:
        """Take note of what an entry says, and that it counts as one more lookup of its node."""
        if entry.nodeid == abi.ROOT_ID:
            raise ProtocolError(f"{name!r}: the root has no name")
        if entry.entry_valid_s:
            self._dentries[parent, name] = entry.nodeid
        if entry.nodeid:
            self.lookups[entry.nodeid] = self.lookups.get(entry.nodeid, 0) + 1
            self._keep_attr(entry.nodeid, entry.attr_valid_s, entry.attr)
        return entry.nodeid

    def _keep_attr(self, nodeid: int, valid_s: int, attr: Attr) -> Attr:
        if valid_s:
            self._attrs[nodeid] = attr
        else:
            self._attrs.pop(nodeid, None)
        return attr

    def _changed(self, *nodeids: int) -> None:
        """Attributes of these nodes are to be asked for again."""
        for nodeid in nodeids:
            self._attrs.pop(nodeid, None)

    def stat(self, path: AnyPath) -> Attr:
        """lstat(2)."""
        return self._attr(self.walk(path))

    def fstat(self, handle: Handle) -> Attr:
        """fstat(2)."""
        return self._attr(handle.nodeid)

    def _attr(self, nodeid: int) -> Attr:
        known = self._attrs.get(nodeid)
        return known if known is not None else self._attr_out(nodeid, self.send(abi.GETATTR, nodeid, (0, 0)))

    def _attr_out(self, nodeid: int, payload: bytes) -> Attr:
        valid_s, _nsec = abi.ATTR_OUT.unpack_from(payload)
        return self._keep_attr(nodeid, valid_s, Attr._make(abi.ATTR.unpack_from(payload, abi.ATTR_OUT.size)))

    def chmod(self, path: AnyPath, mode: int) -> Attr:
        """chmod(2)."""
        return self._setattr(self.walk(path), abi.FATTR_MODE, mode=mode)

    def chown(self, path: AnyPath, uid: int, gid: int) -> Attr:
        """chown(2)."""
        return self._setattr(self.walk(path), abi.FATTR_UID | abi.FATTR_GID, uid=uid, gid=gid)

    def truncate(self, path: AnyPath, size: int) -> Attr:
        """truncate(2)."""
        return self._setattr(self.walk(path), abi.FATTR_SIZE, size=size)

    def ftruncate(self, handle: Handle, size: int) -> Attr:
        """ftruncate(2)."""
        return self._setattr(handle.nodeid, abi.FATTR_SIZE | abi.FATTR_FH, size=size, fh=handle.fh)

    def utime(self, path: AnyPath, atime_ns: int, mtime_ns: int) -> Attr:
        """utimensat(2)."""
        (atime, atimensec), (mtime, mtimensec) = divmod(atime_ns, _SECONDS_NS), divmod(mtime_ns, _SECONDS_NS)
        times = {"atime": atime, "atimensec": atimensec, "mtime": mtime, "mtimensec": mtimensec}
        return self._setattr(self.walk(path), abi.FATTR_ATIME | abi.FATTR_MTIME, **times)

    def _setattr(self, nodeid: int, valid: int, **fields: int) -> Attr:
        args = tuple(fields.get(name, 0) for name in abi.FIELDS[abi.SETATTR_IN][1:])
        return self._attr_out(nodeid, self.send(abi.SETATTR, nodeid, (valid, *args)))

    def readlink(self, path: AnyPath) -> bytes:
        """readlink(2)."""
        return self.send(abi.READLINK, self.walk(path))

    def statfs(self) -> tuple[int, ...]:
        """statfs(2): the fields of abi.KSTATFS."""
        return abi.KSTATFS.unpack(self.send(abi.STATFS, abi.ROOT_ID))

    # -- extended attributes -----------------------------------------------------------------------------------------

    def getxattr(self, path: AnyPath, name: bytes) -> bytes:
        """getxattr(2), with a buffer of the size that was asked for first."""
        nodeid = self.walk(path)
        (size,) = abi.GETXATTR_OUT.unpack(self.send(abi.GETXATTR, nodeid, (0,), (name,)))
        return self.send(abi.GETXATTR, nodeid, (size,), (name,)) if size else b""

    def listxattr(self, path: AnyPath) -> list[bytes]:
        """listxattr(2), likewise."""
        nodeid = self.walk(path)
        (size,) = abi.GETXATTR_OUT.unpack(self.send(abi.LISTXATTR, nodeid, (0,)))
        return self.send(abi.LISTXATTR, nodeid, (size,)).split(b"\0")[:-1] if size else []

    def setxattr(self, path: AnyPath, name: bytes, value: bytes, flags: int = 0) -> None:
        """setxattr(2)."""
        nodeid = self.walk(path)
        args = (len(value), flags, 0)[: len(abi.FIELDS[self.setxattr_layout])]
        self.send(abi.SETXATTR, nodeid, args, (name,), value)
        self._changed(nodeid)

    def removexattr(self, path: AnyPath, name: bytes) -> None:
        """removexattr(2)."""
        nodeid = self.walk(path)
        self.send(abi.REMOVEXATTR, nodeid, names=(name,))
        self._changed(nodeid)

    # -- names that come, go and move --------------------------------------------------------------------------------

    def _make(self, opcode: int, path: AnyPath, args: tuple[int, ...], *more: bytes) -> Attr:
        parent, name = self._free(path)
        entry = read_entry(self.send(opcode, parent, args, (name, *more)))
        self._appeared(parent, name, entry)
        return entry.attr

    def _free(self, path: AnyPath) -> tuple[int, bytes]:
        parent, name = self._place(path)
        if self._look_up(parent, name):
            raise _error(errno.EEXIST, path)
        return parent, name

    def _appeared(self, parent: int, name: bytes, entry: Entry) -> None:
        if not entry.nodeid:
            raise ProtocolError(f"{name!r}: made, and not there")
        self._dentries.pop((parent, name), None)
        self._enter(parent, name, entry)
        self._changed(parent)

    def mkdir(self, path: AnyPath, mode: int = 0o777) -> Attr:
        """mkdir(2)."""
        return self._make(abi.MKDIR, path, (mode, self.umask))

    def mknod(self, path: AnyPath, mode: int, device: int = 0) -> Attr:
        """mknod(2); ``device`` is the kernel's form of the number."""
        return self._make(abi.MKNOD, path, (mode, device, self.umask))

    def symlink(self, target: bytes, path: AnyPath) -> Attr:
        """symlink(2)."""
        return self._make(abi.SYMLINK, path, (), target)

    def link(self, old: AnyPath, new: AnyPath) -> Attr:
        """link(2)."""
        nodeid = self.walk(old)
        self._changed(nodeid)
        return self._make(abi.LINK, new, (nodeid,))

    def unlink(self, path: AnyPath) -> None:
        """unlink(2)."""
        self._remove(abi.UNLINK, path)

    def rmdir(self, path: AnyPath) -> None:
        """rmdir(2)."""
        self._remove(abi.RMDIR, path)

    def _remove(self, opcode: int, path: AnyPath) -> None:
        nodeid, (parent, name) = self.walk(path), self._place(path)
        self.send(opcode, parent, names=(name,))
        self._dentries[parent, name] = 0
        self._changed(parent, nodeid)

    def rename(self, old: AnyPath, new: AnyPath, flags: int = 0) -> None:
        """renameat2(2)."""
        nodeid, (start, name), (end, target) = self.walk(old), self._place(old), self._place(new)
        replaced = self._look_up(end, target)
        if flags:
            self.send(abi.RENAME2, start, (end, flags), (name, target))
        else:
            self.send(abi.RENAME, start, (end,), (name, target))
        self._dentries.pop((start, name), None)
        self._dentries[end, target] = nodeid
        if flags & RENAME_EXCHANGE:
            self._dentries[start, name] = replaced
        self._changed(start, end, nodeid, replaced)

    # -- directories -------------------------------------------------------------------------------------------------

    def readdir(self, path: AnyPath, *, plus: bool = True, size: int = _DIR_BYTES) -> Iterator[Dirent]:
        """Yield the names of a directory, asking for ``size`` bytes at a time; with ``plus``, learn of each node."""
        nodeid = self.walk(path)
        opened = self.ask(abi.OPENDIR, nodeid, (os.O_RDONLY | os.O_DIRECTORY, 0))
        fh = abi.OPEN_OUT.unpack(opened)[0] if opened else 0
        offset = 0
        while data := self.send(abi.READDIRPLUS if plus else abi.READDIR, nodeid, (fh, offset, size, 0, 0, 0)):
            if len(data) > size:
                raise ProtocolError(f"{len(data)} bytes of names, where {size} were asked for")
            for found in dirents(data, plus=plus):
                offset = found.offset
                if found.entry is not None and found.entry.nodeid:
                    self._enter(nodeid, found.name, found.entry)
                yield found
        if opened is not None:
            self.send(abi.RELEASEDIR, nodeid, (fh, 0, 0, 0))

    # -- files -------------------------------------------------------------------------------------------------------

    def open(self, path: AnyPath, flags: int = os.O_RDONLY, mode: int = 0o666) -> Handle:
        """open(2), with CREATE where it makes the file."""
        parent, name = self._place(path)
        nodeid = self._look_up(parent, name)
        if nodeid:
            opened = self._open_known(nodeid, flags & ~(os.O_CREAT | os.O_EXCL))
        elif flags & os.O_CREAT:
            made = self.send(abi.CREATE, parent, (flags, mode, self.umask, 0), (name,))
            entry, opened = read_entry(made), made[-abi.OPEN_OUT.size :]
            self._appeared(parent, name, entry)
            nodeid = entry.nodeid
        else:
            raise _error(errno.ENOENT, path)
        fh, open_flags, _backing_id = abi.OPEN_OUT.unpack(opened)
        self._open[nodeid] = self._open.get(nodeid, 0) + 1
        return Handle(nodeid, fh, flags, open_flags)

    def _open_known(self, nodeid: int, flags: int) -> bytes:
        """Ask to open a file, unless that is not done here (fuse_file_open in fs/fuse/file.c), and empty it."""
        atomic = self.agreed & abi.INIT_ATOMIC_O_TRUNC
        opened = self.ask(abi.OPEN, nodeid, (flags if atomic else flags & ~os.O_TRUNC, 0))
        if flags & os.O_TRUNC:
            self._changed(nodeid)
            if not atomic:
                self._setattr(nodeid, abi.FATTR_SIZE)
        return opened if opened is not None else abi.OPEN_OUT.pack(0, abi.FOPEN_KEEP_CACHE, 0)

    def close(self, handle: Handle) -> None:
        """close(2): FLUSH, then RELEASE, unless files are not opened here."""
        self.ask(abi.FLUSH, handle.nodeid, (handle.fh, 0))
        self._open[handle.nodeid] -= 1
        if not self.refused(abi.OPEN):
            self.send(abi.RELEASE, handle.nodeid, (handle.fh, handle.flags, 0, 0))

    def read(self, handle: Handle, size: int = _READ_BYTES, offset: int = 0) -> bytes:
        """pread(2)."""
        data = self.send(abi.READ, handle.nodeid, (handle.fh, offset, size, 0, 0, handle.flags))
        if len(data) > size:
            raise ProtocolError(f"READ: {len(data)} bytes, where {size} were asked for")
        return data

    def write(self, handle: Handle, data: bytes, offset: int = 0) -> int:
        """pwrite(2)."""
        args = (handle.fh, offset, len(data), 0, 0, handle.flags)
        (written,) = abi.WRITE_OUT.unpack(self.send(abi.WRITE, handle.nodeid, args, data=data))
        self._changed(handle.nodeid)
        return int(written)

    def fsync(self, handle: Handle) -> None:
        """fsync(2)."""
        self.send(abi.FSYNC, handle.nodeid, (handle.fh, 0))

    def fallocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        self.send(abi.FALLOCATE, handle.nodeid, (handle.fh, offset, length, mode))
        self._changed(handle.nodeid)

    def lseek(self, handle: Handle, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE."""
        (found,) = abi.LSEEK_OUT.unpack(self.send(abi.LSEEK, handle.nodeid, (handle.fh, offset, whence)))
        return int(found)

    # -- memory ------------------------------------------------------------------------------------------------------

    def drop_caches(self) -> None:
        """Forget all nodes that are not open, as Linux does when memory is short."""
        dropped = {nodeid: count for nodeid, count in self.lookups.items() if not self._open.get(nodeid)}
        self._dentries.clear()
        for nodeid in dropped:
            del self.lookups[nodeid]
        self._changed(*dropped)
        if len(dropped) == 1:
            ((nodeid, count),) = dropped.items()
            self.send(abi.FORGET, nodeid, (count,))
        elif dropped:
            data = b"".join(abi.FORGET_ONE.pack(nodeid, count) for nodeid, count in dropped.items())
            self.send(abi.BATCH_FORGET, 0, (len(dropped),), data=data)

    def unmount(self) -> None:
        """umount(2)."""
        self.drop_caches()
        self.send(abi.DESTROY, 0)


def _names(path: AnyPath) -> list[bytes]:
    return [name for name in os.fsencode(path).split(b"/") if name]


def _error(number: int, path: AnyPath) -> OSError:
    return OSError(number, os.strerror(number), path)
