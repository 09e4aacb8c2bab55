"""A process that dies at its n-th system call, or whose n-th system call fails: all that the package makes are counted.

The functions of ``os`` and of the C library that can change a file system are replaced by ones that count and then
call the original. At the chosen number a forked child ends by ``_exit`` instead of making the call, as a killed server
would; the descriptors and locks go with it, and nothing is tidied up. Or the call fails once, as on a full disk.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unionfs.syscalls import _libc, files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KILLED = 77
BEGIN = "begin"
_OS_CALLS = (
    *("open", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "chmod", "fchmod", "chown", "fchown"),
    *("utime", "truncate", "ftruncate", "setxattr", "removexattr", "fsync", "fdatasync", "copy_file_range", "pwrite"),
)
_LIBC_CALLS = ("renameat2", "linkat", "utimensat", "fallocate")
_OS_READS = ("stat", "lstat", "fstat", "listdir", "readlink", "getxattr", "listxattr", "pread", "lseek", "access")
_LIBC_READS = ("statx", "name_to_handle_at", "open_by_handle_at", "getxattr")


class Counter:
    """Counts calls and remembers their names; number ``last`` (0: none) ends the process, or fails with ``error``."""

    def __init__(self, last: int, error: int = 0) -> None:
        self.last = last
        self.error = error
        self.calls: list[str] = []

    def begin(self) -> None:
        """Take note that what came before was preparation."""
        self.calls.append(BEGIN)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``call``, counted."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) == self.last:
                if self.error:
                    raise OSError(self.error, os.strerror(self.error))
                os._exit(KILLED)
            return call(*arguments, **options)

        return counted


def _reads() -> list[tuple[Any, str]]:
    return [(os, name) for name in _OS_READS] + [(_libc.libc, name) for name in _LIBC_READS]


def _places() -> list[tuple[Any, str]]:
    places: list[tuple[Any, str]] = [(os, name) for name in _OS_CALLS]
    places += [(_libc.libc, name) for name in _LIBC_CALLS]
    return places + [(files, name) for name in ("_libc_fallocate", "_sync_file_range", "_syscall", "ioctl")]


def install(counter: Counter) -> None:
    """Replace the calls in this process, for good: to be used in a forked child alone."""
    for place, name in _places():
        setattr(place, name, counter.wrap(name, getattr(place, name)))


@contextmanager
def failing(last: int, error: int, *, reads: bool = False) -> Iterator[list[str]]:
    """Let call number ``last`` of this process (0: none) fail with ``error``; yield the calls as they are made.

    Those that only read a file system are counted as well if ``reads``.
    """
    places = _places() + (_reads() if reads else [])
    originals = [(place, name, getattr(place, name)) for place, name in places]
    counter = Counter(last, error)
    for place, name, call in originals:
        setattr(place, name, counter.wrap(name, call))
    try:
        yield counter.calls
    finally:
        for place, name, call in originals:
            setattr(place, name, call)


def run(action: Callable[[Callable[[], None]], None], last: int) -> tuple[bool, list[str]]:
    """Run ``action`` in a child that dies at call ``last``; return whether it came to its end, and the calls it made.

    ``action`` is given a function to call when its preparations are over: that stands in the list as BEGIN.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            counter = Counter(last)
            write, leave = os.write, os._exit
            install(counter)
            action(counter.begin)
            write(writing, " ".join(counter.calls).encode())
            status = 0
        finally:
            leave(status)
    os.close(writing)
    with open(reading, "rb") as stream:
        calls = stream.read().decode().split()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED), f"the child ended with {status} at call {last}"
    return status == 0, calls
