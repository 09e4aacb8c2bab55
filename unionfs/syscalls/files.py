"""System calls on files that Python's ``os`` lacks. Names are bytes, places are descriptors of directories."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from fcntl import ioctl
from struct import Struct

from unionfs.lean import NamedTuple, local
from unionfs.syscalls._libc import X86_64, check, libc

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
CONFINED = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

_SYNC_FILE_RANGE_WRITE_AND_WAIT = 7

FICLONE = 0x40049409
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
ATTRIBUTE_CHANGES = frozenset((FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR))
ATTRIBUTE_IOCTLS = ATTRIBUTE_CHANGES | {FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR}
FS_IOC_GETFSUUID = 0x80111500
_BTRFS_IOC_FS_INFO = 0x8400941F
_BTRFS_IOC_GET_SUBVOL_ROOTREF = 0xD000943D

STATX_BASIC_AND_BTIME = 0xFFF
STATX_ATTR_MOUNT_ROOT = 0x2000
STATX_BTIME = 0x800

_SYS_OPENAT2 = 437
_SYS_CACHESTAT = 451
_SYS_FCHMODAT2 = 452
_SYS_GETDENTS64 = 217 if X86_64 else 61
_PERMISSION_BITS = 0o7777

_OPEN_HOW = Struct("=QQQ")
_TIMESPECS = Struct("=qqqq")
_CACHESTAT = Struct("=5Q")
_WHOLE_FILE = bytes(16)  # struct cachestat_range: from 0 on
_ROOTREFS = Struct("=8x510QB7x")  # struct btrfs_ioctl_get_subvol_rootref_args
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATX = Struct("=IIQIIIHxxQQQQqI4xqI4xqI4xqI4xIIII")
_STATX_ATTRIBUTES = slice(8, 16)
_HANDLE_HEAD = Struct("=Ii")
_STATFS_BYTES = 256  # more than struct statfs has on any architecture; its first member is f_type
OVERLAYFS_MAGIC = 0x794C7630
FUSE_MAGIC = 0x65735546
EXT4_MAGIC = 0xEF53
XFS_MAGIC = 0x58465342
BTRFS_MAGIC = 0x9123683E
TMPFS_MAGIC = 0x01021994
_HANDLE_LIMIT = 128

_DIRENT_BUFFER_BYTES = 32 * 1024
_XATTR_SIZE_MAX = 65536

_syscall = libc.syscall
_syscall.restype = ctypes.c_long


def openat2(directory: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open ``path`` beneath the descriptor ``directory``; see openat2(2). Raises OSError (ENOSYS before Linux 5.6)."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    return check(_syscall(_SYS_OPENAT2, directory, path, how, _OPEN_HOW.size), path)


def getdents(directory: int) -> bytes:
    """Return the next records of struct linux_dirent64 of an open directory, b"" at its end; see getdents(2).

    Each record is filled up with zeros behind its name.
    """
    buffer = _dirents.buffer
    size = check(_syscall(_SYS_GETDENTS64, directory, buffer, _DIRENT_BUFFER_BYTES))
    records = _dirents.view[:size].tobytes()
    ctypes.memset(buffer, 0, size)  # the kernel would leave there what stood there before
    return records


class _Dirents(local):
    """One buffer a thread: while a thread is in the kernel, others list directories as well."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(_DIRENT_BUFFER_BYTES)
        self.view = memoryview(self.buffer).cast("B")


_dirents = _Dirents()


def renameat2(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int = 0) -> None:
    """Rename between two directory descriptors; see renameat2(2). Raises OSError."""
    if not flags:
        os.rename(old, new, src_dir_fd=old_directory, dst_dir_fd=new_directory)
        return
    check(libc.renameat2(old_directory, old, new_directory, new, flags), new)


def fchmodat(directory: int, name: bytes, mode: int) -> None:
    """Change the mode of ``name`` without following a link. fchmodat2(2), Linux 6.6; earlier through O_PATH."""
    mode &= _PERMISSION_BITS
    result = _syscall(_SYS_FCHMODAT2, directory, name, mode, AT_SYMLINK_NOFOLLOW)
    if result == -1 and ctypes.get_errno() == errno.ENOSYS:
        _chmod_through_descriptor(directory, name, mode)
        return
    check(result, name)


def _chmod_through_descriptor(directory: int, name: bytes, mode: int) -> None:
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.chmod(proc_path(descriptor), mode)
    finally:
        os.close(descriptor)


def getxattr(path: bytes, name: bytes) -> bytes:
    """Return an extended attribute of any size by one call (os.getxattr makes two); see getxattr(2). Raises OSError."""
    value = ctypes.create_string_buffer(_XATTR_SIZE_MAX)
    size = check(libc.getxattr(path, name, value, len(value)), path)
    return value.raw[:size]


def proc_path(descriptor: int) -> bytes:
    """Return the path that names an open descriptor of this thread's process, also an O_PATH one (proc(5))."""
    return b"/proc/self/fd/%d" % descriptor


def utimensat(
    directory: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = False
) -> None:
    """Set times as (seconds, nanoseconds), or (0, UTIME_NOW) and (0, UTIME_OMIT); see utimensat(2). Raises OSError."""
    flags = 0 if follow else AT_SYMLINK_NOFOLLOW
    check(libc.utimensat(directory, name, _TIMESPECS.pack(*atime, *mtime), flags), name)


def linkat(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int = 0) -> None:
    """Make a hard link; AT_EMPTY_PATH links the descriptor itself. See linkat(2). Raises OSError."""
    check(libc.linkat(old_directory, old, new_directory, new, flags), new)


def link_descriptor(descriptor: int, directory: int, name: bytes) -> None:
    """Give the open (also O_TMPFILE or O_PATH) file ``descriptor`` the name ``name``. See open(2), O_TMPFILE."""
    linkat(AT_FDCWD, proc_path(descriptor), directory, name, AT_SYMLINK_FOLLOW)


_libc_fallocate = libc.fallocate
_libc_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Manipulate a file's space, ``offset`` and ``length`` in bytes; every mode of fallocate(2). Raises OSError."""
    check(_libc_fallocate(descriptor, mode, offset, length))


def syncfs(descriptor: int) -> None:
    """Write out the whole file system that ``descriptor`` is on; see syncfs(2). Raises OSError."""
    check(libc.syncfs(descriptor))


_sync_file_range = libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def wait_for_data(descriptor: int) -> None:
    """Write out a file's data and wait for that, not for its metadata; see sync_file_range(2). Raises OSError."""
    check(_sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE_AND_WAIT))


def unwritten_bytes(descriptor: int) -> int | None:
    """Return how much of an open file has not reached the disk, None where the kernel does not tell (cachestat(2) of
    Linux 6.5).
    """
    buffer = ctypes.create_string_buffer(_CACHESTAT.size)
    if _syscall(_SYS_CACHESTAT, descriptor, _WHOLE_FILE, buffer, 0):
        return None
    pages: tuple[int, ...] = _CACHESTAT.unpack(buffer)
    return (pages[1] + pages[2]) * _PAGE_BYTES  # nr_dirty, nr_writeback


def clone_file(source: int, target: int) -> None:
    """Make ``target`` share all data of ``source`` (reflink); see ioctl_ficlone(2).

    Raises OSError where that is not to be had.
    """
    ioctl(target, FICLONE, source)


class Statx(NamedTuple):
    """What statx(2) tells, in its order; times are (seconds, nanoseconds) pairs."""

    mask: int
    blksize: int
    attributes: int
    nlink: int
    uid: int
    gid: int
    mode: int
    ino: int
    size_bytes: int
    blocks: int
    attributes_mask: int
    atime: tuple[int, int]
    btime: tuple[int, int]
    ctime: tuple[int, int]
    mtime: tuple[int, int]
    rdev: tuple[int, int]
    dev: tuple[int, int]


def statx(directory: int, name: bytes, mask: int = STATX_BASIC_AND_BTIME) -> Statx:
    """Ask for the extended attributes of ``name`` (b"" for the descriptor itself), never of a link's
    target. statx(2).
    """
    buffer = ctypes.create_string_buffer(256)
    check(libc.statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, mask, buffer), name)
    v = _STATX.unpack_from(buffer)
    pairs = tuple(zip(v[11::2], v[12::2], strict=True))
    return Statx(*v[:11], *pairs)


def statx_attributes(directory: int, name: bytes) -> int:
    """Return the STATX_ATTR_* of ``name`` (b"" for the descriptor itself), without following a link; see statx(2).

    Raises OSError.
    """
    buffer = ctypes.create_string_buffer(256)
    check(libc.statx(directory, name, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, 0, buffer), name)
    return int.from_bytes(buffer.raw[_STATX_ATTRIBUTES], sys.byteorder)


def file_handle(directory: int, name: bytes) -> tuple[int, bytes]:
    """Return (type, bytes) of the file handle of ``name``; see name_to_handle_at(2).

    Raises OSError (EOPNOTSUPP, ENOSYS).
    """
    buffer = ctypes.create_string_buffer(_HANDLE_HEAD.size + _HANDLE_LIMIT)
    _HANDLE_HEAD.pack_into(buffer, 0, _HANDLE_LIMIT, 0)
    mount_id = ctypes.c_int()
    flags = 0 if name else AT_EMPTY_PATH
    check(libc.name_to_handle_at(directory, name, buffer, ctypes.byref(mount_id), flags), name)
    size, kind = _HANDLE_HEAD.unpack_from(buffer)
    return kind, buffer.raw[_HANDLE_HEAD.size : _HANDLE_HEAD.size + size]


def open_handle(mount: int, kind: int, handle: bytes) -> int:
    """Open, with O_PATH, the file that has this handle on the file system of ``mount``; see open_by_handle_at(2).

    Raises OSError (ESTALE: it is gone; EPERM: without CAP_DAC_READ_SEARCH).
    """
    value = _HANDLE_HEAD.pack(len(handle), kind) + handle
    return check(libc.open_by_handle_at(mount, value, os.O_PATH | os.O_CLOEXEC))


def filesystem_type(descriptor: int) -> int:
    """Return the magic number of the file system that an open file is on; see fstatfs(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    check(libc.fstatfs(descriptor, buffer))
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)


def filesystem_uuid(descriptor: int) -> bytes:
    """Return the 16 bytes of the file system's UUID (FS_IOC_GETFSUUID, Linux 6.9). Raises OSError where it has none.

    btrfs has one, but answers a request of its own alone (struct btrfs_ioctl_fs_info_args in <linux/btrfs.h>).
    """
    buffer = bytearray(17)
    try:
        ioctl(descriptor, FS_IOC_GETFSUUID, buffer)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        information = bytearray(1024)
        ioctl(descriptor, _BTRFS_IOC_FS_INFO, information)
        return bytes(information[16:32])
    if buffer[0] != 16:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return bytes(buffer[1:])


def subvolumes_in(descriptor: int) -> list[int]:
    """Return the numbers of the subvolumes that begin in the one that an open file of btrfs is in.

    Anybody may ask (BTRFS_IOC_GET_SUBVOL_ROOTREF, Linux 4.18). Raises OSError.
    """
    found: list[int] = []
    buffer = bytearray(_ROOTREFS.size)
    more = True
    while more:
        try:
            ioctl(descriptor, _BTRFS_IOC_GET_SUBVOL_ROOTREF, buffer)
            more = False
        except OSError as error:
            if error.errno != errno.EOVERFLOW:  # not all of them fit; the buffer says where to go on
                raise
        *pairs, count = _ROOTREFS.unpack(buffer)  # of each its number, and that of the directory it is in
        found += pairs[: 2 * count : 2]
    return found


def attribute_ioctl(descriptor: int, command: int, argument: bytes) -> bytes:
    """Make one of ATTRIBUTE_IOCTLS on an open file; return the bytes that it filled in. Raises OSError (ENOTTY)."""
    size = command >> 16 & 0x3FFF  # _IOC_SIZE of <asm-generic/ioctl.h>
    buffer = bytearray(argument.ljust(size, b"\0"))
    ioctl(descriptor, command, buffer)
    return bytes(buffer)
