"""The C library, and how its failures become OSError. Used by this package alone."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)

#: True on machines whose system call numbers are those of x86-64 (otherwise: the generic table, as on aarch64).
X86_64 = os.uname().machine == "x86_64"

Path = bytes | str | int | None


def check(result: int, path: Path = None) -> int:
    """Return ``result``, or raise OSError with the thread's errno and ``path`` when it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
