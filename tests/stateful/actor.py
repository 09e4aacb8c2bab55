"""One side of the comparison: performs operations in a directory and reports each outcome as a comparable value.

It does not know which file system it is on. What may differ between two right ones (inode numbers, the present time,
sizes and link counts of directories) is left out of the outcomes here, and nowhere else.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from functools import wraps
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tests.support.trees import snapshot
from unionfs.syscalls import files as raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.trees import Entry, Tree

_libc = ctypes.CDLL(None, use_errno=True)
#: Times between these are the present, whose nanoseconds nobody compares: 2024 to 2036.
PRESENT_NS = range(1_704_067_200 * 10**9, 2_082_758_400 * 10**9)


_BLOCK_BYTES = 4096  # what O_DIRECT takes on any file system here
_ONE_RECORD_BYTES = 32  # room for one struct linux_dirent64 with a name as short as those here
_NAME_AT = 19  # where the name stands in it
_FLOCK = Struct("hhqqi4x")  # struct flock, fcntl(2)
_F_OFD_SETLK = 37


class Failed(NamedTuple):
    """The outcome of an operation that raised OSError."""

    error: str


class Stale:
    """The outcome of a mapping that does not show what its file has; equal to no other, not even such a one."""


Operation = TypeVar("Operation", bound="Callable[..., Any]")


def operation(function: Operation) -> Operation:
    """Run as ``who`` in the actor's directory, and turn OSError into an outcome."""

    @wraps(function)
    def perform(self: Actor, *arguments: object, who: int = 0) -> object:
        os.fchdir(self.root)
        _become(who)
        try:
            return function(self, *arguments)
        except OSError as error:
            return Failed(errno.errorcode[error.errno or 0])
        finally:
            _become(0)

    return perform  # type: ignore[return-value]


def _become(who: int) -> None:
    """Set the ids of this thread that file systems look at; leaving 0 also drops the capabilities. setfsuid(2)."""
    _libc.setfsgid(who)
    _libc.setfsuid(who)


class Actor:
    """The directory, and the descriptors that operations left open in it, by slot.

    ``dates_opened`` dates each file that is opened to write: overlayfs does so where it copies data then.
    """

    def __init__(self, root: Path, *, dates_opened: bool = False) -> None:
        self._dates_opened = dates_opened
        self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._open: dict[int, int] = {}
        self._mapped: dict[int, mmap.mmap] = {}

    def leave(self) -> None:
        """Close everything, so that the mount can be unmounted."""
        os.chdir("/")
        for slot in tuple(self._open):
            self.forget(slot)
        os.close(self.root)

    def forget(self, slot: int) -> None:
        """Close what is open in the slot, if anything, and unmap it."""
        if slot in self._mapped:
            self._mapped.pop(slot).close()
        if slot in self._open:
            os.close(self._open.pop(slot))

    def paths(self) -> Iterator[bytes]:
        """Yield the path of everything that is there."""
        top = b"/proc/self/fd/%d/" % self.root
        for directory, directories, names in os.walk(top):
            for name in sorted(directories + names):
                yield os.path.join(directory, name)[len(top) :]

    def _opened(self, path: bytes, flags: int, mode: int = 0) -> int:
        descriptor = os.open(path, flags | os.O_NONBLOCK, mode)
        if self._dates_opened and flags & os.O_ACCMODE:
            os.utime(descriptor)
        return descriptor

    # by path

    @operation
    def create(self, path: bytes, mode: int, flags: int) -> None:
        """Open with O_CREAT."""
        os.close(self._opened(path, os.O_WRONLY | os.O_CREAT | flags, mode))

    @operation
    def write(self, path: bytes, data: bytes, offset: int, flags: int) -> object:
        """Write at ``offset``, or with O_APPEND at the end."""
        return self._through(path, os.O_WRONLY | flags, lambda descriptor: os.pwrite(descriptor, data, offset))

    @operation
    def read(self, path: bytes) -> object:
        """Read the whole file, at most 64 KiB."""
        return self._through(path, os.O_RDONLY, lambda descriptor: os.read(descriptor, 65536))

    def _through(self, path: bytes, flags: int, use: Callable[[int], Any]) -> Any:
        descriptor = self._opened(path, flags)
        try:
            return use(descriptor)
        finally:
            os.close(descriptor)

    @operation
    def truncate(self, path: bytes, size: int) -> None:
        """See truncate(2). Whether the file is dated when its size stays is not compared."""
        before = os.stat(path).st_size
        os.truncate(path, size)
        if size == before:
            os.utime(path)

    @operation
    def fallocate(self, path: bytes, mode: int, offset: int, length: int) -> None:
        """See fallocate(2). Whether a failure dates the file is not compared."""

        def allocate(descriptor: int) -> None:
            try:
                raw.fallocate(descriptor, mode, offset, length)
            except OSError:
                os.utime(descriptor)
                raise

        self._through(path, os.O_WRONLY, allocate)

    @operation
    def copy_range(self, old: bytes, new: bytes) -> object:
        """See copy_file_range(2); where the file systems of the layers forbid it, cp(1)."""

        def copy(source: int, target: int) -> int:
            try:
                return os.copy_file_range(source, target, 3000)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                return os.write(target, os.read(source, 3000))

        return self._through(
            old,
            os.O_RDONLY,
            lambda source: self._through(new, os.O_WRONLY, lambda target: copy(source, target)),
        )

    @operation
    def direct(self, path: bytes, block: int) -> object:
        """Write a block past the page cache and read all blocks up to it so, as O_DIRECT of open(2) has it."""
        room = mmap.mmap(-1, (block + 1) * _BLOCK_BYTES)  # aligned, as some file systems want it
        room.write(b"direct" * 600)

        def copy(descriptor: int) -> bytes:
            os.pwrite(descriptor, memoryview(room)[:_BLOCK_BYTES], block * _BLOCK_BYTES)
            return room[: os.preadv(descriptor, [room], 0)]

        return self._through(path, os.O_RDWR | os.O_DIRECT, copy)

    @operation
    def holes(self, path: bytes) -> object:
        """Read what lseek(2) calls data and take the rest for zeros: which blocks are holes may differ."""
        return self._through(path, os.O_RDONLY, _read_data)

    @operation
    def mkdir(self, path: bytes, mode: int) -> None:
        """See mkdir(2)."""
        os.mkdir(path, mode)

    @operation
    def rmdir(self, path: bytes) -> None:
        """See rmdir(2)."""
        os.rmdir(path)

    @operation
    def empty(self, path: bytes) -> None:
        """Remove what a directory holds, as far as it is no directory that holds something itself."""
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)

    @operation
    def iterate(self, path: bytes, gone: bytes, made: bytes) -> list[bytes]:
        """List a directory that changes after its first name; return what stood all along, as often as it came."""
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            seen = [_next_name(directory)]
            try:
                os.unlink(gone, dir_fd=directory)
                os.mknod(made, dir_fd=directory)
            except OSError:
                pass
            while name := _next_name(directory):
                seen.append(name)
            return sorted(name for name in seen if name not in (gone, made))
        finally:
            os.close(directory)

    @operation
    def unlink(self, path: bytes) -> None:
        """See unlink(2)."""
        os.unlink(path)

    @operation
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        """See renameat2(2)."""
        raw.renameat2(raw.AT_FDCWD, old, raw.AT_FDCWD, new, flags)

    @operation
    def link(self, old: bytes, new: bytes) -> None:
        """See link(2)."""
        os.link(old, new)

    @operation
    def symlink(self, target: bytes, path: bytes) -> None:
        """See symlink(2)."""
        os.symlink(target, path)

    @operation
    def mknod(self, path: bytes, mode: int, device: int) -> None:
        """See mknod(2)."""
        os.mknod(path, mode, device)

    @operation
    def chmod(self, path: bytes, mode: int) -> None:
        """See chmod(2)."""
        os.chmod(path, mode)

    @operation
    def chown(self, path: bytes, owners: tuple[int, int]) -> None:
        """See lchown(2)."""
        os.lchown(path, *owners)

    @operation
    def utimens(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        """See utimensat(2)."""
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)

    @operation
    def touch(self, path: bytes) -> None:
        """Set both times to the present, which takes less rights than another time."""
        os.utime(path)

    @operation
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        """See lsetxattr(2)."""
        os.setxattr(path, name, value, flags, follow_symlinks=False)

    @operation
    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """See lgetxattr(2)."""
        return os.getxattr(path, name, follow_symlinks=False)

    @operation
    def listxattr(self, path: bytes) -> list[str]:
        """See llistxattr(2)."""
        return sorted(os.listxattr(path, follow_symlinks=False))

    @operation
    def removexattr(self, path: bytes, name: bytes) -> None:
        """See lremovexattr(2)."""
        os.removexattr(path, name, follow_symlinks=False)

    @operation
    def readlink(self, path: bytes) -> bytes:
        """See readlink(2)."""
        return os.readlink(path)

    @operation
    def readdir(self, path: bytes) -> list[tuple[bytes, bool, bool]]:
        """Return names and types."""
        with os.scandir(path) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)

    @operation
    def stat(self, path: bytes) -> tuple[object, ...]:
        """See lstat(2)."""
        return facts(os.lstat(path))

    @operation
    def access(self, path: bytes, mode: int) -> bool:
        """See faccessat(2) with AT_EACCESS, which asks for the ids that setfsuid set as well."""
        return os.access(path, mode, effective_ids=True)

    # by descriptor

    @operation
    def open(self, slot: int, path: bytes, flags: int) -> None:
        """Open and keep; what was open in the slot is closed."""
        self._keep(slot, self._opened(path, flags, 0o666))

    @operation
    def tmpfile(self, slot: int, path: bytes) -> None:
        """Open a nameless file in a directory and keep it."""
        self._keep(slot, os.open(path, os.O_TMPFILE | os.O_RDWR, 0o644))

    def _held(self, slot: int) -> int:
        if slot not in self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._open[slot]

    def _keep(self, slot: int, descriptor: int) -> None:
        self.forget(slot)
        self._open[slot] = descriptor

    @operation
    def close(self, slot: int) -> None:
        """Close what is open in the slot."""
        self._held(slot)
        self.forget(slot)

    @operation
    def fread(self, slot: int, offset: int) -> bytes:
        """See pread(2)."""
        return os.pread(self._held(slot), 65536, offset)

    @operation
    def fwrite(self, slot: int, data: bytes, offset: int) -> int:
        """See pwrite(2)."""
        return os.pwrite(self._held(slot), data, offset)

    @operation
    def fstat(self, slot: int) -> tuple[object, ...]:
        """See fstat(2)."""
        return facts(os.fstat(self._held(slot)))

    @operation
    def ftruncate(self, slot: int, size: int) -> None:
        """See ftruncate(2). Whether the file is dated when its size stays is not compared."""
        before = os.fstat(self._held(slot)).st_size
        os.ftruncate(self._held(slot), size)
        if size == before:
            os.utime(self._held(slot))

    @operation
    def fchmod(self, slot: int, mode: int) -> None:
        """See fchmod(2)."""
        os.fchmod(self._with_attributes(slot), mode)

    @operation
    def fchown(self, slot: int, owners: tuple[int, int]) -> None:
        """See fchown(2)."""
        os.fchown(self._with_attributes(slot), *owners)

    @operation
    def fsetxattr(self, slot: int, name: bytes, value: bytes) -> None:
        """See fsetxattr(2)."""
        os.setxattr(self._with_attributes(slot), name, value)

    def _with_attributes(self, slot: int) -> int:
        """Return a descriptor whose attributes may be changed: overlayfs brings back the name of an unlinked FIFO."""
        held = self._held(slot)
        if not stat.S_ISREG(os.fstat(held).st_mode) and not stat.S_ISDIR(os.fstat(held).st_mode):
            raise OSError(errno.EINVAL, "not asked of special files")
        return held

    @operation
    def flock(self, slot: int, how: int) -> None:
        """See flock(2): the slots of one file are in each other's way."""
        fcntl.flock(self._held(slot), how | fcntl.LOCK_NB)

    @operation
    def lock(self, slot: int, how: int, start: int, length: int) -> None:
        """Lock or unlock a range for this slot alone, see fcntl(2), F_OFD_SETLK."""
        fcntl.fcntl(self._held(slot), _F_OFD_SETLK, _FLOCK.pack(how, os.SEEK_SET, start, length, 0))

    @operation
    def map(self, slot: int) -> None:
        """Map all of the file that is open in the slot, with MAP_SHARED; to write where its descriptor may."""
        held = self._held(slot)
        writable = fcntl.fcntl(held, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        size = os.fstat(held).st_size
        if not (size and stat.S_ISREG(os.fstat(held).st_mode)):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if slot in self._mapped:
            self._mapped.pop(slot).close()
        self._mapped[slot] = mmap.mmap(held, size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)

    @operation
    def mread(self, slot: int) -> bytes | Stale:
        """Return what the mapping of the slot shows, which must be what read(2) says."""
        mapped = self._mapping(slot)
        data = os.pread(self._held(slot), len(mapped), 0)
        with open(os.memfd_create("copy"), "w+b", buffering=0) as copy:  # it fails where looking here is SIGBUS
            try:
                os.pwrite(copy.fileno(), memoryview(mapped)[: len(data)], 0)
            except OSError:
                return Stale()
            return data if os.pread(copy.fileno(), len(data), 0) == data else Stale()

    @operation
    def mwrite(self, slot: int, data: bytes, offset: int) -> object:
        """Change the file through the mapping of the slot; return what read(2) says then. Its date is not compared."""
        mapped, held = self._mapping(slot), self._held(slot)
        room = min(len(mapped), os.fstat(held).st_size) - offset
        if room <= 0 or fcntl.fcntl(held, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        mapped[offset : offset + min(room, len(data))] = data[:room]
        mapped.flush()
        os.utime(held)
        return os.pread(held, 65536, 0)

    def _mapping(self, slot: int) -> mmap.mmap:
        self._held(slot)
        if slot not in self._mapped:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return self._mapped[slot]

    @operation
    def fsync(self, slot: int) -> None:
        """See fsync(2)."""
        os.fsync(self._held(slot))

    @operation
    def freaddir(self, slot: int) -> list[str]:
        """List the directory that is open in the slot."""
        return sorted(os.listdir(self._held(slot)))

    @operation
    def flink(self, slot: int, path: bytes) -> None:
        """Give the file that is open in the slot a name."""
        raw.link_descriptor(self._held(slot), raw.AT_FDCWD, path)

    @operation
    def fmkdir(self, slot: int, name: bytes) -> None:
        """Make a directory in the one that is open in the slot."""
        os.mkdir(name, dir_fd=self._held(slot))


def _read_data(descriptor: int) -> bytes:
    """Return the content of a file, of which only what lseek(2) calls data is read."""
    state = os.fstat(descriptor)
    size = state.st_size if stat.S_ISREG(state.st_mode) else 0
    content = bytearray(size)
    end = 0
    try:
        while end < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            content[start:end] = os.pread(descriptor, end - start, start)
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data is left
            raise
    return bytes(content)


def _next_name(directory: int) -> bytes:
    """Return the next name in an open directory, b"" at its end: all that there is room for. See getdents(2)."""
    room = ctypes.create_string_buffer(_ONE_RECORD_BYTES)
    size = _libc.getdents64(directory, room, _ONE_RECORD_BYTES)
    if size < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return room.raw[_NAME_AT:size].split(b"\0")[0]


def facts(found: os.stat_result) -> tuple[object, ...]:
    """Return what two right file systems agree on, of one file."""
    kind = stat.S_IFMT(found.st_mode)
    own = () if kind == stat.S_IFDIR else (found.st_size, found.st_nlink)
    moment: object = "present" if found.st_mtime_ns in PRESENT_NS else found.st_mtime_ns
    return oct(found.st_mode), found.st_uid, found.st_gid, found.st_rdev, moment, *own


def shown(root: Path) -> Tree:
    """Return a snapshot of the whole tree, with the present left out."""
    return {path: _timeless(entry) for path, entry in snapshot(root).items() if path}


def _timeless(entry: Entry) -> Entry:
    return entry._replace(mtime_ns=0) if entry.mtime_ns in PRESENT_NS else entry
