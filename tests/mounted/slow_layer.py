"""A file system of one file whose data waits until somebody opens and closes a fifo for writing.

A program of its own, ``python slow_layer.py MOUNTPOINT FIFO``, started by ``test_parallel``. Everything but the data is
answered at once.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import fuse

SIZE = 1 << 20


class SlowLayer(fuse.Operations):  # type: ignore[misc]
    """One directory with the file ``big``, full of "x"."""

    def __init__(self, gate: str) -> None:
        self._gate = gate
        self._is_open = False

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """See stat(2)."""
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path == "/big":
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": SIZE}
        raise fuse.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        """See readdir(3)."""
        return [".", "..", "big"]

    def listxattr(self, path: str) -> list[str]:
        """There are none."""
        return []

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Wait at the gate, once."""
        if not self._is_open:
            with open(self._gate, "rb") as gate:
                gate.read()
            self._is_open = True
        return b"x" * min(size, SIZE - offset)


if __name__ == "__main__":
    fuse.FUSE(SlowLayer(sys.argv[2]), os.path.realpath(sys.argv[1]), foreground=True, allow_other=True)
