"""A process that dies at its n-th system call: every call that the package makes to the system is counted.

The functions of ``os`` and of the C library that can change a file system are replaced, in a forked child, by ones that
count and then call the original. At the chosen number the child ends by ``_exit`` instead of making the call, as a
killed server would; the descriptors and locks go with it, and nothing is tidied up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from unionfs.syscalls import _libc, files

if TYPE_CHECKING:
    from collections.abc import Callable

KILLED = 77
BEGIN = "begin"
_OS_CALLS = (
    *("open", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "chmod", "fchmod", "chown", "fchown"),
    *("utime", "truncate", "ftruncate", "setxattr", "removexattr", "fsync", "fdatasync", "copy_file_range", "pwrite"),
)
_LIBC_CALLS = ("renameat2", "linkat", "utimensat", "fallocate")


class Counter:
    """Counts calls, remembers their names, and ends the process at number ``last`` (0: never)."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.calls: list[str] = []

    def begin(self) -> None:
        """Take note that what came before was preparation."""
        self.calls.append(BEGIN)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``call``, counted."""

        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) == self.last:
                os._exit(KILLED)
            return call(*arguments, **options)

        return counted


def install(counter: Counter) -> None:
    """Replace the calls in this process, for good: to be used in a forked child alone."""
    places: list[tuple[Any, str]] = [(os, name) for name in _OS_CALLS]
    places += [(_libc.libc, name) for name in _LIBC_CALLS]
    places += [(files, name) for name in ("_libc_fallocate", "_sync_file_range", "_syscall", "ioctl")]
    for place, name in places:
        setattr(place, name, counter.wrap(name, getattr(place, name)))


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
