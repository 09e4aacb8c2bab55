"""What the cases ask of the system, and how they state what must come back."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from unionfs.syscalls import files as raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = raw.RENAME_NOREPLACE, raw.RENAME_EXCHANGE, raw.RENAME_WHITEOUT
SYMLINK_NOFOLLOW = raw.AT_SYMLINK_NOFOLLOW


def refused(number: int, call: Callable[..., object], *arguments: object, **more: object) -> None:
    """Assert that the call raises OSError with errno ``number``."""
    got = outcome(call, *arguments, **more)
    assert got == number, f"expected {errno.errorcode[number]}, got {errno.errorcode.get(got, 'success')}"


def outcome(call: Callable[..., object], *arguments: object, **more: object) -> int:
    """Return the errno of the call, 0 when it succeeds."""
    try:
        call(*arguments, **more)
    except OSError as error:
        return error.errno or 0
    return 0


@contextmanager
def opened(path: Path | bytes | str, flags: int, mode: int = 0o666, dir_fd: int | None = None) -> Iterator[int]:
    """Give a descriptor that is closed at the end."""
    descriptor = os.open(path, flags, mode, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def mapped(descriptor: int, size: int, protection: int = mmap.PROT_READ | mmap.PROT_WRITE) -> Iterator[mmap.mmap]:
    """Give a shared mapping that is gone at the end: what a failing case leaves behind keeps its mount busy."""
    mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection)
    try:
        yield mapping
    finally:
        mapping.close()


def write_at(path: Path, data: bytes, offset: int = 0) -> None:
    """Open an existing file for writing, write there, close."""
    with opened(path, os.O_WRONLY) as descriptor:
        assert os.pwrite(descriptor, data, offset) == len(data)


def append(path: Path, data: bytes) -> None:
    """Append to an existing file."""
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        assert os.write(descriptor, data) == len(data)


def rename(old: Path, new: Path, flags: int = 0) -> None:
    """See renameat2(2)."""
    raw.renameat2(raw.AT_FDCWD, os.fsencode(old), raw.AT_FDCWD, os.fsencode(new), flags)


def name_it(descriptor: int, path: Path) -> None:
    """Give the file of a descriptor a (further) name, as open(2) tells for O_TMPFILE."""
    raw.link_descriptor(descriptor, raw.AT_FDCWD, os.fsencode(path))


def listing(path: Path) -> list[str]:
    """Return the sorted names of a directory, as readdir gives them."""
    return sorted(os.listdir(path))


def child(function: Callable[[], object], *, user: int = 0, group: int = 0, groups: tuple[int, ...] = ()) -> None:
    """Run ``function`` in a process of its own, with these ids when they are not root's, and fail if it fails.

    The working directory is inherited: a caller may enter it with rights that the child has not.
    """
    pid = os.fork()
    if not pid:
        os._exit(_run_as(function, user, group, groups))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child process failed, see its standard error"


def _run_as(function: Callable[[], object], user: int, group: int, groups: tuple[int, ...]) -> int:
    try:
        if user:
            os.setgroups(groups)
            os.setresgid(group, group, group)
            os.setresuid(user, user, user)
        function()
    except BaseException:  # whatever it is, the parent must hear of it and the child must not go on
        traceback.print_exc()
        return 1
    return 0


@contextmanager
def inside(path: Path) -> Iterator[None]:
    """Make ``path`` the working directory."""
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the file mode creation mask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def inode_flags(descriptor: int) -> int:
    """FS_IOC_GETFLAGS, ioctl_iflags(2)."""
    return int.from_bytes(fcntl.ioctl(descriptor, 0x80086601, bytes(8))[:4], "little")


def set_inode_flags(descriptor: int, flags: int) -> None:
    """FS_IOC_SETFLAGS, ioctl_iflags(2)."""
    fcntl.ioctl(descriptor, 0x40086602, flags.to_bytes(8, "little"))


class Handle(ctypes.Structure):
    """struct file_handle."""

    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def handle_of(path: Path) -> Handle:
    """See name_to_handle_at(2)."""
    handle, mount = Handle(128), ctypes.c_int()
    _check(_libc.name_to_handle_at(raw.AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0))
    return handle


def open_handle(root: int, handle: Handle, flags: int) -> int:
    """See open_by_handle_at(2)."""
    return _check(_libc.open_by_handle_at(root, ctypes.byref(handle), flags))


def xattr_sizes(path: Path, name: bytes, size: int) -> int:
    """Read an xattr into a buffer of ``size`` bytes, where os.getxattr would ask again with a larger one."""
    return _check(_libc.getxattr(os.fsencode(path), name, ctypes.create_string_buffer(size), size))


def _check(result: int) -> int:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Stream:
    """A directory stream of the C library, for what os.scandir does not have: see opendir(3), telldir(3)."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc_pointer("opendir", ctypes.c_char_p)(os.fsencode(path))
        assert self._stream

    def read(self) -> tuple[int, str] | None:
        """Return (d_ino, name) of the next entry, None at the end."""
        entry = _libc_pointer("readdir", ctypes.c_void_p)(self._stream)
        if not entry:
            return None
        return ctypes.c_uint64.from_address(entry).value, ctypes.string_at(entry + 19).decode(errors="surrogateescape")

    def rest(self) -> list[str]:
        """Return the names from here to the end."""
        return [entry[1] for entry in iter(self.read, None)]

    def tell(self) -> int:
        """Return the position, for ``seek``."""
        call = _libc.telldir
        call.argtypes, call.restype = [ctypes.c_void_p], ctypes.c_long
        return int(call(self._stream))

    def seek(self, position: int) -> None:
        """Go back to where ``tell`` was called."""
        _libc.seekdir(ctypes.c_void_p(self._stream), ctypes.c_long(position))

    def rewind(self) -> None:
        """Start anew, with what the directory holds now."""
        _libc.rewinddir(ctypes.c_void_p(self._stream))

    def close(self) -> None:
        """Close the stream."""
        _libc.closedir(ctypes.c_void_p(self._stream))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _libc_pointer(name: str, argument: type) -> Callable[[object], int | None]:
    call = getattr(_libc, name)
    call.argtypes, call.restype = [argument], ctypes.c_void_p
    return call  # type: ignore[no-any-return]
